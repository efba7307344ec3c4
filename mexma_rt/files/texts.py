"""Reads a file's texts one by one, in order: lines, a field of JSON Lines, or a column of a parquet file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from mexma_rt.errors import InputError, require_extra
from mexma_rt.files.first_bytes import HEAD, PARQUET, packing, unpacked_name
from mexma_rt.files.lines import LONGEST_LINE, TO_FEEDS, damage_explained, is_json, sentence_lines, text_lines
from mexma_rt.files.unpacking import is_stdin, shown_name

OF_ARRAY = "To convert an array to a line for each item, type: jq -c '.[]' FILE > NEW"
BATCH = 2048  # table rows to convert to Python objects at a time


def read_texts(path: str | os.PathLike[str], field: str | None = None) -> Iterator[str]:
    """Yield the texts of `path`, one per row; nothing is skipped, and a blank line is an empty text.

    .parquet: the column `field`. Anything else (including .gz, .xz, .zst, and "-" for standard input): with a `field`, JSON
    Lines, each an object whose `field` is the text; without one, plain text with one sentence per line (with a ColumnsWarning
    for a .tsv or .csv file of several columns). "translation.fr" is the field "fr" of the object or structure "translation".
    Raises InputError (with line or row) for a missing text or a value of another type, FileError, MissingExtraError.
    """
    plain = unpacked_name(path)
    if plain.endswith(".parquet") or _head(path).startswith(PARQUET):
        return _column(Path(path), field)
    if field is not None:
        return _json_lines(path, field)
    if is_json(path):
        kind = "JSON" if plain.endswith(".json") else "JSON Lines"
        raise InputError(f"{path} is {kind}: name the field of the text with field='NAME' (command line: --field NAME).")
    return sentence_lines(path)


def _head(path: str | os.PathLike[str]) -> bytes:
    """Return the first bytes of a regular file; nothing for others, which cannot be read twice."""
    with damage_explained(path):
        if is_stdin(path) or not Path(path).is_file():
            return b""
        with Path(path).open("rb") as stream:
            return stream.read(HEAD)


def _json_lines(path: str | os.PathLike[str], field: str) -> Iterator[str]:
    for number, line in enumerate(text_lines(path, json=True), start=1):
        place = f"{shown_name(path)}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{place} is not JSON ({error}). With a field given, each line must be one JSON object.{_how_to_split(line)}"
            ) from None
        if not isinstance(row, dict):
            split = f" {OF_ARRAY}" if isinstance(row, list) else ""
            raise InputError(f"{place} is a JSON {type(row).__name__}, but each line must be one object with {field!r}.{split}")
        keys = path_of(row, field)
        if keys is None:
            outer, value = _innermost(row, field)
            whole = list(row.items())
            if not outer and len(whole) == 1 and isinstance(whole[0][1], list):  # {"data": [...]}, all rows in one
                outer, value = whole[0]
            if isinstance(value, list):
                raise InputError(_of_list(place, outer))
            if value is not None:
                raise InputError(f"{place} has no field {field!r}. It has: {_listed(row)}.")
            row, keys = None, []  # with {"translation": null}, translation.fr is null too, as in parquet
        for key in keys:
            row = row[key]
        yield _checked(row, field, place)


def _how_to_split(line: str) -> str:
    if "\r" in line:
        return f" Its line ends seem to be carriage returns, as in old Mac files. Convert them: {TO_FEEDS}"
    if line.strip() == "[":
        return f" {OF_ARRAY}"
    return " To convert objects that span several lines, type: jq -c . FILE > NEW" if line.strip() == "{" else ""


def path_of(fields: Mapping[str, Any], field: str) -> list[str] | None:
    """Return the keys that lead to a field of nested mappings (["translation", "fr"] for "translation.fr"), or None.

    A key that itself contains the dot takes precedence over a nested one.
    """
    if field in fields:
        return [field]
    dots = [place for place, character in enumerate(field) if character == "."]
    for dot in reversed(dots):
        inner = fields.get(field[:dot])
        rest = path_of(inner, field[dot + 1 :]) if isinstance(inner, Mapping) else None
        if rest is not None:
            return [field[:dot], *rest]
    return None


def _innermost(fields: Mapping[str, Any], field: str) -> tuple[str, Any]:
    """Return the longest existing prefix of a nested name, and its value; ("", fields) if there is none."""
    outer = field.rpartition(".")[0]
    while outer and path_of(fields, outer) is None:
        outer = outer.rpartition(".")[0]
    return outer, reduce(lambda inner, key: inner[key], path_of(fields, outer) or [], fields)


def _of_list(place: str, name: str) -> str:
    return f"{place}: {name!r} is a list, but a text is needed. Write a row for each of its items: jq -c '.{name}[]' FILE > NEW"


def _listed(fields: Mapping[str, Any], most: int = 20) -> str:
    names = [
        f"{name}.{inner}" if inner else name
        for name, value in fields.items()
        for inner in (value if isinstance(value, Mapping) and value else [""])
    ]
    return ", ".join(names[:most]) or "none"


def _column(path: Path, field: str | None) -> Iterator[str]:
    require_extra("files", "pyarrow")
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if (head := _head(path)) and not head.startswith(PARQUET):
        packed = packing(head)
        raise InputError(
            f"{path} is packed ({packed[1:]}), but parquet files are only read unpacked. Unpack it."
            if packed
            else f"{path} is not a parquet file: its first bytes are not those of one. Copy or download it again, or rename it."
        )
    with damage_explained(path):
        names = {child.name: _children(child.type) for child in pq.read_schema(path)}
        keys = None if field is None else path_of(names, field)
        if field is None or keys is None:
            outer, kind = _innermost(names, field or "")
            if not isinstance(kind, Mapping) and pa.types.is_nested(kind):  # a list or a map
                raise InputError(
                    f"{path}: the column {outer!r} is of type {kind}, but a text is needed. Write a row for each of its items."
                )
            has = f"{path} has the columns {_listed(names)}"
            asks = "name the one of the text" if field is None else f"but none called {field!r}. Name the right one"
            raise InputError(f"{has}{': ' if field is None else ', '}{asks} with field='NAME' (command line: --field NAME).")
        kind = reduce(lambda fields, key: fields[key], keys, names)
        if isinstance(kind, Mapping):
            raise InputError(f"{path}: the column {field!r} is a structure, not a text. Name one of: {_listed({field: kind})}.")
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise InputError(f"{path}: the column {field!r} is of type {kind}, but it must be text.")
        # With a buffer pyarrow streams the column chunks; otherwise it loads them, and a row group can be gigabytes. With a
        # dictionary, a text that a small file repeats a million times is in memory once.
        name = ".".join(keys)
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False, read_dictionary=[name]) as table:
            row = 0
            for batch in table.iter_batches(batch_size=BATCH, columns=[name]):
                column = batch.column(keys[0])
                for key in keys[1:]:
                    column = pc.struct_field(column, [key])  # null where the structure is
                column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
                distinct = column.dictionary.to_pylist()
                for index in column.indices.to_pylist():
                    place = f"{path}, row {row} (counted from 0)"
                    yield _checked(None if index is None else distinct[index], field, place)
                    row += 1


def _children(kind: Any) -> Any:
    """Return a column's type, or, for a structure, the types of its fields by name."""
    import pyarrow as pa

    return {child.name: _children(child.type) for child in kind} if pa.types.is_struct(kind) else kind


def _checked(text: object, field: str, place: str) -> str:
    if not isinstance(text, str):
        if isinstance(text, dict):
            raise InputError(f"{place}: {field!r} is an object, not a text. Name one of its fields: {_listed({field: text})}.")
        if isinstance(text, list):
            raise InputError(_of_list(place, field))
        what = "missing (null)" if text is None else f"of type {type(text).__name__}"
        raise InputError(f"{place}: {field!r} is {what}, but a text is needed. Drop the row, or type '' for an empty text.")
    if len(text) > LONGEST_LINE:
        raise InputError(
            f"{place}: {field!r} has {len(text):,} characters, more than {LONGEST_LINE:,}, so it cannot be a sentence. "
            "Check the file."
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write one: "\\ud800"
            raise InputError(
                f"{place}: {field!r} contains a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), "
                "which is not valid Unicode. Repair the row."
            ) from None
    return text
