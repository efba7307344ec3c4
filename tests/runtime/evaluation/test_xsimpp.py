"""xsim++: errors by type against a float64 loop, LASER's file formats, the command, averages, all pairs and pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import mexma_rt
from mexma_rt import FileError, InputError, xsim
from mexma_rt.cli import main
from mexma_rt.evaluation.augmented import Augmented, read_augmented
from mexma_rt.evaluation.measures import xsim_both

KINDS = ("Causality Alternation", "Entity Replacement", "Number Replacement")


def pool(seed: int, n: int = 30, d: int = 12) -> tuple[np.ndarray, np.ndarray, list[str], dict[str, Augmented]]:
    """x [n, D]; y [n + 3n, D], the right lines and three close copies of each; the lines of y, and the types of the copies."""
    random = np.random.default_rng(seed)
    y = random.standard_normal((n, d))
    x = y + 0.45 * random.standard_normal((n, d))
    lines, vectors, types = [f"line {i}" for i in range(n)], [y], {}
    for kind in KINDS:
        vectors.append(y + 0.45 * random.standard_normal((n, d)))
        for i in range(n):
            lines.append(f"line {i}, {kind}")
            types[lines[-1]] = Augmented(source=lines[i], kind=kind)
    return x, np.concatenate(vectors), lines, types


def reference(x: np.ndarray, y: np.ndarray, lines: list[str], types: dict[str, Augmented], k: int) -> dict[str, int]:
    """LASER's formulas: ratio over the k nearest both ways, distractors included; forward; the type of what was found."""
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    cosine = x @ y.T
    x_mean, y_mean = np.sort(cosine, axis=1)[:, -k:].mean(axis=1), np.sort(cosine, axis=0)[-k:].mean(axis=0)
    counts = dict.fromkeys([*KINDS, "Misaligned"], 0)
    for i in range(len(x)):
        nearest = np.argsort(-cosine[i], kind="stable")[:k]
        found = int(nearest[np.argmax(cosine[i, nearest] / ((x_mean[i] + y_mean[nearest]) / 2))])
        if lines[found] != lines[i]:
            altered = types.get(lines[found])
            counts[altered.kind if altered and altered.source == lines[i] else "Misaligned"] += 1
    return counts


@pytest.mark.parametrize("seed", range(4))
def test_errors_by_type_equal_the_reference(seed: int) -> None:
    x, y, lines, types = pool(seed)
    result = xsim(x, y, text=lines, error_types=types)
    assert result.by_type == reference(x, y, lines, types, 4)
    assert result.errors == sum(result.by_type.values()) and result.total == 30
    assert sum(count > 0 for count in result.by_type.values()) >= 3
    assert xsim(x, y, text=lines).by_type is None


def test_altered_copies_of_another_line_are_misaligned_and_an_equal_line_is_right() -> None:
    x = np.eye(4)
    y = np.concatenate([np.eye(4) * 0.9 + 0.1, np.eye(4)])  # every copy beats its right line
    lines = [*"abcd", "b'", "b'", "c", "?"]
    types = {"b'": Augmented(source="b", kind="Entity")}
    result = xsim(x, y, k=1, margin="absolute", text=lines, error_types=types)
    assert result.predictions.tolist() == [4, 5, 6, 7]
    assert result.by_type == {"Entity": 1, "Misaligned": 2} and result.errors == 3  # a -> b', b -> b', c -> c, d -> ?


def test_types_need_the_lines() -> None:
    with pytest.raises(InputError, match="error_types needs lines, but text is missing"):
        xsim(np.eye(4), np.eye(4), error_types={})


def test_both_ways_are_those_of_two_calls() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((50, 8))
    y = x + random.standard_normal((50, 8))
    text = [f"{i // 2}" for i in range(50)]
    there, back = xsim_both(x, y, x_text=text, y_text=None)
    assert there == xsim(x, y) and back == xsim(y, x, text=text)
    assert there.predictions.tolist() == xsim(x, y).predictions.tolist() and there.errors != back.errors > 0


def write_files(lines: list[str], types: dict[str, Augmented]) -> None:
    Path("eng_augmented.devtest").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    entries = {line: {"src": origin.source, "errtype": origin.kind} for line, origin in types.items()}
    Path("errtype.json").write_text(json.dumps(entries), encoding="utf-8")


