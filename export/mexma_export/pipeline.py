"""Reads how a model's owner computes sentence vectors from the files that sentence-transformers writes beside the encoder.

modules.json names the steps after the encoder (pooling, dense layers, normalisation); other files give the maximum length and
the prompts. A folder without modules.json uses the last state of the first token, normalised, as MEXMA does. Anything unknown
is an error that names it, since leaving out a step would make a different model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mexma_export.head import Dense, Head, read_dense
from mexma_rt.errors import BundleError

MODULES, POOLING_FOLDER, PROMPTS = "modules.json", "1_Pooling", "config_sentence_transformers.json"
KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
SETTINGS = tuple(f"sentence_{kind}_config.json" for kind in KINDS)  # names of the encoder's settings, the current one first
MODES = {  # flags of old versions -> names in new ones
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SHORTEST = 3  # tokens: <s>, one piece, </s>
COPY = "Copy the whole folder again, with its subfolders."


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What happens to texts before the encoder, and to states after it."""

    encoder: Path  # folder of config.json, weights and tokenizer
    poolings: tuple[str, ...] = ("cls",)  # several are concatenated
    dense: tuple[Dense, ...] = ()  # after the pooling
    include_prompt: bool = True  # False: pooling leaves out the prompt's tokens
    normalize: bool = True
    max_length: int | None = None  # tokens, special ones included; None: not specified
    lower_case: bool = False  # texts are converted to lower case before tokenisation
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None  # name of the prompt that every text gets

    @property
    def head(self) -> Head:
        """The steps that the graphs compute after the encoder; defined only for a single pooling out of POOLINGS."""
        return Head(pooling=self.poolings[0], dense=self.dense)


def read_pipeline(folder: Path) -> Pipeline:
    """Read the pipeline of a folder. Raises BundleError for unreadable files and unknown steps."""
    path = folder / MODULES
    if not path.is_file():
        if (folder / POOLING_FOLDER).is_dir():
            raise BundleError(
                f"{folder} has a folder {POOLING_FOLDER} but no {MODULES}, so nothing says how this model computes sentence "
                f"vectors. {COPY}"
            )
        return Pipeline(encoder=folder)
    try:
        modules = [(_kind(str(m["type"])), folder / str(m["path"])) for m in json.loads(path.read_text("utf-8"))]
        kinds = [kind for kind, _ in modules]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    _check_order(path, kinds)
    try:
        poolings = [_read(place / "config.json") for kind, place in modules if kind == "Pooling"]
        dense = [(place, _read(place / "config.json")) for kind, place in modules if kind == "Dense"]
        encoder = next((place for kind, place in modules if kind == "Transformer"), folder)
        settings = next((_read(encoder / name) for name in SETTINGS if (encoder / name).is_file()), {})
        said = _read(folder / PROMPTS) if (folder / PROMPTS).is_file() else {}
        prompts = {str(name): str(text) for name, text in (said.get("prompts") or {}).items() if text}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    default = said.get("default_prompt_name")
    if default is not None and default not in (said.get("prompts") or {}):
        raise BundleError(
            f"{folder / PROMPTS}: default_prompt_name is {default!r}, but the prompts are {', '.join(prompts) or 'none'}. "
            f"{COPY}"
        )
    return Pipeline(
        encoder=encoder,
        poolings=_poolings(poolings[0]),
        dense=tuple(read_dense(place, config) for place, config in dense),
        include_prompt=bool(poolings[0].get("include_prompt", True)),
        normalize="Normalize" in kinds,
        max_length=_length(encoder, settings),
        lower_case=bool(settings.get("do_lower_case", False)),
        prompts=prompts,
        default_prompt=default if prompts.get(default or "") else None,
    )


def _unreadable(path: Path, error: Exception) -> BundleError:
    return BundleError(
        f"{path}: the pooling that it describes cannot be read ({error}), so nothing says how this model computes sentence "
        f"vectors. {COPY}"
    )


def _kind(name: str) -> str:
    """Return "Pooling" for sentence-transformers' Pooling, wherever its version has that class; other names are kept whole."""
    package, _, rest = name.partition(".")
    return rest.rsplit(".", 1)[-1] if package == "sentence_transformers" else name


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TypeError(f"{path.name} is not a JSON object")
    return content


def _check_order(path: Path, kinds: list[str]) -> None:
    if unknown := sorted(set(kinds) - {"Transformer", "Pooling", "Dense", "Normalize"}):
        raise BundleError(
            f"{path} names the module {unknown[0]}, which this export does not support: its vectors would differ from the "
            "model's. Supported are an encoder, a pooling, dense layers and normalisation."
        )
    if not re.fullmatch("Transformer Pooling( Dense)*( Normalize)?", " ".join(kinds)):
        raise BundleError(
            f"{path} has the modules {', '.join(kinds) or 'none'} in this order. Supported are one Transformer, one Pooling, "
            "any number of Dense, and optionally Normalize."
        )


def _poolings(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the poolings, from pooling_mode of new versions or from the flags of old ones."""
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        return (named,) if isinstance(named, str) else tuple(map(str, named))
    return tuple(MODES.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True)


def _length(encoder: Path, settings: Mapping[str, Any]) -> int | None:
    """Return the owner's maximum length in tokens, from the encoder's settings or the tokenizer's; None if there is none."""
    length = settings.get("max_seq_length")
    path = encoder / "tokenizer_config.json"
    if length is None and path.is_file():
        try:
            length = _read(path).get("model_max_length")
        except (OSError, ValueError, TypeError) as error:
            raise BundleError(f"{path} cannot be read ({error}). {COPY}") from error
    if length is not None and (type(length) not in (int, float) or length < SHORTEST):
        raise BundleError(
            f"{encoder}: its settings cut texts after {length!r} tokens, but at least {SHORTEST} are needed: the first and "
            f"last special tokens and one piece. {COPY}"
        )
    return int(length) if length is not None and length < 10**9 else None  # 10**30 means no limit
