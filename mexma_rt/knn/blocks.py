"""Finds the best neighbours between two blocks of vectors, both ways from one product: the step repeated by every kNN search.

    xy, yx = block_neighbours(x_block, y_block, k, x_start=i, y_start=j)     # pure: the same bytes here and on any machine
    xy = merge_neighbours(xy_of_one_block, xy_of_another)                    # associative, the same in any order
    scores, index = neighbours_of(xy)                                        # float32 [n, k], int64 [n, k]

The result does not depend on how the two sides are split into blocks, the order of merging, the number of threads or the BLAS:
see exact.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mexma_rt.knn.exact import compute_anew, floor_of, lengths, prove_rows, repeated, rounding, scan_error
from mexma_rt.knn.keys import merge_neighbours, neighbours_of, no_neighbours
from mexma_rt.knn.tiles import scan as scan_tiles

__all__ = ["Block", "absorb_blocks", "block_neighbours", "choose_device", "merge_neighbours", "neighbours_of", "no_neighbours"]

# Candidates beyond k. A row is proved if k of them beat the last one by more than float32's error (D=384: 2.3e-5).
SPARE = 2


class Scan(Protocol):
    """Scans products: `mexma_rt.knn.tiles.scan`, or a device's function, which also accepts vectors already sent to it."""

    def __call__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        k: int,
        x_floor: np.ndarray,
        y_floor: np.ndarray,
        *,
        memory_bytes: int,
        advance: Callable[[int], object],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scan keys [n, k] and [m, k]; rows or cells below the floors may be omitted."""


@dataclass(frozen=True, kw_only=True)
class SearchDevice:
    """Where the scan runs, in which precision, and why. spare: candidates beyond k. prepare: sends vectors there and measures
    them on the way (`mexma_rt.knn.gpu_vectors.Prepared`); None if the scan uses them unchanged.
    """

    scan: Scan
    name: str
    reason: str
    precision: str
    spare: int
    prepare: Callable[[np.ndarray], Any] | None = None
    orders_ties: bool = False  # whether it keeps the lower index of equal scan scores


# On a CPU, numpy has no half-precision product that is faster than float32's.
CPU = SearchDevice(scan=scan_tiles, name="cpu", reason="named", precision="float32", spare=SPARE, orders_ties=True)


def choose_device(device: str) -> SearchDevice:
    """Open the device "cpu", "cuda", "cuda:1" or "auto"; raises the errors of `mexma_rt.knn.gpu.open_devices`."""
    if device == "cpu":
        return CPU
    from mexma_rt.knn import gpu
    from mexma_rt.knn.gpu_vectors import prepare_on

    found = gpu.open_devices(device)
    if not found.arrays:
        return replace(CPU, reason=found.reason)
    return SearchDevice(
        scan=gpu.scan_on(found.arrays),
        name=found.name,
        reason=found.reason,
        precision=found.precision,
        spare=gpu.SPARE,
        prepare=prepare_on(found.arrays),
    )


@dataclass(frozen=True, kw_only=True)
class Block:
    """Vectors [n, D] prepared for a product: rows preceded by k equal rows are omitted, and the rest are measured."""

    vectors: np.ndarray  # [p, D], p <= n
    rows: np.ndarray  # [p]: which of the n rows these are
    late: np.ndarray  # the other n - p rows
    firsts: np.ndarray  # [n - p]: the first row that equals each of these
    start: int  # the index of row 0 in the whole
    lengths: np.ndarray  # [p]
    rounding: np.ndarray  # [p]: |vector - its rounding in the scan's precision|
    sent: Any = None  # the vectors on the scan's device, where they stay as long as the block lives

    @classmethod
    def of(cls, vectors: np.ndarray, k: int, start: int, *, owned: bool = False, where: SearchDevice | None = None) -> Block:
        """Prepare a block. owned: the array is the block's own, so rows may be moved within it instead of copied."""
        where = where or CPU
        known = None if where.prepare is None else where.prepare(vectors)
        late, firsts = repeated(vectors, k, None if known is None else known.hashes)
        rows, sent = np.arange(len(vectors)), None if known is None else known.sent
        if len(late):
            rows = np.delete(rows, late)
            vectors = _moved_up(vectors, rows) if owned else vectors[rows]
            sent = None if sent is None else sent.of(vectors)
        return cls(
            vectors=vectors,
            rows=rows,
            late=late,
            firsts=firsts,
            start=start,
            lengths=lengths(vectors) if known is None else known.lengths[rows],
            rounding=rounding(vectors, where.precision) if known is None else known.rounding[rows],
            sent=sent,
        )

    @property
    def for_scan(self) -> Any:
        """The vectors in the form that the scan uses."""
        return self.vectors if self.sent is None else self.sent


