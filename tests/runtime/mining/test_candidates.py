"""Candidates by blocks and with bounded memory give what sorting everything at once gives; ranks, means, all candidates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_rt import mine
from mexma_rt.knn.search import mutual_neighbours
from mexma_rt.mining import candidates
from mexma_rt.mining.candidates import CANDIDATE, OneToOne, ScoredNeighbours, best_first, candidate_blocks
from mexma_rt.mining.pairs import MineSettings, prepare


def sides(seed: int, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Few distinct vectors: many ties."""
    random = np.random.default_rng(seed)
    return random.integers(1, 4, (n, 3)).astype(np.float32), random.integers(1, 4, (m, 3)).astype(np.float32)


def records(values: list[tuple[float, int, int]]) -> np.ndarray:
    block = np.zeros(len(values), CANDIDATE)
    for name, column in zip(("score", "row", "column"), zip(*values, strict=True) if values else ((), (), ()), strict=True):
        block[name] = column
    return block


candidate = st.tuples(st.sampled_from([1.0, 1.1, 1.2]), st.integers(0, 6), st.integers(0, 6))


@settings(deadline=None, max_examples=100)
@given(values=st.lists(candidate, unique=True, max_size=40), capacity=st.integers(1, 50), size=st.integers(1, 15))
def test_chunks_are_the_sorted_whole_with_at_most_twice_the_capacity(
    values: list[tuple[float, int, int]], capacity: int, size: int
) -> None:
    def blocks() -> Iterator[np.ndarray]:
        return (records(values[start : start + size]) for start in range(0, len(values), size))

    chunks = list(best_first(blocks, capacity))
    assert all(len(chunk) <= capacity for chunk in chunks)
    found = [(c["score"], c["row"], c["column"]) for chunk in chunks for c in chunk]
    assert found == sorted(values, key=lambda value: (-value[0], value[1], value[2]))


@settings(deadline=None, max_examples=100)
@given(values=st.lists(candidate, max_size=40), capacity=st.integers(1, 50))
def test_matching_is_the_same_for_every_capacity(values: list[tuple[float, int, int]], capacity: int) -> None:
    rows: set[int] = set()
    columns: set[int] = set()
    expected = []
    for value in sorted(values, key=lambda value: (-value[0], value[1], value[2])):
        if value[1] not in rows and value[2] not in columns:
            rows.add(value[1])
            columns.add(value[2])
            expected.append(value)
    matching = OneToOne(7, 7)
    chunks = best_first(lambda: iter([records(values[:9]), records(values[9:])]), capacity, matching.free)
    found = [(c["score"], c["row"], c["column"]) for chunk in chunks for c in matching.take(chunk)]
    assert found == expected


@pytest.mark.parametrize("retrieval", ["max", "intersect", "fwd", "bwd", "knn"])
def test_pairs_do_not_depend_on_block_or_sort_memory(retrieval: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = sides(0, 50, 40)
    everything: dict[str, Any] = {"margin": "ratio", "k": 4, "retrieval": retrieval, "threshold": -np.inf}
    expected = mine(source_vectors=x, target_vectors=y, **everything)
    assert len(expected) > 15
    monkeypatch.setattr(candidates, "SCORED_ROWS", 7)
    search = prepare(None, None, None, x, y, MineSettings(**everything), False, warn=False)
    object.__setattr__(search, "sort_memory", 5 * candidates.SORT_BYTES)
    assert list(search.pairs()) == expected


@pytest.mark.parametrize("seed", range(3))
def test_knn_gives_every_candidate_once_with_ranks_and_means(seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y, k = random.standard_normal((15, 6)), random.standard_normal((12, 6)), 3
    unit_x, unit_y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    cosine = unit_x @ unit_y.T
    forward, backward = np.argsort(-cosine, axis=1)[:, :k].tolist(), np.argsort(-cosine.T, axis=1)[:, :k].tolist()
    expected = {}
    for i in range(15):
        for j in range(12):
            ahead = forward[i].index(j) + 1 if j in forward[i] else None
            back = backward[j].index(i) + 1 if i in backward[j] else None
            if ahead or back:
                expected[i, j] = (ahead, back)
    assert None in {rank for ranks in expected.values() for rank in ranks}
    pairs = mine(source_vectors=x, target_vectors=y, k=k, retrieval="knn", margin="distance")
    assert len(pairs) == len(expected)
    assert {(p.source_index, p.target_index): (p.forward_rank, p.backward_rank) for p in pairs} == expected
    for p in pairs:
        i, j = p.source_index, p.target_index
        assert p.source_mean == pytest.approx(np.sort(cosine[i])[-k:].mean(), abs=1e-6)
        assert p.target_mean == pytest.approx(np.sort(cosine[:, j])[-k:].mean(), abs=1e-6)
        assert p.score == pytest.approx(cosine[i, j] - (p.source_mean + p.target_mean) / 2, abs=1e-6)
    kept = mine(source_vectors=x, target_vectors=y, k=k, retrieval="knn", margin="distance", threshold=0.1)
    assert kept == [pair for pair in pairs if pair.score >= 0.1] and 0 < len(kept) < len(pairs)


def test_blocks_hold_at_most_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "SCORED_ROWS", 6)
    x, y = sides(1, 20, 15)
    neighbours = ScoredNeighbours.of(*mutual_neighbours(x, y, 2), margin="absolute")
    assert [len(block) for block in candidate_blocks(neighbours, "max")] == [6, 6, 6, 2, 6, 6, 3]
    assert max(len(block) for block in candidate_blocks(neighbours, "knn")) == 12
