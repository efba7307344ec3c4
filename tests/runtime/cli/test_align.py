"""`mexma align` on the bundled model: rows, Pharaoh lines, JSON, and what it says to bad input."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mexma_rt import align_documents, align_words
from mexma_rt.align.documents import DELETION, SEGMENTS
from mexma_rt.align.links import METHODS
from mexma_rt.align.words import UNITS
from mexma_rt.cli import main
from mexma_rt.embedding import loading

SOURCE = ["The cat is sleeping.", "", "Where is the station?", "I bought three red apples at the market.", "It rains."]
TARGET = ["Die Katze schläft.", "Wo ist der Bahnhof?", "Ich habe auf dem Markt drei rote Äpfel gekauft. Es regnet."]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """a.txt and b.txt; the model is loaded once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mexma_rt.load", lambda **_: loading.shared_encoder())
    for name, lines in {"a.txt": SOURCE, "b.txt": TARGET, "c.txt": SOURCE[2:]}.items():
        Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def mexma(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["align", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_the_choices_are_the_library_s() -> None:
    align = importlib.import_module("mexma_rt.cli.align")
    assert (align.METHODS, align.UNITS, align.SEGMENTS, align.DELETION) == (METHODS, UNITS, SEGMENTS, DELETION)


def test_documents_as_a_table() -> None:
    result = mexma("a.txt", "b.txt", "-o", "out.tsv")
    header, *rows = [line.split("\t") for line in Path("out.tsv").read_text(encoding="utf-8").splitlines()]
    assert header == ["score", "source_lines", "target_lines", "source", "target"]
    assert [row[1:3] for row in rows] == [["1", "1"], ["3", "2"], ["4,5", "3"]]
    assert rows[2][3:] == [" ".join(SOURCE[3:]), TARGET[2]]
    assert [float(row[0]) for row in rows] == [pytest.approx(b.score, abs=1e-4) for b in align_documents(SOURCE, TARGET)]
    assert result.stdout.startswith("3 beads of 5 x 3 lines (2 1-1, 1 2-1) in ") and result.stdout.endswith("out.tsv\n")
    assert "a.txt: 4 sentences" in result.stderr and "b.txt: 3 sentences" in result.stderr


def test_documents_on_standard_output_and_without_deletions() -> None:
    Path("b.txt").write_text("Wo ist der Bahnhof?\n", encoding="utf-8")
    Path("c.txt").write_text("Where is the station?\nThe cat is sleeping.\nIt rains in Spain.\n", encoding="utf-8")
    rows = mexma("c.txt", "b.txt", "--max-size", "2").stdout.splitlines()
    assert [row.split("\t")[1:3] for row in rows[1:]] == [["1", "1"], ["2", ""], ["3", ""]]
    assert mexma("c.txt", "b.txt", "--max-size", "2", "--pairs").stdout.splitlines() == rows[:2]


def test_documents_as_json() -> None:
    options = ["--segments", "mean", "--json"]
    report = json.loads(mexma("a.txt", "b.txt", *options).stdout)
    beads = align_documents(SOURCE, TARGET, segments="mean")
    assert report["beads"] == len(report["rows"]) == len(beads) and report["segments"] == "mean"
    assert sum(report["kinds"].values()) == len(beads)
    assert (report["source"]["file"], report["target"]["sentences"]) == ("a.txt", 3)
    mexma("a.txt", "b.txt", *options, "-o", "out.jsonl")
    assert [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()] == report["rows"]


def test_words_as_pharaoh_lines_and_as_a_table() -> None:
    expected = align_words(SOURCE[2:], TARGET, method="inter", unit="piece", threshold=0.3)
    options = ["--words", "--method", "inter", "--unit", "piece", "--threshold", "0.3"]
    result = mexma("c.txt", "b.txt", *options)
    assert result.stdout.splitlines() == [r.pharaoh for r in expected]
    assert f"{sum(len(r.links) for r in expected)} links of 3 pairs (inter) in " in result.stderr
    mexma("c.txt", "b.txt", *options, "-o", "out.tsv")
    header, *rows = [line.split("\t") for line in Path("out.tsv").read_text(encoding="utf-8").splitlines()]
    assert header == ["links", "scores", "source_words", "target_words"]
    assert [(row[0], json.loads(row[2]), json.loads(row[3])) for row in rows] == [
        (r.pharaoh, list(r.source_words), list(r.target_words)) for r in expected
    ]
    report = json.loads(mexma("c.txt", "b.txt", *options, "--json").stdout)
    assert [row["links"] for row in report["rows"]] == [r.pharaoh for r in expected] and report["truncated_lines"] == []


def test_empty_files() -> None:
    Path("a.txt").write_bytes(b"")
    assert mexma("a.txt", "a.txt", "--json").stdout.count('"beads": 0') == 1
    assert mexma("a.txt", "a.txt", "--words").stdout == ""
    assert "0-1" in mexma("a.txt", "b.txt").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.txt", "b.txt", "--words"], 1, "a.txt has 5 lines and b.txt 3, but with --words line i belongs to line i. To pair"),
        (["a.txt", "b.txt", "--method", "ot"], 2, "--method is for words: add --words"),
        (["c.txt", "b.txt", "--words", "--max-size", "3"], 2, "--max-size is for documents: leave out --words"),
        (["a.txt", "b.txt", "-o", "a.txt"], 1, "a.txt is both an input and the output"),
        (["a.txt", "b.txt", "-o", "x.csv"], 1, "x.csv: a table is written as .tsv, .jsonl or .parquet"),
        (["a.txt", "nothing.txt"], 1, "nothing.txt does not exist"),
        (["-", "-"], 2, "Only one of SOURCE and TARGET can be standard input"),
        (["a.txt", "b.txt", "--max-size", "1"], 2, "1 is not in the range 2<=x<=12"),
    ],
)
def test_bad_input(arguments: list[str], code: int, message: str) -> None:
    assert message in mexma(*arguments, code=code).stderr
    assert Path("a.txt").read_text(encoding="utf-8").splitlines() == SOURCE