def test_files_of_lasers_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    types = {"Él came.": Augmented(source="He came.", kind="Entity"), "3 men": Augmented(source="2 men", kind="Number")}
    write_files(["3 men", "Él came."], types)
    assert read_augmented("eng_augmented.devtest", "errtype.json", ["He came.", "x"]) == (["3 men", "Él came."], types)


@pytest.mark.parametrize(
    ("lines", "entries", "message"),
    [
        ("", "{}", "a.txt is empty, but the altered lines"),
        ("a\n", "{", r"t.json is not JSON \("),
        ("a\n", "[1]", "t.json is a JSON list, but an object is needed"),
        ("a\n", '{"a": "Entity"}', "t.json: the entry of 'a' is 'Entity', but an object is needed"),
        ("a\n", '{"a": {"src": "b"}}', "t.json: the entry of 'a' is {'src': 'b'}"),
        ("a\n", '{"b": {"src": "b", "errtype": "x"}}', "None of the 1 lines of a.txt is in t.json"),
        ("a\n", '{"a": {"src": "c", "errtype": "x"}}', "None of the lines of a.txt was made from a line of the target file"),
    ],
)
def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, entries: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(lines)
    Path("t.json").write_text(entries)
    with pytest.raises(InputError, match=message):
        read_augmented("a.txt", "t.json", ["b"])
    with pytest.raises(FileError, match="does not exist"):
        read_augmented("a.txt" if lines else "none", "none.json", ["b"])


# --- the command, with an encoder whose vectors are chosen by the text ---------------------------------------------------


