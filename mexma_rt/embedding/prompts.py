"""Texts that a model wants before its texts: "query: " before a search, "passage: " before what is searched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mexma_rt.errors import InputError


def named_prompt(prompts: Mapping[str, str], name: str | None) -> str:
    """The text of a model's prompt; "" for None. Raises InputError for a name that it has not."""
    if name is None:
        return ""
    if name not in prompts:
        has = f"has the prompts {', '.join(map(repr, prompts))}" if prompts else "has no prompts"
        raise InputError(
            f"prompt={name!r}: this model {has}. Name one of its own, or leave it out; a text of yours can stand before the "
            "texts themselves."
        )
    return prompts[name]


def with_own_prompt(options: Mapping[str, Any], prompts: Mapping[str, str], name: str) -> dict[str, Any]:
    """Options of `encode` with the model's prompt of this name, if it has one, unless they say which prompt they want.

    No other name stands in for "document": sentence-transformers looks for "passage" next, but gives every model an empty
    "document", and so no prompt to the documents of a model that has "passage" alone.
    """
    if {"prompt", "prompt_name"} & options.keys():
        return dict(options)
    return {**options, "prompt": prompts.get(name)}
