"""Every command with standard streams that are full, closed or left by their reader: one line, the documented exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mexma_rt import Encoder
from mexma_rt.cli import main
from mexma_rt.embedding import EmbedSettings, reading

from ..streams import ROOT, runs

if sys.platform != "linux":
    pytest.skip("needs /dev/full and fork", allow_module_level=True)

ENTRY = "mexma_rt.cli:main"
FORMS = [
    "--help",
    "--version",
    "embed --help",
    "embed a.txt -o e.npy",
    "embed a.txt -o f.npy --json",
    "mine a.txt b.txt --threshold=-inf",
    "mine a.txt b.txt -o m.tsv",
    "mine a.txt b.txt --show 3",
    "mine a.txt b.txt --json",
    "score a.txt b.txt",
    "score a.txt b.txt --json",
    "filter a.txt b.txt -o k.tsv --threshold=-inf",
    "filter a.txt b.txt -o l.tsv --json --threshold=-inf",
    "align a.txt b.txt",
    "align a.txt b.txt --json",
    "align a.txt b.txt --words",
    "align a.txt b.txt --words -o w.tsv",
    "knn a.npy a.npy -o n1",
    "knn a.npy a.npy -o n2 --json",
    "xsim a.txt b.txt",
    "xsim a.txt b.txt --json",
    "doctor",
    "doctor --json",
    "models",
    "models --json",
    "plan 1000 1000",
    "bench embed a.txt --json",
    "calibrate c.txt d.txt --output cal",
    "calibrate c.txt d.txt --output cal2 --json",
]
WITHOUT_MODEL = ("--help", "--version", "knn", "models", "plan")
INPUTS = ("a.txt", "b.txt", "c.txt", "d.txt")
WORDS = ["cat", "dog", "house", "snow", "train", "river", "stone", "window", "rain", "evening", "ticket", "child"]
TEXTS = ["the cat", "a dog barks", "one more house", "snow in may", "the seventh day", "twelve"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{text} {name}\n" for text in TEXTS), encoding="utf-8")
    for name in ("c", "d"):  # which the tiny model finds again, as calibration needs
        lines = "".join(f"{WORDS[i % 12]} and {WORDS[(i * 7 + i // 12) % 12]} number {i} {name}\n" for i in range(120))
        (tmp_path / f"{name}.txt").write_text(lines, encoding="utf-8")
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32))
    return tmp_path


def command(form: str, bundle: Path) -> list[str]:
    words = form.split()
    return words if any(word in WITHOUT_MODEL for word in words) else [*words, "--model", str(bundle)]


@pytest.mark.parametrize(
    ("stdout", "message"),
    [
        ("/dev/full", "standard output cannot be written: No space left on device. What was printed is incomplete."),
        ("closed", "standard output is closed, so the result would be lost, and nothing was done."),
        ("left", "standard output was closed by the process that reads it before everything was printed."),
    ],
)
def test_a_result_that_cannot_be_printed_is_one_line_and_status_1(
    stdout: str, message: str, folder: Path, tiny_bundle: Path
) -> None:
    before = set(folder.iterdir())
    for form, run in zip(FORMS, runs(ENTRY, [command(f, tiny_bundle) for f in FORMS], folder, stdout=stdout), strict=True):
        assert (run.status, run.stdout) == (1, ""), form
        told = [line for line in run.stderr.splitlines() if line.startswith("mexma: ")]
        assert len(told) == 1 and told[0].startswith(f"mexma: {message}") and "Traceback" not in run.stderr, (form, run.stderr)
    made = {path.name for path in set(folder.iterdir()) - before}
    if stdout == "closed":
        assert made == set()
    else:  # the files were written before the report of them was lost, and whole
        assert made == {"e.npy", "f.npy", "m.tsv", "k.tsv", "l.tsv", "w.tsv", "n1", "n2", "cal", "cal2"}
        assert np.load(folder / "e.npy").shape == (6, 32)
        assert len((folder / "k.tsv").read_text(encoding="utf-8").splitlines()) == 7


def test_every_command_is_among_them() -> None:
    assert {form.split()[0] for form in FORMS} >= main.commands.keys()


def test_news_that_nobody_can_read_stop_nothing(folder: Path, tiny_bundle: Path) -> None:
    """Standard error full or closed: the result and the exit status are as ever, also that of wrong usage."""
    forms = ["embed a.txt -o e.npy", "score a.txt b.txt", "embed none.txt -o v.npy", "embed a.txt"]
    commands = [command(form, tiny_bundle) for form in forms]
    for stderr in ("/dev/full", "closed", "left"):
        ended = runs(ENTRY, commands, folder, stderr=stderr)
        assert [run.status for run in ended] == [0, 0, 1, 2], stderr
        assert "e.npy: float32 [6, 32]" in ended[0].stdout and len(ended[1].stdout.splitlines()) == 7
        assert np.load(folder / "e.npy").shape == (6, 32)
        (folder / "e.npy").unlink()


def test_standard_input_that_is_closed(folder: Path, tiny_bundle: Path) -> None:
    """It is an error where it is read, and nothing elsewhere; a file must not get its number."""
    readers = [
        "embed - -o v.npy",
        "embed /dev/stdin -o v.npy",
        "filter - b.txt -o k.tsv",
        "mine - b.txt",
        "score a.txt -",
        "align - b.txt",
        "xsim - b.txt",
    ]
    others = ["embed a.txt -o e.npy", "score a.txt b.txt", "knn a.npy a.npy -o n1"]
    ended = runs(ENTRY, [command(form, tiny_bundle) for form in readers + others], folder, stdin="closed")
    for form, run in zip(readers, ended, strict=False):
        assert (run.status, run.stdout) == (1, ""), form
        assert run.stderr == "mexma: standard input is closed. Name a file instead of -, or add < FILE.\n", form
    assert [run.status for run in ended[len(readers) :]] == [0, 0, 0]
    assert {path.name for path in folder.iterdir()} == {*INPUTS, "a.npy", "e.npy", "n1"}


def test_outputs_named_by_a_device(folder: Path, tiny_bundle: Path) -> None:
    forms = [f"{form} -o /dev/full" for form in ("mine a.txt b.txt --threshold=-inf", "score a.txt b.txt", "align a.txt b.txt")]
    for run in runs(ENTRY, [command(form, tiny_bundle) for form in forms], folder):
        assert run.status == 1 and "mexma: /dev/full cannot be written: No space left on device.\n" in run.stderr
    forms = [form.replace("full", "stdout") for form in forms]
    for run in runs(ENTRY, [command(form, tiny_bundle) for form in forms], folder, stdout="left"):
        assert run.status == 1 and run.stderr.startswith("mexma: /dev/stdout cannot be written: Broken pipe.\n")


def test_standard_output_that_is_a_file_is_written_where_it_stands(folder: Path, tiny_bundle: Path) -> None:
    """-o /dev/stdout >> log must not replace the log by the result, nor fail at a file that is deleted or not this user's."""
    script = "from mexma_rt.cli import main; main()"
    words = [sys.executable, "-c", script, "score", "a.txt", "b.txt", "--model", str(tiny_bundle), "-o"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        with (folder / "log").open("a+b") as stream:
            stream.write(b"before\n")
            stream.flush()
            if name != "/dev/stdout":
                (folder / "log").unlink()
            done = subprocess.run(
                [*words, name], cwd=folder, env=environment, stdout=stream, stderr=subprocess.PIPE, check=False
            )
            assert done.returncode == 0, done.stderr
            stream.seek(0)
            lines = stream.read().decode().splitlines()
        assert lines[:2] == ["before", "score\tsource\ttarget"] and lines[8].startswith("6 pairs"), name
        assert {path.name for path in folder.iterdir()} <= {*INPUTS, "a.npy", "log"}
    for form, message in {
        "score a.txt b.txt -o /dev/fd/99": "/dev/fd/99 cannot be written: no file is open under this name.",
        "embed a.txt -o /dev/stdout": "/dev/stdout is a device, a pipe or an open file, but vectors must go to a regular f",
    }.items():
        (run,) = runs(ENTRY, [command(form, tiny_bundle)], folder)
        assert run.status == 1 and run.stderr.startswith(f"mexma: {message}") and run.stderr.count("\n") == 1


def test_ctrl_c_is_one_line_and_status_130(folder: Path, tiny_bundle: Path) -> None:
    """SIGINT to the whole group, as a terminal sends it, while the command waits for its input; also by python -m mexma_rt."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = "mexma: interrupted; no output file was changed"
    for form, ending in {
        "embed - -o v.npy": "; no part was finished yet, so the same command starts over.\n",
        "score - b.txt -o s.tsv": ".\n",
        "filter - b.txt -o k.tsv": "; no part was finished yet, so the same command starts over.\n",
        "score {fifo} - -o s.tsv": ".\n",
    }.items():
        os.mkfifo(folder / "fifo")
        words = [sys.executable, "-m", "mexma_rt", *command(form.format(fifo="fifo"), tiny_bundle)]
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        with process:
            assert process.stdin is not None and process.stderr is not None
            process.stdin.write("the first line\n")
            process.stdin.flush()
            wait_until_reading(process.pid)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(timeout=60) == 130, form
            assert process.stderr.read() == said + ending, form
        (folder / "fifo").unlink()
        assert {path.name for path in folder.iterdir()} == {*INPUTS, "a.npy"}


def test_ctrl_c_says_whether_there_is_something_to_resume(
    folder: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one of three slabs the same command resumes; before it, nothing is left, and the line says so."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(reading, "SLAB_ROWS", 2)
    embed, slabs = Encoder.embed_with, []

    def stopped_at(last: int) -> Callable[..., Any]:
        def embed_with(self: Encoder, texts: list[str], settings: EmbedSettings, **options: Any) -> Any:
            slabs.extend([texts] if texts else [])
            if len(slabs) == last:
                raise KeyboardInterrupt
            return embed(self, texts, settings, **options)

        return embed_with

    words = command("embed a.txt -o v.npy", tiny_bundle)
    for last, ending in ((1, "no part was finished yet, so the same command starts over."), (3, "resumes where it stopped.")):
        slabs.clear()
        monkeypatch.setattr(Encoder, "embed_with", stopped_at(last))
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 130 and result.stderr.endswith(f"{ending}\n"), result.stderr
        assert (folder / ".v.npy.part").exists() == (last == 3)
    monkeypatch.setattr(Encoder, "embed_with", embed)
    result = CliRunner().invoke(main, [*words, "--json"])
    assert json.loads(result.stdout)["resumed"] == 4


@pytest.mark.parametrize(("package", "name"), {"rt": "mexma", "export": "mexma-export", "train": "mexma-train"}.items())
def test_ctrl_c_during_the_imports_is_one_line(package: str, name: str, tmp_path: Path) -> None:
    """They take most of a short command's time; `click` stands for any module."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n", encoding="utf-8")
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "train", ROOT / "export")))
    words = [sys.executable, "-m", f"mexma_{package}", "--help"]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == f"{name}: interrupted; no output file was changed.\n"


