"""The texts of a file in its order, one by one: lines, a field of JSON Lines, or a column of a parquet file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from mexma_rt.errors import InputError, require_extra
from mexma_rt.files.lines import LONGEST_LINE, damage_explained, shown_name, text_lines

JSON_SUFFIXES = (".jsonl", ".ndjson")
PACKED = (".gz", ".xz", ".zst")
BATCH = 2048  # rows of a table that become Python objects at a time


def read_texts(path: str | os.PathLike[str], field: str | None = None) -> Iterator[str]:
    """The texts of `path`, each a row; nothing is skipped, and a blank line is the row of an empty text.

    .parquet: the column `field`. Anything else, also .gz, .xz and .zst, and "-" for standard input: with a `field`, JSON Lines,
    each an object whose `field` is the text; without one, plain text with one sentence per line.
    Raises InputError (with line or row) for a missing text or a value of another type, FileError, MissingExtraError.
    """
    name = Path(path).name
    plain = name.removesuffix(Path(name).suffix) if Path(name).suffix in PACKED else name
    if plain.endswith(".parquet"):
        return _column(Path(path), field)
    if field is not None:
        return _json_lines(path, field)
    if plain.endswith(JSON_SUFFIXES):
        raise InputError(f"{path} is JSON Lines: say which field has the text with field='NAME' (command line: --field NAME).")
    return text_lines(path)


def _json_lines(path: str | os.PathLike[str], field: str) -> Iterator[str]:
    for number, line in enumerate(text_lines(path), start=1):
        place = f"{shown_name(path)}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} is not JSON ({error}). With a field given, each line must be one JSON object.") from None
        if not isinstance(row, dict):
            raise InputError(f"{place} is a JSON {type(row).__name__}, but each line must be one object with {field!r}.")
        if field not in row:
            raise InputError(f"{place} has no field {field!r}. It has: {', '.join(list(row)[:20]) or 'none'}.")
        yield _checked(row[field], field, place)


def _column(path: Path, field: str | None) -> Iterator[str]:
    require_extra("files", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    with damage_explained(path):
        schema = pq.read_schema(path)
        names = schema.names
        if field is None or field not in names:
            has = f"{path} has the columns {', '.join(names) or '(none)'}"
            asks = "say which has the text" if field is None else f"but none called {field!r}. Say which has the text"
            raise InputError(f"{has}{': ' if field is None else ', '}{asks} with field='NAME' (command line: --field NAME).")
        kind = schema.field(field).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise InputError(f"{path}: the column {field!r} is of type {kind}, but text is needed there.")
        # A buffer makes pyarrow stream the column chunks; otherwise it loads them, and a row group can be gigabytes. As a
        # dictionary, a text that a small file repeats a million times is in memory once.
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False, read_dictionary=[field]) as table:
            row = 0
            for batch in table.iter_batches(batch_size=BATCH, columns=[field]):
                column = batch.column(0)
                column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
                distinct = column.dictionary.to_pylist()
                for index in column.indices.to_pylist():
                    place = f"{path}, row {row} (counted from 0)"
                    yield _checked(None if index is None else distinct[index], field, place)
                    row += 1


def _checked(text: object, field: str, place: str) -> str:
    if not isinstance(text, str):
        what = "missing (null)" if text is None else f"of type {type(text).__name__}"
        raise InputError(f"{place}: {field!r} is {what}, but a text is needed. Drop the row, or give it '' as an empty text.")
    if len(text) > LONGEST_LINE:
        raise InputError(
            f"{place}: {field!r} has {len(text):,} characters, more than {LONGEST_LINE:,}, so it is no sentence. "
            "Check the file."
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write one: "\\ud800"
            raise InputError(
                f"{place}: {field!r} contains a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), "
                "which is no Unicode text. Repair the row."
            ) from None
    return text
