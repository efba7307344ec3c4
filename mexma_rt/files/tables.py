"""Writes tables of any length row by row, as TSV, JSON Lines or parquet; the file is complete or absent."""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mexma_rt.errors import InputError, require_extra
from mexma_rt.files.atomic import atomic_write
from mexma_rt.files.endings import check_ending
from mexma_rt.files.first_bytes import named_packing
from mexma_rt.files.lines import JSON_LINES

ROWS = 65_536  # of a parquet row group
TABLES = "a table is written as .tsv, .jsonl or .parquet"

Row = Sequence[object]
Write = Callable[[Row], object]


def check_table(path: str | os.PathLike[str]) -> None:
    """Raise InputError or MissingExtraError if a table cannot be written under this name; called before long work."""
    kind, packed = _endings(path)
    check_ending(Path(path).with_suffix("") if packed else path, TABLES, (".tsv", ".txt", ".parquet", *JSON_LINES))
    if kind == ".parquet":
        require_extra("files", "pyarrow")
        if packed:
            raise InputError(f"{path}: a parquet file is compressed internally. Leave out {packed}.")
    if packed == ".zst":
        require_extra("files", "zstandard")


@contextlib.contextmanager
def table(path: str | os.PathLike[str] | None, columns: Mapping[str, type]) -> Iterator[Write]:
    """Yield a function that appends a row. columns: name -> float, int or str; any value may be None.

    path: NAME.jsonl or .ndjson gets an object per row, .parquet a table (zstd), anything else tab-separated text under a
    header, where numbers have six decimals, None is an empty cell, and tabs and line ends inside a text become spaces.
    .tsv and .jsonl may also end in .gz, .xz or .zst. A path of None writes TSV to standard output. The file appears when the
    block ends. JSON has no infinity or NaN; both become null.
    """
    if path is None:
        yield _tsv(sys.stdout.buffer, columns)
        sys.stdout.buffer.flush()
        return
    check_table(path)
    kind, packed = _endings(path)
    with atomic_write(path) as raw:
        if kind == ".parquet":
            with _parquet(raw, columns) as write:
                yield write
            return
        with _packer(raw, packed) as stream:
            yield _json(stream, columns) if kind in JSON_LINES else _tsv(stream, columns)


def _endings(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Return a table's format and compression: (".jsonl", ".gz") for x.jsonl.gz."""
    name = Path(os.fspath(path).lower())
    packed = named_packing(name)
    return (name.with_suffix("").suffix if packed else name.suffix), packed


@contextlib.contextmanager
def _packer(raw: BinaryIO, packed: str) -> Iterator[BinaryIO]:
    if packed == ".gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as stream:  # no timestamp: reproducible
            yield stream  # type: ignore[misc]
    elif packed == ".xz":
        with lzma.LZMAFile(raw, "wb") as stream:
            yield stream  # type: ignore[misc]
    elif packed == ".zst":
        import zstandard

        with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as stream:
            yield stream
    else:
        yield raw


def _tsv(stream: BinaryIO, columns: Mapping[str, type]) -> Write:
    stream.write(("\t".join(columns) + "\n").encode())
    return lambda row: stream.write(("\t".join(map(_cell, row)) + "\n").encode())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6f}"
    return str(value).replace("\t", " ").replace("\r", " ").replace("\n", " ")


def _json(stream: BinaryIO, columns: Mapping[str, type]) -> Write:
    def write(row: Row) -> None:
        record = {name: _finite(value) for name, value in zip(columns, row, strict=True)}
        stream.write((json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode())

    return write


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _parquet(raw: BinaryIO, columns: Mapping[str, type]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[type, Any] = {float: pa.float64(), int: pa.int64(), str: pa.string()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    rows: list[Row] = []

    def flush(writer: Any) -> None:
        if rows:
            arrays = [pa.array(cells, kind) for cells, kind in zip(zip(*rows, strict=True), schema.types, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))
            rows.clear()

    with pq.ParquetWriter(raw, schema, compression="zstd") as writer:

        def write(row: Row) -> None:
            rows.append(row)
            if len(rows) == ROWS:
                flush(writer)

        yield write
        flush(writer)
