"""The command line on bad input: one clear message, the right exit status, and nothing lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import mexma_rt
from mexma_rt.cli import main

TWO, FOUR = "one\ntwo\n", "one\ntwo\nthree\nfour\n"


class Stub:
    """An encoder without files: a vector from the letters of each text."""

    dimensions, bundle = 26, SimpleNamespace(files={}, prompts={}, folder=Path("stub"), name="stub")

    def embed_report(self, texts: list[str], **keywords: Any) -> mexma_rt.Embedded:
        vectors = np.array([[text.count(letter) + 1 for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], np.float32)
        report = mexma_rt.EmbedReport(
            model="stub", sentences=len(texts), distinct=len(set(texts)), tokens=1, padded_tokens=1, batches=1, max_length=128,
            truncated=(), truncated_lengths=(), seconds=0.1, backend="none", device="cpu", precision="fp32", reason="a stub",
        )  # fmt: skip
        return mexma_rt.Embedded(vectors=vectors, report=report)

    def embed_with(self, texts: list[str], settings: Any, **keywords: Any) -> mexma_rt.Embedded:
        return self.embed_report(texts)


@pytest.fixture(autouse=True)
def loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Files in the current folder, a stub in place of the model, and the list of models loaded."""
    monkeypatch.chdir(tmp_path)
    Path("two.txt").write_text(TWO)
    Path("four.txt").write_text(FOUR)
    Path("empty.txt").touch()
    Path("blank.txt").write_text("\n \n\n\n")
    Path("bad.txt").write_bytes(b"good\nb\xe4d\n")
    loaded: list[str] = []

    def load(model: str, **options: object) -> Stub:
        loaded.append(model)
        return Stub()

    monkeypatch.setattr(mexma_rt, "load", load)
    yield loaded


