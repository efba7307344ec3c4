"""Texts of JSON Lines and parquet files: what cannot be a text is named with its line or row."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mexma_rt import FileError, InputError, MissingExtraError
from mexma_rt.files.texts import read_texts


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"in\.jsonl, line 2 is not JSON \("),
        (b"", r"line 2 is not JSON \("),
        (b"[1]", "line 2 is a JSON list, but each line must be one object with 't'"),
        (b'{"a": 1, "b": 2}', "line 2 has no field 't'. It has: a, b"),
        (b'{"t": null}', r"line 2: 't' is missing \(null\), but a text is needed\. Drop the row, or type ''"),
        (b'{"t": 3}', "line 2: 't' is of type int"),
        (b'{"t": "ab\\ud800"}', r"line 2: 't' contains a lone surrogate \(U\+D800 at character 2\)"),
        (b'{"t": "\xff"}', "line 2, byte 8: 0xff is not valid UTF-8"),
    ],
)
def test_bad_json_lines(line: bytes, message: str) -> None:
    Path("in.jsonl").write_bytes(b'{"t": "fine"}\n' + line + b"\n")
    with pytest.raises(InputError, match=message):
        list(read_texts("in.jsonl", "t"))


def test_json_lines_without_a_field() -> None:
    with pytest.raises(InputError, match=r"in\.jsonl\.gz is JSON Lines: name the field of the text with field='NAME'"):
        read_texts("in.jsonl.gz")


def test_bad_parquet() -> None:
    pa = pytest.importorskip("pyarrow", reason="part of mexma-rt[files]")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": [1, 2], "t": ["a", None]}), "in.parquet")
    for field, message in {
        None: r"has the columns n, t: name the one of the text with field='NAME'",
        "x": "has the columns n, t, but none called 'x'",
        "n": "the column 'n' is of type int64, but it must be text",
        "t": r"in\.parquet, row 1 \(counted from 0\): 't' is missing",
    }.items():
        with pytest.raises(InputError, match=message):
            list(read_texts("in.parquet", field))
    Path("in.parquet").write_bytes(Path("in.parquet").read_bytes()[:-9])
    with pytest.raises(FileError, match="is damaged or incomplete"):
        list(read_texts("in.parquet", "t"))


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, field, library in (("in.zst", None, "zstandard"), ("in.parquet", "t", "pyarrow")):
        with pytest.raises(MissingExtraError, match=rf"{library} is not installed.*\n    pip install 'mexma-rt\[files\]'"):
            list(read_texts(name, field))


NESTED = [
    {"id": 1, "translation": {"en": "one", "fr": "un"}, "deep": {"a": {"b.c": "x"}}, "dotted.name": "p"},
    {"id": 2, "translation": {"en": "two", "fr": "deux"}, "deep": {"a": {"b.c": "y"}}, "dotted.name": "q"},
]
FIELDS = {
    "translation.fr": ["un", "deux"],
    "translation.en": ["one", "two"],
    "deep.a.b.c": ["x", "y"],
    "dotted.name": ["p", "q"],
}


def write_json(rows: list[dict]) -> str:
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return "in.jsonl"


def write_parquet(rows: list[dict]) -> str:
    pa = pytest.importorskip("pyarrow", reason="part of mexma-rt[files]")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), "in.parquet")
    return "in.parquet"


@pytest.mark.parametrize("write", [write_json, write_parquet])
def test_nested_fields(write: Callable[[list[dict]], str]) -> None:
    name = write(NESTED)
    for field, texts in FIELDS.items():
        assert list(read_texts(name, field)) == texts
    many = [{"t": {"fr": f"text {i % 7}", "en": "same"}} for i in range(5000)]  # more than a batch, and a dictionary
    assert list(read_texts(write(many), "t.fr")) == [row["t"]["fr"] for row in many]


@pytest.mark.parametrize("write", [write_json, write_parquet])
def test_bad_nested_fields(write: Callable[[list[dict]], str]) -> None:
    has = r"id, translation\.en, translation\.fr, deep\.a, dotted\.name"
    for field, message in {
        "translation.de": "(has no field|but none called) 'translation.de'",
        "translation": r"'translation' is (an object|a structure), not a text\. Name one of.*: translation\.en, trans",
        "deep.a": r"'deep\.a' is (an object|a structure), not a text\. Name one of.*: deep\.a\.b\.c",
        "id.x": "(has no field|but none called) 'id.x'",
        "translation.fr.x": "(has no field|but none called) 'translation.fr.x'",
        "id": r"'id' is of type int",
        ".fr": "(has no field|but none called) '.fr'",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            list(read_texts(write(NESTED), field))
        if "(has no" in message:
            assert re.search(has, str(caught.value))
    missing: list[dict[str, Any]] = [{"t": {"fr": "un"}}, {"t": {"fr": None}}]
    with pytest.raises(InputError, match=r"'t\.fr' is missing \(null\)"):
        list(read_texts(write(missing), "t.fr"))
    missing = [{"t": {"fr": "un"}}, {"t": None}]
    with pytest.raises(InputError, match=r"(line 2|row 1 \(counted from 0\)): 't\.fr' is missing \(null\)"):
        list(read_texts(write(missing), "t.fr"))


@pytest.mark.parametrize("field", ["t.fr", "t.fr.x"])
def test_lists_and_maps_of_parquet_are_called_that(field: str) -> None:
    pa = pytest.importorskip("pyarrow", reason="part of mexma-rt[files]")
    import pyarrow.parquet as pq

    for column in (pa.array([[{"fr": "a"}]]), pa.array([[("fr", "a")]], pa.map_(pa.string(), pa.string()))):
        pq.write_table(pa.table({"t": column}), "in.parquet")
        with pytest.raises(
            InputError, match=r"the column 't' is of type (list|map)<.*> ?, but a text is needed\. Write a row for"
        ):
            list(read_texts("in.parquet", field))


def test_a_name_with_the_dot_goes_before_a_nested_one() -> None:
    both = [{"a": {"b": "nested"}, "a.b": "flat"}]
    assert list(read_texts(write_json(both), "a.b")) == ["flat"]
    assert list(read_texts(write_parquet(both), "a.b")) == ["flat"]


@pytest.mark.parametrize(("indent", "rows", "advice"), [(1, [{"t": "a"}], "jq -c '.[]' FILE"), (1, {"t": "a"}, "jq -c . FILE")])
def test_json_over_several_lines_gets_the_line_to_type(indent: int, rows: object, advice: str) -> None:
    Path("in.json").write_text(json.dumps(rows, indent=indent))
    with pytest.raises(InputError, match=re.escape(advice)):
        list(read_texts("in.json", "t"))


def test_json_lines_with_old_line_ends_are_told() -> None:
    Path("mac.jsonl").write_bytes(b'{"t": "a"}\r{"t": "b"}\r')
    with pytest.raises(
        InputError, match=r"line 1 is not JSON .*Its line ends seem to be carriage returns.* tr '\\r' '\\n' < FILE"
    ):
        list(read_texts("mac.jsonl", "t"))


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ({"t": None}, "t.fr", "'t.fr' is missing (null), but a text is needed."),
        ({"t": {"fr": None}}, "t.fr.x", "'t.fr.x' is missing (null)"),
        (
            {"t": [{"fr": "a"}]},
            "t.fr",
            "'t' is a list, but a text is needed. Write a row for each of its items: jq -c '.t[]' FILE",
        ),
        (
            {"t": {"fr": ["a"]}},
            "t.fr",
            "'t.fr' is a list, but a text is needed. Write a row for each of its items: jq -c '.t.fr[]'",
        ),
        ({"t": {"fr": ["a"]}}, "t.fr.0", "'t.fr' is a list"),
        (
            {"data": [{"t": "a"}]},
            "t",
            "'data' is a list, but a text is needed. Write a row for each of its items: jq -c '.data[]'",
        ),
        (
            [{"t": "a"}],
            "t",
            "is a JSON list, but each line must be one object with 't'. To convert an array to a line for each",
        ),
        ({"t": '{"fr": "a"}'}, "t.fr", "has no field 't.fr'. It has: t."),
        ({"t": "a"}, "", "has no field ''. It has: t."),
        ({"t": "a"}, ".", "has no field '.'. It has: t."),
    ],
)
def test_what_stands_where_a_nested_field_should_be(row: object, field: str, message: str) -> None:
    Path("x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError) as caught:
        list(read_texts("x.jsonl", field))
    assert message in str(caught.value)


def test_what_is_called_parquet_and_is_something_else(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="part of mexma-rt[files]")
    name = write_parquet([{"t": "a"}])
    (tmp_path / "p.parquet.gz").write_bytes(gzip.compress(Path(name).read_bytes()))
    with pytest.raises(
        InputError, match=r"p\.parquet\.gz is packed \(gz\), but parquet files are only read unpacked\. Unpack it\."
    ):
        list(read_texts(tmp_path / "p.parquet.gz", "t"))
    (tmp_path / "j.parquet").write_text('{"t": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"j\.parquet is not a parquet file: its first bytes are not those of one"):
        list(read_texts(tmp_path / "j.parquet", "t"))