class Stub:
    dimensions, bundle = 12, SimpleNamespace(files={})
    vectors: dict[str, np.ndarray] = {}  # noqa: RUF012

    def embed_report(self, texts: list[str], **keywords: Any) -> mexma_rt.Embedded:
        report = mexma_rt.EmbedReport(
            model="stub", sentences=len(texts), distinct=len(texts), tokens=1, padded_tokens=1, batches=1, max_length=9,
            truncated=(), truncated_lengths=(), seconds=0.1, backend="none", device="cpu", precision="fp32", reason="a stub",
        )  # fmt: skip
        return mexma_rt.Embedded(vectors=np.stack([self.vectors[text] for text in texts]).astype(np.float32), report=report)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """eng.txt with its altered lines, and two languages, the second with fewer distinct lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mexma_rt, "load", lambda **options: Stub())
    x, y, lines, types = pool(9)
    z = y[:30] + np.random.default_rng(5).standard_normal((30, 12))
    sides = {"aaa": x, "bbb": z, "eng": y[:30]}
    table = dict(zip(lines, y, strict=True)) | {f"{n} {i}": sides[n][i] for n in ("aaa", "bbb") for i in range(30)}
    monkeypatch.setattr(Stub, "vectors", table)
    Path("d").mkdir()
    for name in ("aaa", "bbb"):
        Path(f"d/{name}.txt").write_text("".join(f"{name} {i}\n" for i in range(30)))
    Path("d/eng.txt").write_text("".join(f"{line}\n" for line in lines[:30]))
    write_files(lines[30:], types)
    return sides | {"pool": y}


def mexma(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["xsim", "d", *arguments])
    assert result.exit_code == 0, result.output
    return result


PLUS = ("--augmented", "eng_augmented.devtest", "--errtypes", "errtype.json")


def test_the_command_reports_by_type(folder: dict[str, np.ndarray]) -> None:
    _, _, lines, types = pool(9)
    report = json.loads(mexma(*PLUS, "--json").stdout)
    rows = {row["language"]: row for row in report["results"]}
    for name in ("aaa", "bbb"):
        assert rows[name]["by_type"] == reference(folder[name], folder["pool"], lines, types, 4)
    totals = {kind: rows["aaa"]["by_type"][kind] + rows["bbb"]["by_type"][kind] for kind in (*KINDS, "Misaligned")}
    assert report["average"]["by_type"] == totals
    assert report["average"]["xsim"] == pytest.approx(100 * sum(totals.values()) / 60)
    result = mexma(*PLUS, "-o", "t.tsv", "--plot", "p.svg")
    header, first, *_ = Path("t.tsv").read_text().splitlines()
    assert header.split("\t") == ["source", "target", "sentences", "errors", "xsim", *KINDS, "Misaligned"]
    assert first.split("\t")[:4] == ["aaa", "eng", "30", str(rows["aaa"]["errors"])]
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["language", "aaa", "bbb", "average", "mean"]
    assert all(kind in result.stdout.splitlines()[0] for kind in KINDS)
    assert Path("p.svg").read_bytes().startswith(b"<?xml")


def test_what_ran_and_what_was_cut_is_said_in_two_lines_of_many_files(
    folder: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Stub.embed_report

    def cuts(self: Stub, texts: list[str], **keywords: Any) -> mexma_rt.Embedded:
        found = real(self, texts, **keywords)
        rows = {"aaa": (4,), "bbb": (2, 7), "lin": ()}[texts[0][:3]]
        return replace(found, report=replace(found.report, truncated=rows, truncated_lengths=tuple(10 + row for row in rows)))

    monkeypatch.setattr(Stub, "embed_report", cuts)
    for more in ((), ("--all-pairs",)):
        ran, cut = mexma(*more).stderr.splitlines()
        assert ran.startswith("3 files: 90 sentences in 0.3 s, 300 per second; stub, fp32 on cpu")
        assert cut.startswith("3 sentences of 2 files had more than 9 tokens and were cut, most of them, 2, in ")
        assert "bbb" in cut and cut.endswith("To keep more, type --max-length 17.")
    one = mexma("--languages", "bbb").stderr.splitlines()
    assert [line.partition(":")[0] for line in one] == ["d/eng.txt", "d/bbb.txt", "d/bbb.txt"]


def test_lines_without_a_type_are_said(folder: dict[str, np.ndarray]) -> None:
    entries = json.loads(Path("errtype.json").read_text())
    entries.pop(f"line 3, {KINDS[0]}")
    Path("errtype.json").write_text(json.dumps(entries))
    assert "warning: 1 of 90 altered lines are not in errtype.json" in mexma(*PLUS).stderr


def test_all_pairs(folder: dict[str, np.ndarray]) -> None:
    report = json.loads(mexma("--all-pairs", "--json", "--plot", "p.png", "-o", "t.jsonl").stdout)
    found = {(row["language"], row["target"]): row["xsim"] for row in report["results"]}
    names = ("aaa", "bbb", "eng")
    assert found == {(a, b): xsim(folder[a], folder[b]).error_rate for a in names for b in names if a != b}
    assert len(set(found.values())) > 2
    assert report["mean"]["xsim"] == pytest.approx(sum(found.values()) / 6)
    assert len(Path("t.jsonl").read_text().splitlines()) == 6
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    lines = mexma("--all-pairs").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["language", *names, "average", "mean"]
    assert float(lines[1].split()[2]) == pytest.approx((found["bbb", "aaa"] + found["eng", "aaa"]) / 2, abs=0.005)


def test_an_equal_line_counts_as_right_unless_indices_are_compared(folder: dict[str, np.ndarray]) -> None:
    y = Path("d/eng.txt").read_text().splitlines()
    same = [y[1], y[0], *y[2:]]
    Path("d/eng.txt").write_text("".join(f"{line}\n" for line in [y[0], y[0], *y[2:]]))
    Path("d/ccc.txt").write_text("".join(f"{line}\n" for line in [same[1], same[1], *same[2:]]))
    text, index = (json.loads(mexma("--languages", "ccc", "--json", *more).stdout) for more in ((), ("--index-comparison",)))
    assert (text["average"]["errors"], index["average"]["errors"]) == (0, 1)
    assert (text["comparison"], index["comparison"]) == ("text", "index")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--augmented", "eng_augmented.devtest"], 2, "--augmented and --errtypes go together"),
        ([*PLUS, "--all-pairs"], 2, "does not go with --all-pairs"),
        ([*PLUS, "--index-comparison"], 2, "does not go with --index-comparison"),
        (["d/eng.txt", "--all-pairs"], 2, "--all-pairs is for a folder"),
        (["--all-pairs", "--languages", "aaa"], 1, "compares languages with each other, but there is only aaa"),
        (["--plot", "p.jpg"], 1, "a picture's name must end in .png, .svg or .pdf"),
        (["-o", "t.csv"], 1, "a table is written as .tsv"),
        (["-o", "d/aaa.txt"], 1, "is both an input and the output"),
    ],
)
def test_wrong_calls(folder: dict[str, np.ndarray], arguments: list[str], status: int, message: str) -> None:
    result = CliRunner().invoke(main, ["xsim", "d", *arguments])
    assert result.exit_code == status and message in result.stderr
