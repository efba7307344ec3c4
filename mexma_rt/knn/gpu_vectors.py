"""Sends vectors to GPUs once, piece by piece, in half precision, and measures them on the way.

Their lengths, rounding losses and hashes are computed there; pieces stay as long as their block lives and there is room.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt

import numpy as np

from mexma_rt.knn.exact import hash_factors
from mexma_rt.knn.gpu_arrays import Arrays
from mexma_rt.knn.gpu_copies import DeviceArray

GROUP = 32  # cells whose maximum a scan looks at; pieces have a whole number of them
SIDE = 32768  # rows and columns of a tile at most: 2 GiB in half precision

Measured = tuple[np.ndarray, np.ndarray, np.ndarray]  # lengths, roundings and hashes


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Measurements of vectors [n, D], taken while sending them. sent: the vectors for the scan."""

    lengths: np.ndarray  # float64 [n]
    rounding: np.ndarray  # float64 [n]: |vector - its rounding|
    hashes: np.ndarray  # uint64 [n]
    sent: Sent


class Sent:
    """Vectors [n, D] in host memory, and pieces of them, `side` rows each, on devices in half precision."""

    def __init__(self, arrays: tuple[Arrays, ...], vectors: np.ndarray) -> None:
        self.arrays, self.vectors = arrays, vectors
        self.side = min(tile_side(arrays, vectors.shape[1]), max(-(-len(vectors) // GROUP), 1) * GROUP)
        self.starts = range(0, len(vectors), self.side)
        self.held: dict[tuple[int, int], DeviceArray] = {}  # (device, start) -> [rows up to a whole number of groups, D]

    def of(self, vectors: np.ndarray) -> Sent:
        """Use the same devices for other vectors, which are sent when a scan needs them."""
        return Sent(self.arrays, vectors)

    def piece(self, number: int, start: int) -> DeviceArray:
        """Return the rows from start on, on the device with this number: sent again if they did not stay there."""
        if (found := self.held.get((number, start))) is not None:
            return found
        ops = self.arrays[number]
        rows = ops.send(self.vectors[start : start + self.side])
        return self._keep(number, start, ops.half(rows, _whole(len(rows))))

    def measured(self, number: int, start: int) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
        """Send a piece; return its lengths, rounding losses and hashes, as device arrays."""
        ops = self.arrays[number]
        rows = ops.send(self.vectors[start : start + self.side])
        low = ops.half(rows, _whole(len(rows)))
        # A float32 less its nearest float16 or bfloat16 is a float32: nothing is lost in the difference.
        found = ops.norms(rows), ops.norms(rows - ops.single(low[: len(rows)])), ops.hashes(rows, hash_factors(rows.shape[1]))
        self._keep(number, start, low)
        return found

    def _keep(self, number: int, start: int, piece: DeviceArray) -> DeviceArray:
        """Keep pieces while half of the device's memory is free: the tile and its results need less."""
        ops = self.arrays[number]
        if ops.free_bytes() > ops.total_bytes // 2:
            self.held[number, start] = piece
        return piece


def prepare_on(arrays: tuple[Arrays, ...]) -> Callable[[np.ndarray], Prepared]:
    """What a block needs to know of its vectors (see `mexma_rt.knn.blocks.Block`), computed on devices while they are sent."""

    def prepare(vectors: np.ndarray) -> Prepared:
        sent = Sent(arrays, vectors)
        starts = sent.starts

        def work(number: int) -> list[Measured]:
            with arrays[number].running():
                found = [sent.measured(number, start) for start in starts[number :: len(arrays)]]
                host = arrays[number].host
                return [(host(a), host(b), host(c).view(np.uint64)) for a, b, c in found]

        nothing = (np.empty(0), np.empty(0), np.empty(0, np.uint64))
        parts: list[Measured] = [nothing] * len(starts)
        with ThreadPoolExecutor(len(arrays)) as pool:
            for number, found in enumerate(pool.map(work, range(len(arrays)))):
                parts[number :: len(arrays)] = found
        lengths, rounding, hashes = (np.concatenate([one[at] for one in [nothing, *parts]]) for at in range(3))
        # float64 sums of any order differ in the last digits; the bounds that are made of them must not.
        return Prepared(lengths=lengths * (1 + 1e-9), rounding=rounding * (1 + 1e-9), hashes=hashes, sent=sent)

    return prepare


def tile_side(arrays: tuple[Arrays, ...], dimensions: int) -> int:
    """Rows of a piece, whole groups: a tile takes a quarter of the smallest device's memory, a piece an eighth."""
    least = min(ops.total_bytes for ops in arrays)
    side = min(SIDE, isqrt(least // 8), least // (8 * dimensions * 8))  # 8: a piece as it was sent, in float32 and in half
    return max(side // GROUP, 1) * GROUP


def _whole(rows: int) -> int:
    return -(-rows // GROUP) * GROUP
