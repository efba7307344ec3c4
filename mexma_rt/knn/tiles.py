"""The CPU scan: similarities tile by tile and the best of each row and column, at nearly the speed of the matrix product.

One pass over a tile serves both directions: the maxima over groups of 16 rows in each column. A column inspects a group that
beats its k-th best so far, and so do the rows of a group, whose thresholds are similar because rows are kept sorted by them.
Few cells are inspected, hundreds at a time, so nearly all time goes into the matrix product. Each thread computes and inspects
its own whole tiles (lanes.py says why).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import isqrt
from threading import Lock, local

import numpy as np

from mexma_rt.knn.keys import keys_of, merge_found, neighbours_of, no_neighbours
from mexma_rt.knn.lanes import open_lanes

TILE_ROWS, TILE_COLUMNS = 2048, 4096  # two of 4096 x 4096 or of 2048 x 2048 at a time are no faster (40,000 x 40,000)
LEAST = 1 << 20  # cells of a lane's tile at least, where there are lanes
PAD = 256  # rows and columns of a tile are whole numbers of it
SORT_TILES = (0, 1, 4, 16, 64, 256)  # tiles of a lane before which rows are sorted: what they ask changes most at first
GROUP = 16  # rows of a group: its cells in a column are as many cache lines
SEEDS = 128  # groups of a row, where nothing is known of it yet
PART = 1024  # columns or rows that are looked into at a time
STRIPE = 64  # rows of which maxima are taken at a time
DENSE = 2  # if more than one group in so many is looked into, all cells of the part are


def scan(
    x: np.ndarray,
    y: np.ndarray,
    k: int,
    x_floor: np.ndarray,
    y_floor: np.ndarray,
    *,
    memory_bytes: int,
    advance: Callable[[int], object] = lambda cells: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of the k best rows of y for each row of x, [n, k], and of x for each row of y, [m, k], from float32
    products as the BLAS rounds them. Cells below x_floor [n] and y_floor [m] (-inf: none) do not count.
    """
    n, m = len(x), len(y)
    by_x, by_y = no_neighbours(n, k), no_neighbours(m, k)
    lock, own = Lock(), local()  # the lock: of by_x, which all tiles of some rows change; each tile has columns of its own

    def absorb(rows: np.ndarray, keys: np.ndarray, row_index: np.ndarray, j: int) -> int:
        """Compute and absorb the tile of some rows and the columns from j on; return its number of cells."""
        columns, c = _padded_rows(y, j, width), min(width, m - j)
        if not hasattr(own, "memory"):
            own.memory = np.empty(height * width, np.float32)
        tile = own.memory[: len(rows) * len(columns)].reshape(len(rows), len(columns))
        np.matmul(rows, columns.T, out=tile)
        tile[len(keys) :] = -np.inf
        tile[:, c:] = -np.inf
        column_entry = entry(by_y[j : j + c], y_floor[j : j + c])
        with lock:  # tiles finish in any order, so a tie with the k-th best may still have a lower index
            row_entry = np.nextafter(entry(keys, x_floor[row_index]), np.float32(-np.inf))
        absorb_tile(tile, keys, row_index, row_entry, by_y[j : j + c], j, column_entry, lock)
        return len(keys) * c

    with open_lanes(most_lanes(memory_bytes, n, m)) as lanes:
        height, width = tile_shape(memory_bytes, n, m, lanes)
        starts = range(0, m, width)
        cuts = [*(lanes * number for number in SORT_TILES if lanes * number < len(starts)), len(starts)]
        pool = ThreadPoolExecutor(lanes)
        try:
            for i in range(0, n, height):
                rows, b = _padded_rows(x, i, height), min(height, n - i)
                keys, order = by_x[i : i + b], np.arange(b)
                for first, last in pairwise(cuts):
                    by_entry = np.argsort(entry(keys, x_floor[i + order]))
                    keys, order = keys[by_entry], order[by_entry]
                    rows = np.concatenate([rows[:b][by_entry], rows[b:]])
                    for tile in [pool.submit(absorb, rows, keys, i + order, j) for j in starts[first:last]]:
                        advance(tile.result())
                by_x[i : i + b][order] = keys
        finally:
            pool.shutdown(cancel_futures=True)
    return by_x, by_y


