from __future__ import annotations

import io
from pathlib import Path

import pytest

from mexma_rt.errors import FileError, InputError
from mexma_train.data.bitext import ReadReport, Row, read_pairs

GOOD = "fra\ttatoeba\tHello.\tBonjour.\n"
ROW = Row(lang="fra", source="tatoeba", english="Hello.", text="Bonjour.")


def test_bad_rows_are_counted_with_the_first_of_each_kind(tmp_path: Path) -> None:
    bad = [b"one column\n", b"fra\tx\t\xff\tb\n", b"fra\tx\t \tb\n", b"fra\t\ta\tb\n", b"five\tx\ta\tb\tc\n"]
    path = tmp_path / "a.tsv"
    path.write_bytes(GOOD.encode() * 500 + b"".join(bad) + GOOD.encode() * 500)
    report = ReadReport()
    assert list(read_pairs(path, report)) == [ROW] * 1000
    assert report.rows == 1005
    assert report.bad == {"not 4 columns": 2, "not UTF-8": 1, "empty side": 1, "no lang or source": 1}
    places = {reason: place.removeprefix(f"{path}, ") for reason, place in report.first_bad.items()}
    assert places == {
        "not 4 columns": "row 501",
        "not UTF-8": "row 502",
        "empty side": "row 503",
        "no lang or source": "row 504",
    }


def test_more_than_one_percent_bad_rows_stop_the_reading_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(GOOD * 980 + "two\tcolumns\n" * 20 + "late\n" + GOOD * 5000)
    report = ReadReport()
    with pytest.raises(InputError, match=r"20 of 1000 rows cannot be used \(not 4 columns: 20, first row 981\), more than 1%"):
        list(read_pairs(tmp_path / "a.tsv", report))
    assert report.rows == 1000  # not read to the end


def test_bad_rows_before_the_thousandth_are_judged_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "early.tsv").write_text("two\tcolumns\n" * 20 + GOOD * 980)
    with pytest.raises(InputError, match=r"20 of 1000 rows cannot be used \(not 4 columns: 20, first row 1\)"):
        list(read_pairs(tmp_path / "early.tsv"))
    (tmp_path / "short.tsv").write_text(GOOD * 3 + "one bad row of four is dirt\n")
    assert len(list(read_pairs(tmp_path / "short.tsv"))) == 3
    (tmp_path / "short.tsv").write_text(GOOD * 3 + "two bad rows\n" * 2)
    with pytest.raises(InputError, match=r"2 of 5 rows cannot be used"):
        list(read_pairs(tmp_path / "short.tsv"))


def test_each_of_several_sources_has_its_own_share_and_all_are_counted(tmp_path: Path) -> None:
    (tmp_path / "good.tsv").write_text(GOOD * 5000)
    (tmp_path / "bad.tsv").write_text(GOOD * 980 + "two\tcolumns\n" * 20)
    report = ReadReport()
    with pytest.raises(InputError, match=r"bad\.tsv: 20 of 1000 rows"):
        list(read_pairs([tmp_path / "good.tsv", tmp_path / "bad.tsv"], report))
    assert (report.rows, report.bad) == (6000, {"not 4 columns": 20})
    assert report.first_bad["not 4 columns"].endswith("bad.tsv, row 981")


def test_an_option_after_the_name_goes_before_the_column_and_one_for_all_does_not(tmp_path: Path) -> None:
    (tmp_path / "a,b=c.tsv").write_text(GOOD)  # commas that begin no known option belong to the name
    rows = list(read_pairs([f"{tmp_path}/a,b=c.tsv,lang=frm,source=old", tmp_path / "a,b=c.tsv"], lang="xxx", source="yyy"))
    assert [(row.lang, row.source) for row in rows] == [("frm", "old"), ("fra", "tatoeba")]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode() * 2)))
    assert list(read_pairs("-")) == [ROW, ROW]


def test_a_misspelt_option_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown option language for a source; known are lang, source, english, text"):
        list(read_pairs("x.tsv", language="fra"))
    (tmp_path / "a.tsv").write_text(GOOD)
    with pytest.raises(FileError, match=r"options after commas, such as ,lang=fra \(known: lang, source, english"):
        list(read_pairs(f"{tmp_path}/a.tsv,language=fra"))


def test_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(
        FileError, match=r"no\.tsv is not a file or folder\. Give a TSV file .*or two aligned files as ENGLISH:OTHER"
    ):
        list(read_pairs(tmp_path / "no.tsv"))
