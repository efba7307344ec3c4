"""The k best of a stream of similarity tiles, exactly: what beats the k-th best so far is found by maxima over groups of cells.

A neighbour is one whole number, its key: the score, in an order-preserving form and turned round, in the upper 32 bits and the
index in the lower. Ascending keys are falling scores, and of equal scores rising indices. So the best k of any cells are the
k smallest keys, whichever way the cells were cut into tiles and in whichever order these came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)  # behind every neighbour: none found yet
MOST_ROWS = 2**32 - 1  # of a side, because an index has 32 bits of the key

# Cells per group. A row's group is one piece of memory, and numpy pays some 40 ns a group; a column's is one cache line per cell.
ROW_GROUP, COLUMN_GROUP = 256, 16
STRIPE = 64  # rows of a tile whose two maxima are taken one after the other, while they are in the core's cache
SEED_GROUPS = 128  # per row, where nothing is known yet
LOOKED_INTO = 1 << 19  # cells at a time, some 40 bytes each in the worst case

RunAll = Callable[[Callable[[int], Any], Iterable[int]], Any]  # map(function, starts), here or in threads


def keys_of(scores: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Finite scores float32 and indices, of one shape -> keys uint64."""
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 becomes 0, so that they tie
    falling = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFF_FFFF))
    return falling.astype(np.uint64) << np.uint64(32) | index.astype(np.uint64)


def neighbours_of(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys uint64 of any shape -> (scores float32, index int64); where none was found -inf and -1."""
    falling = (keys >> np.uint64(32)).astype(np.uint32)
    scores = np.where(falling >> 31, falling, ~falling & np.uint32(0x7FFF_FFFF)).view(np.float32)
    index = (keys & np.uint64(0xFFFF_FFFF)).astype(np.int64)
    empty = keys == EMPTY
    return np.where(empty, np.float32(-np.inf), scores), np.where(empty, -1, index)


def no_neighbours(n: int, k: int) -> np.ndarray:
    """Keys [n, k] of rows that have seen nothing yet."""
    return np.full((n, k), EMPTY)


def merge_neighbours(*parts: np.ndarray) -> np.ndarray:
    """The k best of several keys [n, k] of the same rows; associative, and the same in any order. A neighbour counts once."""
    together = np.sort(np.concatenate(parts, axis=1), axis=1)
    together[:, 1:][together[:, 1:] == together[:, :-1]] = EMPTY
    together.sort(axis=1)
    return np.ascontiguousarray(together[:, : parts[0].shape[1]])


def absorb_tile(
    tile: np.ndarray, by_row: np.ndarray, by_column: np.ndarray, row_start: int, column_start: int, run_all: RunAll = map
) -> None:
    """Merge a tile of scores into the keys of its rows and columns, which are changed.

    tile is float32 [R, C], R and C whole numbers of ROW_GROUP; by_row [r, k] and by_column [c, k] with r <= R and c <= C are keys,
    and the cells beyond r and c are -inf. row_start and column_start are the indices of row 0 and column 0.
    """
    rows, columns = tile.shape
    r, c = len(by_row), len(by_column)
    row_maxima = np.empty((rows, columns // ROW_GROUP), np.float32)
    column_maxima = np.empty((rows // COLUMN_GROUP, columns), np.float32)

    def maxima(start: int) -> None:
        stripe = tile[start : start + STRIPE]
        np.maximum.reduce(stripe.reshape(len(stripe), -1, ROW_GROUP), axis=2, out=row_maxima[start : start + STRIPE])
        groups = stripe.reshape(-1, COLUMN_GROUP, columns)
        np.maximum.reduce(groups, axis=1, out=column_maxima[start // COLUMN_GROUP :][: len(groups)])

    list(run_all(maxima, range(0, rows, STRIPE)))

    above = _entry(by_row, column_start)
    if (fresh := by_row[:, -1] == EMPTY).any():
        seeds = np.maximum.reduce(tile[:r].reshape(r, -1, min(SEED_GROUPS, columns)), axis=1)
        _seed(above, fresh, seeds, by_row.shape[1])
    query, group = np.nonzero(row_maxima[:r] > above[:, None])
    cells = tile.reshape(rows, -1, ROW_GROUP)
    _absorb(by_row, query, above, lambda part: cells[query[part], group[part]], group * ROW_GROUP + column_start, 1)

    above = _entry(by_column, row_start)
    if (fresh := by_column[:, -1] == EMPTY).any():
        _seed(above, fresh, column_maxima[:, :c].T, by_column.shape[1])
    group, query = np.nonzero(column_maxima[:, :c] > above)
    order = np.argsort(query, kind="stable")
    query, group = query[order], group[order]
    cells = tile.reshape(-1, COLUMN_GROUP, columns).transpose(0, 2, 1)
    _absorb(by_column, query, above, lambda part: cells[group[part], query[part]], group * COLUMN_GROUP + row_start, 1)


def _entry(keys: np.ndarray, start: int) -> np.ndarray:
    """The float32 [n] that a cell must exceed to be among the k best; its equals enter if their index may be the lower one."""
    scores, index = neighbours_of(keys[:, -1])
    return np.where(index >= start, np.nextafter(scores, np.float32(-np.inf)), scores)


def _seed(above: np.ndarray, fresh: np.ndarray, maxima: np.ndarray, k: int) -> None:
    """Raise the entry of fresh queries: k cells at least are as good as the k-th best of their group maxima [n, G]."""
    groups = maxima.shape[1]
    if groups >= k:
        kth = np.partition(maxima[fresh], groups - k, axis=1)[:, groups - k]
        above[fresh] = np.maximum(above[fresh], np.nextafter(kth, np.float32(-np.inf)))


def _absorb(
    keys: np.ndarray,
    query: np.ndarray,
    above: np.ndarray,
    cells_of: Callable[[slice], np.ndarray],
    first: np.ndarray,
    step: int,
) -> None:
    """Merge groups of cells, sorted by query [A]; cells_of gives some of them [a, S], and first [A] is the index of cell 0."""
    size = cells_of(slice(0, 1)).shape[1] if len(query) else 1
    chunk = max(1, LOOKED_INTO // size)
    for start in range(0, len(query), chunk):
        part = slice(start, start + chunk)
        cells = cells_of(part)
        at, inside = np.nonzero(cells > above[query[part], None])
        found = keys_of(cells[at, inside], first[part][at] + inside * step)
        _merge(keys, query[part][at], found)


def _merge(keys: np.ndarray, query: np.ndarray, found: np.ndarray) -> None:
    """Merge found keys [m], sorted by query [m]."""
    if not len(query):
        return
    k = keys.shape[1]
    starts = np.flatnonzero(np.concatenate([[True], query[1:] != query[:-1]]))
    counts = np.diff(np.concatenate([starts, [len(query)]]))
    slot = np.repeat(np.arange(len(starts)), counts)
    rank = np.arange(len(query)) - starts[slot]
    queries = query[starts]
    while len(found):
        width = min(int(rank.max()) + 1, max(k, LOOKED_INTO // len(queries)))
        now = rank < width
        both = np.full((len(queries), k + width), EMPTY)
        both[:, :k] = keys[queries]
        both[slot[now], k + rank[now]] = found[now]
        both.sort(axis=1)
        keys[queries] = both[:, :k]
        later = ~now
        found, slot, rank = found[later], slot[later], rank[later] - width
