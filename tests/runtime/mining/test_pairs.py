"""mine() and score_pairs() against a plain float64 rendering of LASER's mining; unify, thresholds, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_rt import InputError, Pair, mine, score_pairs

MARGINS = ("ratio", "distance", "absolute")
RETRIEVALS = ("max", "intersect", "fwd", "bwd")
Found = list[tuple[int, int, float]]


def reference_scores(x: np.ndarray, y: np.ndarray, k: int, margin: str) -> tuple[np.ndarray, np.ndarray]:
    """The cosine and the margin score of every pair, both [n, m] in float64."""
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x.astype(np.float64), y.astype(np.float64)))
    cosine = x @ y.T
    x_mean = np.sort(cosine, axis=1)[:, -k:].mean(axis=1)
    y_mean = np.sort(cosine, axis=0)[-k:].mean(axis=0)
    mean = (x_mean[:, None] + y_mean) / 2
    score = {"ratio": np.where(mean > 0, cosine / mean, 0), "distance": cosine - mean, "absolute": cosine}[margin]
    return cosine, score


def reference(x: np.ndarray, y: np.ndarray, k: int, margin: str, retrieval: str, threshold: float) -> Found:
    """LASER's mine(), one pair at a time."""
    cosine, score = reference_scores(x, y, k, margin)

    def best(cosines: np.ndarray, scores: np.ndarray) -> int:
        nearest = np.argsort(-cosines, kind="stable")[:k]
        return int(nearest[scores[nearest].argmax()])

    forward = [(i, best(cosine[i], score[i])) for i in range(len(x))]
    backward = [(best(cosine[:, j], score[:, j]), j) for j in range(len(y))]
    chosen = {
        "fwd": forward,
        "bwd": backward,
        "intersect": [pair for pair in forward if pair in backward],
        "max": sorted({*forward, *backward}, key=lambda pair: (-score[pair], pair)),
    }[retrieval]
    if retrieval == "max":
        free_rows, free_columns, greedy = set(range(len(x))), set(range(len(y))), []
        for i, j in chosen:
            if i in free_rows and j in free_columns:
                free_rows.remove(i)
                free_columns.remove(j)
                greedy.append((i, j))
        chosen = greedy
    found = [(i, j, score[i, j]) for i, j in chosen if score[i, j] >= threshold]
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))


