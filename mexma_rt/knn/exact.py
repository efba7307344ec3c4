"""Computes exact scores of neighbours that a faster scan found, and proves that it missed none.

A scan rounds: a BLAS rounds differently in the middle and at the edge of a matrix, so that equal sentences do not tie and
results depend on tiles and threads; a GPU in half precision rounds far more. So the scan only proposes candidates, a few more
than k. Their scores are computed in float64 and rounded to float32 once. A row is proved if its k-th exact score exceeds the
last candidate's scan score by more than the scan's error bound; the few others are recomputed, with every cell that could
matter. The result depends only on the vectors, not on the scan, its blocks or its precision.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mexma_rt.cores import usable_cores
from mexma_rt.knn.keys import EMPTY, keys_of, merge_found, merge_neighbours, neighbours_of

# float64 products at a time: 512 KB. One array for all, because the allocator returns arrays of this size to the system and
# requests them again each time: 3.5 and 8 us per pair with D=384 and 1024 (two threads), against 0.7 and 1.5 with one array.
PRODUCTS = 1 << 16
UNIT = 2.0**-24  # rounding of float32
UNITS = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # of the scan's scores, in addition to float32's
LARGEST = {"float32": 3e38, "float16": 65504.0, "bfloat16": 3e38}
SMALLEST = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
PROVED_ROWS = 4096  # rows that a thread takes at a time
REDONE = 512, 2048  # rows and columns of a tile of recomputed rows


def exact_scores(x: np.ndarray, y: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return float32 [p]: the inner products x[rows] . y[columns], in float64 and rounded once."""
    scores = np.empty(len(rows), np.float32)
    products = np.empty((max(PRODUCTS // x.shape[1], 1), x.shape[1]))
    for start in range(0, len(rows), len(products)):
        part = slice(start, min(start + len(products), len(rows)))
        few = products[: part.stop - start]
        left, right = (side[index[part]].astype(np.float32, copy=False) for side, index in ((x, rows), (y, columns)))
        np.multiply(left, right, out=few, dtype=np.float64)
        scores[part] = few.sum(axis=1)
    return scores


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Return the Euclidean lengths of rows [n, D], float64 [n], computed block by block."""
    result = np.empty(len(vectors))
    for start in range(0, len(vectors), 4096):
        block = np.asarray(vectors[start : start + 4096], np.float32)
        result[start : start + 4096] = np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64))
    return result


def rounding(vectors: np.ndarray, precision: str) -> np.ndarray:
    """Return [n]: the length of the difference between a row and its rounding to "float32", "float16" or "bfloat16"."""
    result = np.zeros(len(vectors))
    if precision != "float32":
        for start in range(0, len(vectors), 4096):
            block = np.asarray(vectors[start : start + 4096], np.float32)
            with np.errstate(over="ignore"):  # infinite where a component is beyond the precision
                result[start : start + 4096] = lengths(block - rounded(block, precision))
    return result


def rounded(block: np.ndarray, precision: str) -> np.ndarray:
    """Return the block float32 [n, D] rounded to the nearest, ties to even, as float32."""
    if precision == "float16":
        return block.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(block).view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) & np.uint32(0xFFFF_0000)).view(np.float32)


def scan_error(
    x: np.ndarray, x_lost: np.ndarray, y: np.ndarray, y_lost: np.ndarray, dimensions: int, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return [n] and [m]: how far the scan's product of a row with any row of the other side can be from the exact score.

    x, y are the lengths of the rows and x_lost, y_lost the results of `rounding`. A product of rounded rows x', y' errs by |x -
    x'| |y'| + |x| |y - y'|; summing in float32 in any order adds D u |x'| |y'| (Higham, Accuracy and Stability of Numerical
    Algorithms, 3.1), u = 2^-24; rounding to the scan's precision adds its unit once more, as for the exact score. Products too
    small for float32 lose 2^-149 each. A row of zeros is exact.
    """

    def one(own: np.ndarray, own_lost: np.ndarray, other: np.ndarray, other_lost: np.ndarray) -> np.ndarray:
        longest, lost = other.max(initial=0), other_lost.max(initial=0)
        relative = 1.01 * ((dimensions + 2) * UNIT + UNITS[precision])
        if not np.isfinite(longest + lost):
            return np.full(len(own), np.inf)
        error = own_lost * (longest + lost) + own * lost + relative * (own + own_lost) * (longest + lost)
        error = np.where((own + own_lost) * (longest + lost) < LARGEST[precision], error, np.inf)
        return np.where(own > 0, error + dimensions * SMALLEST[precision], 0)

    return one(x, x_lost, y, y_lost), one(y, y_lost, x, x_lost)


def floor_of(keys: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return float32 [n]: a scan score below this cannot become one of the k best of keys [n, k]."""
    kth = neighbours_of(keys[:, -1])[0]
    floor: np.ndarray = np.nextafter((kth - error).astype(np.float32), np.float32(-np.inf))
    return floor


def prove_rows(
    keys: np.ndarray,
    scanned: np.ndarray,
    error: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    y_index: np.ndarray,
    *,
    orders_ties: bool = True,
) -> np.ndarray:
    """Merge the exact scores of scanned neighbours (keys [n, more than k] that count rows of y from 0) into keys [n, k].

    y_index [m] gives the index of each row of y in keys. orders_ties: the scan kept the lower index of equal scores, so a row
    whose scores are exact (zeros) is proved even if they are all equal. Returns the rows of x that are not proved.
    """
    k = keys.shape[1]

    def one(start: int) -> np.ndarray:
        part = slice(start, start + PROVED_ROWS)
        own = start + np.flatnonzero((scanned[part, 0] != EMPTY) | np.isinf(error[part]))  # the rows that found something
        scores, index = neighbours_of(scanned[own])
        # A candidate behind the k-th by more than both can err needs no exact score.
        hopeful = scores >= scores[:, k - 1 : k].astype(np.float64) - 2 * error[own, None]
        rows, places = np.nonzero((index >= 0) & hopeful)
        columns = index[rows, places]
        found = np.full_like(scanned[own], EMPTY)
        found[rows, places] = keys_of(exact_scores(x, y, own[rows], columns), y_index[columns])
        keys[own] = merged = merge_neighbours(keys[own], found)
        kth, full = neighbours_of(merged[:, -1])[0].astype(np.float64), index[:, -1] >= 0
        left_open = full & (scores[:, -1] >= kth - error[own]) & ((error[own] > 0) | (not orders_ties))
        unproved: np.ndarray = own[left_open | np.isinf(error[own])]  # inf: outside the precision's range
        return unproved

    with ThreadPoolExecutor(usable_cores()) as pool:
        return np.concatenate(list(pool.map(one, range(0, len(keys), PROVED_ROWS))))


def compute_anew(
    keys: np.ndarray, unproved: np.ndarray, error: np.ndarray, x: np.ndarray, y: np.ndarray, y_index: np.ndarray
) -> None:
    """Merge the exact scores of all cells that could be among the k best of the unproved rows into keys [n, k].

    error [n] is the error bound of products in float32.
    """
    height, width = REDONE
    for i in range(0, len(unproved), height):
        rows = unproved[i : i + height]
        left, own = np.asarray(x[rows], np.float32), keys[rows]
        for j in range(0, len(y), width):
            tile = left @ np.asarray(y[j : j + width], np.float32).T
            row, column = np.nonzero(tile >= floor_of(own, error[rows])[:, None])
            found = keys_of(exact_scores(x, y, rows[row], column + j), y_index[column + j])
            new = ~(own[row] == found[:, None]).any(axis=1)
            merge_found(own, row[new], found[new])
        keys[rows] = own


def hash_factors(dimensions: int) -> np.ndarray:
    """Fixed odd numbers, uint64 [D]."""
    return np.random.default_rng(7).integers(0, 2**63, dimensions, np.uint64) | np.uint64(1)


def hashes_of(vectors: np.ndarray) -> np.ndarray:
    """Return uint64 [n]: the bits of each row's float32 times `hash_factors`, summed. Rows of equal bits have equal hashes."""
    hashes, factors = np.empty(len(vectors), np.uint64), hash_factors(vectors.shape[1])
    for start in range(0, len(vectors), 1024):
        block = np.ascontiguousarray(vectors[start : start + 1024], np.float32)
        hashes[start : start + 1024] = np.einsum("nd,d->n", block.view(np.uint32).astype(np.uint64), factors)
    return hashes


def repeated(vectors: np.ndarray, k: int, hashes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows preceded by at least k equal rows, and for each the first row that equals it.

    They need no product: as neighbours they lose to the earlier rows, and their own neighbours are the first row's.
    hashes: from `hashes_of`, if known.
    """
    if hashes is None:
        hashes = hashes_of(vectors)
    order = np.argsort(hashes, kind="stable")
    same = np.concatenate([[False], hashes[order[1:]] == hashes[order[:-1]]])
    begins = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    late = np.flatnonzero(np.arange(len(order)) - begins >= k)
    rows, firsts = order[late], order[begins[late]]
    equal = _all_equal(lambda part: np.float32(vectors[rows[part]]) == np.float32(vectors[firsts[part]]), len(rows))
    return rows[equal], firsts[equal]


def _all_equal(compare: Callable[[slice], np.ndarray], n: int) -> np.ndarray:
    parts = [compare(slice(start, start + 1024)).all(axis=1) for start in range(0, n, 1024)]
    return np.concatenate(parts) if parts else np.empty(0, bool)
