"""mexma filter: every reason, scores against a background, shares, kill -9 and resume, bad input, and mexma score in chunks."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import mexma_rt
from mexma_rt import FileError, InputError
from mexma_rt.cli import main
from mexma_rt.mining import bitext
from mexma_rt.mining import filter as filtering
from mexma_rt.mining.background import Background, open_background
from mexma_rt.mining.filter import filter_bitext

ROOT = Path(mexma_rt.__file__).parents[1]


class Stub:
    """Vectors by the number at the end of a line, with a little noise by its text; counts what it embeds."""

    dimensions, max_length, bundle = 24, 128, SimpleNamespace(name="stub", files={}, folder=Path("stub"))

    def __init__(self) -> None:
        self.seen = 0

    def embed_report(self, texts: list[str], **keywords: Any) -> mexma_rt.Embedded:
        self.seen += len(texts)
        report = mexma_rt.EmbedReport(
            model="stub", sentences=len(texts), distinct=len(texts), tokens=1, padded_tokens=1, batches=1, max_length=9,
            truncated=(), truncated_lengths=(), seconds=0.1, backend="none", device="cpu", precision="fp32", reason="a stub",
        )  # fmt: skip
        return mexma_rt.Embedded(
            vectors=np.array([self.vector(text) for text in texts], np.float32).reshape(-1, 24), report=report
        )

    @staticmethod
    def vector(text: str) -> np.ndarray:
        def noise(key: str) -> np.ndarray:
            return np.frombuffer(hashlib.shake_128(key.encode()).digest(24), np.int8) / 128

        return noise(text.split()[-1] if text.split() else "") + 0.3 * noise(text)


def pairs(n: int = 60) -> list[tuple[str, str]]:
    """Good ones, except: 5 blank, 6 identical, 8 a repetition of 7, 9 far too long, 10 and 11 no translations."""
    lines = [(f"phrase {i}", f"sentence {i}") for i in range(n)]
    lines[5], lines[6], lines[8] = ("  ", "sentence 5"), ("phrase 6", " phrase 6 "), lines[7]
    lines[9], lines[10], lines[11] = ("phrase 9", "word " * 30 + "9"), ("phrase 10", "sentence 999"), ("phrase 11", "other 998")
    return lines


def write(lines: list[tuple[str, str]]) -> None:
    for side, name in enumerate(("s.txt", "t.txt")):
        Path(name).write_text("".join(pair[side] + "\n" for pair in lines), encoding="utf-8")


@pytest.fixture(autouse=True)
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    monkeypatch.chdir(tmp_path)
    encoder = Stub()
    monkeypatch.setattr(mexma_rt, "load", lambda *names, **options: encoder)
    monkeypatch.setattr(bitext, "SLAB", 7)
    write(pairs())
    return encoder


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def test_every_reason(stub: Stub) -> None:
    report = filter_bitext(lambda: stub, "s.txt", "t.txt", "k.jsonl", dropped="d.jsonl")
    kept, dropped = read("k.jsonl"), read("d.jsonl")
    reasons = {row["line"] - 1: row["reason"] for row in dropped}
    assert reasons == {
        5: "blank", 6: "identical", 8: "duplicate", 9: "length ratio", 10: "score", 11: "score",
    }  # fmt: skip
    assert report.dropped == {"blank": 1, "identical": 1, "duplicate": 1, "length ratio": 1, "score": 2}
    assert (report.pairs, report.kept, report.threshold, report.resumed) == (60, 54, 1.12, 0)
    assert [row["line"] for row in kept] == [i + 1 for i in range(60) if i not in reasons]
    lines = pairs()
    assert all((row["source"], row["target"]) == lines[row["line"] - 1] for row in [*kept, *dropped])
    # Scores: those of the good lines against a background of all that the text does not rule out, and of their like.
    around = [pair for i, pair in enumerate(lines) if i not in (5, 6)]
    src, tgt = [a for a, _ in around], [b for _, b in around]
    x, y = (np.array([Stub.vector(text) for text in side], np.float32) for side in (src, tgt))
    expected = Background.of(src, tgt, x, y).scores(src, tgt, x, y)
    scores = {row["line"] - 1: row["score"] for row in [*kept, *dropped]}
    places = [i for i in range(60) if i not in (5, 6)]
    for i, score in zip(places, expected.tolist(), strict=True):
        assert scores[i] is None if i in (8, 9) else scores[i] == pytest.approx(score, rel=1e-5)
    assert sorted(path.name for path in Path().iterdir()) == ["d.jsonl", "k.jsonl", "s.txt", "t.txt"]


def test_best_share(stub: Stub) -> None:
    filter_bitext(lambda: stub, "s.txt", "t.txt", "all.jsonl", threshold=-math.inf)
    everything = sorted((row["score"] for row in read("all.jsonl")), reverse=True)
    assert len(everything) == 56
    report = filter_bitext(lambda: stub, "s.txt", "t.txt", "k.jsonl", top=0.5)
    assert report.kept == 30 and sorted((row["score"] for row in read("k.jsonl")), reverse=True) == everything[:30]
    assert report.threshold == pytest.approx(everything[29])
    assert filter_bitext(lambda: stub, "s.txt", "t.txt", "k.jsonl", top=1.0).kept == 56


@settings(deadline=None, max_examples=200)
@given(
    values=st.lists(st.floats(-4, 4, width=32) | st.just(-math.inf) | st.just(-0.0), min_size=1, max_size=40),
    count=st.integers(1, 45),
)
def test_threshold_of_a_share_is_the_nth_largest(values: list[float], count: int) -> None:
    scores = np.array(values, np.float32)
    finite = sorted(scores[np.isfinite(scores)].tolist(), reverse=True)
    expected = finite[min(count, len(finite)) - 1] if finite else math.inf
    assert filtering._share_threshold(scores, count) == expected


def test_a_given_background_and_comparable_chunks(stub: Stub) -> None:
    good = [(f"phrase {i}", f"sentence {i}") for i in range(100, 140)]
    write(good)
    done = CliRunner().invoke(main, ["score", "s.txt", "t.txt", "-o", "x.tsv", "--save-background", "b.npz", "--json"])
    assert done.exit_code == 0, done.output
    assert open_background("b.npz").source.shape == (40, 24)
    whole = [line.split("\t")[0] for line in Path("x.tsv").read_text().splitlines()[1:]]
    scores = []
    for start in (0, 15, 37):
        write(good[start : {0: 15, 15: 37, 37: 40}[start]])
        result = CliRunner().invoke(main, ["score", "s.txt", "t.txt", "--background", "b.npz"])
        assert result.exit_code == 0, result.output
        scores += [line.split("\t")[0] for line in result.stdout.splitlines()[1:]]
    np.testing.assert_allclose(np.array(scores, float), np.array(whole, float), atol=2e-6)
    write(pairs())
    report = filter_bitext(lambda: stub, "s.txt", "t.txt", "k.tsv", background="b.npz")
    assert report.background == 40 and report.dropped["score"] == 2
    with pytest.raises(InputError, match="another value of k: 4 then, 5 now"):
        filter_bitext(lambda: stub, "s.txt", "t.txt", "k.tsv", background="b.npz", k=5)
    write([("same", "same"), (" ", "one")])  # with a background, nothing that is left is no error
    report = filter_bitext(lambda: stub, "s.txt", "t.txt", "k.tsv", background="b.npz")
    assert report.kept == 0 and (report.dropped["identical"], report.dropped["blank"]) == (1, 1)


def test_the_length_ratio_is_that_of_the_bitext(stub: Stub) -> None:
    lines = [(f"abc {i}", "x" * 60 + f" {i}") for i in range(40)]
    lines[3] = ("abc 3", "x 3")
    write(lines)
    report = filter_bitext(lambda: stub, "s.txt", "t.txt", "k.tsv", dropped="d.jsonl")
    assert report.length_ratio == pytest.approx(73 / 16)
    assert [(row["line"], row["reason"]) for row in read("d.jsonl") if row["reason"] == "length ratio"] == [(4, "length ratio")]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_filter as t
from mexma_rt.mining import bitext
from mexma_rt.mining import filter as filtering
from mexma_rt.files import resumable
bitext.SLAB, last, calls = 7, int(sys.argv[2]), [0]
real = resumable.write_state
def write_state(*arguments):
    calls[0] += 1
    if calls[0] == last:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*arguments)
resumable.write_state = write_state
report = filtering.filter_bitext(t.Stub, "s.txt", "t.txt", "k.tsv", dropped="d.tsv", background_lines=20)
print(report.resumed)
"""


