"""Inputs that can be read only once: pipes, named pipes, standard input, packed or not; the result is that of the same file."""

from __future__ import annotations

import gzip
import lzma
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mexma_rt.cli import main
from mexma_rt.errors import EmptyPipeWarning

from ..streams import ROOT

if not hasattr(os, "mkfifo"):
    pytest.skip("needs named pipes", allow_module_level=True)

A = [f"the {word} is number {i}" for i, word in enumerate(["cat", "dog", "house", "snow", "seventh day", "train"] * 5)]
B = [f"{line}, she said" for line in A]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, lines in (("a", A), ("b", B)):
        Path(f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.mkfifo(f"{name}.pipe")


@contextmanager
def writing(**pipes: bytes) -> Iterator[None]:
    """a= and b=: what comes out of a.pipe and b.pipe."""
    threads = [threading.Thread(target=_write, args=item) for item in pipes.items()]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


def _write(name: str, data: bytes) -> None:
    with Path(f"{name}.pipe").open("wb") as stream:
        stream.write(data)


def mexma(bundle: Path, line: str, status: int = 0, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(main, [*line.split(), "--model", str(bundle)], input=stdin)
    assert result.exit_code == status, result.output
    return result


def text(name: str) -> bytes:
    return Path(f"{name}.txt").read_bytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_embed_of_a_pipe(pack: type, tiny_bundle: Path) -> None:
    mexma(tiny_bundle, "embed a.txt -o file.npy")
    with writing(a=pack(text("a"))):
        mexma(tiny_bundle, "embed a.pipe -o pipe.npy")
    for name in ("-", "/dev/stdin"):
        mexma(tiny_bundle, f"embed {name} -o stdin.npy", stdin=pack(text("a")))
        assert Path("stdin.npy").read_bytes() == Path("file.npy").read_bytes()
    assert Path("pipe.npy").read_bytes() == Path("file.npy").read_bytes()
    assert sorted(path.name for path in Path().iterdir() if path.name.startswith(".")) == []


def test_embed_of_piped_tables(tiny_bundle: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="part of mexma-rt[files]")
    import pyarrow.parquet as pq

    mexma(tiny_bundle, "embed a.txt -o file.npy")
    pq.write_table(pa.table({"t": A}), "a.table")
    lines = "".join(f'{{"t": "{line}"}}\n' for line in A).encode()
    for data in (Path("a.table").read_bytes(), lines, gzip.compress(lines)):
        with writing(a=data):
            mexma(tiny_bundle, "embed a.pipe --field t -o pipe.npy")
        assert Path("pipe.npy").read_bytes() == Path("file.npy").read_bytes()
        mexma(tiny_bundle, "embed - --field t -o stdin.npy", stdin=data)
        assert Path("stdin.npy").read_bytes() == Path("file.npy").read_bytes()
    mexma(tiny_bundle, "embed a.table --field t -o named.npy")  # by its first bytes, whatever its name
    assert Path("named.npy").read_bytes() == Path("file.npy").read_bytes()


@pytest.mark.parametrize(
    "form",
    [
        "filter {} {} -o {}.tsv --dropped {}d.tsv --threshold=-inf",
        "mine {} {} -o {}.tsv --threshold=-inf",
        "score {} {} -o {}.tsv",
        "score {} {} -o {}.tsv --save-background {}.npz",
        "align {} {} -o {}.tsv",
        "align {} {} -o {}.tsv --words",
        "xsim {} {} -o {}.tsv",
    ],
)
def test_two_sides(form: str, tiny_bundle: Path) -> None:
    mexma(tiny_bundle, form.format("a.txt", "b.txt", "file", "file"))
    expected = Path("file.tsv").read_bytes()
    with writing(a=gzip.compress(text("a")), b=text("b")):
        mexma(tiny_bundle, form.format("a.pipe", "b.pipe", "pipe", "pipe"))
    mexma(tiny_bundle, form.format("-", "b.txt", "first", "first"), stdin=text("a"))
    mexma(tiny_bundle, form.format("a.txt", "/dev/stdin", "second", "second"), stdin=gzip.compress(text("b")))
    for name in ("pipe", "first", "second"):
        found = Path(f"{name}.tsv").read_bytes()
        # xsim names the sides by their files
        assert found == expected or (form.startswith("xsim") and found.split(b"\t")[-3:] == expected.split(b"\t")[-3:])
    both = mexma(tiny_bundle, form.format("-", "/dev/stdin", "third", "third"), 1 if form.startswith("filt") else 2, b"x\n")
    assert "can be standard input" in both.output


SIDES = {
    "filter a.pipe b.pipe -o pipe.tsv --threshold=-inf": "filter a.txt b.txt -o file.tsv --threshold=-inf",
    "score a.pipe b.pipe -o pipe.tsv": "score a.txt b.txt -o file.tsv",
    "score b.pipe a.pipe -o pipe.tsv --background x.npz": "score b.txt a.txt -o file.tsv --background x.npz",
    "score a.pipe a.pipe -o pipe.tsv": "score a.txt a.txt -o file.tsv",
}
ONE_AFTER_THE_OTHER = "import sys; [open(n + '.pipe', 'wb').write(open(n + '.txt', 'rb').read()) for n in sys.argv[1]]"
LINE_BY_LINE = """
a, b = open('a.pipe', 'w'), open('b.pipe', 'w')
for x, y in zip(open('a.txt'), open('b.txt')):
    a.write(x), b.write(y)
"""


@pytest.mark.parametrize("form", SIDES)
def test_two_pipes_that_one_process_writes(form: str, tiny_bundle: Path) -> None:
    """It waits at the one that is full (64 KiB on Linux) or not open, and would wait for ever if the other were read first."""
    mexma(tiny_bundle, "score b.txt a.txt -o first.tsv --save-background x.npz")
    for name in ("a", "b"):
        Path(f"{name}.txt").write_bytes(text(name) + (b" " * 999 + b"\n") * 200)  # blank lines: to write, not to embed
    mexma(tiny_bundle, SIDES[form])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = "from mexma_rt.cli import main; main()"
    reading = [sys.executable, "-c", script, *form.split(), "--model", str(tiny_bundle)]
    two = "b.pipe" in form
    for writes in (ONE_AFTER_THE_OTHER, LINE_BY_LINE) if two else (ONE_AFTER_THE_OTHER,):
        writing_both = [sys.executable, "-c", writes, "ba" if two else "a"]
        with (
            subprocess.Popen(reading, env=environment, stderr=subprocess.PIPE) as reader,
            subprocess.Popen(writing_both) as writer,
        ):
            try:
                said = reader.communicate(timeout=100)[1]
            finally:  # a deadlock fails here, and leaves no process
                reader.kill()
                writer.kill()
        assert reader.returncode == 0, said
        assert Path("pipe.tsv").read_bytes() == Path("file.tsv").read_bytes()


def test_a_bad_second_pipe_is_named_and_nothing_waits(tiny_bundle: Path, tmp_path: Path) -> None:
    with writing(a=text("a"), b=gzip.compress(text("b"))[:-9]):
        assert "b.pipe is damaged or incomplete" in mexma(tiny_bundle, "score a.pipe b.pipe", 1).stderr
    with writing(a=b"", b=text("b")):
        assert "a.pipe" in mexma(tiny_bundle, "xsim a.pipe b.pipe", 1).stderr


def test_errors_name_the_pipe_and_leave_nothing(tiny_bundle: Path) -> None:
    before = sorted(Path().iterdir())
    with writing(a=b"fine\n\xff\n"):
        assert "a.pipe, line 2, byte 1: 0xff is not valid" in mexma(tiny_bundle, "embed a.pipe -o v.npy", 1).stderr
    with writing(a=gzip.compress(text("a"))[:-9]):
        assert "a.pipe is damaged or incomplete" in mexma(tiny_bundle, "embed a.pipe -o v.npy", 1).stderr
    with writing(a=text("a"), b=text("b")[:100]):
        said = mexma(tiny_bundle, "filter a.pipe b.pipe -o k.tsv", 1).stderr
    assert "b.pipe ends after 4 lines, but a.pipe continues: the files must be line-aligned" in said
    wide = "\ufeffone\n".encode("utf-16-le")
    assert "mexma: standard input is UTF-16, as its first bytes say" in mexma(tiny_bundle, "embed - -o v.npy", 1, wide).stderr
    assert sorted(Path().iterdir()) == before


@pytest.mark.filterwarnings("ignore::mexma_rt.errors.EmptyPipeWarning")
def test_a_pipe_that_gives_nothing_is_told(tiny_bundle: Path) -> None:
    """As of <(zcat missing.gz): without a word the result of a command that failed would be an array without rows."""
    said = "is empty: check whether the command that writes to it has failed."
    with writing(a=b""), pytest.warns(EmptyPipeWarning, match=rf"a\.pipe {said}"):
        mexma(tiny_bundle, "embed a.pipe -o v.npy")
    assert np.load("v.npy").shape == (0, 32)
    with pytest.warns(EmptyPipeWarning, match=f"standard input {said}"):
        mexma(tiny_bundle, "embed - -o v.npy", stdin=b"")


def test_process_substitution_of_a_shell(tiny_bundle: Path) -> None:
    """The real thing, where the name /dev/fd/63 is one of this process alone."""
    Path("a.gz").write_bytes(gzip.compress(text("a")))
    run = f"\"$PYTHON\" -c 'from mexma_rt.cli import main; main()' embed --model {tiny_bundle}"
    script = f"{run} <(zcat a.gz) -o pipe.npy && cat a.gz | {run} /dev/stdin -o stdin.npy"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mexma(tiny_bundle, "embed a.txt -o file.npy")
    assert np.load("file.npy").shape == (30, 32)
    assert Path("pipe.npy").read_bytes() == Path("stdin.npy").read_bytes() == Path("file.npy").read_bytes()


def running(words: str, bundle: Path, stdin: int) -> subprocess.Popen[bytes]:
    script = "from mexma_rt.cli import main; main()"
    command = [sys.executable, "-c", script, *words.split(), "--model", str(bundle)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=stdin, stderr=subprocess.PIPE)


def wait_until_asked(process: subprocess.Popen[bytes]) -> None:
    """Until a process waits for standard input in a read or a select, by what the kernel says (x86-64's and ARM's numbers)."""
    for _ in range(600):
        call = Path(f"/proc/{process.pid}/syscall").read_text().split()
        if call[:2] in (["0", "0x0"], ["63", "0x0"]) or call[:2] in (["23", "0x1"], ["270", "0x1"], ["72", "0x1"]):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {process.pid} does not wait for its standard input")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see what a process waits for")
@pytest.mark.parametrize("words", ["embed - -o v.npy", "score - two.txt -k 1 -o s.tsv"])
def test_a_pipe_that_must_not_block_is_read_to_its_end(words: str, tiny_bundle: Path) -> None:
    """Another process may have set it so, as node does; a moment without data then was the end, and the rest was lost."""
    Path("two.txt").write_bytes(b"one\ntwo\n")
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with running(words, tiny_bundle, reader) as process:
        os.close(reader)
        for line in (b"the cat\n", b"a dog\n"):
            wait_until_asked(process)
            os.write(writer, line)
        wait_until_asked(process)
        os.close(writer)
        assert process.wait(timeout=60) == 0
    if words.startswith("embed"):
        assert np.load("v.npy").shape == (2, 32)
    else:
        assert [line.split("\t")[1] for line in Path("s.tsv").read_text().splitlines()[1:]] == ["the cat", "a dog"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see what a process waits for")
@pytest.mark.parametrize("words", ["embed - -o v.npy", "score - two.txt -k 1 -o s.tsv", "embed - --field t -o v.npy"])
def test_lines_that_are_typed_end_with_one_ctrl_d(words: str, tiny_bundle: Path) -> None:
    """It took two or three, where `cat` takes one."""
    Path("two.txt").write_bytes(b"one\ntwo\n")
    master, terminal = os.openpty()
    with running(words, tiny_bundle, terminal) as process:
        os.close(terminal)
        for typed in (b'{"t": "the cat"}\n', b'{"t": "a dog"}\n', b"\x04"):
            wait_until_asked(process)
            os.write(master, typed)
        try:
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            os.close(master)


def test_what_is_read_in_any_order_is_no_pipe(tiny_bundle: Path) -> None:
    """One line for each, and no waiting for a writer that never comes."""
    np.save("v.npy", np.eye(4, dtype=np.float32))
    for form, message in {
        "knn a.pipe v.npy -o n": "a.pipe is a pipe, but vectors are read in any order. Write them to a file",
        "mine a.txt b.txt --source-vectors v.npy --target-vectors b.pipe -o m.tsv": "b.pipe is a pipe, but vectors are read",
        "score a.txt b.txt --background a.pipe": "a.pipe is a pipe, but a background is read in any order.",
        "score a.txt b.txt --background a.txt": "a.txt is not a background. Make one: mexma score",
        "bench embed a.pipe": "a.pipe is a pipe, but every route reads the file again.",
        "bench embed v.npy": "v.npy is a numpy array, not lines of text.",
    }.items():
        model = [] if form.startswith("knn") else ["--model", str(tiny_bundle)]
        result = CliRunner().invoke(main, [*form.split(), *model])
        assert result.exit_code == 1 and message in result.output, (form, result.output, result.exception)
    Path("p.txt").write_bytes(gzip.compress(text("a")))
    assert "p.txt is packed (gz), but routes read plain text." in mexma(tiny_bundle, "bench embed p.txt", 1).output
