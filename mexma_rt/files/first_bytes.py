"""Recognises a file's format from its first bytes, regardless of its name."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

HEAD = 512  # bytes to read; a tar archive has its magic number at byte 257
PACKED = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
MANY = 50  # characters: of so many from random bytes, some would not be printable
PARQUET = b"PAR1"
ZIP = b"PK\x03\x04"

_OTHERS = {  # formats that are not lines of text, with what to do about each
    ZIP: ("a zip archive (so are .npz, .xlsx and .docx)", "Unpack it: unzip FILE"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "Unpack it: 7z x FILE"),
    b"Rar!\x1a\x07": ("a RAR archive", "Unpack it: unrar x FILE"),
    b"LZIP": ("compressed with lzip, which is not supported", "Unpack it: lzip -dk FILE"),
    b"\x1f\x9d": ("compressed with compress, which is not supported", "Unpack it: gzip -dc FILE > NEW"),
    b"\x5d\0\0": ("compressed with lzma, which is not supported", "Unpack it: xz --format=lzma -dc FILE > NEW"),
    b"\x04\x22\x4d\x18": ("compressed with lz4, which is not supported", "Unpack it: lz4 -d FILE NEW"),
    PARQUET: ("a parquet file, not lines of text", "mexma embed reads its texts: name the column with --field NAME."),
    b"\x93NUMPY": (
        "a numpy array, not lines of text",
        "Pass vectors to --source-vectors, --target-vectors or mexma knn.",
    ),
    b"%PDF-": ("a PDF document, not lines of text", "Extract its text: pdftotext FILE NEW"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "Fetch the file: git lfs pull"),
    b"Obj\x01": ("an Avro file, not lines of text", "Save its table as parquet, and name the column that holds the texts."),
    b"ARROW1": ("an Arrow file, not lines of text", "Save its table as parquet, and name the column that holds the texts."),
}
_BINARY = frozenset((*range(1, 9), *range(14, 27)))  # control characters that, where the rest is not UTF-8, rule out text
_MARKS = {  # longer ones first: the mark of UTF-32LE starts with the one of UTF-16LE
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def packing(head: bytes) -> str:
    """Return how the file is compressed: .gz, .xz or .zst; "" for anything else, unsupported compression included."""
    if head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:  # a skippable frame, which pzstd writes first
        return ".zst"
    return next((ending for magic, ending in PACKED.items() if head.startswith(magic)), "")


def named_packing(path: str | os.PathLike[str]) -> str:
    """Return the compression that a file name promises: .gz, .xz or .zst; otherwise ""."""
    ending = Path(path).suffix
    return ending if ending in PACKED.values() else ""


def unpacked_name(path: str | os.PathLike[str]) -> str:
    """Return the last part of a file name in lower case, without the ending of its compression."""
    name = Path(path).name.lower()
    return name.removesuffix(named_packing(name))


def no_text(head: bytes) -> str:
    """Explain why a file that begins (once unpacked) with `head` is not UTF-8 text, as "is ... . Type ..."; "" if it may be."""
    for magic, (what, remedy) in _OTHERS.items():
        if head.startswith(magic):
            return f"is {what}. {remedy}"
    if packing(head):
        return f"holds another packed file ({packing(head)[1:]}). Unpack it once more."
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return "is compressed with bzip2, which is not supported. Unpack it: bunzip2 -k FILE"
    if head[257:262] == b"ustar":
        return "is a tar archive of files, not lines of text. Unpack it: tar -xf FILE"
    if encoding := wide_encoding(head):
        how = "its first bytes say" if encoding in _MARKS.values() else "its NUL bytes show"
        return f"is {encoding}, as {how}, but UTF-8 is needed. Convert it: iconv -f {encoding} -t UTF-8 FILE > NEW"
    numbers = b"\0\0\0" in head and head.strip(b"\0")  # integers of four or eight bytes
    zeros = b"\0" in head and (not _is_utf8(head) or numbers or _BINARY.intersection(head))
    # of compressed or encrypted bytes, one in twelve is a control character; no encoding of text has many
    if zeros or (not _is_utf8(head) and 50 * sum(map(_BINARY.__contains__, head)) > len(head)):
        return "is binary data, not lines of text. Look at it: head -c 200 FILE | xxd"
    return ""


def wide_encoding(head: bytes) -> str:
    """Return UTF-16 or UTF-32 from a byte order mark; without a mark, the encoding with LE or BE, guessed; otherwise "".

    Without a mark, a match means that all characters are printable, and at least an eighth are ASCII (spaces, line ends) or,
    as of Chinese, there are many with a line end among them.
    """
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" not in head:
        return ""
    for encoding, width in (("UTF-32LE", 4), ("UTF-32BE", 4), ("UTF-16LE", 2), ("UTF-16BE", 2)):
        if len(head) < HEAD and len(head) % width:  # the whole file
            continue
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(head)
        except UnicodeDecodeError:
            continue
        readable = all(character.isprintable() or character in "\t\r\n" for character in text)
        spaced = 8 * sum(map(str.isascii, text)) >= len(text) > 1 and ("\n" in text or b"\n" not in head)
        if readable and (spaced or ("\n" in text and len(text) >= MANY)):
            return encoding
    return ""


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True
