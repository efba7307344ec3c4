"""Reading lines and writing outputs: errors name file and line; an output is complete or not there."""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import stat
from pathlib import Path

import pytest

from mexma_rt import FileError, InputError
from mexma_rt.files.atomic import atomic_write, check_output, read_lines


def write(folder: Path, data: bytes, name: str = "in.txt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"one", ["one"]),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"\none\n\n", ["", "one", ""]),
        (b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n", ["one", "\ufefftwo"]),
        ("a\u2028b\x0bc\x85d\re\n".encode(), ["a\u2028b\x0bc\x85d\re"]),  # not line ends, whatever str.splitlines says
        (b"  nul\x00 and spaces \n", ["  nul\x00 and spaces "]),
        (b"\n" * 100_000, [""] * 100_000),
    ],
)
def test_lines_end_in_newlines_only(tmp_path: Path, data: bytes, lines: list[str]) -> None:
    assert read_lines(write(tmp_path, data)) == lines


def test_compressed_files_and_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = "één\nдва\n".encode()
    for packed, name in ((gzip.compress(data), "in.gz"), (lzma.compress(data), "in.xz")):
        assert read_lines(write(tmp_path, packed, name)) == ["één", "два"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="latin-1"))
    assert read_lines("-") == ["één", "два"]


@pytest.mark.parametrize("name", ["in.gz", "in.xz"])
def test_damaged_archive(tmp_path: Path, name: str) -> None:
    lines = b"hello\n" * 100
    packed = gzip.compress(lines) if name == "in.gz" else lzma.compress(lines)
    for data in (b"not packed at all", packed[:-12]):
        with pytest.raises(FileError, match=f"{name} is damaged or incomplete"):
            read_lines(write(tmp_path, data, name))


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"good\nbad \xff here\n", "line 2, byte 5: 0xff is not valid UTF-8"),
        (b"\xff", "line 1, byte 1: 0xff"),
        (b"\xef\xbb\xbfx\xff", "line 1, byte 2: 0xff"),
        (b"a\nb\nc\xe9", "line 3, byte 2: 0xe9"),
        (b"a\n\xed\xa0\x80\n", "line 2, byte 1: 0xed"),  # an encoded surrogate
    ],
)
def test_invalid_utf8_names_file_line_and_byte(tmp_path: Path, data: bytes, where: str) -> None:
    with pytest.raises(InputError, match=f"in.txt, {where}.*iconv -f ENCODING -t UTF-8"):
        read_lines(write(tmp_path, data))


def test_a_file_without_line_ends_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mexma_rt.files.lines.LONGEST_LINE", 1000)
    path = write(tmp_path, gzip.compress(b"fine\n" + b"x" * 998 + b"\n" + b"x" * 100_000_000), "in.gz")
    with pytest.raises(InputError, match=r"in\.gz, line 3: more than 1,000 bytes without a line end.*head -c 200"):
        read_lines(path)


def test_zstandard_files(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="part of mexma-rt[files]")
    frame = zstandard.compress(b"one\ntw")
    assert read_lines(write(tmp_path, frame + zstandard.compress(b"o\r\n"), "in.zst")) == ["one", "two"]
    for data in (b"no archive", frame[:-1]):
        with pytest.raises(FileError, match=r"in\.zst is damaged or incomplete"):
            read_lines(write(tmp_path, data, "in.zst"))


def test_invalid_utf8_on_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n\xff")))
    with pytest.raises(InputError, match="standard input, line 2, byte 1"):
        read_lines("-")


def test_missing_folder_and_unreadable_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match=r"none\.txt does not exist\. Check the name; the current folder is"):
        read_lines(tmp_path / "none.txt")
    with pytest.raises(FileError, match="is a folder, but a text file with one sentence per line is needed"):
        read_lines(tmp_path)

    def refuse(path: Path, mode: str) -> bytes:  # root may read everything, so the refusal is played
        raise PermissionError(errno.EACCES, "Permission denied")

    path = write(tmp_path, b"x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FileError, match=r"in\.txt cannot be read: no permission\. Type: ls -l"):
        read_lines(path)


def test_check_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path, b"x")
    check_output(tmp_path / "new.npy", [source, "-", tmp_path / "missing"])
    check_output(write(tmp_path, b"old", "old.npy"), [source])
    check_output(os.devnull, [source])
    with pytest.raises(FileError, match=r"is a folder, but the output must be a file\. Type .*NAME"):
        check_output(tmp_path)
    with pytest.raises(FileError, match=r"the folder .*nowhere does not exist\. Type: mkdir -p .*nowhere"):
        check_output(tmp_path / "nowhere" / "out.npy")
    link = tmp_path / "link"
    link.symlink_to(source)
    for same in (source, tmp_path / "." / "in.txt", link):
        with pytest.raises(InputError, match=r"is both an input and the output\. Choose another name"):
            check_output(same, [source])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FileError, match=r"out\.npy cannot be written: no permission in"):
        check_output(tmp_path / "out.npy")


def test_atomic_write_replaces_in_one_step(tmp_path: Path) -> None:
    path = write(tmp_path, b"old", "out")
    with atomic_write(path) as stream:
        stream.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
def test_nothing_is_left_and_nothing_lost_after_an_error(tmp_path: Path, error: BaseException) -> None:
    path = write(tmp_path, b"old", "out")

    def fail() -> None:
        with atomic_write(path) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_failing_disk_is_a_file_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    path = write(tmp_path, b"old", "out")
    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(FileError, match=f"out cannot be written: {os.strerror(number)}. Any earlier file of that name"),
        atomic_write(path) as stream,
    ):
        stream.write(b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be written: No such file"), atomic_write(tmp_path / "nowhere" / "out"):
        pass


def test_links_are_followed_and_devices_written_directly(tmp_path: Path) -> None:
    path, link = write(tmp_path, b"old"), tmp_path / "link"
    link.symlink_to(path)
    with atomic_write(link) as stream:
        stream.write(b"new")
    assert link.is_symlink() and path.read_bytes() == b"new"
    with atomic_write(os.devnull) as stream:
        stream.write(b"gone")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "out") as stream:
            stream.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640
