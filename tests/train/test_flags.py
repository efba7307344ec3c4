"""Flags made from the recipe's dataclasses: none missing, each with help, each really applied."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner

import mexma_train.config
from mexma_rt.errors import InputError
from mexma_train.config import MexmaConfig, ModelConfig, RankingConfig, Recipe, SamplingConfig, WarmupConfig
from mexma_train.flags import apply_flags, recipe_fields, recipe_flags

TOY = Recipe(name="toy", mexma=MexmaConfig(steps=10), warmup=WarmupConfig(steps=5), ranking=RankingConfig(steps=3))
COLD = replace(TOY, warmup=None, ranking=None)
SECTIONS = ("mexma", "model", "tokenizer", "sampling", "run", "warmup", "ranking")


@click.command()
@recipe_flags
@click.pass_context
def command(ctx: click.Context, /, **flags: object) -> None:
    ctx.obj.update(flags)


def parse(*words: str) -> dict[str, object]:
    """What click passes for a command line."""
    flags: dict[str, object] = {}
    result = CliRunner().invoke(command, list(words), obj=flags)
    assert result.exit_code == 0, result.output
    return flags


def refused(*words: str) -> str:
    """The message for a command line that click refuses."""
    result = CliRunner().invoke(command, list(words), obj={})
    assert result.exit_code == 2, result.output
    return result.output


def applied(*words: str, to: Recipe = TOY) -> Recipe:
    return apply_flags(to, parse(*words))


def every_field() -> list[tuple[str, str, Any]]:
    """(section, name, type) of each field of each dataclass, straight from config.py."""
    rows = [("", name, hint) for name, hint in typing.get_type_hints(Recipe).items() if name not in SECTIONS]
    for section in SECTIONS:
        kind = getattr(mexma_train.config, f"{section.capitalize()}Config")
        rows += [(section, name, hint) for name, hint in typing.get_type_hints(kind).items()]
    return rows


def option(section: str, name: str) -> str:
    return ("--" + (f"{section}." if section else "") + name).replace("_", "-")


def test_every_field_of_every_dataclass_has_a_flag_with_help() -> None:
    options = {name: o for o in command.params if isinstance(o, click.Option) for name in o.opts}
    expected = [option(section, name) for section, name, _ in every_field()]
    assert sorted([*expected, "--no-warmup", "--no-ranking"]) == sorted(options)
    assert len(expected) > 60
    for name in expected:
        text = (options[name].help or "").split("[recipe's default")[0]
        assert len(text.strip()) > 3, name


def test_a_field_without_annotation_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bare:
        named: Annotated[int, "help"] = 1
        forgotten: int = 2

    Bare.__annotations__.update(named=Annotated[int, "help"], forgotten=int)
    monkeypatch.setattr(mexma_train.config, "RunConfig", Bare)
    with pytest.raises(TypeError, match=r"run\.forgotten has no Annotated help text"):
        list(recipe_fields())


def other_value(hint: Any, now: Any) -> tuple[list[str], Any]:
    """(words of the command line after the flag, the value they stand for): another value than `now`, by type alone."""
    members = [m for m in typing.get_args(hint) if m is not type(None)] if type(None) in typing.get_args(hint) else [hint]
    kind = members[0]
    if typing.get_origin(kind) is Literal:
        value = next(v for v in typing.get_args(kind) if v != now)
        return [value], value
    if typing.get_origin(kind) is dict:
        return ['{"ui": 0.25, "wmt": 2}'], {"ui": 0.25, "wmt": 2.0}
    if kind is int:
        return [str((now or 0) + 3)], (now or 0) + 3
    if kind is float:
        return ["0.125"], 0.125
    assert kind is str, kind
    return ["été"], "été"


@pytest.mark.parametrize(("section", "name", "hint"), every_field(), ids=lambda value: value if isinstance(value, str) else "")
def test_each_flag_changes_its_field_and_no_other(section: str, name: str, hint: Any) -> None:
    recipe = replace(TOY, warmup=None) if name == "initial_checkpoint" else TOY
    before = dataclasses.asdict(recipe)
    now = getattr(getattr(recipe, section) if section else recipe, name)
    flag = option(section, name)
    if hint is bool:
        value: Any = not now
        words = [flag if value else f"--{section}.no-{name}".replace("_", "-")]
    elif hint == tuple[str, ...]:
        value, words = ("a b.tsv", "c.tsv"), [flag, "a b.tsv", flag, "c.tsv"]
    else:
        texts, value = other_value(hint, now)
        words = [flag, *texts]
    after = dataclasses.asdict(applied(*words, to=recipe))
    expected = json.loads(json.dumps(before))
    (expected[section] if section else expected)[name] = value
    if name == "epochs":
        expected["mexma"]["steps"] = None
    expected["run"]["eval_pairs"] = tuple(expected["run"]["eval_pairs"])
    assert after == expected


def test_without_flags_the_recipe_stays_as_it_is() -> None:
    rich = replace(
        COLD,
        mexma=MexmaConfig(epochs=2, batch_tokens=900, token_gradients=False, freeze_words=True),
        sampling=SamplingConfig(source_weights={"a": 2.0}),
        run=replace(COLD.run, eval_pairs=("a.tsv",), tensorboard=True),
        initial_checkpoint="folder",
    )
    for recipe in (TOY, rich):
        assert applied(to=recipe) == recipe
        assert apply_flags(recipe, {}) == recipe


def test_values_that_python_calls_false_are_given_values() -> None:
    recipe = applied("--mexma.koleo-weight", "0", "--model.dropout=0", "--mexma.seed", "0", "--sampling.source-weights", "{}")
    assert (recipe.mexma.koleo_weight, recipe.model.dropout, recipe.mexma.seed) == (0.0, 0.0, 0)
    weighted = replace(TOY, sampling=SamplingConfig(source_weights={"a": 2.0}))
    assert applied("--sampling.source-weights", "{}", to=weighted).sampling.source_weights == {}


def test_a_bool_can_be_set_both_ways() -> None:
    on = replace(TOY, mexma=replace(TOY.mexma, freeze_words=True))
    assert applied("--mexma.no-freeze-words", to=on).mexma.freeze_words is False
    assert applied("--mexma.freeze-words", to=on).mexma.freeze_words is True


def test_the_word_none_takes_a_value_away() -> None:
    recipe = replace(COLD, initial_checkpoint="folder", mexma=replace(COLD.mexma, batch_tokens=900))
    changed = applied("--initial-checkpoint", "none", "--mexma.batch-tokens", "none", to=recipe)
    assert (changed.initial_checkpoint, changed.mexma.batch_tokens) == (None, None)
    tested = replace(TOY, run=replace(TOY.run, eval_pairs=("a.tsv",)))
    assert applied("--run.eval-pairs", "none", to=tested).run.eval_pairs == ()
    assert applied("--name", "none").name == "none"  # a name is never None


def test_steps_and_epochs_take_each_others_place() -> None:
    epochs = applied("--mexma.epochs", "3")
    assert (epochs.mexma.steps, epochs.mexma.epochs) == (None, 3.0)
    assert applied("--mexma.steps", "7", to=epochs).mexma == replace(TOY.mexma, steps=7)
    with pytest.raises(InputError, match=r"mexma\.steps is 7 and mexma\.epochs is 2\.0: give one of them"):
        applied("--mexma.steps", "7", "--mexma.epochs", "2")
    with pytest.raises(InputError, match=r"mexma\.steps is None and mexma\.epochs is None"):
        applied("--mexma.steps", "none")


def test_batch_pairs_take_the_place_of_the_recipes_batch_tokens() -> None:
    tokens = replace(TOY, mexma=replace(TOY.mexma, batch_tokens=900))
    changed = applied("--mexma.batch-pairs", "8", to=tokens).mexma
    assert (changed.batch_pairs, changed.batch_tokens) == (8, None)
    both = applied("--mexma.batch-pairs", "8", "--mexma.batch-tokens", "700", to=tokens).mexma
    assert (both.batch_pairs, both.batch_tokens) == (8, 700)


def test_warmup_is_changed_made_and_removed() -> None:
    assert applied("--warmup.lr", "0.5").warmup == WarmupConfig(steps=5, lr=0.5)
    assert applied("--warmup.steps", "9", "--warmup.lr", "0.5", to=COLD).warmup == WarmupConfig(steps=9, lr=0.5)
    assert applied("--no-warmup").warmup is None
    assert applied("--no-ranking") == replace(TOY, ranking=None)
    assert applied("--ranking.steps", "9", "--ranking.lr", "0.5", to=COLD).ranking == RankingConfig(steps=9, lr=0.5)
    assert applied("--no-warmup", to=COLD) == COLD


def test_contradictions_about_warmup_are_explained() -> None:
    with pytest.raises(InputError, match=r"The recipe has no warmup for --warmup\.batch-pairs: give --warmup\.steps too"):
        applied("--warmup.batch-pairs", "9", to=COLD)
    with pytest.raises(InputError, match=r"The recipe has no ranking for --ranking\.words-lr: give --ranking\.steps too"):
        applied("--ranking.words-lr", "0.1", to=COLD)
    with pytest.raises(InputError, match=r"--no-warmup and --warmup\.steps, --warmup\.lr contradict each other"):
        applied("--no-warmup", "--warmup.lr", "1", "--warmup.steps", "9")
    with pytest.raises(InputError, match="has a warmup and the initial_checkpoint 'folder'"):
        applied("--initial-checkpoint", "folder")
    recipe = applied("--initial-checkpoint", "folder", "--no-warmup")
    assert (recipe.initial_checkpoint, recipe.warmup) == ("folder", None)


def test_what_a_config_refuses_is_refused() -> None:
    with pytest.raises(InputError, match=r"mexma\.mask_ratio is 1\.5; it is a share"):
        applied("--mexma.mask-ratio", "1.5")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mexma.warmup-shar", "1"), "--mexma.warmup-share"),  # click's own suggestion
        (("--mexma.steps", "1.5"), "Invalid value for '--mexma.steps': '1.5' is not a valid integer."),
        (("--mexma.precision", "fp8"), "'fp8' is not one of 'fp32', 'bf16', 'fp16'."),
        (("--sampling.source-weights", "{ui: 1}"), "'{ui: 1}' is not JSON"),
        (("--sampling.source-weights", '{"ui": "1"}'), "is not names with numbers. Type, quotes included: '{\"ui\": 0.25}'"),
        (("--sampling.source-weights", '{"ui": true}'), "is not names with numbers"),
        (("--sampling.source-weights", "[1]"), "is not names with numbers"),
    ],
)
def test_wrong_words_are_refused_with_a_hint(words: tuple[str, ...], message: str) -> None:
    assert message in " ".join(refused(*words).split())


def test_the_help_tells_the_default_of_a_recipe_that_says_nothing() -> None:
    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "--mexma.lr FLOAT peak learning rate [recipe's default: 0.0001]" in text
    assert "--model.layers INTEGER encoder layers [recipe's default: 24]" in text
    assert "--mexma.no-token-gradients ablation" in text and "only through sentence vectors [recipe's default: yes]" in text
    assert "--warmup.steps INTEGER number of updates --warmup.batch-pairs" in text  # has none
    assert ModelConfig().layers == 24
