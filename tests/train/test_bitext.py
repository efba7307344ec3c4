from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from mexma_rt.errors import FileError, InputError
from mexma_train.bitext import ReadReport, Row, read_pairs

GOOD = "fra\ttatoeba\tHello.\tBonjour.\n"
ROW = Row(lang="fra", source="tatoeba", english="Hello.", text="Bonjour.")


def test_plain_xz_and_zst_give_the_same_rows(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="part of mexma-rt[train]")
    data = (GOOD + "jpn\tui\tOpen file\tファイルを開く\r\n").encode()
    (tmp_path / "a.tsv").write_bytes(data)
    (tmp_path / "a.tsv.xz").write_bytes(lzma.compress(data))
    (tmp_path / "a.tsv.zst").write_bytes(zstandard.compress(data))
    for name in ("a.tsv", "a.tsv.xz", "a.tsv.zst"):
        rows = list(read_pairs(tmp_path / name))
        assert rows == [ROW, Row(lang="jpn", source="ui", english="Open file", text="ファイルを開く")]


def test_bad_rows_are_counted_with_the_first_line(tmp_path: Path) -> None:
    bad = [b"one column\n", b"fra\tx\t\xff\tb\n", b"fra\tx\t \tb\n"]
    (tmp_path / "a.tsv").write_bytes(GOOD.encode() * 500 + b"".join(bad) + GOOD.encode() * 500)
    report = ReadReport()
    assert list(read_pairs(tmp_path / "a.tsv", report)) == [ROW] * 1000
    assert report.bad == {"not 4 columns": 1, "not UTF-8": 1, "empty side": 1}
    assert (report.rows, report.first_bad_line) == (1003, 501)


def test_more_than_one_percent_bad_rows_stop_the_reading(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("two\tcolumns\n" * 20 + GOOD * 980)
    with pytest.raises(InputError, match=r"20 of 1000 rows cannot be used .*first is line 1\), more than 1%"):
        list(read_pairs(tmp_path / "a.tsv"))


def test_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"is not a file\. Give a TSV file"):
        list(read_pairs(tmp_path / "no.tsv"))
