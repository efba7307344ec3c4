"""Searches pairs of blocks in this process; `mexma_rt.cluster.knn` does so with a cluster's workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from mexma_rt.knn.blocks import Block, SearchDevice, absorb_blocks
from mexma_rt.knn.plan import SCAN_BYTES, Plan
from mexma_rt.knn.vector_files import VectorFiles

BlockPair = tuple[int, int]  # numbers of an outer and an inner block


class PairSearch(Protocol):
    """Searches the pairs of a plan, one per call, in the order that it was made for."""

    def __call__(self, pair: BlockPair, by_outer: np.ndarray, by_inner: np.ndarray, advance: Callable[[int], object]) -> int:
        """Merge the neighbours found in a pair into the keys by_outer [n, k] and by_inner [m, k], in place.

        Keys of the outer block may come before their pair, never after it. `advance` is called with the number of cells (row x
        row) done. Returns how many rows the scan did not prove and that were recomputed.
        """


# Makes a PairSearch for (outer side, inner side, plan, pairs still to be done).
StartPairSearch = Callable[[VectorFiles, VectorFiles, Plan, Sequence[BlockPair]], PairSearch]


class LocalPairSearch:
    """Searches pairs on a device of this machine, reading a block only if it differs from the last pair's."""

    def __init__(self, outer: VectorFiles, inner: VectorFiles, plan: Plan, where: SearchDevice) -> None:
        self._outer, self._inner, self._plan, self._where = outer, inner, plan, where
        self._pair: BlockPair = (-1, -1)
        self._x: Block | None = None
        self._y: Block | None = None

    def __call__(self, pair: BlockPair, by_outer: np.ndarray, by_inner: np.ndarray, advance: Callable[[int], object]) -> int:
        """See `PairSearch`."""
        (i, j), (last_i, last_j) = pair, self._pair
        if i != last_i:
            self._x = None  # freed before the next one is read
            self._x = self._block(self._outer, self._plan.blocks[i])
        if j != last_j:
            self._y = None
            self._y = self._block(self._inner, self._plan.inner_blocks[j])
        self._pair = pair
        assert self._x is not None and self._y is not None
        return absorb_blocks(by_outer, by_inner, self._x, self._y, memory_bytes=SCAN_BYTES, advance=advance, where=self._where)

    def _block(self, files: VectorFiles, rows: tuple[int, int]) -> Block:
        return Block.of(files.read(*rows), self._plan.k, rows[0], owned=True, where=self._where)
