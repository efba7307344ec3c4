"""Every field of a recipe as a flag of `mexma-train run`: `--mexma.lr 3e-4`, `--model.layers 6`, `--no-warmup`.

The flags are made from the dataclasses of config.py: a field's annotation gives the help and the type that the flag accepts.
A flag that is not given leaves the recipe as it is, so no flag has a default of its own.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import click

from mexma_rt.errors import InputError
from mexma_train.config import RankingConfig, Recipe, WarmupConfig, union_members

Command = TypeVar("Command", bound=Callable[..., object])
if TYPE_CHECKING:
    ParamType: TypeAlias = click.ParamType[Any]
else:
    ParamType = click.ParamType  # it is not generic in click 8.1

OPTIONAL = {"warmup": "warm start", "ranking": "ranking stage"}  # stages that a recipe may leave out
NONE = "none"  # the word for None in `X | None`, and for an empty list in `tuple[str, ...]`

# A flag for the first of each pair unsets the second: with both, the flag would be refused or have no effect.
INSTEAD_OF = {
    ("mexma", "steps"): "epochs",
    ("mexma", "epochs"): "steps",
    ("mexma", "batch_pairs"): "batch_tokens",
}


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One field of a recipe. `section` is the nested config it belongs to, "" for the recipe's own fields."""

    section: str
    name: str
    kind: Any  # the field's type without Annotated
    help: str
    default: Any  # of the dataclass; MISSING if a recipe must set it

    @property
    def key(self) -> str:
        """Name of the keyword in which click passes the value."""
        return f"{self.section}__{self.name}" if self.section else self.name

    @property
    def option(self) -> str:
        """The flag as a user types it."""
        return "--" + f"{self.section}.{self.name}".lstrip(".").replace("_", "-")


def recipe_fields() -> Iterator[Flag]:
    """Yield the flags in the order of config.py. Raises TypeError for a field that config.py forgot to annotate with help."""
    for section, kind, default in _fields(Recipe):
        nested = [t for t in union_members(kind) if dataclasses.is_dataclass(t)]
        if nested:
            for name, hint, default in _fields(nested[0]):  # type: ignore[arg-type]
                yield _flag(section, name, hint, default)
        else:
            yield _flag("", section, kind, default)


def recipe_flags(command: Command) -> Command:
    """Decorator: adds an option for every field of a recipe. The command gets them as keywords; see `apply_flags`."""
    for section, name in OPTIONAL.items():
        help_text = f"Skip the {name}, even if the recipe has one."
        command = click.option(f"--no-{section}", f"no_{section}", is_flag=True, default=None, help=help_text)(command)
    for flag in reversed(list(recipe_fields())):  # click shows the option added last first
        command = _option(flag)(command)
    return command


def run_flags(command: Command) -> Command:
    """Decorator: adds the options of RunConfig alone, which may change at a resume."""
    for flag in reversed([flag for flag in recipe_fields() if flag.section == "run"]):
        command = _option(flag)(command)
    return command


def apply_flags(recipe: Recipe, flags: Mapping[str, object]) -> Recipe:
    """Return the recipe with the given values replacing its own; `flags` is what click passed for `recipe_flags`.

    A flag of `warmup` or `ranking` adds that stage to a recipe without it, and then needs the stage's `steps` too. Raises
    InputError for values that a config refuses, and for flags that contradict each other.
    """
    given: dict[str, dict[str, Any]] = {}
    for flag in recipe_fields():
        value = flags.get(flag.key)
        if value is not None and value != ():  # what click passes for a flag that is not given
            given.setdefault(flag.section, {})[flag.name] = _plain(flag, value)
    for (section, name), other in INSTEAD_OF.items():
        values = given.get(section, {})
        if values.get(name) is not None and other not in values:
            values[other] = None
    changes = given.pop("", {})
    for section in OPTIONAL:
        values, own = given.pop(section, {}), getattr(recipe, section)
        if flags.get(f"no_{section}"):
            if values:
                raise InputError(
                    f"--no-{section} and {_options(section, values)} contradict each other. Leave one of them out."
                )
            changes[section] = None
        elif values and own is not None:
            changes[section] = replace(own, **values)
        elif values:
            if "steps" not in values:
                raise InputError(
                    f"The recipe has no {section} for {_options(section, values)}: give --{section}.steps too to add one."
                )
            changes[section] = (WarmupConfig if section == "warmup" else RankingConfig)(**values)
    for section, values in given.items():
        changes[section] = replace(getattr(recipe, section), **values)
    return replace(recipe, **changes)


