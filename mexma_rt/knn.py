"""Exact nearest neighbours by inner product, in both directions from one matrix product, with numpy alone.

The similarity matrix is made tile by tile. Each tile feeds both directions: the maximum of every group of cells is taken
in one pass, and only a row (or column) whose best group beats its k-th neighbour so far is looked into. So nearly all the
time goes into the matrix product.
"""

from __future__ import annotations

from math import isqrt

import numpy as np

from mexma_rt.errors import InputError
from mexma_rt.progress import progress_bar

# Cells per group. Measured on a 4096 x 4096 tile, ns per cell: rows 1.0 with groups of 64, 0.6 with 128, 0.34 with 256
# (numpy pays per group, and a row's groups lie in one piece of memory); columns 0.2 with any group. A column's group
# is spread over the tile, one cache line per cell, so it is kept small.
ROW_GROUP, COLUMN_GROUP = 256, 64


def mutual_neighbours(
    x: np.ndarray, y: np.ndarray, k: int, *, memory_bytes: int = 256 << 20, progress: bool | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the k nearest rows of y for every row of x and the k nearest rows of x for every row of y.

    x is [n, D] and y is [m, D]; any real type, computed in float32; neither is modified. The result is
    (scores_xy [n, k] float32, index_xy [n, k] int64, scores_yx [m, k], index_yx [m, k]), best first; of equal scores the
    lower index comes first, whatever the tile size. memory_bytes bounds the working memory beyond inputs and results (a tile of
    256 x 256 is the least).
    progress: a bar on stderr; None shows it on a terminal if the job takes longer than a second.

    Raises InputError for arrays that are not two-dimensional or disagree in D, for NaN, infinity or values so large that
    their product leaves float32, and for a k below 1 or above the size of either side.
    """
    x, y = check_vectors(x, "x"), check_vectors(y, "y")
    check_dimensions(x, y, "x", "y")
    check_k(k, {"x": len(x), "y": len(y)}, "rows")
    if _largest(x) * _largest(y) * x.shape[1] > float(np.finfo(np.float32).max):
        raise InputError("x and y are so long that their products leave float32. Normalise them, for example by unit_rows.")
    n, m = len(x), len(y)
    best_xy, best_yx = _nothing_yet(n, k), _nothing_yet(m, k)
    # Half of the budget is the tile; the rest is for maxima, converted blocks and the groups looked into.
    side = max(isqrt(memory_bytes // 8) // ROW_GROUP, 1) * ROW_GROUP
    memory = np.empty(min(side, _padded(n)) * min(side, _padded(m)), np.float32)
    with progress_bar(progress, total=n * m, desc="neighbours", unit="cell") as advance:
        for i in range(0, n, side):
            rows, b = _block(x, i, side), min(side, n - i)
            for j in range(0, m, side):
                columns, c = _block(y, j, side), min(side, m - j)
                tile = memory[: len(rows) * len(columns)].reshape(len(rows), len(columns))
                np.matmul(rows, columns.T, out=tile)
                tile[b:] = -np.inf
                tile[:, c:] = -np.inf
                by_row = tile.reshape(len(rows), -1, ROW_GROUP)
                by_column = tile.reshape(-1, COLUMN_GROUP, len(columns)).transpose(2, 0, 1)
                row_maxima, column_maxima = by_row.max(axis=2), by_column.max(axis=2)
                _absorb(best_xy, slice(i, i + b), by_row[:b], row_maxima[:b], first=j)
                _absorb(best_yx, slice(j, j + c), by_column[:c], column_maxima[:c], first=i)
                advance(b * c)
    return *best_xy, *best_yx


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
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"{x_name} has shape {x.shape} and {y_name} {y.shape}: the dimensions {x.shape[1]} and {y.shape[1]} differ. "
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


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Return a float32 copy of vectors [n, D] with rows of length 1; a zero row stays zero."""
    unit = np.array(vectors, np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", unit, unit, dtype=np.float64))
    unit /= np.where(lengths > 0, lengths, 1)[:, None]
    return unit


def _largest(vectors: np.ndarray) -> float:
    return max(float(vectors.max()), -float(vectors.min()))


def _padded(n: int) -> int:
    return -(-n // ROW_GROUP) * ROW_GROUP


def _block(vectors: np.ndarray, start: int, size: int) -> np.ndarray:
    """Return rows start to start + size in float32, with rows of zeros up to a whole number of groups.

    Whole groups also keep the matrix product in one kernel: OpenBLAS rounds differently for a handful of rows, and then
    equal sentences would no longer tie.
    """
    part = vectors[start : start + size]
    if len(part) % ROW_GROUP == 0:
        return np.ascontiguousarray(part, np.float32)
    block = np.zeros((_padded(len(part)), vectors.shape[1]), np.float32)
    block[: len(part)] = part
    return block


def _nothing_yet(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((n, k), -np.inf, np.float32), np.full((n, k), -1, np.int64)


def _absorb(best: tuple[np.ndarray, np.ndarray], queries: slice, groups: np.ndarray, maxima: np.ndarray, first: int) -> None:
    """Merge a tile into the k best so far: each query's largest cells are popped in order while they still enter.

    groups is [q, G, S] (a view of the tile: G groups of S cells for each query), maxima is [q, G] and first is the index
    of cell 0. argmax takes the first of equals, so cells come out by (score down, index up); tiles are visited in
    ascending index and a cell must be strictly better to displace an older one, so the lower index always wins.
    """
    scores, index = best[0][queries], best[1][queries]
    k, size = scores.shape[1], groups.shape[2]
    active = np.flatnonzero(maxima.max(axis=1) > scores[:, -1])
    if not len(active):
        return
    old_scores, old_index = scores[active], index[active]
    new_scores, new_index = _nothing_yet(len(active), k)
    row, maxima, popped = np.arange(len(active)), maxima[active], []
    for pops in range(k):
        # A cell below all popped ones enters if fewer than k - pops of the old ones are at least as good.
        helps = maxima.max(axis=1) > old_scores[row, k - 1 - pops]
        row, maxima = row[helps], maxima[helps]
        each, group = np.arange(len(row)), maxima.argmax(axis=1)
        cells = groups[active[row], group]
        inside = cells.argmax(axis=1)
        new_scores[row, pops] = cells[each, inside]
        new_index[row, pops] = first + group * size + inside
        popped.append((active[row], group, inside, cells[each, inside]))
        groups[active[row], group, inside] = cells[each, inside] = -np.inf
        maxima[each, group] = cells.max(axis=1)
    for *cell, score in popped:  # the other direction reads the same tile
        groups[tuple(cell)] = score
    both = np.concatenate([old_scores, new_scores], axis=1)
    order = np.argsort(-both, axis=1, kind="stable")[:, :k]
    scores[active] = np.take_along_axis(both, order, axis=1)
    index[active] = np.take_along_axis(np.concatenate([old_index, new_index], axis=1), order, axis=1)
