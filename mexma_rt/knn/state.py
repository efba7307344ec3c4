"""Keeps the neighbours found so far on disk: one file per block of rows, complete or absent.

Merging a block pair twice changes nothing (keys.py), so files may be ahead of what the state counts, and a killed run can
resume from any mixture of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mexma_rt.errors import FileError, typed
from mexma_rt.files.atomic import atomic_write
from mexma_rt.knn.keys import no_neighbours

DIGEST = 16  # bytes, at the end of a file


class SideState:
    """The keys [rows, k] of one side, block by block; those allowed to stay in memory are written only by `flush`."""

    def __init__(self, folder: Path, name: str, blocks: Sequence[tuple[int, int]], k: int, *, keep: bool) -> None:
        self._folder, self._name, self._blocks, self._k, self._keep = folder, name, blocks, k, keep
        self._kept: dict[int, np.ndarray] = {}
        self._changed: set[int] = set()

    def load(self, block: int) -> np.ndarray:
        """Return the keys of a block, which may be modified. Raises FileError if its file is damaged."""
        if block in self._kept:
            return self._kept[block]
        start, stop = self._blocks[block]
        path = self._path(block)
        if not path.exists():
            return no_neighbours(stop - start, self._k)
        data = path.read_bytes()
        keys, digest = data[:-DIGEST], data[-DIGEST:]
        if len(keys) != (stop - start) * self._k * 8 or hashlib.blake2b(keys, digest_size=DIGEST).digest() != digest:
            raise FileError(f"{path} is damaged, so the search cannot resume from it. Start over: rm -r {typed(self._folder)}")
        return np.frombuffer(keys, np.uint64).reshape(stop - start, self._k).copy()

    def store(self, block: int, keys: np.ndarray) -> None:
        """Keep or write the keys of a block."""
        self._kept[block] = keys
        self._changed.add(block)
        if not self._keep:
            self.flush()
            self._kept.clear()

    def flush(self) -> None:
        """Write the blocks that have changed."""
        for block in sorted(self._changed):
            data = np.ascontiguousarray(self._kept[block]).data
            with atomic_write(self._path(block)) as stream:
                stream.write(data)
                stream.write(hashlib.blake2b(data, digest_size=DIGEST).digest())
        self._changed.clear()

    def missing(self, blocks: Sequence[int]) -> list[Path]:
        """Return the missing files of these blocks."""
        return [self._path(block) for block in blocks if not self._path(block).is_file()]

    def _path(self, block: int) -> Path:
        return self._folder / f"{self._name}-{block:05}.keys"
