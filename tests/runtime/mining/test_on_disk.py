"""Mining from vectors on the disk: the pairs of `mine`, left-over lines, resumption after SIGKILL, bad input; and the page."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import mexma_rt
from mexma_rt import FileError, InputError
from mexma_rt.cli import main
from mexma_rt.knn import on_disk as knnfiles
from mexma_rt.mining.on_disk import search_files
from mexma_rt.mining.pairs import MineSettings

ROOT = Path(mexma_rt.__file__).parents[1]
VECTORS = ("--source-vectors", "x.npy", "--target-vectors", "y.npy")

DEFAULTS = MineSettings()


@pytest.fixture(autouse=True)
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    y = random.standard_normal((300, 16)).astype(np.float32)
    x = np.concatenate([y[:200] + random.standard_normal((200, 16)) / 2, random.standard_normal((60, 16))]).astype(np.float32)
    np.save("x.npy", x)
    np.save("y.npy", y)
    return x, y


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, ["mine", *arguments])
    assert result.exit_code == status, result.output
    return result


@pytest.mark.parametrize("retrieval", ["max", "intersect", "knn"])
def test_pairs_are_those_of_mine(sides: tuple[np.ndarray, np.ndarray], retrieval: str) -> None:
    x, y = sides
    expected = mexma_rt.mine(source_vectors=x, target_vectors=y, retrieval=retrieval, threshold=1.0)
    with search_files("x.npy", "y.npy", "p.tsv", MineSettings(retrieval=retrieval, threshold=1.0)) as search:
        assert list(search.pairs()) == expected and len(expected) > 150
    assert sorted(path.name for path in Path().iterdir()) == ["x.npy", "y.npy"]


def test_blank_and_repeated_lines_are_left_out(sides: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = sides
    src, tgt = [f"s{i}" for i in range(260)], [f"t{i}" for i in range(300)]
    src[3], src[7], tgt[5] = src[2], " ", tgt[4]
    Path("s.txt").write_text("\n".join(src) + "\n")
    Path("t.txt").write_text("\n".join(tgt) + "\n")
    expected = mexma_rt.mine(src, tgt, source_vectors=x, target_vectors=y, threshold=1.0)
    run("s.txt", "t.txt", *VECTORS, "-o", "p.jsonl", "--threshold", "1")
    rows = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert [(row["source"], row["target"]) for row in rows] == [(p.source, p.target) for p in expected]
    assert [row["score"] for row in rows] == pytest.approx([p.score for p in expected])
    assert sorted(path.name for path in Path().iterdir()) == ["p.jsonl", "s.txt", "t.txt", "x.npy", "y.npy"]


def test_shards_and_json(sides: tuple[np.ndarray, np.ndarray]) -> None:
    Path("v").mkdir()
    for i in range(3):
        np.save(f"v/vectors-0000{i}.npy", sides[1][100 * i : 100 * (i + 1)])
    shards = [{"file": f"vectors-0000{i}.npy", "rows": 100} for i in range(3)]
    Path("v/vectors.json").write_text(json.dumps({"storage": "float32", "shards": shards}))
    arguments = ("--source-vectors", "x.npy", "-o", "p.tsv", "--json")
    one = json.loads(run(*arguments, "--target-vectors", "y.npy").stdout)
    table = Path("p.tsv").read_bytes()
    other = json.loads(run(*arguments, "--target-vectors", "v").stdout)
    assert Path("p.tsv").read_bytes() == table and one["found"] == other["found"] > 100
    assert one["source"] == {"lines": 260, "blank": 0, "repeated": 0, "compared": 260}
    assert [(warning["kind"], warning["side"]) for warning in one["warnings"]] == [("tiny", "both")]


KILLED = """
import os, signal, sys
from mexma_rt import cli
def kill(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
sys.modules["mexma_rt.cli.mine"].table = kill
cli.main()
"""


@pytest.mark.kill
def test_a_killed_run_goes_on_with_its_neighbours(
    sides: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*VECTORS, "-o", "whole.tsv")
    command = [sys.executable, "-c", KILLED, "mine", *VECTORS, "-o", "p.tsv"]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Path(".p.tsv.mining/neighbours/knn.json").exists() and not Path("p.tsv").exists()
    np.save("x.npy", sides[0] + 1)
    assert "has the neighbours of other vectors or another k" in run(*VECTORS, "-o", "p.tsv", status=1).stderr
    np.save("x.npy", sides[0])
    place = Path(".p.tsv.mining/neighbours")
    for name, damage in (
        ("knn.json", lambda data: data[:20]),
        ("knn.json", lambda data: data.replace(b"source", b"sauce")),
        ("source_scores.npy", lambda data: data[:-1]),
        ("target_index.npy", lambda data: data[:-8] + (260).to_bytes(8, "little")),  # there are rows 0 to 259
        ("target_scores.npy", lambda data: data[:-1] + bytes([data[-1] ^ 1])),  # one bit
        ("source_index.npy", lambda data: (place / "target_index.npy").read_bytes()),
    ):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(damage(whole))
        message = run(*VECTORS, "-o", "p.tsv", status=1).stderr
        assert "left by a killed run, is damaged. Start over: rm -r" in message, (name, message)
        (place / name).write_bytes(whole)
    monkeypatch.setattr(knnfiles, "write_neighbours", lambda *arguments, **settings: pytest.fail("sought again"))
    run(*VECTORS, "-o", "p.tsv")
    assert Path("p.tsv").read_bytes() == Path("whole.tsv").read_bytes()
    assert not Path(".p.tsv.mining").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([*VECTORS], 2, "With ready vectors, -o is needed"),
        (["--source-vectors", "x.npy", "-o", "p.tsv"], 2, "--source-vectors and --target-vectors go together"),
        (["x.npy", *VECTORS, "-o", "p.tsv"], 2, "give the lines of both sides or of none"),
        ([*VECTORS, "-o", "p.tsv", "--index", "ivfpq"], 2, "--index ivfpq embeds the lines itself"),
        (["-o", "p.tsv"], 2, "Missing argument 'SOURCE'"),
        (["x.npy", "y.npy", "--memory", "1GB"], 2, "--memory bounds the search in ready vectors"),
        ([*VECTORS, "-o", "p.tsv", "--report", "./p.tsv"], 1, "./p.tsv: a page is written as .html"),
        ([*VECTORS, "-o", "p.html", "--report", "./p.html"], 2, "./p.html cannot be both the table and the page"),
        ([*VECTORS, "-o", "x.npy"], 1, "a table is written as .tsv"),
        ([*VECTORS, "-o", "p.tsv", "--report", "x.npy"], 1, "x.npy: a page is written as .html"),
        ([*VECTORS, "-o", "p.tsv", "--threshold", "nan"], 1, "threshold=nan, but a number is needed"),
        ([*VECTORS, "-o", "p.tsv", "--k", "261"], 1, "source has 260 rows, too few to find k=261 neighbours"),
        ([*VECTORS, "-o", "p.tsv", "--memory", "1MB"], 1, "memory"),
    ],
)
def test_wrong_calls_leave_nothing(arguments: list[str], status: int, message: str) -> None:
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    assert message in run(*arguments, status=status).stderr
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


@pytest.mark.parametrize(
    ("name", "array", "error", "message"),
    [
        ("x.npy", np.full((9, 16), np.nan, np.float32), InputError, "NaN or infinity in row 0"),
        ("y.npy", np.ones((9, 15), np.float32), InputError, "dimensions"),
        ("x.npy", np.ones((0, 16), np.float32), InputError, "is empty"),
        ("y.npy", np.ones(16, np.float32), InputError, "vectors are needed as"),
    ],
)
def test_bad_vectors_leave_nothing(name: str, array: np.ndarray, error: type, message: str) -> None:
    np.save(name, array)
    with pytest.raises(error, match=message), search_files("x.npy", "y.npy", "p.tsv", DEFAULTS):
        pass
    with pytest.raises(FileError, match="does not exist"), search_files("none.npy", "y.npy", "p.tsv", DEFAULTS):
        pass
    assert sorted(path.name for path in Path().iterdir()) == ["x.npy", "y.npy"]


def test_two_runs_do_not_share_an_output_nor_follow_a_link(sides: tuple[np.ndarray, np.ndarray]) -> None:
    with search_files("x.npy", "y.npy", "p.tsv", DEFAULTS) as search:
        with (
            pytest.raises(FileError, match="is being written by another process"),
            search_files("x.npy", "y.npy", "p.tsv", DEFAULTS),
        ):
            pass
        assert len(list(search.pairs())) > 150
    Path("elsewhere").mkdir()
    Path(".p.tsv.mining").symlink_to("elsewhere")
    with (
        pytest.raises(FileError, match="is a link or belongs to another user"),
        search_files("x.npy", "y.npy", "p.tsv", DEFAULTS),
    ):
        pass
    assert list(Path("elsewhere").iterdir()) == []


def test_zero_vectors_are_never_chosen_by_ratio(sides: tuple[np.ndarray, np.ndarray]) -> None:
    x = sides[0].copy()
    x[5] = 0
    np.save("x.npy", x)
    with search_files("x.npy", "y.npy", "p.tsv", DEFAULTS) as search:
        assert 5 not in {pair.source_index for pair in search.pairs()}


class Page(HTMLParser):
    """Checks that every element is closed and collects what a reader sees."""

    EMPTY = ("meta",)

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)
        assert not {"src", "href", "onload", "onclick"} & {name for name, _ in attrs} and tag not in ("script", "link", "img")

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.seen.append(data)


def test_the_page_shows_what_was_found_and_escapes_it() -> None:
    src, tgt = [f"<b>مرحبا & {i}</b>" for i in range(260)], [f'<script>"{i}"</script>' for i in range(300)]
    Path("s.txt").write_text("\n".join(src) + "\n", encoding="utf-8")
    Path("t.txt").write_text("\n".join(tgt) + "\n", encoding="utf-8")
    run("s.txt", "t.txt", *VECTORS, "-o", "p.jsonl", "--report", "r.html", "--threshold", "1.1")
    rows = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    html = Path("r.html").read_text(encoding="utf-8")
    text = "\n".join(Page(html).seen)
    assert "<script" not in html and not re.search(r"https?://|url\(|@import", html)
    for row in [*rows[:8], *rows[-4:]]:
        assert row["source"] in text and row["target"] in text and f"{row['score']:.4f}" in text
    assert f"{len(rows)}\npairs" in text and "threshold 1.1: pairs below were not kept" in text
    assert text.count("Fewer than 1,000 different lines") == 1
    below = text.split("pairs below were not kept")[1].split("Worst candidates")[0]
    scores = [float(score) for score in re.findall(r"^\d\.\d{4}$", below, re.MULTILINE)]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True) and scores[0] < 1.1
    worst = [float(score) for score in re.findall(r"^\d\.\d{4}$", text.split("Worst candidates")[1], re.MULTILINE)]
    assert len(worst) == 8 and worst == sorted(worst, reverse=True) and worst[0] < scores[-1]
    bars = re.findall(r'class="kept".*?: ([\d,]+)</title>', html)
    assert sum(int(bar.replace(",", "")) for bar in bars) == len(rows)
    grey = re.findall(r'class="rest".*?: ([\d,]+)</title>', html)
    assert sum(int(bar.replace(",", "")) for bar in grey) == 260
    assert 'dir="auto"' in html and "prefers-color-scheme:dark" in html and "@media print" in html


def test_the_marks_of_the_histogram_stand_at_their_counts() -> None:
    """The half of an odd number was rounded and stood at the middle: with one pair in the highest bar, at 0."""
    run(*VECTORS, "-o", "p.tsv", "--report", "r.html")
    html = Path("r.html").read_text(encoding="utf-8")
    bars = re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)" rx="1"><title>.*?: ([\d,]+)</title>', html)
    heights = {int(count): float(tall) for _, tall, count in bars}
    bottom, (unit,) = float(bars[0][0]) + float(bars[0][1]), {round(tall / count, 1) for count, tall in heights.items()}
    marks = re.findall(r'y="([\d.]+)" text-anchor="end">([\d,]+)</text>', html)[:2]
    assert int(marks[1][1]) == max(heights)
    assert [bottom - float(y) + 4 for y, _ in marks] == pytest.approx([int(count) * unit for _, count in marks], abs=2)


def test_the_page_without_pairs_or_texts() -> None:
    run(*VECTORS, "-o", "p.tsv", "--report", "r.html", "--threshold", "9")
    text = "\n".join(Page(Path("r.html").read_text(encoding="utf-8")).seen)
    assert "0\npairs" in text and "None." in text
    run(*VECTORS, "-o", "p.tsv", "--report", "r.html", "--retrieval", "knn")
    Page(Path("r.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("source", "target", "title"),
    [
        ("deep/in/a/folder/s.npy", "t.npy", "s.npy ↔ t.npy"),
        ("fr/v.npy", "en/v.npy", "fr/v.npy ↔ en/v.npy"),
        ("fr/v.npy", "v.npy", "fr/v.npy ↔ v.npy"),
        ("fr/v.npy", "fr/v.npy", "v.npy ↔ v.npy"),
    ],
)
def test_the_title_of_the_page_has_names_without_folders(source: str, target: str, title: str) -> None:
    for path, vectors in zip((source, target), VECTORS[1::2], strict=True):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(vectors, path)
    given = [str(Path(path).resolve()) if "deep" in path else path for path in (source, target)]
    run("--source-vectors", given[0], "--target-vectors", given[1], "-o", "p.tsv", "--report", "r.html")
    html = Path("r.html").read_text(encoding="utf-8")
    assert f"<h1>{title}</h1>" in html and f"<title>{title}: " in html
    assert f"<th>Source</th><td>{given[0]}: " in html and f"<th>Target</th><td>{given[1]}: " in html  # in full below
