"""Tables in every format: the same values back, awkward texts, missing values, nothing half written."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest

from mexma_rt import FileError, InputError
from mexma_rt.files import tables as module
from mexma_rt.files.tables import table

COLUMNS = {"score": float, "line": int, "text": str}
ROWS = [(1.5, 1, "plain"), (float("-inf"), None, "tab\tand\r\nend"), (0.1234567, 3, 'قطة "猫" \u2028')]


def write(path: Path, rows: list = ROWS) -> None:
    with table(path, COLUMNS) as append:
        for row in rows:
            append(row)


@pytest.mark.parametrize("name", ["t.tsv", "t", "t.fr-en", "t.tsv.gz", "t.tsv.xz", "t.tsv.zst"])
def test_tsv(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    if name.endswith("zst"):
        raw = pytest.importorskip("zstandard").ZstdDecompressor().decompressobj().decompress(raw)
    raw = {"gz": gzip.decompress, "xz": lzma.decompress}.get(name.rpartition(".")[2], bytes)(raw)
    lines = ["score\tline\ttext", "1.500000\t1\tplain", "-inf\t\ttab and  end", '0.123457\t3\tقطة "猫" \u2028', ""]
    assert raw.decode().split("\n") == lines


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t.jsonl.gz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    lines = (gzip.decompress(raw) if name.endswith("gz") else raw).decode().rstrip("\n").split("\n")
    expected = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    expected[1]["score"] = None
    assert [json.loads(line) for line in lines] == expected


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_parquet(tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="part of mexma-rt[files]")
    monkeypatch.setattr(module, "ROWS", rows)
    write(tmp_path / "t.parquet")
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    assert parquet.ParquetFile(tmp_path / "t.parquet").num_row_groups == -(-3 // rows)
    write(tmp_path / "none.parquet", [])
    empty = parquet.read_table(tmp_path / "none.parquet")
    assert empty.num_rows == 0 and [str(kind) for kind in empty.schema.types] == ["double", "int64", "string"]


@pytest.mark.parametrize("name", ["t.tsv", "t.jsonl.gz", "t.parquet"])
def test_an_error_leaves_the_old_file_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(ZeroDivisionError), table(tmp_path / name, COLUMNS) as append:
        append(ROWS[0])
        raise ZeroDivisionError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"precious")]


def test_names_that_cannot_be_written(tmp_path: Path) -> None:
    for name in ("t.csv", "t.json", "t.csv.gz"):
        with pytest.raises(InputError, match=r"a table is written as \.tsv, \.jsonl or \.parquet"):
            write(tmp_path / name)
    with pytest.raises(FileError, match="cannot be written"):
        write(tmp_path / "none" / "t.tsv")
    assert list(tmp_path.iterdir()) == []