def _options(section: str, names: Iterable[str]) -> str:
    return ", ".join(f"--{section}.{name}".replace("_", "-") for name in names)


def _fields(kind: type) -> Iterator[tuple[str, Any, Any]]:
    """(name, type including Annotated, default) of each field of a dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        yield field.name, hints[field.name], default


def _flag(section: str, name: str, hint: Any, default: Any) -> Flag:
    if typing.get_origin(hint) is not Annotated or not isinstance(hint.__metadata__[0], str):
        raise TypeError(f"{section}.{name} has no Annotated help text in config.py".lstrip("."))
    return Flag(section=section, name=name, kind=hint.__origin__, help=hint.__metadata__[0], default=default)


def _option(flag: Flag) -> Callable[[Command], Command]:
    """The click option of a field. default=None means "as in the recipe"; the help shows the dataclass's own default."""
    text = flag.help if flag.default in (MISSING, None, (), {}) else f"{flag.help}  [recipe's default: {_shown(flag.default)}]"
    if flag.kind is bool:
        negative = f"--{flag.section}.no-{flag.name}".replace("_", "-")
        return click.option(f"{flag.option}/{negative}", flag.key, default=None, help=text)
    items = typing.get_args(flag.kind)[0] if typing.get_origin(flag.kind) is tuple else None  # tuple[str, ...]: repeat the flag
    return click.option(
        flag.option, flag.key, default=None, multiple=items is not None, type=_click_type(items or flag.kind), help=text
    )


def _shown(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _click_type(kind: Any) -> ParamType:
    members = [m for m in union_members(kind) if m is not types.NoneType]
    if len(members) < len(union_members(kind)):
        return _OrNone(_click_type(members[0]))
    if typing.get_origin(kind) is Literal:
        return click.Choice(typing.get_args(kind))
    if typing.get_origin(kind) is dict:
        return _Weights()
    simple: dict[Any, ParamType] = {int: click.INT, float: click.FLOAT, str: click.STRING}
    return simple[kind]


def _plain(flag: Flag, value: Any) -> Any:
    """click's value converted to the dataclass's type."""
    if value == NONE and types.NoneType in union_members(flag.kind):
        return None
    if typing.get_origin(flag.kind) is tuple:
        return () if value == (NONE,) else tuple(value)
    return value


class _OrNone(ParamType):
    """A type, or the word `none`, which only `apply_flags` turns into None: to click, None means "not given"."""

    def __init__(self, inner: ParamType) -> None:
        self.inner, self.name = inner, f"{inner.name}|none"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        return NONE if value == NONE else self.inner.convert(value, param, ctx)


class _Weights(ParamType):
    """dict[str, float] as JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> object:
        if isinstance(value, dict):
            return value
        try:
            weights = json.loads(value)
        except json.JSONDecodeError as error:
            self.fail(f"{value!r} is not JSON ({error}). Type, quotes included: '{{\"ui\": 0.25}}'", param, ctx)
        numbers = isinstance(weights, dict) and all(type(w) in (int, float) for w in weights.values())
        if not numbers:
            self.fail(f"{value!r} is not names with numbers. Type, quotes included: '{{\"ui\": 0.25}}'", param, ctx)
        return {name: float(weight) for name, weight in weights.items()}
