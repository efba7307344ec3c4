"""One pair of blocks of vectors -> the best neighbours of both, from one product: the step that every kind of kNN repeats.

    xy, yx = block_neighbours(x_block, y_block, k, x_start=i, y_start=j)     # pure: the same bytes here and on any machine
    xy = merge_neighbours(xy_of_one_block, xy_of_another)                    # associative, the same in any order
    scores, index = neighbours_of(xy)                                        # float32 [n, k], int64 [n, k]

However the two sides are cut into blocks, and in whichever order these are merged, the result is that of one block.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import isqrt

import numpy as np

from mexma_rt.topk import ROW_GROUP, absorb_tile, merge_neighbours, neighbours_of, no_neighbours

__all__ = ["absorb_block", "block_neighbours", "merge_neighbours", "neighbours_of", "no_neighbours"]

TILE_ROWS, TILE_COLUMNS = 2048, 2048


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
) -> None:
    """Merge the neighbours in a pair of blocks into keys by_x [n, k] and by_y [m, k], in place: what is known already makes the
    search faster than `block_neighbours` with a merge, and the result is the same. advance is told how many cells are done.
    """
    n, m = len(x), len(y)
    height, width = tile_shape(memory_bytes, n, m)
    memory = np.empty(height * width, np.float32)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for i in range(0, n, height):
            rows, b = _padded_rows(x, i, height), min(height, n - i)
            for j in range(0, m, width):
                columns, c = _padded_rows(y, j, width), min(width, m - j)
                tile = memory[: len(rows) * len(columns)].reshape(len(rows), len(columns))
                np.matmul(rows, columns.T, out=tile)
                tile[b:] = -np.inf
                tile[:, c:] = -np.inf
                absorb_tile(tile, by_x[i : i + b], by_y[j : j + c], x_start + i, y_start + j, pool.map)
                advance(b * c)


def tile_shape(memory_bytes: int, n: int, m: int) -> tuple[int, int]:
    """Rows and columns of a tile: whole groups, half of the memory at most (the rest is for maxima, converted blocks and the
    cells looked into), no larger than is fast and the blocks are.
    """
    side = max(isqrt(memory_bytes // 8) // ROW_GROUP, 1) * ROW_GROUP
    return min(side, TILE_ROWS, padded(n)), min(side, TILE_COLUMNS, padded(m))


def padded(n: int) -> int:
    return -(-n // ROW_GROUP) * ROW_GROUP


def _padded_rows(vectors: np.ndarray, start: int, size: int) -> np.ndarray:
    """Return rows start to start + size in float32, with rows of zeros up to a whole number of groups.

    Whole groups also keep the matrix product in one kernel: OpenBLAS rounds differently for a handful of rows, and then
    equal sentences would no longer tie.
    """
    part = vectors[start : start + size]
    if len(part) % ROW_GROUP == 0:
        return np.ascontiguousarray(part, np.float32)
    block = np.zeros((padded(len(part)), vectors.shape[1]), np.float32)
    block[: len(part)] = part
    return block
