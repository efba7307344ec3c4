"""Reads lines of text files larger than memory, plain or compressed, and explains damaged files."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import lzma
import os
import sys
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mexma_rt.errors import FileError, InputError, require_extra

STDIN = "-"
LONGEST_LINE = 2**24  # bytes; a small archive can unpack to one line larger than the memory
ZSTD_INPUT = 2**10  # compressed bytes unpacked at a time: four of them can stand for 128 KiB, so a call gives at most 32 MiB
ZSTD_WINDOW = 2**31  # the largest `zstd --long=31` writes; the library's own limit is 2^27
XZ_MEMORY = 2**28  # bytes; `xz -9` needs 65 MiB to unpack, a crafted file 4 GiB
BOM = b"\xef\xbb\xbf"


def byte_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Lines of a plain, .gz, .xz or .zst file ("-" is standard input, plain) without their ends.

    A line ends in \\n or \\r\\n and nowhere else, so that line numbers are those of grep and wc; an initial byte order mark
    is dropped. Raises FileError if the file is missing, unreadable or damaged, InputError at a line of more than
    LONGEST_LINE bytes, MissingExtraError if a .zst file needs a library that is not installed.
    """
    with damage_explained(path), _open(os.fspath(path)) as stream:
        for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE), b"")):
            if len(line) == LONGEST_LINE:
                raise InputError(
                    f"{shown_name(path)}, line {number + 1}: more than {LONGEST_LINE:,} bytes without a line end, so this is "
                    "no text with one sentence per line. Check the file, for example: head -c 200 FILE"
                )
            line = line if number else line.removeprefix(BOM)
            yield line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line


def text_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """`lines`, decoded. Raises InputError, with line and byte, where the file is not UTF-8."""
    for number, line in enumerate(byte_lines(path), start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{shown_name(path)}, line {number}, byte {error.start + 1}: 0x{line[error.start]:02x} is not valid UTF-8 "
                "there. Convert the file, for example: iconv -f LATIN1 -t UTF-8 FILE > NEW (with its real encoding in place "
                "of LATIN1)."
            ) from None


def unpacking_bytes(path: str | os.PathLike[str]) -> int:
    """Memory that unpacking takes where it is large: the window that a .zst file begins with; 0 for other files."""
    if Path(path).suffix != ".zst":
        return 0
    import zstandard

    with Path(path).open("rb") as raw, contextlib.suppress(zstandard.ZstdError):
        return int(zstandard.get_frame_parameters(raw.read(18)).window_size)
    return 0


def shown_name(path: str | os.PathLike[str]) -> str:
    """Name of an input in error messages."""
    return "standard input" if os.fspath(path) == STDIN else str(path)


@contextlib.contextmanager
def damage_explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn library errors about damaged or unreadable files into FileError."""
    try:
        yield
    except (FileError, InputError):
        raise
    except FileNotFoundError:
        raise FileError(f"{path} does not exist. Check the name; the current folder is {Path.cwd()}.") from None
    except IsADirectoryError:
        raise FileError(f"{path} is a folder, but a text file with one sentence per line is needed.") from None
    except PermissionError:
        raise FileError(f"{path} cannot be read: no permission. Type: ls -l {path}") from None
    except (EOFError, lzma.LZMAError, zlib.error, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's; gzip and pyarrow raise it without a number
            if os.fspath(path) == STDIN and error.errno == errno.EBADF:
                raise FileError("standard input is closed. Name a file in place of -, or add < FILE.") from None
            raise FileError(f"{shown_name(path)} cannot be read: {error.strerror}.") from error
        raise FileError(f"{path} is damaged or not complete ({error}). Copy or download it again.") from None


@contextlib.contextmanager
def _open(name: str) -> Iterator[BinaryIO]:
    if name == STDIN:
        yield sys.stdin.buffer
        return
    suffix = Path(name).suffix
    if suffix == ".zst":
        require_extra("files", "zstandard")
    with Path(name).open("rb") as raw:
        if suffix == ".gz":
            yield gzip.GzipFile(fileobj=raw)  # type: ignore[misc]
        elif suffix == ".xz":
            yield io.BufferedReader(_Xz(raw))  # type: ignore[misc]
        elif suffix == ".zst":
            yield io.BufferedReader(_Zstd(raw))  # type: ignore[misc]
        else:
            yield raw


class _Unpacked(io.RawIOBase):
    """A compressed file as it is unpacked: `plain` holds what was, and `unpack` gets more, nothing at the end."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.packed, self.plain = raw, b"", memoryview(b"")
        self.frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.plain:
            self.unpack(len(buffer))
        size = min(len(buffer), len(self.plain))
        buffer[:size], self.plain = self.plain[:size], self.plain[size:]
        return size

    def unpack(self, size: int) -> None:
        raise NotImplementedError


class _Xz(_Unpacked):
    """All streams of an .xz file, with a memory limit, which the library's own reader lacks."""

    def unpack(self, size: int) -> None:
        while not self.plain:
            if self.frame is None or self.frame.needs_input:
                self.packed = self.packed or self.raw.read(2**15)
                if not self.packed:
                    if self.frame is not None:
                        raise EOFError("the last stream is not complete")
                    return
                if self.frame is None:
                    self.packed = self.packed.lstrip(b"\0")  # streams are padded with zeros
                    if not self.packed:
                        continue
                    self.frame = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            try:
                self.plain, self.packed = memoryview(self.frame.decompress(self.packed, size)), b""
            except lzma.LZMAError as error:
                if "limit" in str(error):
                    raise InputError(
                        f"{self.raw.name} asks for more than {XZ_MEMORY / 2**20:.0f} MiB of memory to be unpacked, where what "
                        "xz -9 writes needs 65. If you trust it, unpack it first: xz -dk FILE"
                    ) from None
                raise
            if self.frame.eof:
                self.packed, self.frame = self.frame.unused_data, None


class _Zstd(_Unpacked):
    """All frames of a .zst file. zstandard's own reader stops after the first, and takes a cut file for a complete one."""

    def unpack(self, size: int) -> None:
        import zstandard

        while not self.plain:
            self.packed = self.packed or self.raw.read(ZSTD_INPUT)
            if not self.packed:
                if self.frame is not None:
                    raise EOFError("the last frame is not complete")
                return
            if self.frame is None:
                self.frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
            try:
                self.plain = memoryview(self.frame.decompress(self.packed))
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from None
            self.packed = b""
            if self.frame.eof:
                self.packed, self.frame = self.frame.unused_data, None
