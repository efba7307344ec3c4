"""The band against an exhaustive search of its own kind: recursion over all ways to cover two short sequences."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_rt.align.band import Bead, Shape, around, cheapest_beads, everything

Table = dict[Shape, np.ndarray]  # costs [n, m] of each shape
SHAPES: list[Shape] = [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2)]


def exhaustive(n: int, m: int, shapes: list[Shape], table: Table, deletion: float) -> float:
    """The least total cost, by recursion from the front."""

    @functools.cache
    def rest(i: int, j: int) -> float:
        if (i, j) == (n, m):
            return 0.0
        options = []
        if i < n:
            options.append(deletion + rest(i + 1, j))
        if j < m:
            options.append(deletion + rest(i, j + 1))
        for p, q in shapes:
            if i + p <= n and j + q <= m:
                options.append(table[p, q][i, j] + rest(i + p, j + q))
        return min(options)

    return rest(0, 0)


def price(beads: list[Bead], table: Table, deletion: float) -> float:
    return sum(table[b - a, d - c][a, c] if a < b and c < d else deletion * (b - a + d - c) for a, b, c, d in beads)


def check_cover(beads: list[Bead], n: int, m: int, shapes: list[Shape]) -> None:
    """Every sentence once, in order, and no shape that was not offered."""
    assert [i for a, b, _, _ in beads for i in range(a, b)] == list(range(n))
    assert [j for _, _, c, d in beads for j in range(c, d)] == list(range(m))
    assert {(b - a, d - c) for a, b, c, d in beads} <= {*shapes, (1, 0), (0, 1)}


def random_table(n: int, m: int, seed: int, shapes: list[Shape] = SHAPES) -> Table:
    rng = np.random.default_rng(seed)
    return {(p, q): p * q * rng.random((n, m)) for p, q in shapes}


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 9), m=st.integers(0, 9), seed=st.integers(0, 999), deletion=st.floats(0, 1.5), k=st.integers(1, 6))
def test_the_cheapest_of_all_ways(n: int, m: int, seed: int, deletion: float, k: int) -> None:
    shapes, table = SHAPES[:k], random_table(max(n, 1), max(m, 1), seed)
    beads = cheapest_beads(n, m, shapes, lambda shape, rows, columns: table[shape][rows, columns], deletion, *everything(n, m))
    check_cover(beads, n, m, shapes)
    assert price(beads, table, deletion) == pytest.approx(exhaustive(n, m, shapes, table, deletion), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), m=st.integers(1, 30), seed=st.integers(0, 999), radius=st.integers(1, 8))
def test_a_band_is_covered_and_never_cheaper_than_all(n: int, m: int, seed: int, radius: int) -> None:
    table = random_table(n, m, seed)
    arguments = (n, m, SHAPES, lambda shape, rows, columns: table[shape][rows, columns], 0.4)
    banded = cheapest_beads(*arguments, *around([], n, m, radius))
    full = cheapest_beads(*arguments, *everything(n, m))
    check_cover(banded, n, m, SHAPES)
    assert price(banded, table, 0.4) >= price(full, table, 0.4) - 1e-9
    if radius >= max(n, m):
        assert banded == full


def test_a_wide_band_over_blocks_is_the_full_search() -> None:
    n, m = 150, 110
    table = random_table(n, m, 5)
    arguments = (n, m, SHAPES, lambda shape, rows, columns: table[shape][rows, columns], 0.4)
    full = cheapest_beads(*arguments, *everything(n, m))
    assert cheapest_beads(*arguments, *around([(10, 90), (140, 100)], n, m, 150)) == full
    assert price(full, table, 0.4) == pytest.approx(exhaustive(n, m, SHAPES, table, 0.4))


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20), radius=st.integers(0, 5))
def test_bands_move_as_the_search_needs(steps: list[tuple[int, int]], radius: int) -> None:
    points = np.cumsum([(0, 0), *steps], axis=0)
    n, m = points[-1].tolist()
    low, width = around([tuple(p) for p in points.tolist()], n, m, radius)
    assert len(low) == n + m + 1 and width == 2 * radius + 1
    assert set(np.diff(low).tolist()) <= {0, 1}
    for i, j in points.tolist():
        assert low[i + j] <= i < low[i + j] + width
