"""Texts as users give them: what is accepted, and the message for everything that is not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from mexma_rt import InputError
from mexma_rt.checks import check_texts


@pytest.mark.parametrize(
    "texts",
    [
        ["a", "b"],
        ("a", "b"),
        (letter for letter in "ab"),
        np.array(["a", "b"]),
        np.array(["a", "b"], dtype=object),
        {"a": 1, "b": 2}.keys(),
    ],
    ids=["list", "tuple", "generator", "numpy", "numpy-object", "keys"],
)
def test_ordered_iterables_of_str_are_accepted(texts: Any) -> None:
    assert check_texts(texts) == ["a", "b"]


@pytest.mark.parametrize("texts", [[], ["", " \t\n"], ["nul\0byte"], ["a" * 1_000_000], ["\n" * 100_000], ["é€𝄞"]])
def test_unusual_texts_are_texts(texts: Any) -> None:
    assert check_texts(texts) == texts


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("Hello", "texts is a single str, but a list of sentences is needed. Type [text] instead of text."),
        (None, "texts is of type NoneType, but a list of sentences (str) is needed."),
        (7, "texts is of type int, but a list of sentences (str) is needed."),
        (b"Hello", "texts is of type bytes, but a list of sentences (str) is needed."),
        ({"a"}, "texts is a set, but a list of sentences is needed. Type list(...) around it."),
        ({"a": "b"}, "texts is a dict, but a list of sentences is needed. Type list(texts.values())."),
        (np.array("a"), "texts is an array of shape (), but sentences [n] are needed."),
        (np.array([["a"]]), "texts is an array of shape (1, 1), but sentences [n] are needed."),
        (["a", 5], "texts[1] is of type int, but each sentence must be a str."),
        (["a", ["b"]], "texts[1] is of type list, but each sentence must be a str."),
        (["a", np.array([1, 2])], "texts[1] is of type ndarray, but each sentence must be a str."),
        (["a", None], "texts[1] is of type NoneType, but each sentence must be a str. It is a missing value: drop it"),
        (["a", float("nan")], "texts[1] is of type float, but each sentence must be a str. It is a missing value"),
        ([b"a"], "texts[0] is of type bytes, but each sentence must be a str. Type item.decode('utf-8')."),
        (
            ["ok", "ab\ud800c"],
            "texts[1] contains a lone surrogate (U+D800 at character 2), which is not valid Unicode. Type "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') to repair it.",
        ),
    ],
)
def test_anything_else_is_named(texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        check_texts(texts)


def test_the_repair_of_surrogates_that_the_message_offers_works() -> None:
    repaired = "ab\ud800c".encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert check_texts([repaired]) == ["ab\ufffdc"]


def test_the_argument_is_named_as_the_caller_names_it() -> None:
    with pytest.raises(InputError, match=r"^src\[0\] is of type int"):
        check_texts([1], "src")  # type: ignore[list-item]
