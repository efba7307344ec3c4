"""One pair of blocks of vectors -> the best neighbours of both, from one product: the step that every kind of kNN repeats.

    xy, yx = block_neighbours(x_block, y_block, k, x_start=i, y_start=j)     # pure: the same bytes here and on any machine
    xy = merge_neighbours(xy_of_one_block, xy_of_another)                    # associative, the same in any order
    scores, index = neighbours_of(xy)                                        # float32 [n, k], int64 [n, k]

However the two sides are cut into blocks, and in whichever order these are merged, the result is that of one block. It does not
depend on the number of threads or the BLAS either: see exact.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mexma_rt.exact import compute_anew, floor_of, lengths, repeated, scan_error, settle
from mexma_rt.keys import merge_neighbours, neighbours_of, no_neighbours
from mexma_rt.tiles import scan

__all__ = ["absorb_block", "block_neighbours", "merge_neighbours", "neighbours_of", "no_neighbours"]

# Candidates beyond k. A row is proved if k of them are clear of the last one by what float32 can err (D=384: 2.3e-5).
SPARE = 2


def block_neighbours(
    x: np.ndarray, y: np.ndarray, k: int, *, x_start: int = 0, y_start: int = 0, memory_bytes: int = 256 << 20
) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of the k nearest rows of y for each row of x, uint64 [n, k], and of x for each row of y, [m, k].

    x [n, D] and y [m, D] are blocks of checked vectors (`mexma_rt.knn.check_vectors`) of any real type; x_start and y_start are
    the indices of their first rows in the whole. A block with fewer than k rows leaves the rest of a row empty.
    """
    by_x, by_y = no_neighbours(len(x), k), no_neighbours(len(y), k)
    absorb_block(by_x, by_y, x, y, x_start=x_start, y_start=y_start, memory_bytes=memory_bytes)
    return by_x, by_y


def absorb_block(
    by_x: np.ndarray,
    by_y: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    *,
    x_start: int = 0,
    y_start: int = 0,
    memory_bytes: int = 256 << 20,
    advance: Callable[[int], object] = lambda cells: None,
) -> int:
    """Merge the neighbours in a pair of blocks into keys by_x [n, k] and by_y [m, k], in place: what is known already makes the
    search faster than `block_neighbours` with a merge, and the result is the same. advance is told how many cells are done.

    Equal rows of a block must come with equal keys, as they do if both have seen the same. Returns how many rows of both
    sides were not proved by the scan and computed anew.
    """
    k = by_x.shape[1]
    (x_rows, x_firsts), (y_rows, y_firsts) = repeated(x, k), repeated(y, k)
    if len(x_rows) or len(y_rows):
        keep_x, keep_y = np.delete(np.arange(len(x)), x_rows), np.delete(np.arange(len(y)), y_rows)
        few_x, few_y = by_x[keep_x], by_y[keep_y]
        anew = _absorb(few_x, few_y, x[keep_x], y[keep_y], keep_x + x_start, keep_y + y_start, memory_bytes, advance)
        by_x[keep_x], by_y[keep_y] = few_x, few_y
        by_x[x_rows], by_y[y_rows] = by_x[x_firsts], by_y[y_firsts]
        advance(len(x) * len(y) - len(keep_x) * len(keep_y))
        return anew
    return _absorb(by_x, by_y, x, y, np.arange(len(x)) + x_start, np.arange(len(y)) + y_start, memory_bytes, advance)


def _absorb(
    by_x: np.ndarray,
    by_y: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    x_index: np.ndarray,
    y_index: np.ndarray,
    memory_bytes: int,
    advance: Callable[[int], object],
) -> int:
    x_lengths, y_lengths = lengths(x), lengths(y)
    x_error, y_error = (
        scan_error(own, float(other.max(initial=0)), x.shape[1])
        for own, other in ((x_lengths, y_lengths), (y_lengths, x_lengths))
    )
    scanned_x, scanned_y = scan(
        x,
        y,
        by_x.shape[1] + SPARE,
        floor_of(by_x, x_error),
        floor_of(by_y, y_error),
        memory_bytes=memory_bytes,
        advance=advance,
    )
    anew = 0
    for keys, scanned, error, own, other, index in (
        (by_x, scanned_x, x_error, x, y, y_index),
        (by_y, scanned_y, y_error, y, x, x_index),
    ):
        unproved = settle(keys, scanned, error, own, other, index)
        compute_anew(keys, unproved, error, own, other, index)
        anew += len(unproved)
    return anew
