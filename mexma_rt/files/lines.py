"""Reads the lines of text files larger than memory, plain or compressed, and explains damaged files."""

from __future__ import annotations

import contextlib
import errno
import lzma
import os
import re
import warnings
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mexma_rt.errors import ColumnsWarning, FileError, InputError, LineEndWarning, typed
from mexma_rt.files.first_bytes import unpacked_name
from mexma_rt.files.unpacking import is_stdin, open_unpacked, shown_name

LONGEST_LINE = 2**24  # bytes; a small archive can unpack to a single line larger than memory
LOOKED_AT = 1000  # lines in which to count carriage returns
BOM = b"\xef\xbb\xbf"
ADDRESS = re.compile("[a-z][a-z0-9+.-]+:/")  # https://, s3://, hf://; Path collapses the // to one /
JSON_LINES = (".jsonl", ".ndjson")
SEPARATORS = {".tsv": "\t", ".csv": ",;\t"}  # of the columns of a table
SECOND_OF_TABS = "cut -f2 FILE > NEW"
SECOND_OF_CSV = "python -c \"import csv, sys; [print(row[1]) for row in csv.reader(sys.stdin, delimiter='{}')]\" < FILE > NEW"
ENOUGH_IN_UTF8 = 3  # that a text of another encoding has so many by chance is unlikely
OF_DAMAGED_UTF8 = (
    "{} lines before it are, so a conversion of the file would make nonsense of them: repair that line, or drop such bytes: "
    "iconv -c -f UTF-8 -t UTF-8 FILE > NEW"
)
OF_ANOTHER_ENCODING = (
    "Convert the file from its own encoding: iconv -f ENCODING -t UTF-8 FILE > NEW (often WINDOWS-1252 for western languages, "
    "SHIFT_JIS, GB18030 or EUC-KR; file --mime-encoding FILE guesses it)."
)
TO_FEEDS = "tr '\\r' '\\n' < FILE > NEW"


def byte_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    r"""Yield the lines of a file ("-" is standard input) without their ends, unpacking .gz, .xz and .zst.

    Lines end in \n or \r\n only, so line numbers agree with grep and wc; an initial byte order mark is dropped. Emits one
    LineEndWarning if the file has more carriage returns than line feeds. Raises FileError if the file is missing, unreadable
    or damaged, InputError if its first bytes are not UTF-8 text or a line is longer than LONGEST_LINE bytes, MissingExtraError
    if a .zst file needs a library that is not installed.
    """
    returns = feeds = number = 0
    with damage_explained(path), open_unpacked(path) as stream:
        for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE), b"")):
            if len(line) == LONGEST_LINE:
                raise InputError(
                    f"{shown_name(path)}, line {number + 1}: more than {LONGEST_LINE:,} bytes without a line end, so this is "
                    f"not text with one sentence per line. {_how_to_check(line)}"
                )
            line = line if number else line.removeprefix(BOM)
            if number < LOOKED_AT:
                returns, feeds = returns + line.count(b"\r") - line.endswith((b"\r\n", b"\r")), feeds + line.endswith(b"\n")
            yield line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line
    if returns > feeds:
        where = f" in its first {LOOKED_AT:,} lines" if number >= LOOKED_AT else ""
        warnings.warn(
            f"{shown_name(path)} has {returns:,} carriage returns and {feeds:,} line feeds{where}. Only a line feed ends a "
            f"line, so one text here may really be many. If they are line ends, as in old Mac files, convert them: {TO_FEEDS}",
            LineEndWarning,
            stacklevel=2,
        )


def _how_to_check(line: bytes) -> str:
    if line.count(b"\r") > len(line) // 1000:
        return f"Its line ends seem to be carriage returns, as in old Mac files. Convert them: {TO_FEEDS}"
    return "Check the file, for example: head -c 200 FILE"


def is_json(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name has a JSON extension, compressed or not."""
    return unpacked_name(path).endswith((*JSON_LINES, ".json"))


def text_lines(path: str | os.PathLike[str], *, json: bool = False) -> Iterator[str]:
    """Like `byte_lines`, but decoded. Raises InputError, with line and byte, where the file is not UTF-8, and for a JSON file
    (whose lines are not sentences) unless `json` is True.
    """
    if is_json(path) and not json:
        raise InputError(
            f"{path} is named as JSON, but plain text with one sentence per line is needed. mexma embed reads JSON Lines "
            "with --field NAME; to extract the texts, type: jq -r .NAME FILE > NEW"
        )
    in_utf8 = 0  # lines that are UTF-8 and not ASCII
    for number, line in enumerate(byte_lines(path), start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            remedy = OF_DAMAGED_UTF8.format(in_utf8) if in_utf8 >= ENOUGH_IN_UTF8 else OF_ANOTHER_ENCODING
            place = f"{shown_name(path)}, line {number}, byte {error.start + 1}"
            raise InputError(f"{place}: 0x{line[error.start]:02x} is not valid UTF-8. {remedy}") from None
        in_utf8 += not line.isascii()


def sentence_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """Like `text_lines`; emits one ColumnsWarning for a .tsv or .csv file whose first line has several columns."""
    separators = SEPARATORS.get(Path(unpacked_name(path)).suffix, "")
    for number, line in enumerate(text_lines(path)):
        if number == 0 and (separator := next((mark for mark in separators if mark in line), None)):
            cut = SECOND_OF_TABS if separator == "\t" else SECOND_OF_CSV.format(separator)
            warnings.warn(
                f"{path} is named as a table, but each line is read as one text, with all its columns. To take the second "
                f"column alone, type: {cut}",
                ColumnsWarning,
                stacklevel=2,
            )
        yield line


@contextlib.contextmanager
def damage_explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn library errors about damaged or unreadable files into FileError."""
    if os.fspath(path) == "":
        raise FileError("The name of a file is empty, perhaps because a shell variable is not set.")
    try:
        if ADDRESS.match(os.fspath(path)) and not Path(path).exists():
            raise FileError(f"{path} is an address, but only local files are read. Download it first, then name the file.")
        yield
    except (FileError, InputError):
        raise
    except FileNotFoundError:
        raise FileError(f"{path} does not exist. Check the name; the current folder is {Path.cwd()}.") from None
    except IsADirectoryError:
        raise FileError(f"{path} is a folder, but a text file with one sentence per line is needed.") from None
    except PermissionError:
        raise FileError(f"{path} cannot be read: no permission. Type: ls -l {typed(path)}") from None
    except (EOFError, lzma.LZMAError, zlib.error, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # from the system; gzip and pyarrow set no number
            if is_stdin(path) and error.errno == errno.EBADF:
                raise FileError("standard input is closed. Name a file instead of -, or add < FILE.") from None
            raise FileError(f"{shown_name(path)} cannot be read: {error.strerror}.") from error
        raise FileError(f"{path} is damaged or incomplete ({error}). Copy or download it again.") from None
