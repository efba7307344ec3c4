"""Reads vectors on disk (a .npy file, or a folder of shards from `embed_file`) by ranges of rows.

They are read into buffers, not mapped: mapped pages count towards the process's memory, and the system decides when to drop
them.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mexma_rt.errors import FileError, InputError, typed
from mexma_rt.files.resumable import INDEX
from mexma_rt.files.storage import BUCKETS, SIGNS
from mexma_rt.knn.search import unit_rows

READ_BYTES = 16 << 20  # read and converted at a time


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One .npy file: rows [start, stop) of the whole, whose bytes begin at `offset`."""

    path: Path
    start: int
    stop: int
    dtype: np.dtype
    columns: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class VectorFiles:
    """One side of a search, [rows, columns]; `unit`: rows are scaled to length 1 as they are read (zeros stay zeros)."""

    name: str
    shards: tuple[Shard, ...]
    unit: bool

    @property
    def rows(self) -> int:
        """Rows of all files together."""
        return self.shards[-1].stop if self.shards else 0

    @property
    def columns(self) -> int:
        """D of the vectors."""
        return self.shards[0].columns

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows start to stop, float32. Raises FileError."""
        block = np.empty((stop - start, self.columns), np.float32)
        for shard in self.shards:
            first, last = max(start, shard.start), min(stop, shard.stop)
            if first < last:
                self._fill(block[first - start : last - start], shard, first)
        return block

    def _fill(self, block: np.ndarray, shard: Shard, first: int) -> None:
        row_bytes = shard.columns * shard.dtype.itemsize
        step = max(1, READ_BYTES // row_bytes)
        with _opened(shard.path) as stream:
            stream.seek(shard.offset + (first - shard.start) * row_bytes)
            for at in range(0, len(block), step):
                rows = _rows(stream, shard, min(step, len(block) - at))
                block[at : at + step] = unit_rows(rows) if self.unit else rows
                if not np.isfinite(block[at : at + step]).all():
                    raise FileError(f"{self.name} changed while it was read: it has NaN or infinity now. Start over.")

    def check(self) -> tuple[str, float]:
        """Read everything once; return the SHA-256 of all rows and the largest absolute component (1 for rows of length 1).

        Raises InputError for NaN and infinity, so that a long job does not fail on them.
        """
        digest, largest = hashlib.sha256(), 0.0
        for shard in self.shards:
            step = max(1, READ_BYTES // (shard.columns * shard.dtype.itemsize))
            with _opened(shard.path) as stream:
                stream.seek(shard.offset)
                for at in range(shard.start, shard.stop, step):
                    rows = _rows(stream, shard, min(step, shard.stop - at))
                    digest.update(rows.view(np.uint8).data)
                    with np.errstate(over="ignore"):  # a float64 beyond float32 turns into infinity
                        bad = ~np.isfinite(rows.astype(np.float32, copy=False)).all(axis=1)
                    if bad.any():
                        raise InputError(
                            f"{self.name} has NaN or infinity in row {at + int(bad.argmax()):,} (counted from 0). "
                            "Remove that row or embed its text again."
                        )
                    largest = max(largest, float(np.abs(rows.astype(np.float32)).max(initial=0)))
        return digest.hexdigest(), 1.0 if self.unit else largest


def open_vectors(path: str | os.PathLike[str], *, unit: bool) -> VectorFiles:
    """Open a .npy file [n, D] of real numbers, or a folder with vectors.json; raises FileError or InputError."""
    path = Path(path)
    if not path.exists():
        raise FileError(f"{path} does not exist. Vectors come from: mexma embed FILE -o {path}")
    if path.is_fifo():
        raise InputError(
            f"{path} is a pipe, but vectors are read in any order. Write them to a file: cat {typed(path)} > NEW.npy"
        )
    if not path.is_dir():
        shard = _shard(path, 0)
        if shard.dtype.kind == "i":  # the file does not say what they are; those of `mexma embed` are quantised
            raise InputError(_codes(path, str(shard.dtype)))
        return VectorFiles(name=str(path), shards=(shard,), unit=unit)
    try:
        index = json.loads((path / INDEX).read_bytes())
        names = [(str(entry["file"]), int(entry["rows"])) for entry in index["shards"]]
        storage = index.get("storage", "float32")
    except FileNotFoundError:
        raise FileError(
            f"{path} is a folder without {INDEX}, so it has no vectors. Type: mexma embed FILE -o FOLDER --shard-rows 1000000"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise FileError(f"{path / INDEX} is damaged: it should list the files and their rows. Embed again.") from None
    if storage in SIGNS:
        raise InputError(
            f"{path} holds sign bits ({storage}), which have no inner products. Embed again with --storage float16."
        )
    if storage in BUCKETS:
        raise InputError(_codes(path, storage))
    shards: list[Shard] = []
    for name, rows in names:
        if Path(name).name != name:
            raise FileError(f"{path / INDEX} names {name}, which is not in its folder.")
        shard = _shard(path / name, shards[-1].stop if shards else 0)
        if shard.stop - shard.start != rows:
            raise FileError(f"{shard.path} has {shard.stop - shard.start:,} rows, but {INDEX} says {rows:,}. Embed again.")
        if shards and shard.columns != shards[0].columns:
            raise FileError(
                f"{shard.path} has {shard.columns} dimensions, but {shards[0].path} {shards[0].columns}. Embed again."
            )
        shards.append(shard)
    if not shards:
        raise InputError(f"{path} is empty: there is nothing to compare with.")
    return VectorFiles(name=str(path), shards=tuple(shards), unit=unit)


def _codes(path: Path, storage: str) -> str:
    """Say why codes are refused. Measured with the bundled model, FLORES Hindi to English: used as components, int8 codes have
    an xsim error of 10.5 %, against 5.2 % for the vectors and 5.4 % for the restored ones.
    """
    return (
        f"{path} holds {storage} codes, whose ranges per dimension belong to their model, so they are not vectors by "
        "themselves. Embed again with --storage float16, or save what encoder.restore(codes) returns. If they really are "
        "vectors of whole numbers, save them as float16 or float32."
    )


def _shard(path: Path, start: int) -> Shard:
    try:
        with _opened(path) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            offset = stream.tell()
    except ValueError as error:
        raise FileError(f"{path} is not a .npy file: {error}. Vectors come from: mexma embed FILE -o vectors.npy") from None
    if len(shape) != 2 or shape[1] == 0:
        raise InputError(f"{path} has shape {shape}, but vectors are needed as [sentences, dimensions].")
    if dtype.kind not in "fi" or fortran:
        what = "is stored column by column" if fortran else f"has type {dtype}"
        raise InputError(
            f"{path} {what}, but vectors are real numbers, row by row. Type "
            "numpy.save(NAME, numpy.ascontiguousarray(vectors, numpy.float32))."
        )
    needed = offset + shape[0] * shape[1] * dtype.itemsize
    if path.stat().st_size < needed:
        raise FileError(f"{path} is cut off: {path.stat().st_size:,} bytes, but {shape[0]:,} rows need {needed:,}.")
    return Shard(path=path, start=start, stop=start + shape[0], dtype=dtype, columns=shape[1], offset=offset)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}.") from error


def _rows(stream: BinaryIO, shard: Shard, count: int) -> np.ndarray:
    data = stream.read(count * shard.columns * shard.dtype.itemsize)
    if len(data) < count * shard.columns * shard.dtype.itemsize:
        raise FileError(f"{shard.path} is truncated: it became shorter while it was read.")
    return np.frombuffer(data, shard.dtype).reshape(count, shard.columns)
