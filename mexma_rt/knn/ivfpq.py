"""An IVF-PQ index of vectors on disk, in parts that fit in memory, built with faiss.

faiss divides the vectors into `nlist` lists around centroids and keeps `m` bytes of each (product quantisation: Jégou, Douze
and Schmid, TPAMI 2011). One training serves all parts. A part is a range of rows, with its codes in one file and its vectors
left where they are, so that candidates are re-scored while their rows are in memory, and any machine can take any part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from mexma_rt.errors import FileError, InputError, typed
from mexma_rt.files import resumable
from mexma_rt.files.atomic import move_file

CODEBOOK = 256  # centroids of one byte of a code
# Training rows per centroid: faiss warns below 39, and takes 256 at most; recall hardly grows beyond 64.
LEAST_TRAINING, TRAINING = 39, 64
DIMENSIONS_PER_BYTE = 4  # default of m; see benchmarks/results/approximate.md
READ_ROWS = 65536


@dataclass(frozen=True, kw_only=True)
class IvfPq:
    """Settings of the index and the search, with faiss's names.

    nlist: lists of the index; None takes the power of two below 4 sqrt(rows) that the rows can train.
    m: bytes per vector, a divisor of the dimensions; None takes about a quarter of them.
    nprobe: lists searched for each row: trades time for recall.
    candidates: rows of each part re-scored exactly for each row.
    seed: for the training sample and the clustering.
    """

    nlist: int | None = None
    m: int | None = None
    nprobe: int = 32
    candidates: int = 32
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Index:
    """Codes in `folder`; part p has the rows first:stop of `vectors`, whose SHA-256 in float32 is sha256[p]."""

    folder: Path
    vectors: np.ndarray
    parts: tuple[tuple[int, int], ...]
    sha256: tuple[str, ...]
    nlist: int
    m: int

    def load(self, part: int) -> tuple[Any, np.ndarray]:
        """The faiss index of a part, whose ids count from its first row, and its vectors float32 [rows, D]."""
        first, stop = self.parts[part]
        return _read(_part_file(self.folder, part)), _float32(self.vectors, first, stop)

    @property
    def disk_bytes(self) -> int:
        """Bytes of the index files."""
        return sum(path.stat().st_size for path in self.folder.glob("*.faiss"))


class IndexState(resumable.WorkState):
    """The state.json of an index; `done` counts parts."""

    sha256: list[str]  # of the vectors of each part


def index_sizes(settings: IvfPq, rows: int, dimensions: int, name: str, memory_bytes: int) -> tuple[int, int]:
    """Return the (nlist, m) of an index. Raises InputError for unusable settings, and too few rows to train."""
    for field in ("nlist", "m", "nprobe", "candidates", "seed"):
        value, least = getattr(settings, field), 0 if field == "seed" else 1
        if not (value is None and field in ("nlist", "m")) and (type(value) is not int or value < least):
            raise InputError(f"{field}={value!r} must be a whole number of at least {least}.")
    m = settings.m or max(d for d in range(1, max(dimensions // DIMENSIONS_PER_BYTE, 1) + 1) if dimensions % d == 0)
    if dimensions % m:
        divisors = [d for d in range(1, dimensions + 1) if dimensions % d == 0]
        near = sorted(divisors, key=lambda d: abs(d - m))[:2]
        raise InputError(
            f"m={m} bytes per vector do not divide its {dimensions} dimensions into equal pieces. "
            f"Type m={' or m='.join(str(d) for d in sorted(near))}."
        )
    trainable = min(rows, memory_bytes // 2 // (4 * dimensions)) // LEAST_TRAINING
    nlist = settings.nlist or _power_of_two(max(1, min(4 * isqrt(rows), trainable)))
    if trainable < max(nlist, CODEBOOK):
        needed = max(nlist, CODEBOOK) * LEAST_TRAINING
        if rows < needed:
            raise InputError(
                f"{name} has {rows:,} rows, too few to train an IVF-PQ index: {LEAST_TRAINING} rows for each of {CODEBOOK} "
                f"code words and nlist={nlist} lists are {needed:,}. "
                + ("Take a smaller nlist, or search" if nlist > CODEBOOK else "Search")
                + " exactly (index='exact'; command line: --index exact), which is fast at this size."
            )
        raise InputError(
            f"To train nlist={nlist} lists, {needed:,} vectors of {dimensions} dimensions must be in memory, "
            f"{2 * needed * 4 * dimensions:,} bytes with the working copies: more than {memory_bytes:,}. Give more memory or a "
            "smaller nlist."
        )
    return nlist, m


def part_size(rows: int, dimensions: int, m: int, memory_bytes: int) -> int:
    """Return the rows per part: its vectors and codes take half of the memory."""
    return max(min(rows, memory_bytes // 2 // (4 * dimensions + m + 8)), 1)


def build(
    folder: Path, vectors: np.ndarray, settings: IvfPq, *, name: str, memory_bytes: int, advance: Callable[[int], object]
) -> Index:
    """Train, fill and write the parts missing from `folder`; existing parts are checked against the vectors [n, D], read once.

    Raises InputError if the folder has an index with other settings, FileError if it is of other vectors or damaged.
    """
    rows, dimensions = vectors.shape
    nlist, m = index_sizes(settings, rows, dimensions, name, memory_bytes)
    part_rows = part_size(rows, dimensions, m, memory_bytes)
    parts = tuple((first, min(first + part_rows, rows)) for first in range(0, rows, part_rows))
    folder.mkdir(parents=True, exist_ok=True)
    job = {"rows": rows, "dimensions": dimensions, "nlist": nlist, "m": m, "seed": settings.seed, "part_rows": part_rows}
    state = resumable.resume(folder, IndexState(job=job, done=0, sha256=[]))
    if not state["done"]:
        _write(_train(vectors, nlist, m, settings.seed, memory_bytes), folder / "trained.faiss")
    for part, (first, stop) in enumerate(parts):
        block = _float32(vectors, first, stop)
        sha256 = hashlib.sha256(block.data).hexdigest()
        if part < state["done"]:
            if state["sha256"][part] != sha256 or not _part_file(folder, part).is_file():
                raise FileError(
                    f"{folder} is the index of other vectors than {name}, or damaged: part {part} differs. "
                    f"Start over: rm -r {typed(folder)}"
                )
        else:
            index = _read(folder / "trained.faiss")
            for start in range(0, len(block), READ_ROWS):
                index.add(block[start : start + READ_ROWS])
            _write(index, _part_file(folder, part))
            state = IndexState(job=job, done=part + 1, sha256=[*state["sha256"], sha256])
            resumable.write_state(folder, folder, state)
        advance(stop - first)
    return Index(folder=folder, vectors=vectors, parts=parts, sha256=tuple(state["sha256"]), nlist=nlist, m=m)


def _train(vectors: np.ndarray, nlist: int, m: int, seed: int, memory_bytes: int) -> Any:
    import faiss

    rows, dimensions = vectors.shape
    size = min(rows, max(nlist, CODEBOOK) * TRAINING, memory_bytes // 2 // (4 * dimensions))
    sample = np.sort(np.random.default_rng(seed).choice(rows, size, replace=False))
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dimensions), dimensions, nlist, m, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True  # inner products of vectors of length 1
    index.cp.seed = index.pq.cp.seed = seed
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # checked by index_sizes
    index.train(np.ascontiguousarray(vectors[sample], np.float32))
    return index


def _part_file(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05}.faiss"


def _read(path: Path) -> Any:
    import faiss

    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise FileError(f"{path} is damaged or incomplete ({reason}). Start over: rm -r {typed(path.parent)}") from None


def _write(index: Any, path: Path) -> None:
    import faiss

    temporary = path.with_suffix(".tmp")
    try:
        faiss.write_index(index, str(temporary))
        move_file(temporary, path)
    except (RuntimeError, OSError) as error:
        temporary.unlink(missing_ok=True)
        raise FileError(
            f"{path} cannot be written ({str(error).splitlines()[0]}). Make room, and run the command again."
        ) from None


def _float32(vectors: np.ndarray, first: int, stop: int) -> np.ndarray:
    return np.ascontiguousarray(vectors[first:stop], np.float32)


def _power_of_two(number: int) -> int:
    return 1 << (number.bit_length() - 1)
