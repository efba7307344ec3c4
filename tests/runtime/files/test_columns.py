"""Files named as tables that are read as lines: never in silence."""

from __future__ import annotations

import gzip
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mexma_rt.errors import ColumnsWarning
from mexma_rt.files.texts import read_texts
from mexma_rt.mining.bitext import slabs

TABS = "fra\tBonjour\neng\tHello, world\n"
COMMAS = '1,"Bonjour, toi"\n2,Hello\n'


@pytest.mark.parametrize(
    ("name", "text", "command"),
    [
        ("a.tsv", TABS, "cut -f2 FILE"),
        ("A.TSV", TABS, "cut -f2 FILE"),
        ("a.tsv.gz", TABS, "cut -f2 FILE"),
        ("a.csv", COMMAS, "delimiter=','"),
        ("a.csv", COMMAS.replace(",", ";"), "delimiter=';'"),
    ],
)
def test_rows_of_a_table_are_read_as_lines_with_a_warning(name: str, text: str, command: str, tmp_path: Path) -> None:
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.warns(
        ColumnsWarning, match="named as a table, but each line is read as one text, with all its columns"
    ) as caught:
        assert list(read_texts(tmp_path / name)) == text.splitlines()
    assert len(caught) == 1 and command in str(caught[0].message)
    with pytest.warns(ColumnsWarning):
        assert [pair for slab in slabs(tmp_path / name, tmp_path / name) for pair in slab] == [
            (x, x) for x in text.splitlines()
        ]


@pytest.mark.parametrize(
    ("name", "text"), [("a.tsv", "one column\nof, text\n"), ("a.csv", "one column\n"), ("a.txt", TABS), ("a.tsv", "")]
)
def test_other_files_are_read_without_a_warning(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(read_texts(tmp_path / name)) == text.splitlines()


@pytest.mark.parametrize(
    ("name", "text", "column"), [("a.tsv", TABS, ["Bonjour", "Hello, world"]), ("a.csv", COMMAS, ["Bonjour, toi", "Hello"])]
)
def test_the_command_that_the_warning_gives_takes_the_column(name: str, text: str, column: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.warns(ColumnsWarning) as caught:
        list(read_texts(tmp_path / name))
    command = str(caught[0].message).partition("type: ")[2].replace("FILE", name).replace("python", sys.executable)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / "NEW").read_text(encoding="utf-8").splitlines() == column
