"""Files that are something else than their names say: what is packed is unpacked, what is no text is named with its remedy."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mexma_rt import InputError
from mexma_rt.errors import LineEndWarning
from mexma_rt.files.atomic import read_lines
from mexma_rt.files.first_bytes import no_text, wide_encoding

LINES = ["The first line.", "Вторая строка, подлиннее.", "第三行在这里。", "x"]
TEXT = "".join(f"{line}\n" for line in LINES)
DATA = TEXT.encode()
CHINESE = "猫在温暖的石头上睡觉，孩子们在河边玩了一下午。\n"


def zst(data: bytes) -> bytes:
    return pytest.importorskip("zstandard", reason="part of mexma-rt[files]").compress(data)


@pytest.mark.parametrize(
    "pack",
    [gzip.compress, lzma.compress, zst, lambda data: b"\x53\x2a\x4d\x18\x03\0\0\0abc" + zst(data)],
    ids=["gz", "xz", "zst", "zst that begins with a frame to skip"],
)
def test_packed_files_are_known_by_their_first_bytes(
    pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = DATA * 20_000
    for name in ("in.txt", "in", "in.gz"):
        (tmp_path / name).write_bytes(pack(long))
        assert read_lines(tmp_path / name) == LINES * 20_000
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(pack(DATA))))
    assert read_lines("-") == LINES


def scattered(data: bytes) -> bytes:
    """As compressed or encrypted bytes are: of any value but NUL."""
    return bytes(1 + i % 255 for i in hashlib.blake2b(data, digest_size=64).digest() * 4)


def zipped(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("in.txt", data)
    return stream.getvalue()


def tarred(data: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("in.txt")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def array(data: bytes) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.frombuffer(data, np.uint8))
    return stream.getvalue()


def parquet(data: bytes) -> bytes:
    pa = pytest.importorskip("pyarrow", reason="part of mexma-rt[files]")
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table({"t": data.decode().splitlines()}), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: lzma.compress(data, lzma.FORMAT_ALONE), r"is compressed with lzma, .*xz --format=lzma -dc FILE > NEW"),
        (lambda data: b"\x1f\x9d\x90" + scattered(data), "is compressed with compress, .*gzip -dc FILE > NEW"),
        (lambda data: b"LZIP\x01" + scattered(data), "is compressed with lzip"),
        (lambda data: b"Rar!\x1a\x07\x01\0" + scattered(data), "is a RAR archive"),
        (lambda data: b"\x85\x01\x0c\x03" + scattered(data), "is binary data, not lines of text. Look at it"),  # gpg
        (bz2.compress, "is compressed with bzip2, which is not supported. Unpack it: bunzip2 -k FILE"),
        (zipped, r"is a zip archive \(so are .npz, .xlsx and .docx\). Unpack it: unzip FILE"),
        (tarred, "is a tar archive of files, not lines of text. Unpack it: tar -xf FILE"),
        (array, "is a numpy array, not lines of text. Pass vectors to --source-vectors"),
        (parquet, "is a parquet file, not lines of text. mexma embed reads its texts: name the column with --field NAME"),
        (
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
            "is a pointer of Git LFS, .* git lfs pull",
        ),
        (lambda data: gzip.compress(gzip.compress(data)), r"holds another packed file \(gz\). Unpack it once more."),
        (
            lambda data: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + data,
            "is binary data, not lines of text. Look at it",
        ),
        (
            lambda data: b"\xff\xfe" + TEXT.encode("utf-16-le"),
            "is UTF-16, as its first bytes say, but UTF-8",
        ),
        (lambda data: b"\xfe\xff" + TEXT.encode("utf-16-be"), "iconv -f UTF-16 -t UTF-8 FILE > NEW"),
        (lambda data: TEXT.encode("utf-32"), "is UTF-32, as its first bytes say, .*iconv -f UTF-32 -t UTF-8"),
        (lambda data: b"\0\0\xfe\xff" + TEXT.encode("utf-32-be"), "is UTF-32, as its first bytes say"),
        (lambda data: TEXT.encode("utf-16-le"), "is UTF-16LE, as its NUL bytes show, .*iconv -f UTF-16LE -t UTF-8 FILE > NEW"),
        (lambda data: TEXT.encode("utf-16-be") * 50, "is UTF-16BE, as its NUL bytes show"),
        (lambda data: TEXT.encode("utf-32-le"), "is UTF-32LE, as its NUL bytes show"),
        (lambda data: (CHINESE * 20).encode("utf-16-le"), "is UTF-16LE, as its NUL bytes show"),  # no space and no mark
        (lambda data: (CHINESE * 20).encode("utf-16-be"), "is UTF-16BE, as its NUL bytes show"),
        (lambda data: (CHINESE * 20).encode("utf-32-be"), "is UTF-32BE, as its NUL bytes show"),
        (lambda data: gzip.compress(TEXT.encode("utf-16-be")), "is UTF-16BE, as its NUL bytes show"),
    ],
)
def test_what_is_no_utf8_text_is_named(make: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    for name in ("in.txt", "in"):
        (tmp_path / name).write_bytes(make(DATA))
        with pytest.raises(InputError, match=message) as caught:
            read_lines(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)) and "LATIN1" not in str(caught.value)


def test_marks_are_told_apart_from_those_that_begin_alike() -> None:
    assert wide_encoding("\ufeff\0a".encode("utf-16-le")) == "UTF-32"  # FF FE 00 00: a text of UTF-16 does not begin with NUL
    assert wide_encoding("\ufeffa".encode("utf-16-le")) == "UTF-16"
    for language in ("Большой текст без единого знака, кроме пробелов\n", "Ein Satz.\n", "日本語の文 です。\n\n短い\n"):
        for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
            expected = encoding.upper().removesuffix("-LE").removesuffix("-BE") + encoding[-2:].upper()
            assert wide_encoding((language * 40).encode(encoding)[:512]) == expected


@pytest.mark.parametrize(
    "data",
    [
        DATA,
        b"",
        b"a",
        b"\0",
        b"\0\0\0\0",
        b"  nul\x00 and spaces \n",
        b"one\0two\0three\nfour\n",
        "é\0è\n".encode(),
        b"PK is no archive\n",
        b"BZh is not one either\n",
        b"\n" * 512,
        ("é" * 400).encode()[:511],  # cut in the middle of a character
    ],
)
def test_text_is_text(data: bytes) -> None:
    assert no_text(data) == ""


@pytest.mark.parametrize(
    ("data", "counts"),
    [
        (b"one\rtwo\rthree\r", "2 carriage returns and 0 line feeds"),
        (b"one\rtwo", "1 carriage returns and 0 line feeds"),
        (b"one\rtwo\rthree\rfour\n", "3 carriage returns and 1 line feeds"),
        (b"a\rb\rc\n" * 3000, "2,000 carriage returns and 1,000 line feeds in its first 1,000 lines"),
    ],
)
def test_old_line_ends_are_one_line_with_a_warning(data: bytes, counts: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(data)
    with pytest.warns(LineEndWarning, match=rf"in\.txt has {counts}\..*convert them: tr '\\r' '\\n' < FILE > NEW"):
        lines = read_lines(tmp_path / "in.txt")
    assert len(lines) == max(1, data.count(b"\n"))


@pytest.mark.parametrize("data", [b"one\r\ntwo\r\n", b"one\r", b"a\rb\nc\n", b"a\r\rb\nc\nd\n", b"", b"one\r\nt\rhree\r\nfour"])
def test_other_carriage_returns_are_no_matter(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_lines(tmp_path / "in.txt")


def test_a_large_file_of_old_line_ends_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mexma_rt.files.lines.LONGEST_LINE", 1000)
    (tmp_path / "in.txt").write_bytes(b"one\rtwo\r" * 1000)
    with pytest.raises(InputError, match=r"Its line ends seem to be carriage returns, as in old Mac files\. Convert them: tr"):
        read_lines(tmp_path / "in.txt")


@pytest.mark.parametrize(
    "head",
    [
        b"SQLite format 3\0\x10\0\x01\x01\0@  ",
        b"GGUF\x03\0\0\0",
        b'\x40\0\0\0\0\0\0\0{"weight":{}}',  # safetensors
        b"FEA1\0\0\0\0",
        b"Obj\x01\x04\x16avro.schema",
    ],
    ids=["sqlite", "gguf", "safetensors", "feather", "avro"],
)
def test_binary_files_whose_bytes_are_ascii_are_no_text(head: bytes, tmp_path: Path) -> None:
    """They are valid UTF-8, and each was one text without a word."""
    (tmp_path / "in").write_bytes(head)
    with pytest.raises(InputError, match="not lines of text"):
        read_lines(tmp_path / "in")
    (tmp_path / "in").write_bytes(b"a\0b\nc\n")  # a text that was damaged a little is one still
    assert read_lines(tmp_path / "in") == ["a\0b", "c"]


def test_a_zip_archive_called_gz_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "in.gz").write_bytes(zipped(DATA))
    with pytest.raises(InputError, match=r"in\.gz is a zip archive"):
        read_lines(tmp_path / "in.gz")
