"""Document alignment: costs against the formula by hand, whole alignments on made documents, linear time, and bad input."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mexma_rt
from mexma_rt import Bead, InputError, align_documents
from mexma_rt.align.beads import Costs, halve, random_distances, spread


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made(
    n: int, seed: int = 0, dimensions: int = 32, noise: float = 0.5, drop: float = 0.0
) -> tuple[np.ndarray, np.ndarray, set[tuple[int, int]]]:
    """Two sides of a document as vectors, and the pairs: each side keeps a sentence with probability 1 - drop."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, dimensions))
    sides, kept = [], rng.random((2, n)) >= drop
    for keep in kept:
        sides.append(unit(common + noise * rng.normal(size=(n, dimensions)))[keep].astype(np.float32))
    places = np.cumsum(kept, axis=1) - 1
    both = kept.all(axis=0)
    return *sides, set(zip(places[0, both].tolist(), places[1, both].tolist(), strict=True))


def pairs(beads: list[Bead]) -> set[tuple[int, int]]:
    return {(b.source[0], b.target[0]) for b in beads if len(b.source) == len(b.target) == 1}


def check_cover(beads: list[Bead], n: int, m: int) -> None:
    assert [i for b in beads for i in b.source] == list(range(n))
    assert [j for b in beads for j in b.target] == list(range(m))
    assert all(b.score == 0 for b in beads if not (b.source and b.target))


# --- costs --------------------------------------------------------------------------------------------------------------


def test_costs_are_the_formula() -> None:
    rng = np.random.default_rng(0)
    x = [unit(rng.normal(size=(5 - k, 6))) for k in range(2)]
    y = [unit(rng.normal(size=(4 - k, 6))) for k in range(2)]

    def mean_distance(vector: np.ndarray, others: list[np.ndarray]) -> float:
        distances = sorted(1 - float(vector @ other) for part in others for other in part)
        return (sum(distances[1:]) + 1) / len(distances)

    costs = Costs(x, y)
    for p, q in [(1, 1), (1, 2), (2, 1), (2, 2)]:
        table = costs((p, q), slice(None), slice(None))
        assert table.shape == (6 - p, 5 - q)
        for i, a in enumerate(x[p - 1]):
            for j, b in enumerate(y[q - 1]):
                expected = 2 * p * q * (1 - float(a @ b)) / (mean_distance(a, y) + mean_distance(b, x))
                assert table[i, j] == pytest.approx(expected)
    single = costs((1, 1), slice(None), slice(None)).copy()
    for row in single:
        row[row.argmin()] = 1
    for quantile in (0, 0.2, 1):
        assert costs.deletion(quantile) == pytest.approx(np.quantile(single, quantile))


def test_one_sentence_has_no_random_pairs_but_a_price() -> None:
    x = [unit(np.array([[1.0, 0.2]]))]
    assert random_distances(x, x)[0] == pytest.approx([1.0]) and Costs(x, x).deletion(0.01) == 1.0


def test_spread_and_halve() -> None:
    assert spread(0, 5).tolist() == [] and spread(3, 5).tolist() == [0, 1, 2] and spread(9, 3).tolist() == [0, 4, 8]
    halves = halve(np.array([[1.0, 0], [0, 1], [-1, 0]], np.float32))
    np.testing.assert_allclose(halves, [[0.5**0.5, 0.5**0.5], [-1, 0]], atol=1e-6)


# --- alignments ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 40), m=st.integers(0, 40), seed=st.integers(0, 99), max_size=st.integers(2, 6))
def test_every_sentence_is_in_one_bead_and_beads_do_not_cross(n: int, m: int, seed: int, max_size: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 8)), rng.normal(size=(m, 8))
    beads = align_documents(source_vectors=x, target_vectors=y, max_size=max_size)
    check_cover(beads, n, m)
    assert all(len(b.source) + len(b.target) <= max_size for b in beads)


@pytest.mark.parametrize("n", [1, 2, 3, 40, 1200])
def test_a_document_is_aligned_to_itself(n: int) -> None:
    x, _, _ = made(n)
    beads = align_documents(source_vectors=x, target_vectors=x)
    assert [(b.source, b.target) for b in beads] == [((i,), (i,)) for i in range(n)]
    assert min(b.score for b in beads) > 0.999


def test_dropped_sentences_are_found_in_documents_searched_whole_and_in_a_band() -> None:
    for n in (200, 2000):
        x, y, truth = made(n, seed=n, drop=0.05)
        beads = align_documents(source_vectors=x, target_vectors=y, max_size=2)
        check_cover(beads, len(x), len(y))
        found = pairs(beads)
        assert len(found & truth) / len(truth) > 0.98 and len(found & truth) / len(found) > 0.98


def test_a_long_gap_and_unequal_lengths() -> None:
    x, y, _ = made(1500, seed=4)
    beads = align_documents(source_vectors=x, target_vectors=np.concatenate([y[:400], y[1000:]]), max_size=2)
    truth = {(i, i if i < 400 else i - 600) for i in [*range(400), *range(1000, 1500)]}
    assert len(pairs(beads) & truth) > 0.97 * len(truth)
    few = align_documents(source_vectors=x, target_vectors=y[700:703])
    check_cover(few, 1500, 3)


