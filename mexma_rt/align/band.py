"""Cheapest monotone alignment of two sequences by dynamic programming, in a band around a guess or over all cells.

A cell (i, j) is the state "i of the n source sentences and j of the m target sentences are used". The band is laid along the
antidiagonals i + j = d: all cells of one depend only on earlier ones, so each is a handful of numpy calls on a row of `width`
cells, and time and memory grow with (n + m) x width. The similarities of a block of antidiagonals come from one matrix
product per shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Shape = tuple[int, int]  # sentences of the source and of the target in one bead; (1, 0) and (0, 1) are deletions
Bead = tuple[int, int, int, int]  # first source sentence, end, first target sentence, end
Costs = Callable[[Shape, slice, slice], np.ndarray]

DELETIONS: tuple[Shape, Shape] = ((1, 0), (0, 1))
# Antidiagonals whose costs are computed together: few, since a product has (DIAGONALS + width)^2 cells for DIAGONALS x width.
DIAGONALS = 64


def cheapest_beads(
    n: int,
    m: int,
    shapes: Sequence[Shape],
    costs: Costs,
    deletion: float,
    low: np.ndarray,
    width: int,
    advance: Callable[[int], object] = lambda _: None,
) -> list[Bead]:
    """Return the beads, ascending, that cover both sequences at the lowest total cost.

    costs((p, q), rows, columns) gives the cost [rows, columns] of beads of p source sentences starting at each of rows and q
    target sentences starting at each of columns; `deletion` is the cost of one sentence alone. On antidiagonal d, only cells
    with low[d] <= i < low[d] + width are considered; low [n + m + 1] must rise by 0 or 1 from each to the next. If costs are
    equal, the first shape wins. `advance` is called with the sentences done, n + m in all.
    """
    shapes = [*shapes, *DELETIONS]
    reach = max(p + q for p, q in shapes)
    # Column `reach` of a row is cell low[d]; cells outside the band, and rows -1 and so on, are never reached.
    total = np.full((n + m + 1 + reach, width + 2 * reach), np.inf)
    total[reach, reach - low[0]] = 0.0
    choice = np.zeros((n + m + 1, width), np.int8)
    each, steps = np.arange(width), np.array([p + q for p, q in shapes])
    back = np.array([p for p, _ in shapes])
    flat = total.ravel()
    for start in range(1, n + m + 1, DIAGONALS):
        block = _block_costs(range(start, min(start + DIAGONALS, n + m + 1)), n, m, shapes, costs, deletion, low, width)
        for d, cost in enumerate(block, start):
            before = np.maximum(d - steps, 0)
            columns = reach + low[d] - back - low[before]
            rows = d - steps + reach
            cost += flat[(rows * total.shape[1] + columns)[:, None] + each]
            choice[d] = best = cost.argmin(axis=0)
            total[d + reach, reach : reach + width] = cost[best, each]
        advance(len(block))
    return _trace(n, m, shapes, choice, low)


def _block_costs(
    depths: range, n: int, m: int, shapes: Sequence[Shape], costs: Costs, deletion: float, low: np.ndarray, width: int
) -> np.ndarray:
    """Return [depths, shapes, width]: the cost of the bead that ends in each cell; infinite if none does."""
    d = np.arange(depths.start, depths.stop)[:, None]
    i = low[depths.start : depths.stop, None] + np.arange(width)
    j = d - i
    inside = (i >= 0) & (i <= n) & (j >= 0) & (j <= m)
    result = np.full((len(depths), len(shapes), width), np.inf)
    for number, (p, q) in enumerate(shapes):
        fits = inside & (i >= p) & (j >= q)
        if (p, q) in DELETIONS:
            result[:, number][fits] = deletion
        elif fits.any():
            first, second = i[fits] - p, j[fits] - q
            rows, columns = slice(first.min(), first.max() + 1), slice(second.min(), second.max() + 1)
            result[:, number][fits] = costs((p, q), rows, columns)[first - rows.start, second - columns.start]
    return result


def _trace(n: int, m: int, shapes: Sequence[Shape], choice: np.ndarray, low: np.ndarray) -> list[Bead]:
    beads, i, j = [], n, m
    while i or j:
        p, q = shapes[choice[i + j, i - low[i + j]]]
        beads.append((i - p, i, j - q, j))
        i, j = i - p, j - q
    return beads[::-1]


def everything(n: int, m: int) -> tuple[np.ndarray, int]:
    """Return (low, width) of a band that covers every cell."""
    return np.zeros(n + m + 1, np.int64), n + 1


def around(points: Sequence[tuple[int, int]], n: int, m: int, radius: int) -> tuple[np.ndarray, int]:
    """Return (low, width) of a band of `radius` sentences on both sides of the straight lines through points (i, j), from
    (0, 0) to (n, m).
    """
    i, j = np.array([(0, 0), *points, (n, m)]).T
    centre = np.interp(np.arange(n + m + 1), i + j, i)
    return np.floor(centre + 0.5).astype(np.int64) - radius, 2 * radius + 1
