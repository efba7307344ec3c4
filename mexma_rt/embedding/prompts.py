"""Prompts that a model expects before its texts: "query: " before a search, "passage: " before what is searched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mexma_rt.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from mexma_rt.bundle import Bundle
    from mexma_rt.embedding.encoder import Encoder
    from mexma_rt.embedding.report import Embedded


def named_prompt(prompts: Mapping[str, str], name: str | None) -> str:
    """Return the text of a model's prompt; "" for None. Raises InputError for an unknown name."""
    if name is None:
        return ""
    if name not in prompts:
        has = f"has the prompts {', '.join(map(repr, prompts))}" if prompts else "has no prompts"
        raise InputError(
            f"prompt={name!r}: this model {has}. Name one of its own, or leave it out; you can also prepend your own text to "
            "the texts."
        )
    return prompts[name]


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """An encoder that puts one of its model's prompts before every text: what `mine`, `score_pairs`, `filter_bitext`,
    `calibrate` and `align_documents` take as an encoder. Made by `Encoder.with_prompt`."""

    encoder: Encoder
    prompt: str  # its name

    @property
    def bundle(self) -> Bundle:
        """The encoder's bundle."""
        return self.encoder.bundle

    @property
    def max_length(self) -> int:
        """The encoder's limit in tokens, for the prompt and the text together."""
        return self.encoder.max_length

    def embed(self, texts: Iterable[str], **options: Any) -> np.ndarray:
        """`Encoder.embed` with the prompt."""
        return self.encoder.embed(texts, **options, prompt=self.prompt)

    def embed_report(self, texts: Iterable[str], **options: Any) -> Embedded:
        """`Encoder.embed_report` with the prompt."""
        return self.encoder.embed_report(texts, **options, prompt=self.prompt)


def with_own_prompt(options: Mapping[str, Any], prompts: Mapping[str, str], name: str) -> dict[str, Any]:
    """Add the model's prompt of this name, if any, to options of `encode`, unless they already choose a prompt.

    There is no fallback for "document": sentence-transformers looks for "passage" next, but gives every model an empty
    "document", so documents get no prompt if the model only has "passage".
    """
    if {"prompt", "prompt_name"} & options.keys():
        return dict(options)
    return {**options, "prompt": prompts.get(name)}
