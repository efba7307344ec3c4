from __future__ import annotations

import numpy as np
import pytest

from mexma_export import useful


def test_usefulness_is_half_the_text_and_half_the_scores() -> None:
    """By hand: file one has shares 3/4, 1/4, 0, file two 0, 0, 1; scores log 0.5, log 0.25, log 0.25; the first is special."""
    counts = np.array([[0, 30, 10, 0], [0, 0, 0, 7]])
    scores = np.array([0.0, *np.log([0.5, 0.25, 0.25])])
    np.testing.assert_allclose(useful.usefulness(counts, scores), [0, 0.375 / 2 + 0.25, 0.125 / 2 + 0.125, 0.25 + 0.125])
    np.testing.assert_allclose(useful.usefulness(counts[:0], scores), [0, 0.5, 0.25, 0.25])


def test_a_script_that_no_file_uses_counts_as_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: one file, all of it the Latin piece; Lao has 1/4 + 1/4 of the scores, so 1/2 of each in a row of its own."""
    monkeypatch.setattr(useful, "SCRIPT_PIECES", 2)
    counts, scores = np.array([[0, 8, 0, 0]]), np.array([0.0, *np.log([0.5, 0.25, 0.25])])
    pieces = ["<s>", "\u2581the", "\u0e81", "\u2581\u0e82"]
    found = useful.usefulness(counts, scores, pieces)
    np.testing.assert_allclose(found, [0, 0.5 / 2 + 0.25, 0.25 / 2 + 0.125, 0.25 / 2 + 0.125])
    seen = useful.usefulness(np.array([[0, 8, 1, 0]]), scores, pieces)  # a file that is written in it speaks for it
    np.testing.assert_allclose(seen, [0, 8 / 9 / 2 + 0.25, 1 / 9 / 2 + 0.125, 0.125])


def test_scripts() -> None:
    assert [useful.script_of(piece) for piece in ("\u2581the", "\u0e81", "\u4e00", "\u2581123", "")] == [
        "LATIN",
        "LAO",
        "CJK",
        "",
        "",
    ]
