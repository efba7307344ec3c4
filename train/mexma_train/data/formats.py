"""Reads the file formats of bitext, one small function each: rows are streamed, with their fields as raw bytes.

bitext.py has the table of what to type, and checks the rows.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mexma_rt.errors import FileError, InputError, require_extra
from mexma_rt.files.lines import byte_lines, damage_explained
from mexma_rt.files.spool import side_by_side

if TYPE_CHECKING:
    import pyarrow as pa

Fields = Sequence[bytes | None]  # lang, source, english, text; a malformed TSV line may have any number of fields

BATCH = 8_192  # table rows converted to Python objects at a time


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a source: values for all its rows (lang, source), and column names (the others)."""

    lang: str | None = None
    source: str | None = None
    english: str | None = None
    text: str | None = None
    lang_column: str | None = None
    source_column: str | None = None


def open_source(name: str, own: Options, others: Options) -> Iterator[Fields]:
    """Return an iterator over the rows of a source, in order.

    `own` options override its columns; `others` apply where neither of them says anything. Raises FileError if there is no
    such source, InputError if the options do not fit it.
    """
    path = Path(name)
    if path.is_dir():
        return _folder(path, own, others)
    if path.suffix == ".parquet" and path.exists():
        return _parquet([path], path, own, others)
    one_file = name == "-" or path.exists()
    if not one_file and ":" not in name:
        raise FileError(
            f"{name} is not a file or folder. Give a TSV file (plain, .gz, .xz or .zst; - for standard input), a parquet file, "
            "a folder of parquet files, a Hugging Face data set on disk, or two aligned files as ENGLISH:OTHER; then, if "
            "needed, options after commas, such as ,lang=fra (known: lang, source, english, text, lang_column, source_column)."
        )
    named = [key for key in ("english", "text", "lang_column", "source_column") if getattr(own, key) is not None]
    if named:
        raise InputError(f"{name} is plain text, where columns have no names: leave out {', '.join(named)}.")
    return _tsv(name, own) if one_file else _moses(name, own.lang or others.lang, own.source or others.source)


def _tsv(name: str, own: Options) -> Iterator[Fields]:
    lang, source = (value and value.encode() for value in (own.lang, own.source))
    for line in byte_lines(name):
        fields: list[bytes | None] = list(line.split(b"\t"))
        if len(fields) == 4:
            fields[:2] = lang or fields[0], source or fields[1]
        yield fields


def _moses(name: str, lang: str | None, source: str | None) -> Iterator[Fields]:
    """Two aligned files, English first. Raises InputError if one has more lines than the other."""
    cuts = [(name[:i], name[i + 1 :]) for i, character in enumerate(name) if character == ":"]
    english, other = next((cut for cut in cuts if Path(cut[0]).exists() and Path(cut[1]).exists()), cuts[-1])
    if lang is None:
        raise InputError(f"{name}: say which language {other} is in, for example: {name},lang=fra")
    both = lang.encode(), (source or _stem(Path(english))).encode()
    counts = [0, 0]
    with side_by_side(english, other) as sides:
        for pair in itertools.zip_longest(*map(byte_lines, sides)):
            for side, line in enumerate(pair):
                counts[side] += line is not None
            if None not in pair:
                yield *both, *pair
    if counts[0] != counts[1]:
        raise InputError(
            f"{english} has {counts[0]} lines and {other} has {counts[1]}: they are not aligned line by line, so unrelated "
            "sentences would be paired. Download or export both again."
        )


def _folder(path: Path, own: Options, others: Options) -> Iterator[Fields]:
    if (path / "dataset_dict.json").is_file():
        if not (path / "train").is_dir():
            splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
            raise InputError(
                f"{path} is a DatasetDict without a `train` split; it has {', '.join(splits)}. Name one: {path}/NAME"
            )
        return _dataset(path / "train", path, own, others)
    if (path / "state.json").is_file():
        return _dataset(path, path, own, others)
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise FileError(
            f"{path} contains neither .parquet files nor a data set written by `datasets` (save_to_disk writes a state.json). "
            "Name the folder that directly contains them."
        )
    return _parquet(files, path, own, others)


