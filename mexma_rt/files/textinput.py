"""Texts as they come from users: checked one by one before any work, so that a bad one is named by its index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from mexma_rt.errors import InputError


def check_texts(texts: Iterable[str], name: str = "texts") -> list[str]:
    """Return the texts as a list, or raise InputError saying what is wrong, at which index, and what to type.

    Any iterable of str with an order is accepted: list, tuple, generator, numpy array or pandas Series. Empty and blank
    strings are texts. Lone surrogates are refused, because they are no Unicode text and could only be changed in silence.
    """
    if isinstance(texts, str):
        raise InputError(f"{name} is a single str, but a list of sentences is needed. Type [text] instead of text.")
    if isinstance(texts, (set, frozenset, Mapping)):
        raise InputError(f"{name} is a {type(texts).__name__}, but a list of sentences is needed. Type list(...) of it.")
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, Iterable):
        raise InputError(f"{name} is of type {type(texts).__name__}, but a list of sentences (str) is needed.")
    if isinstance(texts, np.ndarray) and texts.ndim != 1:
        raise InputError(f"{name} is an array of shape {texts.shape}, but sentences [n] are needed. Type array.ravel().")
    items = list(texts)
    for index, text in enumerate(items):
        if not isinstance(text, str):
            raise InputError(_not_a_string(name, index, text))
        if not text.isascii():  # isascii reads one flag, so the common case costs nothing
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{name}[{index}] contains a lone surrogate (U+{ord(text[error.start]):04X} at character "
                    f"{error.start}), which is no Unicode text. Type "
                    "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') to repair it."
                ) from None
    return items


def _not_a_string(name: str, index: int, item: object) -> str:
    message = f"{name}[{index}] is of type {type(item).__name__}, but each sentence must be a str."
    if item is None or (isinstance(item, float) and np.isnan(item)):  # NaN: how a pandas Series says missing
        return f"{message} It is a missing value: drop it, or type '' for an empty sentence."
    if isinstance(item, (bytes, bytearray)):
        return f"{message} Type item.decode('utf-8')."
    return message
