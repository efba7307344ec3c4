"""Costs of beads from the vectors of segments, and the cheapest beads of two documents, searched from coarse to fine.

A segment is one or more consecutive sentences; a document is a list that holds at p - 1 the unit vectors [n - p + 1, D] of its
segments of p sentences. Costs are those of Thompson and Koehn, "Vecalign" (EMNLP 2019), equation 2, except for the random
pairs: they are chosen deterministically, so that results repeat, and are never translations of each other, which matters in
short documents.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mexma_rt.align.band import Bead, Shape, around, cheapest_beads, everything
from mexma_rt.knn.search import unit_rows
from mexma_rt.progress import progress_bar

Segments = list[np.ndarray]

FULL_CELLS = 300 * 300  # documents up to this many cells are searched whole; vecalign halves down to 300 sentences in all
ROWS = 8192  # segments whose distances to the sample are in memory at once
LEAST = 1e-6  # lowest distance; above float32's rounding, so that equal sentences pair one to one and not in larger beads
SAMPLE = 128  # segments of each size taken as random ones, and sentences per side whose pairs are


class Costs:
    """The costs of beads of two documents."""

    def __init__(self, x: Segments, y: Segments) -> None:
        self._x, self._y = x, y
        self._x_random, self._y_random = random_distances(x, y), random_distances(y, x)

    def distance(self, shape: Shape, rows: slice | np.ndarray, columns: slice | np.ndarray) -> np.ndarray:
        """Cosine distance of segments, divided by their average distance to random segments; [rows, columns]."""
        p, q = shape[0] - 1, shape[1] - 1
        distance = np.maximum(1 - self._x[p][rows] @ self._y[q][columns].T, LEAST)
        cost: np.ndarray = 2 * distance / (self._x_random[p][rows, None] + self._y_random[q][columns])
        return cost

    def __call__(self, shape: Shape, rows: slice, columns: slice) -> np.ndarray:
        """Return the cost of beads: the distance times both numbers of sentences, so that large beads are not favoured."""
        return shape[0] * shape[1] * self.distance(shape, rows, columns)

    def deletion(self, quantile: float) -> float:
        """Return the cost of a sentence without a partner: a quantile of the costs of random pairs."""
        cost = self.distance((1, 1), spread(len(self._x[0]), 2 * SAMPLE), spread(len(self._y[0]), 2 * SAMPLE))
        cost[np.arange(len(cost)), cost.argmin(axis=1)] = 1.0  # may be a translation; 1 is the mean of the others
        return float(np.quantile(cost, quantile))


def random_distances(x: Segments, y: Segments) -> Segments:
    """Return each segment of x's mean distance (1 - cosine) to a sample of y's segments, [n - p + 1] for each size p.

    The closest sample may be its translation, so it is replaced by an unrelated one at distance 1.
    """
    sample = np.concatenate([part[spread(len(part), SAMPLE)] for part in y])
    means = [np.empty(len(part), np.float32) for part in x]
    for part, mean in zip(x, means, strict=True):
        for start in range(0, len(part), ROWS):
            distance = 1 - part[start : start + ROWS] @ sample.T
            mean[start : start + ROWS] = (distance.sum(axis=1) - distance.min(axis=1) + 1) / len(sample)
    return means


def spread(n: int, size: int) -> np.ndarray:
    """Return at most `size` of n positions, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, size)).round().astype(np.int64)) if n else np.empty(0, np.int64)


def find_beads(
    x: Segments, y: Segments, max_size: int, quantile: float, radius: int, progress: bool | None
) -> tuple[list[Bead], Costs]:
    """Find the cheapest beads of at most `max_size` sentences, both sides together, of two non-empty documents.

    Long documents are first aligned one to one as means of 2, 4, 8... neighbours; each finer level searches only `radius` units
    on both sides of the coarser path.
    """
    halves = [(x[0], y[0])]
    while len(halves[-1][0]) * len(halves[-1][1]) > FULL_CELLS:
        halves.append((halve(halves[-1][0]), halve(halves[-1][1])))
    beads: list[Bead] | None = None
    with progress_bar(progress, total=sum(len(a) + len(b) for a, b in halves), desc="align", unit="sentence") as advance:
        for a, b in reversed(halves[1:]):
            beads, _ = _level([a], [b], [(1, 1)], beads, quantile, radius, advance)
        shapes = [(p, q) for p in range(1, max_size) for q in range(1, max_size - p + 1)]
        return _level(x, y, shapes, beads, quantile, radius, advance)


def _level(
    x: Segments,
    y: Segments,
    shapes: list[Shape],
    coarser: list[Bead] | None,
    quantile: float,
    radius: int,
    advance: Callable[[int], object],
) -> tuple[list[Bead], Costs]:
    n, m, costs = len(x[0]), len(y[0]), Costs(x, y)
    if coarser is None:
        low, width = everything(n, m)
    else:
        # The order of consecutive deletions is arbitrary, so a straight line replaces their corners.
        ends = [(i, j) for a, b, c, d in coarser if a < b and c < d for i, j in ((a, c), (b, d))]
        low, width = around([(min(2 * i, n), min(2 * j, m)) for i, j in ends], n, m, radius)
    return cheapest_beads(n, m, shapes, costs, costs.deletion(quantile), low, width, advance), costs


def halve(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors [n, D] -> unit vectors of the means of adjacent pairs, [ceil(n / 2), D]; an odd last one stays alone."""
    sums = vectors[0::2].copy()
    sums[: len(vectors) // 2] += vectors[1::2]
    return unit_rows(sums)
