"""The block step: any cut into blocks, merged in any order, gives the bytes of one block; keys; a merge done twice."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_rt.knn.blocks import block_neighbours, merge_neighbours, neighbours_of, no_neighbours
from mexma_rt.knn.keys import keys_of


def cuts(n: int, random: np.random.Generator) -> list[int]:
    inner = random.integers(0, n + 1, random.integers(0, 4))
    return [0, *sorted(inner.tolist()), n]


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 400),
    m=st.integers(1, 400),
    k=st.integers(1, 20),
    values=st.sampled_from([None, 1, 3]),
)
def test_blocks_in_any_order_give_the_bytes_of_one(seed: int, n: int, m: int, k: int, values: int | None) -> None:
    random = np.random.default_rng(seed)
    x, y = (random.standard_normal((rows, 8)).astype(np.float32) for rows in (n, m))
    if values is not None:  # many ties, many equal rows
        x, y = (np.round(side[:, :3]).clip(-values, values) for side in (x, y))
    whole_x, whole_y = block_neighbours(x, y, k)
    by_x, by_y = no_neighbours(n, k), no_neighbours(m, k)
    x_cuts, y_cuts = cuts(n, random), cuts(m, random)
    pairs = [(a, b, c, d) for a, b in pairwise(x_cuts) for c, d in pairwise(y_cuts)]
    for number in random.permutation(len(pairs)):
        a, b, c, d = pairs[number]
        if a == b or c == d:
            continue
        part_x, part_y = block_neighbours(x[a:b], y[c:d], k, x_start=a, y_start=c, memory_bytes=1)
        by_x[a:b] = merge_neighbours(part_x, by_x[a:b])
        by_y[c:d] = merge_neighbours(by_y[c:d], part_y, part_y)  # a block that was merged twice counts once
    np.testing.assert_array_equal(by_x, whole_x)
    np.testing.assert_array_equal(by_y, whole_y)


def test_keys_sort_by_score_and_then_index() -> None:
    scores = np.array([-1e30, -2.5, -1e-40, -0.0, 0.0, 1e-40, 2.5, 1e30, 2.5, -2.5], np.float32)
    index = np.arange(10) + 2**32 - 12
    keys = keys_of(scores, index)
    assert np.argsort(keys).tolist() == np.lexsort((index, -scores)).tolist()
    back_scores, back_index = neighbours_of(keys)
    np.testing.assert_array_equal(back_scores, scores)
    np.testing.assert_array_equal(back_index, index)


def test_what_is_not_found_is_said() -> None:
    by_x, by_y = block_neighbours(np.ones((2, 3)), np.ones((1, 3)), 3, y_start=7)
    scores, index = neighbours_of(by_x)
    assert index.tolist() == [[7, -1, -1]] * 2 and scores.tolist() == [[3, -np.inf, -np.inf]] * 2
    assert neighbours_of(by_y)[1].tolist() == [[0, 1, -1]]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_corpus_of_equal_lines(value: float) -> None:
    x = np.full((900, 4), value, np.float32)
    by_x, by_y = no_neighbours(900, 3), no_neighbours(900, 3)
    for start in (600, 300, 0):  # the lowest come last, and displace all before them
        part_x, part_y = block_neighbours(x, x[start : start + 300], 3, y_start=start, memory_bytes=1)
        by_x, by_y[start : start + 300] = merge_neighbours(by_x, part_x), part_y
    assert (neighbours_of(by_x)[1] == [0, 1, 2]).all() and (neighbours_of(by_y)[1] == [0, 1, 2]).all()
