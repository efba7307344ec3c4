"""Arguments as they come from users, checked before any work: a bad one is named, by its index if it has one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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


def check_vectors(vectors: np.ndarray, name: str) -> np.ndarray:
    """Return vectors as an array [n, D] of real, finite numbers that fit float32, or raise InputError naming what is wrong."""
    array = np.asarray(vectors)
    if array.ndim != 2 or array.shape[1] == 0:
        raise InputError(f"{name} has shape {array.shape}, but vectors are needed as [sentences, dimensions].")
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} has type {array.dtype}, but vectors are real numbers (float32, float16 or float64).")
    for start in range(0, len(array), 65536):
        with np.errstate(over="ignore"):  # a float64 beyond float32 turns into infinity and is reported below
            block = np.asarray(array[start : start + 65536], np.float32)
        bad = ~np.isfinite(block).all(axis=1)
        if bad.any():
            raise InputError(
                f"{name} has NaN or infinity in row {start + int(bad.argmax())} (counted from 0). "
                "Remove that row or embed its text again."
            )
    return array


def check_dimensions(x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> None:
    """Raise InputError unless x [n, D] and y [m, D] agree in D."""
    check_dimensions_of(x.shape, y.shape, x_name, y_name)


def check_dimensions_of(x: tuple[int, ...], y: tuple[int, ...], x_name: str, y_name: str) -> None:
    """The same of shapes."""
    if x[1] != y[1]:
        raise InputError(
            f"{x_name} has shape {x} and {y_name} {y}: the dimensions {x[1]} and {y[1]} differ. "
            "Embed both sides with the same model and the same truncate_dim."
        )


def check_k(k: int, sizes: dict[str, int], what: str) -> None:
    """Raise InputError unless k is a whole number of at least 1 and each side (name -> number of `what`) has k to find."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k={k!r}, but the number of neighbours is a whole number of at least 1, such as k=4.")
    for name, size in sizes.items():
        if size == 0:
            raise InputError(f"{name} is empty: there is nothing to compare with. Give at least k={k} {what} on each side.")
    for name, size in sizes.items():
        if size < k:
            raise InputError(
                f"{name} has {size} {what}, too few to find k={k} neighbours among them. "
                f"Type k={min(sizes.values())} or give more."
            )


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise InputError unless value is one of choices."""
    if value not in choices:
        raise InputError(f"{name}={value!r} is not known. Type one of: {', '.join(choices)}.")


def check_count(name: str, value: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}={value!r} must be a whole number of at least 1.")
    return int(value)