def wait_until_reading(pid: int) -> None:
    """Until a process waits in a read of its standard input, by what the kernel says."""
    for _ in range(600):
        call = Path(f"/proc/{pid}/syscall").read_text().split()
        if call[0] == "0" and call[1] == "0x0":
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} does not read its standard input")


def test_a_shell_that_closes_and_fills_them(folder: Path) -> None:
    """The same with processes that Python itself starts: what `streams.py` sets up is what it does."""
    script = "from mexma_rt.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}

    def shell(line: str) -> tuple[int, str]:
        words = ["bash", "-c", f"\"$PYTHON\" -c '{script}' {line}"]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    status, said = shell("models --json >&-")
    assert (status, said.count("\n")) == (1, 1) and said.startswith("mexma: standard output is closed")
    status, said = shell("plan 10 10 > /dev/full")
    assert status == 1 and said.count("\n") == 1 and said.startswith("mexma: standard output cannot be written")
    assert shell("score - b.txt <&-")[0] == 1
    status, said = shell("models --json | head -c 5 | cat > head.txt; exit ${PIPESTATUS[0]}")
    assert said.count("\n") <= 1 and "Traceback" not in said and (folder / "head.txt").read_text() == '{\n "m'
    assert shell("emebd 2>&-") == (2, "")