@pytest.mark.kill
def test_killed_and_gone_on_with(stub: Stub) -> None:
    filter_bitext(Stub, "s.txt", "t.txt", "whole.tsv", dropped="whole-d.tsv", background_lines=20)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for last in (1, 3):
        done = subprocess.run([*command, str(last)], capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not Path("k.tsv").exists() and not Path("d.tsv").exists()
    with pytest.raises(InputError, match="unfinished run of another job"):
        filter_bitext(Stub, "s.txt", "t.txt", "k.tsv", background_lines=20, k=3)
    done = subprocess.run([*command, "0"], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "14\n"
    assert Path("k.tsv").read_bytes() == Path("whole.tsv").read_bytes()
    assert Path("d.tsv").read_bytes() == Path("whole-d.tsv").read_bytes()
    assert not Path(".k.tsv.part").exists()


def test_what_changes_in_between_is_noticed(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> Stub:
        write(pairs()[:50])
        return stub

    with pytest.raises(FileError, match="The bitext changed while it was read"):
        filter_bitext(load, "s.txt", "t.txt", "k.tsv")
    assert not Path("k.tsv").exists()


def mexma(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["filter", "s.txt", "t.txt", *arguments])


def test_the_command() -> None:
    result = mexma("-o", "k.tsv", "--dropped", "d.tsv")
    assert result.exit_code == 0, result.output
    assert "k.tsv: 54 of 60 pairs kept (90.0%), ratio >= 1.12" in result.stdout
    assert "  dropped, score:" in result.stdout
    assert Path("k.tsv").read_text().splitlines()[0] == "score\tline\tsource\ttarget"
    report = json.loads(mexma("-o", "k.tsv", "--threshold=-inf", "--json").stdout)
    assert report["threshold"] is None and report["kept"] == 56


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "k.tsv", "--threshold", "nan"], "threshold=nan, but a number is needed"),
        (["-o", "k.tsv", "--threshold", "1", "--top", "0.5"], "threshold and top both say which pairs"),
        (["-o", "k.tsv", "--top", "1.5"], "top=1.5 must be the share of pairs to keep"),
        (["-o", "k.tsv", "--top", "nan"], "top=nan must be the share of pairs to keep"),
        (["-o", "k.tsv", "--max-ratio", "nan"], "max_ratio=nan must be a number above 1"),
        (["-o", "s.txt"], "s.txt is both an input and the output"),
        (["-o", "k.tsv", "--dropped", "k.tsv"], "cannot have both the kept and the dropped pairs"),
        (["-o", "k.csv"], "a table is written as .tsv"),
        (["-o", "k.tsv", "--background", "none.npz"], "none.npz does not exist"),
        (["-o", "k.tsv", "--k", "100"], "too few to find k=100 neighbours"),
    ],
)
def test_bad_calls_leave_nothing(arguments: list[str], message: str) -> None:
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    result = mexma(*arguments)
    assert result.exit_code == 1 and message in result.stderr
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


