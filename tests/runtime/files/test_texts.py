"""Texts of JSON Lines and parquet files: what cannot be a text is named with its line or row."""

from __future__ import annotations

from pathlib import Path

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
        (b'{"t": null}', r"line 2: 't' is missing \(null\), but a text is needed\. Drop the row, or give it ''"),
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
    with pytest.raises(InputError, match=r"in\.jsonl\.gz is JSON Lines: say which field has the text with field='NAME'"):
        read_texts("in.jsonl.gz")


def test_bad_parquet() -> None:
    pa = pytest.importorskip("pyarrow", reason="part of mexma-rt[files]")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": [1, 2], "t": ["a", None]}), "in.parquet")
    for field, message in {
        None: r"has the columns n, t: say which has the text with field='NAME'",
        "x": "has the columns n, t, but none called 'x'",
        "n": "the column 'n' is of type int64, but text is needed",
        "t": r"in\.parquet, row 1 \(counted from 0\): 't' is missing",
    }.items():
        with pytest.raises(InputError, match=message):
            list(read_texts("in.parquet", field))
    Path("in.parquet").write_bytes(Path("in.parquet").read_bytes()[:-9])
    with pytest.raises(FileError, match="is damaged or not complete"):
        list(read_texts("in.parquet", "t"))


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, field, library in (("in.zst", None, "zstandard"), ("in.parquet", "t", "pyarrow")):
        with pytest.raises(MissingExtraError, match=rf"{library} is not installed.*\n    pip install 'mexma-rt\[files\]'"):
            list(read_texts(name, field))