def block_neighbours(
    x: np.ndarray, y: np.ndarray, k: int, *, x_start: int = 0, y_start: int = 0, memory_bytes: int = 256 << 20
) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of the k nearest rows of y for each row of x, uint64 [n, k], and of x for each row of y, [m, k].

    x [n, D] and y [m, D] are blocks of checked vectors of any real type (see `check_vectors`); x_start and y_start are
    the indices of their first rows in the whole. A block with fewer than k rows leaves the rest of a row empty.
    """
    by_x, by_y = no_neighbours(len(x), k), no_neighbours(len(y), k)
    absorb_blocks(by_x, by_y, Block.of(x, k, x_start), Block.of(y, k, y_start), memory_bytes=memory_bytes)
    return by_x, by_y


def absorb_blocks(
    by_x: np.ndarray,
    by_y: np.ndarray | None,
    x: Block,
    y: Block,
    *,
    memory_bytes: int = 256 << 20,
    advance: Callable[[int], object] = lambda cells: None,
    where: SearchDevice | None = None,
) -> int:
    """Merge the neighbours in a pair of blocks into keys by_x [n, k] and by_y [m, k], in place. Known neighbours make the
    search faster than `block_neighbours` with a merge, with the same result. With by_y=None only neighbours of x are found.
    advance is called with the number of cells done.

    Equal rows of a block must have equal keys, as they do if both have been through the same merges. where: from
    `choose_device`; the blocks must have been made for its precision; None is the CPU. Returns how many rows of both sides the
    scan did not prove and that were recomputed.
    """
    where = where or CPU
    unsought = np.full(len(y.rows), np.inf, np.float32)  # a floor that no cell reaches, so the scan skips the columns
    few_x, few_y = by_x[x.rows], None if by_y is None else by_y[y.rows]
    x_error, y_error = scan_error(x.lengths, x.rounding, y.lengths, y.rounding, x.vectors.shape[1], where.precision)
    scanned_x, scanned_y = where.scan(
        x.for_scan,
        y.for_scan,
        by_x.shape[1] + where.spare,
        floor_of(few_x, x_error),
        unsought if few_y is None else floor_of(few_y, y_error),
        memory_bytes=memory_bytes,
        advance=advance,
    )
    single_x, single_y = scan_error(
        x.lengths, np.zeros_like(x.rounding), y.lengths, np.zeros_like(y.rounding), x.vectors.shape[1], "float32"
    )
    anew = 0
    for keys, scanned, error, single, own, other in (
        (few_x, scanned_x, x_error, single_x, x, y),
        (few_y, scanned_y, y_error, single_y, y, x),
    ):
        if keys is None:
            continue
        names = other.rows + other.start
        unproved = prove_rows(keys, scanned, error, own.vectors, other.vectors, names, orders_ties=where.orders_ties)
        compute_anew(keys, unproved, single, own.vectors, other.vectors, other.rows + other.start)
        anew += len(unproved)
    for keys, few, block in ((by_x, few_x, x), (by_y, few_y, y)):
        if keys is not None and few is not None:
            keys[block.rows] = few
            keys[block.late] = keys[block.firsts]
    advance(len(by_x) * (len(y.rows) + len(y.late)) - len(few_x) * len(y.rows))
    return anew


def _moved_up(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    for start in range(0, len(rows), 4096):
        vectors[start : start + 4096][: len(rows) - start] = vectors[rows[start : start + 4096]]
    return vectors[: len(rows)]