def test_merged_sentences_by_means() -> None:
    x, y, _ = made(60, seed=1, dimensions=64, noise=0.3)
    merged = np.concatenate([y[:10], unit(y[10:12].sum(axis=0, keepdims=True)), y[12:30], unit(y[30:33].sum(0)[None]), y[33:]])
    beads = align_documents(source_vectors=x, target_vectors=merged)
    assert {b.source: b.target for b in beads if len(b.source) > 1} == {(10, 11): (10,), (30, 31, 32): (29,)}
    back = align_documents(source_vectors=merged, target_vectors=x)
    assert [(b.target, b.source) for b in back] == [(b.source, b.target) for b in beads]


def test_texts_of_the_bundled_model_with_blank_lines() -> None:
    english = ["The cat is sleeping.", "", "Where is the station?", "I bought three red apples at the market.", "It rains."]
    german = ["Die Katze schläft.", "Wo ist der Bahnhof?", "  ", "Ich habe auf dem Markt drei rote Äpfel gekauft. Es regnet."]
    beads = align_documents(english, german)
    assert [(b.source, b.target) for b in beads] == [((0,), (0,)), ((2,), (1,)), ((3, 4), (3,))]
    assert all(0 < b.score < 1 for b in beads)
    assert [(b.source, b.target) for b in align_documents(english, german, segments="mean")][:2] == [((0,), (0,)), ((2,), (1,))]


class Recorder:
    """An encoder that gives each text a vector of its own, and remembers the texts."""

    def __init__(self) -> None:
        self.texts: list[list[str]] = []

    def embed(self, texts: list[str], *, progress: bool | None = None) -> np.ndarray:
        self.texts.append(list(texts))
        return np.stack([np.random.default_rng(len(t)).normal(size=8) for t in texts]) if texts else np.zeros((0, 8))


def test_segments_are_the_joined_sentences() -> None:
    encoder = Recorder()
    align_documents(["one.", "\t", "two.", "three."], ["你好。", "世界。"], encoder=encoder, max_size=4)
    assert encoder.texts == [
        ["one.", "two.", "three."],
        ["one. two.", "two. three.", "one. two. three."],
        ["你好。", "世界。"],
        ["你好。世界。"],
    ]
    encoder = Recorder()
    align_documents(["one.", "two."], ["eins.", "zwei."], encoder=encoder, segments="mean")
    assert encoder.texts == [["one.", "two."], ["eins.", "zwei."]]


def test_empty_documents() -> None:
    encoder = Recorder()
    assert align_documents([], [], encoder=encoder) == []
    assert align_documents(["", " "], [], encoder=encoder) == []
    assert align_documents(["a", "", "b"], [" "], encoder=encoder) == [
        Bead(source=(0,), target=(), score=0.0),
        Bead(source=(2,), target=(), score=0.0),
    ]
    assert align_documents([], ["a"], encoder=encoder) == [Bead(source=(), target=(0,), score=0.0)]


def test_time_grows_with_the_length_not_its_square() -> None:
    def seconds(n: int) -> float:
        x, y, _ = made(n, dimensions=16)
        started = time.process_time()
        align_documents(source_vectors=x, target_vectors=y, max_size=3)
        return time.process_time() - started

    seconds(500)
    small = min(seconds(1500) for _ in range(2))
    assert seconds(6000) < 9 * small  # 4 if linear, 16 if quadratic


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "doc_a is missing. Pass its sentences, or their vectors as source_vectors="),
        ({"doc_a": "a", "doc_b": ["b"]}, "doc_a is a single str"),
        ({"doc_a": ["a"], "doc_b": ["b", None]}, "doc_b[1] is of type NoneType"),
        ({"doc_a": ["a"], "doc_b": ["b"], "max_size": 1}, "max_size=1 must be a whole number from 2 (pairs only) to 12"),
        ({"doc_a": ["a"], "doc_b": ["b"], "max_size": 13}, "max_size=13 must be a whole number from 2"),
        ({"doc_a": ["a"], "doc_b": ["b"], "deletion": float("nan")}, "deletion=nan must be a quantile: a number from 0 to 1"),
        ({"doc_a": ["a"], "doc_b": ["b"], "segments": "max"}, "segments='max' is not known. Type one of: text, mean."),
        (
            {"doc_a": ["a"], "source_vectors": np.ones((2, 3)), "doc_b": ["b"]},
            "doc_a has 1 sentences and source_vectors 2 rows: give one row for each sentence",
        ),
        (
            {"source_vectors": np.ones((2, 3)), "target_vectors": np.ones((2, 4))},
            "the dimensions 3 and 4 differ. Embed both sides with the same model",
        ),
        ({"source_vectors": np.full((2, 3), np.nan), "doc_b": ["b"]}, "source_vectors has NaN or infinity in row 0"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        align_documents(**arguments)


def test_cut_sentences_are_warned_of_and_cut_segments_are_not() -> None:
    encoder = mexma_rt.load(max_length=8)
    long = "The children were playing near the river all afternoon."
    with pytest.warns(mexma_rt.TruncationWarning, match="1 of 2 texts") as caught:
        align_documents([long, "Yes."], ["No.", "Why not?"], encoder=encoder)
    assert len(caught) == 1