def test_warnings_are_one_line(folder: Path, tiny_bundle: Path) -> None:
    (folder / "mac.txt").write_bytes(b"the cat\ra dog\rsnow")
    (run,) = runs(ENTRY, [command("embed mac.txt -o e.npy", tiny_bundle)], folder)
    assert (run.status, np.load(folder / "e.npy").shape) == (0, (1, 32))
    assert run.stderr.startswith("warning: mac.txt has 2 carriage returns and 0 line feeds. Only a line feed ends a line")
    assert run.stderr.count("\n") == 1


def test_a_pipe_that_must_not_block_is_waited_for(folder: Path, tiny_bundle: Path) -> None:
    """Another process may have set the pipe so, as node does; a write of more than it takes then gives an error in Python."""
    (folder / "many.txt").write_text("".join(f"line {i} of a longer file\n" for i in range(3000)), encoding="utf-8")
    script = "from mexma_rt.cli import main; main()"
    words = [sys.executable, "-c", script, "score", "many.txt", "many.txt", "--model", str(tiny_bundle), "--precision=fp32"]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        with open(reader, "rb") as stream:  # noqa: PTH123  (a number, not a path)
            lines = stream.read().splitlines()
        assert process.stderr is not None and b"Traceback" not in process.stderr.read()
    assert process.returncode == 0 and len(lines) == 3001


@pytest.mark.parametrize(
    ("words", "index", "wanted"),
    [
        ("mexma ", 1, {"embed", "mine", "xsim"}),
        ("mexma embed --stor", 2, {"--storage"}),
        ("mexma embed --storage f", 3, {"float32", "float16"}),
        ("mexma mine --margin ", 3, {"ratio", "distance", "absolute"}),
    ],
)
def test_the_shell_completes(words: str, index: int, wanted: set[str], folder: Path) -> None:
    """What the line of docs/getting-started.md makes bash ask, by the protocol of click."""
    asked = {"_MEXMA_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(index), "PYTHONPATH": str(ROOT)}
    script = "import sys; sys.argv = ['mexma']; from mexma_rt.cli import main; main(prog_name='mexma')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert wanted <= {line.partition(",")[2] for line in done.stdout.splitlines()} and done.stderr == ""