def entry(keys: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Return the float32 [n] that a cell must exceed: the k-th best so far, excluding ties (later ones have higher indices), or
    the floor [n], including ties.
    """
    bar: np.ndarray = np.maximum(neighbours_of(keys[:, -1])[0], np.nextafter(floor, np.float32(-np.inf)))
    return bar


def absorb_tile(
    tile: np.ndarray,
    by_row: np.ndarray,
    row_index: np.ndarray,
    row_entry: np.ndarray,
    by_column: np.ndarray,
    column_start: int,
    column_entry: np.ndarray,
    lock: Lock,
) -> None:
    """Merge a tile of scores into the keys of its rows and columns, in place, modifying the tile too.

    tile is float32 [R, C], R a whole number of GROUP and C one of SEEDS. by_row [r, k] and by_column [c, k], r <= R and c <= C,
    are keys, and the cells beyond r and c are -inf. row_index [r] says which rows these are, and column_start is the index of
    column 0. by_row is changed while the lock is held.
    """
    r, c, columns, k = len(by_row), len(by_column), tile.shape[1], by_row.shape[1]
    maxima = np.empty((len(tile) // GROUP, columns), np.float32)
    fresh = bool(np.isneginf(row_entry).any())  # then the rows inspect all cells
    group_entry = np.full((len(tile) // GROUP, GROUP), np.inf, np.float32)
    group_entry.ravel()[:r] = np.inf if fresh else row_entry
    lowest = group_entry.min(axis=1)[:, None]

    def absorb_columns(start: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Merge some columns; return what rows find there, or None if they must inspect all cells."""
        part = slice(start, min(start + PART, c))
        keys, best, above = by_column[part], maxima[:, part], column_entry[part]
        _seed(above, best.T, k)
        for_rows, for_columns = best > lowest, best > above
        many = best.size // DENSE
        rows_dense = fresh or np.count_nonzero(for_rows) > many
        if rows_dense:
            for_rows[:] = False
        if np.count_nonzero(for_columns) > many:
            _absorb_dense(keys, above, tile[:r, part].T, row_index)
            for_columns[:], above = False, np.full_like(above, np.inf)
        group, column = np.divmod(np.flatnonzero(for_rows | for_columns), len(keys))
        cells = np.ascontiguousarray(tile.reshape(-1, GROUP, columns)[:, :, part].transpose(0, 2, 1)[group, column])
        which, inside = np.divmod(np.flatnonzero(cells > above[column, None]), GROUP)
        merge_found(keys, column[which], keys_of(cells[which, inside], row_index[group[which] * GROUP + inside]))
        if rows_dense:
            return None
        which, inside = np.divmod(np.flatnonzero(cells > group_entry[group]), GROUP)
        return group[which] * GROUP + inside, keys_of(cells[which, inside], column[which] + (start + column_start))

    def absorb_rows(start: int) -> None:
        part = slice(start, min(start + PART, r))
        keys, above = by_row[part], row_entry[part]
        if fresh:
            _seed(above, np.maximum.reduce(tile[part].reshape(len(keys), -1, SEEDS), axis=1), k)
        for first in range(0, c, PART):
            if found[first // PART] is None:
                last = min(first + PART, c)
                _absorb_dense(keys, above, tile[part, first:last], np.arange(first, last) + column_start)

    for start in range(0, len(tile), STRIPE):
        stripe = tile[start : start + STRIPE].reshape(-1, GROUP, columns)
        np.maximum.reduce(stripe, axis=1, out=maxima[start // GROUP :][: len(stripe)])
    found = [absorb_columns(start) for start in range(0, c, PART)]
    with lock:
        if any(one is None for one in found):
            for start in range(0, r, PART):
                absorb_rows(start)
        if sparse := [one for one in found if one is not None]:
            merge_found(by_row, np.concatenate([rows for rows, _ in sparse]), np.concatenate([keys for _, keys in sparse]))


def _seed(above: np.ndarray, maxima: np.ndarray, k: int) -> None:
    """Raise the thresholds of queries without results: at least k cells are as good as the k-th best of the maxima [n, G]."""
    fresh, groups = np.isneginf(above), maxima.shape[1]
    if groups >= k and fresh.any():
        kth = np.partition(maxima[fresh], groups - k, axis=1)[:, groups - k]
        above[fresh] = np.nextafter(kth, np.float32(-np.inf))


def _absorb_dense(keys: np.ndarray, above: np.ndarray, cells: np.ndarray, index: np.ndarray) -> None:
    """Merge all cells [n, S] of queries; index [S] is theirs."""
    step = max(1, (1 << 18) // len(index))  # cells, some 40 bytes each if all are good enough
    for start in range(0, len(keys), step):
        few = np.ascontiguousarray(cells[start : start + step])
        at = np.flatnonzero(few > above[start : start + step, None])
        query, inside = np.divmod(at, len(index))
        merge_found(keys[start : start + step], query, keys_of(few.ravel()[at], index[inside]))


def most_lanes(memory_bytes: int, n: int, m: int) -> int:
    """Return how many lanes can have a tile of LEAST cells each, in a third of the memory and of the n x m cells."""
    return max(min(memory_bytes // 12, n * m) // LEAST, 1)


def tile_shape(memory_bytes: int, n: int, m: int, lanes: int) -> tuple[int, int]:
    """Return the rows and columns of a lane's tile: whole groups, at most a third of the memory for all lanes (the rest is for
    maxima, converted blocks and inspected cells), no larger than is fast or than the blocks, and with work for every lane.
    """
    cells = memory_bytes // 12 // lanes
    height = min(max(isqrt(cells) // PAD, 1) * PAD, TILE_ROWS, max(-(-n // PAD), 1) * PAD)
    widest = min(max(cells // height // PAD, 1) * PAD, TILE_COLUMNS)
    tiles = max(-(-m // (lanes * widest)), 1) * lanes
    return height, max(-(-m // tiles // PAD), 1) * PAD


def _padded_rows(vectors: np.ndarray, start: int, size: int) -> np.ndarray:
    """Return rows start to start + size in float32, with rows of zeros up to a whole number of groups."""
    part = vectors[start : start + size]
    if len(part) % PAD == 0:
        return np.ascontiguousarray(part, np.float32)
    block = np.zeros((-(-len(part) // PAD) * PAD, vectors.shape[1]), np.float32)
    block[: len(part)] = part
    return block
