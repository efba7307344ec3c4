"""The examples run, find what is there to be found, and print what docs/examples.md shows."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .scripts import ROOT, load_script

page = load_script("docs/site/examples.py")
SHOWN = {match["name"]: match for match in page.OUTPUT.finditer(page.PAGE.read_text(encoding="utf-8"))}
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run an example in this process; gives what it printed."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        load_script(f"examples/{name}.py").main()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_shown(name: str) -> None:
    assert len((ROOT / f"examples/{name}.py").read_text(encoding="utf-8").splitlines()) < 80
    assert SHOWN[name]["text"].strip()


def check_shown(name: str, printed: str) -> None:
    """Whether the page has what was printed, numbers apart: they may differ in the last digit between machines."""
    if SHOWN[name]["model"] != page.model():
        pytest.skip("docs/examples.md shows another model's output: python docs/site/examples.py")
    numbers = re.compile(r"-?\d+\.\d+")
    assert numbers.sub("#", printed) == numbers.sub("#", SHOWN[name]["text"])


def test_search(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("search", tmp_path / "search.svg")
    (question, *answers) = printed.splitlines()[-4:]
    assert question == "Can I pay by card?"
    assert {answer.split()[1] for answer in answers} <= {"fra", "por", "nld", "pol"}  # the languages that ask the same
    written = texts_of(tmp_path / "search.svg")
    assert sorted(written) == sorted(part for line in printed.splitlines() for part in re.split(" {2,}", line.strip()))
    check_shown("search", printed)
    numbers = re.compile(r"-?\d+\.\d+")
    assert [numbers.sub("#", text) for text in written] == [numbers.sub("#", text) for text in texts_of(page.PICTURE)]


def texts_of(picture: Path) -> list[str]:
    """What an SVG picture writes, in its order."""
    return [text.text or "" for text in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]


def test_clean(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("clean", tmp_path)
    dropped = dict(re.findall(r"^  line +(\d+)  (length ratio|\w+) ", printed, re.M))
    faults = {"16": "identical", "26": "blank", "34": "duplicate", "40": "length ratio", "29": "score"}
    assert dropped.items() >= faults.items()
    assert {"11", "12", "13", "14", "15"} <= dropped.keys()  # the block that slipped
    assert "Mon père aime lire le journal. | My father likes to read the newspaper." in printed  # found again
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "noisy.fr" in html and len((tmp_path / "kept.tsv").read_text(encoding="utf-8").splitlines()) == 1 + 40 - len(dropped)
    check_shown("clean", printed)


def test_duplicates(run: Callable[..., str]) -> None:
    printed = run("duplicates")
    found = [set(re.findall(r"^  (.*)$", part, re.M)) for part in re.split(r"^group \d+$", printed, flags=re.M)]
    football = {"The football team won the final in extra time", "L'équipe de football a gagné la finale en prolongation"}
    assert football in found
    assert "harvest" not in printed  # it has no partner
    check_shown("duplicates", printed)


def test_chapter(run: Callable[..., str]) -> None:
    printed = run("chapter")
    assert "There was a folded sheet of paper in it. The sheet had his name on it." in printed  # split by the translator
    assert "Il chercha longtemps ses vieilles cartes. La ville était à six jours de mer." in printed  # joined
    assert re.search(r"^0-1 .*\(nothing\)\n +He did not look back\.$", printed, re.M)
    check_shown("chapter", printed)


def test_own_encoder(run: Callable[..., str]) -> None:
    printed = run("own_encoder")
    assert len(printed.splitlines()) == 6 and "café" not in printed and "hermano" not in printed
    numbers = re.compile(r"\d+\.\d+")
    assert numbers.sub("#", printed) == numbers.sub("#", SHOWN["own_encoder"]["text"])  # the same whatever the bundled model