@pytest.mark.parametrize(
    ("cut", "message"), [("t.txt", "t.txt ends after 3 lines, but s.txt continues"), ("s.txt", "s.txt ends")]
)
def test_uneven_and_empty_files(cut: str, message: str) -> None:
    Path(cut).write_text("a\nb\nc\n")
    assert message in mexma("-o", "k.tsv").stderr
    Path("s.txt").write_text("")
    Path("t.txt").write_text("")
    assert "are empty: there is nothing to filter" in mexma("-o", "k.tsv").stderr
    assert sorted(path.name for path in Path().iterdir()) == ["s.txt", "t.txt"]


def test_nothing_left_to_score_says_why() -> None:
    write([(" ", " "), ("same", "same"), ("", "one"), ("two", "two")])
    result = mexma("-o", "k.tsv")
    assert (
        result.exit_code == 1
        and "No pair is left to score: all 4 pairs were dropped (2 blank, 2 identical). Check" in result.stderr
    )
    assert sorted(path.name for path in Path().iterdir()) == ["s.txt", "t.txt"]


def test_the_sample_is_of_the_whole_bitext(tmp_path: Path) -> None:
    write([(f"phrase {i}", f"sentence {i}") for i in range(1000)])
    sample = bitext.first_reading("s.txt", "t.txt", tmp_path, 200, 3.0).sample
    lines = [int(a.split()[1]) for a, _ in sample]
    assert len(set(lines)) == 200 and 70 < sum(line < 500 for line in lines) < 130