def random_sides(seed: int, n: int = 60, m: int = 45, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Two noisy views of shared points, plus rows without a partner."""
    random = np.random.default_rng(seed)
    y = random.standard_normal((m, d)) + 1
    x = np.concatenate([y[: m - 10] + random.standard_normal((m - 10, d)) / 2, random.standard_normal((n - m + 10, d))])
    return x.astype(np.float32), y.astype(np.float32)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("retrieval", RETRIEVALS)
@pytest.mark.parametrize("k", [2, 4])
def test_equals_the_reference_with_the_threshold_in_every_mode(margin: str, retrieval: str, k: int) -> None:
    x, y = random_sides(seed=k)
    x = np.random.default_rng(0).permutation(x)
    everything = reference(x, y, k, margin, retrieval, -np.inf)
    threshold = (everything[len(everything) // 2][2] + everything[len(everything) // 2 - 1][2]) / 2
    assert 0 < len(reference(x, y, k, margin, retrieval, threshold)) < len(everything)
    cosine, _ = reference_scores(x, y, k, margin)
    for least in (threshold, -np.inf):
        expected = reference(x, y, k, margin, retrieval, least)
        pairs = mine(source_vectors=x, target_vectors=y, margin=margin, retrieval=retrieval, k=k, threshold=least)
        assert [(p.source_index, p.target_index) for p in pairs] == [(i, j) for i, j, _ in expected]
        np.testing.assert_allclose([p.score for p in pairs], [score for *_, score in expected], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose([p.cosine for p in pairs], [cosine[i, j] for i, j, _ in expected], rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), n=st.integers(4, 30), m=st.integers(4, 30))
def test_max_is_one_to_one_and_sorted(seed: int, n: int, m: int) -> None:
    random = np.random.default_rng(seed)  # few distinct vectors: many ties
    x, y = random.integers(1, 4, (n, 2)), random.integers(1, 4, (m, 2))
    pairs = mine(source_vectors=x, target_vectors=y, threshold=-np.inf)
    assert len({p.source_index for p in pairs}) == len({p.target_index for p in pairs}) == len(pairs) > 0
    order = [(-p.score, p.source_index, p.target_index) for p in pairs]
    assert order == sorted(order)


def test_default_threshold_is_that_of_the_margin() -> None:
    from mexma_rt.mining import DEFAULT_THRESHOLD

    x, y = random_sides(seed=5)
    for margin in MARGINS:
        everything = mine(source_vectors=x, target_vectors=y, margin=margin, threshold=-np.inf)
        expected = [pair for pair in everything if pair.score >= DEFAULT_THRESHOLD[margin]]
        assert mine(source_vectors=x, target_vectors=y, margin=margin) == expected
        assert len(expected) < len(everything)


TEXTS = ["alpha", "beta", "alpha", "gamma", " ", "delta", "beta", ""]
VECTORS = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [9, 9, 9], [1, 1, 0], [0, 1, 0], [9, 9, 9]], np.float32)


def test_unify_takes_first_occurrences_and_blank_lines_are_never_paired() -> None:
    pairs = mine(TEXTS, TEXTS, source_vectors=VECTORS, target_vectors=VECTORS, k=2, threshold=-np.inf)
    assert sorted((p.source_index, p.target_index) for p in pairs) == [(0, 0), (1, 1), (3, 3), (5, 5)]
    assert sorted((p.source, p.target) for p in pairs) == [(t, t) for t in ("alpha", "beta", "delta", "gamma")]
    vectors: dict[str, Any] = {"source_vectors": VECTORS, "target_vectors": VECTORS}
    pairs = mine(TEXTS, TEXTS, **vectors, k=2, retrieval="fwd", threshold=-np.inf, unify=False)
    assert {p.source_index for p in pairs} == {0, 1, 2, 3, 5, 6}


def test_unify_keeps_repeated_lines_out_of_the_neighbourhoods() -> None:
    once = mine(TEXTS[:2] + TEXTS[3:4], ["alpha", "beta", "gamma"], source_vectors=VECTORS[[0, 1, 3]],
                target_vectors=VECTORS[[0, 1, 3]] + 0.1, k=2)  # fmt: skip
    repeated = ["alpha"] * 5 + ["beta", "gamma"]
    many = mine(repeated, ["alpha", "beta", "gamma"], source_vectors=VECTORS[[0] * 5 + [1, 3]],
                target_vectors=VECTORS[[0, 1, 3]] + 0.1, k=2)  # fmt: skip
    assert [p.score for p in many] == [p.score for p in once] and len(once) == 3
    assert sorted(p.source_index for p in many) == [0, 5, 6]


class LookUp:
    """An encoder that gives known vectors, and counts its calls."""

    def __init__(self, texts: list[str], vectors: np.ndarray) -> None:
        self.table, self.calls = dict(zip(texts, vectors, strict=True)), 0

    def embed(self, texts: list[str], *, progress: bool | None = None) -> np.ndarray:
        self.calls += 1
        return np.stack([self.table[text] for text in texts])


def test_encoder_is_used_only_for_sides_without_vectors() -> None:
    x, y = random_sides(seed=7)
    src, tgt = [f"s{i}" for i in range(len(x))], [f"t{j}" for j in range(len(y))]
    src.reverse()
    x = x[::-1]
    expected = mine(src, tgt, source_vectors=x, target_vectors=y)
    assert len(expected) > 5
    assert all((p.source, p.target) == (src[p.source_index], tgt[p.target_index]) for p in expected)
    encoder = LookUp(src + tgt, np.concatenate([x, y]))
    assert mine(iter(src), tgt, encoder=encoder) == expected and encoder.calls == 2
    assert mine(src, tgt, source_vectors=x, encoder=encoder) == expected and encoder.calls == 3


def test_vectors_alone_give_pairs_without_texts_and_are_not_modified() -> None:
    x, y = random_sides(seed=8)
    x.setflags(write=False)
    y.setflags(write=False)
    pair = mine(source_vectors=x, target_vectors=y)[0]
    assert isinstance(pair, Pair) and pair.source is None and pair.target is None
    assert isinstance(score_pairs(source_vectors=x[:40], target_vectors=y[:40]), np.ndarray)


@pytest.mark.parametrize("margin", MARGINS)
def test_score_pairs_equals_the_reference(margin: str) -> None:
    x, y = random_sides(seed=9)
    x, y = x[:40], y[:40]
    scores = score_pairs(source_vectors=x, target_vectors=y, margin=margin)
    assert scores.dtype == np.float32 and scores.shape == (40,)
    np.testing.assert_allclose(scores, np.diag(reference_scores(x, y, 4, margin)[1]), rtol=1e-4, atol=1e-6)


def test_score_pairs_agrees_with_mine_in_spite_of_repeated_and_blank_lines() -> None:
    x, y = random_sides(seed=10)
    rows = [0, 1, 2, 2, 2, 3, 4, 5, 6, 0, 7]
    src, tgt = [f"s{i}" for i in rows], [f"t{i}" for i in rows]
    src[5] = tgt[7] = " "
    vectors: dict[str, Any] = {"source_vectors": x[rows], "target_vectors": y[rows]}
    scores = score_pairs(src, tgt, **vectors)
    assert (scores[[5, 7]] == -np.inf).all() and np.isfinite(np.delete(scores, [5, 7])).all()
    assert scores[2] == scores[3] == scores[4] and scores[0] == scores[9]
    mined = {(p.source_index, p.target_index): p.score for p in mine(src, tgt, threshold=-np.inf, **vectors)}
    shared = [i for i in range(len(rows)) if (i, i) in mined]
    assert len(shared) > 3
    np.testing.assert_allclose(scores[shared], [mined[i, i] for i in shared], rtol=1e-5)


V = np.eye(5, dtype=np.float32)
FIVE = list("abcde")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"margin": "cos"}, "margin='cos' is not known. Type one of: ratio, distance, absolute."),
        ({"retrieval": "best"}, "retrieval='best' is not known. Type one of: max, intersect, fwd, bwd, knn."),
        ({"threshold": float("nan")}, "threshold=nan, but a number is needed: the lowest score of a pair"),
        ({"threshold": "1.06"}, "threshold='1.06', but a number is needed"),
        ({"src": "abc"}, "source is a single str, but a list of sentences is needed"),
        ({"src": [None] * 5}, r"source\[0\] is of type NoneType"),
        ({"tgt": []}, "target has 0 sentences and target_vectors 5 rows: give one row for each sentence"),
        ({"tgt": [], "target_vectors": None}, "target is empty: there is nothing to compare with"),
        ({"tgt": ["", " "], "target_vectors": None}, "target has no text: all of its 2 lines are blank"),
        ({"src": None, "source_vectors": None}, "source is missing. Pass its sentences, or vectors as source_vectors="),
        ({"src": list("abcd")}, "source has 4 sentences and source_vectors 5 rows"),
        ({"src": list("aabbb")}, "source has 2 distinct sentences, too few to find k=4 neighbours among them. Type k=2"),
        ({"k": 6, "unify": False}, "source has 5 sentences, too few to find k=6 neighbours among them. Type k=5"),
        ({"k": "4"}, "k='4', but the number of neighbours"),
        ({"source_vectors": np.full((5, 5), np.nan)}, "source_vectors has NaN or infinity in row 0"),
        ({"target_vectors": np.ones(5)}, r"target_vectors has shape \(5,\), but vectors are needed as"),
        ({"target_vectors": np.ones((5, 3))}, r"source_vectors has shape \(5, 5\) and target_vectors \(5, 3\)"),
    ],
)
def test_bad_input(keywords: dict, message: str) -> None:
    good = {"src": FIVE, "tgt": FIVE, "source_vectors": V, "target_vectors": V}
    with pytest.raises(InputError, match=message):
        mine(**(good | keywords))


def test_pairs_of_unequal_length() -> None:
    with pytest.raises(InputError, match="source has 5 lines and target 4, but pairs need the same number on each side"):
        score_pairs(FIVE, FIVE[:4], source_vectors=V, target_vectors=V[:4])


def test_too_few_sentences_are_reported_before_any_embedding() -> None:
    encoder = LookUp(FIVE, V)
    with pytest.raises(InputError, match="target has 3 distinct sentences"):
        mine(FIVE, FIVE[:3], encoder=encoder)
    assert encoder.calls == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"margin": "cosine"}, r"margin='cosine' is not known"),
        ({"retrieval": "best"}, r"retrieval='best' is not known"),
        ({"index": "hnsw"}, r"index='hnsw' is not known"),
        ({"k": 0}, r"k=0, but the number of neighbours"),
        ({"threshold": float("nan")}, r"threshold=nan, but a number is needed"),
        ({"threshold": True}, r"threshold=True, but a number is needed"),
    ],
)
def test_settings_check_themselves(wrong: dict, message: str) -> None:
    from mexma_rt.mining.pairs import MineSettings

    assert MineSettings(threshold=0).least_score == 0.0 and MineSettings(retrieval="knn").least_score == -np.inf
    with pytest.raises(InputError, match=message):
        MineSettings(**wrong)
