"""Decompresses files (.gz, .xz, .zst) a block at a time, in bounded memory."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mexma_rt.errors import FileError, InputError, require_extra
from mexma_rt.files.first_bytes import HEAD, named_packing, no_text, packing

STDIN = "-"
BLOCK = 2**17  # bytes read at a time
ZSTD_INPUT = 2**10  # compressed bytes per call: four can expand to 128 KiB, so a call returns at most 32 MiB
ZSTD_WINDOW = 2**31  # the largest `zstd --long=31` writes; the library's own limit is 2^27
XZ_MEMORY = 2**28  # bytes; `xz -9` needs 65 MiB to unpack, a crafted file 4 GiB


def is_stdin(path: str | os.PathLike[str]) -> bool:
    """Whether an input is standard input, under any of its names; opened by name, a closed one would seem empty."""
    return os.fspath(path) in (STDIN, "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


def shown_name(path: str | os.PathLike[str]) -> str:
    """Return the name of an input for use in messages."""
    return "standard input" if is_stdin(path) else str(path)


@contextlib.contextmanager
def open_unpacked(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a text file ("-" is standard input), decompressing it if its first bytes or its name say that it is compressed.

    Raises InputError if the first bytes are not UTF-8 text, FileError if they contradict the name, MissingExtraError if a .zst
    file needs a library that is not installed, and whatever the libraries raise for damaged files.
    """
    name = os.fspath(path)
    suffix = named_packing(name)
    if suffix == ".zst":
        require_extra("files", "zstandard")
    with contextlib.nullcontext(sys.stdin.buffer) if is_stdin(name) else Path(name).open("rb") as raw:
        head = raw.read(HEAD)
        stream = _again(head, raw)
        if suffix and head and not packing(head):
            if reason := no_text(head):
                raise InputError(f"{shown_name(path)} {reason}")
            raise FileError(
                f"{shown_name(path)} is damaged or incomplete: its first bytes are not those of a {suffix} file. Copy or "
                f"download it again, or remove {suffix} from its name if it is plain text."
            )
        if packed := packing(head) or suffix:
            unpacked = _unpacked(stream, packed, shown_name(path))
            head = unpacked.read(HEAD)
            stream = _again(head, unpacked)
        if reason := no_text(head):
            raise InputError(f"{shown_name(path)} {reason}")
        yield stream


def unpacking_bytes(path: str | os.PathLike[str]) -> int:
    """Return the bytes of memory that decompression needs if they may be many: a .zst file's window; 0 for other files."""
    with Path(path).open("rb") as raw:
        head = raw.read(18)
    if packing(head) != ".zst":
        return 0
    import zstandard

    with contextlib.suppress(zstandard.ZstdError):
        return int(zstandard.get_frame_parameters(head).window_size)
    return 0


def _again(head: bytes, rest: BinaryIO) -> BinaryIO:
    """Return a stream of `head`, which was already read, followed by `rest`.

    A short head is all there is: a terminal whose end was typed (Ctrl-D) must not be asked again.
    """
    return io.BytesIO(head) if len(head) < HEAD else io.BufferedReader(_Again(head, rest), BLOCK)


def _unpacked(stream: BinaryIO, packed: str, name: str) -> BinaryIO:
    if packed == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    if packed == ".zst":
        require_extra("files", "zstandard")
        return io.BufferedReader(_Zstd(stream))
    return io.BufferedReader(_Xz(stream, name))


class _Again(io.RawIOBase):
    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self.head, self.rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.head:
            return self.rest.readinto1(buffer)  # type: ignore[attr-defined,no-any-return]  # does not wait for a pipe to fill
        size = min(len(buffer), len(self.head))
        buffer[:size], self.head = self.head[:size], self.head[size:]
        return size


class _Unpacked(io.RawIOBase):
    """A stream of decompressed bytes: `plain` holds those not yet read; `unpack` refills it and leaves it empty at the end."""

    def __init__(self, raw: BinaryIO, name: str = "") -> None:
        self.raw, self.name, self.packed, self.plain = raw, name, b"", memoryview(b"")
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
    """All streams of an .xz file, with a limit on the memory it may demand, which the library's own reader lacks."""

    def unpack(self, size: int) -> None:
        while not self.plain:
            if self.frame is None or self.frame.needs_input:
                self.packed = self.packed or self.raw.read(2**15)
                if not self.packed:
                    if self.frame is not None:
                        raise EOFError("the last stream is incomplete")
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
                        f"{self.name} needs more than {XZ_MEMORY / 2**20:.0f} MiB of memory to unpack; files made by xz -9 "
                        "need 65. If you trust it, unpack it first: xz -dk FILE"
                    ) from None
                raise
            if self.frame.eof:
                self.packed, self.frame = self.frame.unused_data, None


class _Zstd(_Unpacked):
    """All frames of a .zst file. zstandard's own reader stops after the first, and takes a truncated file as complete."""

    def unpack(self, size: int) -> None:
        import zstandard

        while not self.plain:
            self.packed = self.packed or self.raw.read(ZSTD_INPUT)
            if not self.packed:
                if self.frame is not None:
                    raise EOFError("the last frame is incomplete")
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
