"""Lines of text files larger than memory, plain or compressed, and what to say when a data file is damaged."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mexma_rt.errors import FileError, InputError, require_extra

ZSTD_INPUT = 2**15  # compressed bytes unpacked at a time
ZSTD_WINDOW = 2**31  # the largest `zstd --long=31` writes; the library's own limit is 2^27
BOM = b"\xef\xbb\xbf"


def lines(name: str) -> Iterator[bytes]:
    """Lines of a plain, .gz, .xz or .zst file (or "-") without their ends; one ends at \\n or \\r\\n and nowhere else.

    An initial byte order mark is dropped. Raises FileError if the file is missing, unreadable or damaged.
    """
    with damage_explained(name), _open(name) as stream:
        for number, line in enumerate(stream):
            yield (line if number else line.removeprefix(BOM)).rstrip(b"\r\n")


@contextlib.contextmanager
def _open(name: str) -> Iterator[BinaryIO]:
    suffix = Path(name).suffix
    if name == "-":
        yield sys.stdin.buffer
    elif suffix == ".gz":
        with gzip.open(name, "rb") as gz:
            yield gz  # type: ignore[misc]
    elif suffix == ".xz":
        with lzma.open(name, "rb") as xz:
            yield xz  # type: ignore[misc]
    elif suffix == ".zst":
        with Path(name).open("rb") as raw:
            yield io.BufferedReader(_Zstd(raw))  # type: ignore[misc]
    else:
        with Path(name).open("rb") as raw:
            yield raw


class _Zstd(io.RawIOBase):
    """All frames of a .zst file. zstandard's own reader stops after the first, and takes a cut file for a complete one."""

    def __init__(self, raw: BinaryIO) -> None:
        require_extra("train", "zstandard")
        self.raw, self.packed, self.plain = raw, b"", memoryview(b"")
        self.frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self.plain:
            self.packed = self.packed or self.raw.read(ZSTD_INPUT)
            if not self.packed:
                if self.frame is not None:
                    raise EOFError("the last frame is not complete")
                return 0
            if self.frame is None:
                self.frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
            try:
                self.plain = memoryview(self.frame.decompress(self.packed))
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from None
            self.packed = b""
            if self.frame.eof:
                self.packed, self.frame = self.frame.unused_data, None
        size = min(len(buffer), len(self.plain))
        buffer[:size], self.plain = self.plain[:size], self.plain[size:]
        return size


@contextlib.contextmanager
def damage_explained(path: str | Path) -> Iterator[None]:
    """Turns what the libraries raise at damaged or unreadable files into FileError."""
    try:
        yield
    except (FileError, InputError):
        raise
    except FileNotFoundError:
        raise FileError(f"{path} does not exist. Check the name; the current folder is {Path.cwd()}.") from None
    except (EOFError, lzma.LZMAError, zlib.error, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's; gzip and pyarrow raise it without a number
            raise FileError(f"{path} cannot be read: {error.strerror}.") from error
        raise FileError(f"{path} is damaged or not complete ({error}). Copy or download it again.") from None
