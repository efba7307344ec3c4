"""The recipe files: values as published, written here by hand; `as_original` sets back what they say they change."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from mexma_train.config import Recipe, as_original, load_recipe

FOLDER = Path(__file__).parents[2] / "train" / "recipes"
LARGE, BASE = (load_recipe(FOLDER / f"mexma_{size}.py") for size in ("large", "base"))

# The training command of facebookresearch/mexma's README and the defaults of its flags; XLM-R's config.json.
PUBLISHED: dict[str, dict[str, Any]] = {
    "mexma": {
        "steps": None,
        "epochs": 3,
        "batch_pairs": 150,
        "batch_tokens": None,
        "accumulation": 2,
        "max_tokens": 200,
        "lr": 0.0001,
        "warmup_share": 0.3,
        "warmup_start": 0.1,
        "weight_decay": 0.0,
        "clip": 1.2,
        "mask_ratio": 0.4,
        "mlm_weight": 1.0,
        "align_weight": 1.0,
        "koleo_weight": 0.01,
        "alignment": "mse",
        "token_gradients": True,
        "contrastive_weight": 0.0,
        "gather_vectors": False,
        "sampled_pieces": 0,
        "freeze_words": False,
        "seed": 42,
    },
    "model": {
        "hidden_size": 1024,
        "layers": 24,
        "heads": 16,
        "intermediate_size": 4096,
        "max_positions": 514,
        "norm_eps": 0.00001,
        "dropout": 0.1,
        "head_layers": 6,
        "head_heads": 8,
        "head_intermediate_size": 3072,
        "head_norm_eps": 0.000000000001,
    },
    "sampling": {"order": "epochs", "bucket": 1, "seed": 42},
}
BASE_SHAPE = {"hidden_size": 768, "layers": 12, "heads": 12, "intermediate_size": 3072}
# section, field: (ours, the original's)
DEVIATIONS = {
    ("mexma", "masks"): ("independent", "shared"),
    ("mexma", "random_pieces"): ("ordinary", "all"),
    ("mexma", "schedule"): ("update", "micro-batch"),
    ("mexma", "reduction"): ("update", "micro-batch"),
    ("mexma", "precision"): ("bf16", "fp16"),
    ("sampling", "distinct_english"): (True, False),
}


def values(recipe: Recipe) -> dict[tuple[str, str], Any]:
    """Every value of the sections that say what is learnt."""
    sections = {name: getattr(recipe, name) for name in ("mexma", "model", "sampling", "tokenizer", "run")}
    return {(name, f.name): getattr(section, f.name) for name, section in sections.items() for f in fields(section)}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_recipe_file_loads(path: Path) -> None:
    assert load_recipe(path).name.replace("-", "_").endswith(path.stem)


def test_the_large_recipe_is_the_published_one() -> None:
    assert LARGE.initial_checkpoint == "FacebookAI/xlm-roberta-large" and LARGE.warmup is None
    for section, expected in PUBLISHED.items():
        for name, value in expected.items():
            assert getattr(getattr(LARGE, section), name) == value, (section, name)


def test_every_value_of_the_mexma_stage_is_either_published_or_a_listed_deviation() -> None:
    # no InfoNCE in it; and no rounding, which the original does not know
    unused = {("mexma", "contrastive_temperature"), ("mexma", "round_bits")}
    assert LARGE.mexma.contrastive_weight == 0 and LARGE.mexma.round_bits == 0
    for key in values(LARGE):
        if key[0] in ("mexma", "model"):
            assert key[1] in PUBLISHED[key[0]] or key in DEVIATIONS or key in unused, key


def test_the_base_recipe_is_the_large_one_but_for_the_shape() -> None:
    assert BASE.initial_checkpoint == "FacebookAI/xlm-roberta-base"
    assert replace(BASE.model, **{name: getattr(LARGE.model, name) for name in BASE_SHAPE}) == LARGE.model
    assert {name: getattr(BASE.model, name) for name in BASE_SHAPE} == BASE_SHAPE
    assert replace(BASE, name=LARGE.name, model=LARGE.model, initial_checkpoint=LARGE.initial_checkpoint) == LARGE


@pytest.mark.parametrize("recipe", [LARGE, BASE], ids=["large", "base"])
def test_as_original_sets_back_every_deviation_and_nothing_else(recipe: Recipe) -> None:
    original = as_original(recipe)
    ours, theirs = values(recipe), values(original)
    assert {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]} == DEVIATIONS
    assert (original.name, original.initial_checkpoint, original.warmup) == (recipe.name, recipe.initial_checkpoint, None)
    assert as_original(original) == original


def test_the_docstring_lists_exactly_the_deviations() -> None:
    text = (FOLDER / "mexma_large.py").read_text(encoding="utf-8").split("`--original` restores:\n")[1].split("\n\n")[0]
    listed = {line.split()[0] for line in text.splitlines() if line.startswith("    ") and line[4] != " "}
    assert listed == {name for _, name in DEVIATIONS}


def test_the_large_recipe_names_81_languages() -> None:
    text = (FOLDER / "mexma_large.py").read_text(encoding="utf-8")
    languages = text.split("as the README evaluates, ")[1].split(".")[0].split()
    assert len(set(languages)) == len(languages) == 80 and "eng" not in languages
