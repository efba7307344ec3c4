"""Recipes as data: there and back through JSON, and what a recipe refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_rt.errors import FileError, InputError
from mexma_train.config import (
    MexmaConfig,
    Recipe,
    RunConfig,
    SamplingConfig,
    WarmupConfig,
    as_original,
    load_recipe,
    recipe_from_dict,
    recipe_to_dict,
)

RECIPES = sorted((Path(__file__).parents[2] / "train" / "recipes").glob("*.py"))
TOY = Recipe(name="toy", mexma=MexmaConfig(steps=10))


def through_json(recipe: Recipe) -> Recipe:
    return recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe))))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_survives_json(path: Path) -> None:
    recipe = load_recipe(path)
    assert through_json(recipe) == recipe
    assert through_json(as_original(recipe)) == as_original(recipe)


@given(
    weights=st.dictionaries(st.text(max_size=5), st.floats(0, 10)),
    pairs=st.lists(st.text(max_size=5)),
    epochs=st.floats(0.1, 9),
    warmup=st.none() | st.builds(WarmupConfig, steps=st.integers(1, 9), lr=st.floats(1e-6, 1)),
)
def test_any_values_survive_json(
    weights: dict[str, float], pairs: list[str], epochs: float, warmup: WarmupConfig | None
) -> None:
    recipe = Recipe(
        name="any",
        mexma=MexmaConfig(epochs=epochs),
        sampling=SamplingConfig(source_weights=weights),
        run=RunConfig(eval_pairs=tuple(pairs)),
        warmup=warmup,
        initial_checkpoint=None if warmup else "folder",
    )
    again = through_json(recipe)
    assert again == recipe
    assert isinstance(again.run.eval_pairs, tuple) and type(again.warmup) is type(warmup)


def test_names_that_no_recipe_has_are_refused() -> None:
    data = recipe_to_dict(TOY)
    with pytest.raises(InputError, match=r"Recipe has no batchsize: the run was written by another version"):
        recipe_from_dict(data | {"batchsize": 3})
    data["mexma"] |= {"learning_rate": 1, "beta": 2}
    with pytest.raises(InputError, match="MexmaConfig has no beta, learning_rate: the run was written by another version"):
        recipe_from_dict(data)


def test_what_is_missing_gets_its_default() -> None:
    assert recipe_from_dict({"name": "toy", "mexma": {"steps": 10}}) == TOY


def test_steps_and_epochs_exclude_each_other() -> None:
    with pytest.raises(InputError, match=r"mexma\.steps is 3 and mexma\.epochs is 2: give one of them, for example steps=1000"):
        MexmaConfig(steps=3, epochs=2)
    with pytest.raises(InputError, match=r"mexma\.steps is None and mexma\.epochs is None: give one of them"):
        MexmaConfig()


def test_a_warm_start_and_a_checkpoint_exclude_each_other() -> None:
    with pytest.raises(InputError, match=r"has a warmup and the initial_checkpoint 'folder'.*Keep one of them"):
        replace(TOY, warmup=WarmupConfig(steps=1), initial_checkpoint="folder")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_pairs", 0, r"mexma\.batch_pairs is 0; it must be at least 1"),
        ("accumulation", -1, r"mexma\.accumulation is -1; it must be at least 1"),
        ("mask_ratio", 1.0, r"mexma\.mask_ratio is 1\.0; it is a share from 0 up to 1, for example 0\.4"),
        ("mask_ratio", -0.1, r"mexma\.mask_ratio is -0\.1; it is a share"),
        ("mask_ratio", float("nan"), r"mexma\.mask_ratio is nan; it is a share"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TOY.mexma, **{name: value})  # type: ignore[arg-type]  # whatever the field is of


def test_recipe_files_that_are_none_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no\.py is not a file\. Recipes are Python files that define RECIPE"):
        load_recipe(tmp_path / "no.py")
    (tmp_path / "empty.py").write_text("RECIPE = {'name': 'x'}\n")
    with pytest.raises(InputError, match=r"defines no RECIPE = Recipe\(\.\.\.\)\. Start from a copy of train/recipes/mini\.py"):
        load_recipe(tmp_path / "empty.py")
    for text, message in {
        "\nfrom mexma_train.config import *\nRECIPE = Recipe(name='x')\n": r"line 3: TypeError: Recipe.* 'mexma'.*mini\.py",
        "RECIPE = (\n": r"line 1: SyntaxError",
        "import no_such_module\n": r"line 1: ModuleNotFoundError: No module named 'no_such_module'",
    }.items():
        (tmp_path / "broken.py").write_text(text)
        with pytest.raises(InputError, match=rf"broken\.py, {message}"):
            load_recipe(tmp_path / "broken.py")
