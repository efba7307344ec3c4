"""Read bitext: TSV lines `lang<TAB>source<TAB>english<TAB>text`, plain, .xz or .zst, or "-" for standard input.

Bad rows (wrong number of columns, empty side, wrong encoding) are counted and skipped; above 1 % of at least
1,000 rows the reading stops, because then the file is not what the caller thinks it is.
"""

from __future__ import annotations

import io
import lzma
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mexma_rt.errors import FileError, InputError, require_extra

BAD_SHARE = 0.01  # more than this is another kind of file, not dirt
MIN_ROWS = 1_000  # below this one bad row would already be above the share


@dataclass(frozen=True, kw_only=True)
class Row:
    lang: str  # ISO 639-3 code of `text`
    source: str  # where the pair comes from, e.g. "tatoeba"
    english: str
    text: str


@dataclass(kw_only=True)
class ReadReport:
    """Counts of one reading; filled while the rows are consumed."""

    rows: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    first_bad_line: int | None = None

    def reject(self, reason: str, line: int) -> None:
        self.bad[reason] = self.bad.get(reason, 0) + 1
        if self.first_bad_line is None:
            self.first_bad_line = line


@contextmanager
def open_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """Open a plain, .xz or .zst file (or "-") for reading bytes."""
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path} is not a file. Give a TSV file (plain, .xz or .zst), or - for standard input.")
    if path.suffix == ".xz":
        with lzma.open(path, "rb") as xz:
            yield xz  # type: ignore[misc]
    elif path.suffix == ".zst":
        require_extra("train", "zstandard")
        import zstandard

        with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
            yield io.BufferedReader(stream)  # type: ignore[misc,type-var]
    else:
        with path.open("rb") as raw:
            yield raw


def read_pairs(path: str | Path, report: ReadReport | None = None) -> Iterator[Row]:
    """Yield the good rows of a TSV file in file order. Raises InputError above 1 % bad rows, FileError if missing."""
    report = report if report is not None else ReadReport()
    with open_bytes(path) as stream:
        for number, raw in enumerate(stream, start=1):
            report.rows += 1
            try:
                columns = raw.decode("utf-8").rstrip("\r\n").split("\t")
            except UnicodeDecodeError:
                report.reject("not UTF-8", number)
            else:
                if len(columns) != 4:
                    report.reject("not 4 columns", number)
                elif not (columns[2].strip() and columns[3].strip()):
                    report.reject("empty side", number)
                else:
                    yield Row(lang=columns[0], source=columns[1], english=columns[2], text=columns[3])
                    continue
            if report.rows >= MIN_ROWS:
                _check_share(report, path)
    _check_share(report, path)


def _check_share(report: ReadReport, path: str | Path) -> None:
    bad = sum(report.bad.values())
    if bad > max(BAD_SHARE * report.rows, 1 if report.rows < MIN_ROWS else 0):
        raise InputError(
            f"{path}: {bad} of {report.rows} rows cannot be used ({report.bad}; the first is line "
            f"{report.first_bad_line}), more than {BAD_SHARE:.0%}. Each line must be lang<TAB>source<TAB>english<TAB>text "
            "in UTF-8. Mend or filter the file and start again."
        )