def _parquet(files: list[Path], named: Path, own: Options, others: Options) -> Iterator[Fields]:
    require_extra("train", "pyarrow")
    import pyarrow.parquet as pq

    for path in files:
        # With a buffer pyarrow streams the column chunks; otherwise it loads them whole, and a row group can be gigabytes.
        with damage_explained(path), pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as table:
            columns = _columns(table.schema_arrow, path, named, own, others)
            needed = sorted({column[0] for column in columns if not isinstance(column, bytes)})
            for batch in table.iter_batches(batch_size=BATCH, columns=needed):
                yield from _batch_rows(batch, columns, path)


def _dataset(folder: Path, named: Path, own: Options, others: Options) -> Iterator[Fields]:
    """A data set as `datasets.save_to_disk` leaves it: streams of Arrow record batches, listed in state.json."""
    require_extra("train", "pyarrow")
    import pyarrow as pa

    with damage_explained(folder / "state.json"):
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if "_data_files" not in state:
        raise FileError(f"{folder} is not a data set: its state.json, unlike that of `datasets`, lists no _data_files.")
    if state.get("_indices_data_files"):
        raise InputError(
            f"{folder} was saved by an old version of `datasets` with its rows in another order or selection (state.json names "
            "_indices_data_files). Write it again: datasets.load_from_disk(FOLDER).flatten_indices().save_to_disk(NEW)"
        )
    for entry in state["_data_files"]:
        path = folder / entry["filename"]
        with damage_explained(path), pa.memory_map(str(path)) as raw, pa.ipc.open_stream(raw) as stream:
            columns = _columns(stream.schema, path, named, own, others)
            for batch in stream:
                for start in range(0, batch.num_rows, BATCH):
                    yield from _batch_rows(batch.slice(start, BATCH), columns, path)


Column = bytes | tuple[str, ...]  # a value for all rows, or the names of a column and of the fields inside it


def _columns(schema: pa.Schema, path: Path, named: Path, own: Options, others: Options) -> list[Column]:
    """Where each of the four fields of a row comes from. Raises InputError, saying what to type, if one cannot be found."""
    has = f"{path} has the columns {', '.join(schema.names)}"
    found: list[Column] = []
    for field, example, stand_in in (("lang", "fra", None), ("source", "NAME", _stem(named))):
        name = getattr(own, f"{field}_column") or getattr(others, f"{field}_column")
        value, column = getattr(own, field), _find(schema, name or field)
        if value is None and column is None:
            value = getattr(others, field) or (stand_in if name is None else None)
        if value is not None:
            found.append(value.encode())
        elif column is not None:
            found.append(column)
        else:
            raise InputError(
                f"{has}, but none called {name or field}. Type {named},{field}={example} to set the {field} of all rows, or "
                f"{named},{field}_column=NAME if a column has it under another name."
            )
    for field in ("english", "text"):
        name = getattr(own, field) or getattr(others, field) or field
        if (column := _find(schema, name)) is None:
            names = ("trg", "src") if {"src", "trg"} <= set(schema.names) else ("NAME", "NAME")
            raise InputError(
                f"{has}, but none called {name}. Say which ones to read: {named},english={names[0]},text={names[1]}"
            )
        found.append(column)
    return found


def _find(schema: pa.Schema, name: str) -> tuple[str, ...] | None:
    """The path to a column, or to a field inside one (translation.en); None if there is none."""
    import pyarrow as pa

    if name in schema.names:
        return (name,)
    first, *rest = name.split(".")
    kind = schema.field(first).type if rest and first in schema.names else None
    for part in rest:
        if kind is None or not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = kind.field(part).type
    return (first, *rest) if rest and kind is not None else None


def _batch_rows(batch: pa.RecordBatch, columns: list[Column], path: Path) -> Iterator[Fields]:
    """The rows of a record batch as bytes: Arrow does not check that its strings are UTF-8, so bitext.py does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    sides: list[list[bytes | None]] = []
    for column in columns:
        if isinstance(column, bytes):
            sides.append([column] * batch.num_rows)
            continue
        array = batch.column(column[0])
        for field in column[1:]:
            array = pc.struct_field(array, field)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary)
        if not any(test(array.type) for test in (*kinds, pa.types.is_large_binary, pa.types.is_null)):
            raise InputError(f"{path}: the column {'.'.join(column)} is of type {array.type}, but it must be text.")
        sides.append(array.cast(pa.large_binary()).to_pylist())
    yield from zip(*sides, strict=True)


def _stem(path: Path) -> str:
    """The corpus name in a file name: OpenSubtitles.en-fr.en -> OpenSubtitles."""
    return path.resolve().name.lstrip(".").split(".")[0]