def fails(status: int, *arguments: str, stdin: str | None = None) -> str:
    """Run, check status and the absence of a traceback and of any new file, and return stderr."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = CliRunner().invoke(main, arguments, input=stdin)
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    return result.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("embed bad.txt -o v.npy", "mexma: bad.txt, line 2, byte 2: 0xe4 is not valid UTF-8. Convert the file"),
        ("embed none.txt -o v.npy", "mexma: none.txt does not exist. Check the name; the current folder is"),
        ("embed . -o v.npy", "mexma: . is a folder, but a text file with one sentence per line is needed."),
        ("embed two.txt -o no/v.npy", "mexma: no/v.npy cannot be written: the folder "),
        ("embed two.txt -o .", "mexma: . is a folder, but the output must be a file."),
        ("embed two.txt -o two.txt", "mexma: two.txt is both an input and the output. Choose another name"),
        ("mine four.txt four.txt -o ./four.txt", "mexma: four.txt is both an input and the output."),
        ("mine four.txt bad.txt -o p.tsv", "mexma: bad.txt, line 2, byte 2"),
        ("mine empty.txt four.txt -o p.tsv", "mexma: source is empty: there is nothing to compare with. Pass at least k=4"),
        ("mine four.txt empty.txt", "mexma: target is empty"),
        ("mine four.txt blank.txt", "mexma: target has no text: all of its 4 lines are blank."),
        (
            "mine two.txt four.txt",
            "mexma: source has 2 distinct sentences, too few to find k=4 neighbours among them. Type k=2",
        ),
        (
            "mine four.txt four.txt -o p.csv",
            "mexma: p.csv: a table is written as .tsv, .jsonl or .parquet, depending on its name.",
        ),
        (
            "mine four.txt four.txt -o p.parquet.gz",
            "mexma: p.parquet.gz: a parquet file is compressed internally. Leave out .gz.",
        ),
        ("mine four.txt four.txt --threshold nan", "mexma: threshold=nan, but a number is needed"),
        (
            "score two.txt four.txt -o s.tsv",
            "mexma: source has 2 lines and target 4, but pairs need the same number on each side.",
        ),
        ("score two.txt none.txt", "mexma: none.txt does not exist."),
        ("xsim two.txt four.txt", "mexma: two.txt has 2 lines and four.txt 4, but they must be line-aligned."),
        ("xsim two.txt two.txt", "mexma: two.txt has 2 lines, too few to find k=4 neighbours among them. Type k=2"),
        ("xsim blank.txt four.txt", "mexma: blank.txt has 4 lines but no text, so there is nothing to find."),
        ("xsim four.txt blank.txt", "mexma: blank.txt has 4 lines but no text"),
        ("xsim . --target blank --languages four", "mexma: blank.txt has 4 lines but no text"),
        ("xsim .", "mexma: eng.txt does not exist, but --target eng compares with it."),
        ("xsim . --target four --languages two,xxx", "mexma: . has no xxx.txt to compare with four.txt. It has: bad, blank,"),
    ],
)
def test_bad_data_ends_with_status_1_before_a_model_is_loaded(command: str, message: str, loads: list[str]) -> None:
    assert fails(1, *command.split()).startswith(message)
    assert loads == []


def test_folder_with_one_file_only() -> None:
    Path("lone").mkdir()
    Path("lone/eng.txt").write_text(FOUR)
    assert "lone has no .txt file besides eng.txt" in fails(1, "xsim", "lone")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("embed two.txt", "Missing option '-o' / '--output'"),
        ("embed two.txt -o v.npy --sotrage float16", "--sotrage"),
        (
            "embed two.txt -o v.npy --storage bits",
            "'bits' is not one of 'float32', 'float16', 'int8', 'uint8', 'binary', 'ubinary'",
        ),
        ("mine two.txt", "Missing argument 'TARGET'"),
        ("mine two.txt four.txt --margin cosine", "'cosine' is not one of 'ratio', 'distance', 'absolute'"),
        ("score four.txt four.txt -o s.tsv --save-background s.tsv", "s.tsv cannot have both the scores and the background"),
        ("mine two.txt four.txt --k 0", "0 is not in the range x>=1"),
        ("mine - -", "Only one of SOURCE and TARGET can be standard input."),
        ("xsim four.txt", "four.txt is not a folder: type TARGET as well"),
        ("xsim four.txt four.txt --languages fra", "--languages is for a folder"),
        ("emebd two.txt", "'emebd'"),
    ],
)
def test_wrong_usage_ends_with_status_2(command: str, message: str) -> None:
    assert message in fails(2, *command.split())


def test_unknown_device_model_and_length(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    from mexma_rt.embedding import loading

    monkeypatch.setattr(mexma_rt, "load", loading.load)
    arguments = ["embed", "two.txt", "-o", "v.npy", "--model", str(tiny_bundle)]
    assert (
        fails(1, *arguments, "--device", "tpu")
        == "mexma: There is no device 'tpu'. Known: auto, cpu, cuda (one GPU of several: cuda:1).\n"
    )
    assert "mexma: There is no precision 'fp64'" in fails(1, *arguments, "--precision", "fp64")
    assert "mexma: There is no backend 'tensorflow'. Known: auto, onnxruntime, tensorrt, rtx, torch." in fails(
        1, *arguments, "--backend", "tensorflow"
    )
    assert "mexma: max_length=9999 must be a whole number" in fails(1, *arguments, "--max-length", "9999")
    assert "mexma: There is no model 'nothing'" in fails(1, "embed", "two.txt", "-o", "v.npy", "--model", "nothing")
    assert "mexma: There is no model 'nothing'" in CliRunner().invoke(main, ["doctor", "--model", "nothing"]).stderr


def test_output_folder_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere, so the refusal is played
    assert "v.npy cannot be written: no permission in" in fails(1, "embed", "two.txt", "-o", "v.npy")


def test_an_existing_output_survives_a_failed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("v.npy").write_bytes(b"precious")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = "v.npy cannot be written: No space left on device. Any earlier file of that name is unchanged."
    assert message in fails(1, "embed", "two.txt", "-o", "v.npy")
    Path("p.tsv").write_bytes(b"precious")
    assert message.replace("v.npy", "p.tsv") in fails(1, "mine", "four.txt", "four.txt", "-o", "p.tsv")
    assert Path("v.npy").read_bytes() == Path("p.tsv").read_bytes() == b"precious"


def test_ctrl_c_ends_with_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Stub, texts: list[str], **keywords: Any) -> mexma_rt.Embedded:
        raise KeyboardInterrupt

    Path("v.npy").write_bytes(b"precious")
    monkeypatch.setattr(Stub, "embed_report", interrupt)
    assert fails(130, "embed", "two.txt", "-o", "v.npy") == (
        "mexma: interrupted; no output file was changed; no part was finished yet, so the same command starts over.\n"
    )


def test_bad_stdin() -> None:
    result = CliRunner().invoke(main, ["embed", "-", "-o", "v.npy"], input=b"fine\n\xff\n")
    assert result.exit_code == 1 and "standard input, line 2, byte 1: 0xff is not valid UTF-8" in result.stderr
