"""Reads bitext: rows of language, source, English and its translation.

A source is any of these, and several may be given together:

    what to type                     what it is
    pairs.tsv                        lines lang<TAB>source<TAB>english<TAB>text in UTF-8; plain, .gz, .xz, .zst, or - for
                                     standard input (plain)
    pairs.parquet                    parquet with the text columns lang, source, english, text
    folder                           the .parquet files directly inside, by name; or a data set written by `datasets`
                                     (save_to_disk); for a DatasetDict, its split `train`
    corpus.en:corpus.fr,lang=fra     Moses: two files aligned line by line, English first; plain, .gz, .xz or .zst

and, after commas, options for that source:

    lang=fra, source=ccmatrix        the value for all its rows, which overrides any column
    english=trg, text=src            column names in parquet and data sets; translation.en is the field en of `translation`
    lang_column=code, source_column=corpus     likewise

For example, train.parquet,english=trg,text=src,lang=fra reads the data of facebookresearch/mexma. Options given for all sources
(--lang fra) apply where a source has neither an option of its own nor such a column. Rows without a source name get the name of
their file or folder. Line breaks and tabs inside a text are allowed where the format allows them. Bad rows (BAD_REASONS) are
counted and skipped; when they exceed 1 % of a source, reading stops, because the source is not what the caller thinks it is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mexma_rt.errors import InputError
from mexma_train.data.formats import Fields, Options, open_source

BAD_SHARE = 0.01  # more than this is the wrong kind of file, not noise
MIN_ROWS = 1_000  # a source of fewer rows is only checked at its end, and may always have one bad row
BAD_REASONS = ("not 4 columns", "null value", "not UTF-8", "empty side", "no lang or source")

KEYS = tuple(f.name for f in dataclasses.fields(Options))
_OPTION = re.compile(rf"(.*),({'|'.join(KEYS)})=([^,]+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One translation pair."""

    lang: str  # ISO 639-3 code of `text`
    source: str  # where the pair comes from, e.g. "tatoeba"
    english: str
    text: str


@dataclass(kw_only=True)
class ReadReport:
    """Counts of what was read; updated while the rows are consumed."""

    rows: int = 0
    bad: dict[str, int] = field(default_factory=dict)  # reason -> rows
    first_bad: dict[str, str] = field(default_factory=dict)  # reason -> "pairs.tsv, row 12"

    def reject(self, reason: str, place: str) -> None:
        """Count a bad row, and remember the first place of each reason."""
        self.bad[reason] = self.bad.get(reason, 0) + 1
        self.first_bad.setdefault(reason, place)


def read_pairs(pairs: str | Path | Sequence[str | Path], report: ReadReport | None = None, **options: str) -> Iterator[Row]:
    """Yield the good rows of one or more sources, in order. The module's docstring says what a source may be.

    `options` (lang, source, english, text, lang_column, source_column) fill in what a source does not say; `report` counts the
    rows as they are read. Raises FileError if a source is missing or damaged; InputError for more than 1 % bad rows, Moses
    files of unequal length, and rows whose language nothing says.
    """
    if unknown := set(options) - set(KEYS):
        raise InputError(f"unknown option {', '.join(sorted(unknown))} for a source; known are {', '.join(KEYS)}.")
    total = report if report is not None else ReadReport()
    for source in [pairs] if isinstance(pairs, (str, Path)) else pairs:
        name, own = _split(str(source))
        counts = ReadReport()
        for number, fields in enumerate(open_source(name, Options(**own), Options(**options)), start=1):
            counts.rows += 1
            total.rows += 1
            row = _row(fields)
            if isinstance(row, Row):
                yield row
                continue
            counts.reject(row, f"row {number}")
            total.reject(row, f"{name}, row {number}")
            if counts.rows >= MIN_ROWS:
                _check_share(counts, name)
        _check_share(counts, name)


def _split(source: str) -> tuple[str, dict[str, str]]:
    """A source's name and the options after it; a comma that does not begin a known option belongs to the name."""
    options: dict[str, str] = {}
    while match := _OPTION.fullmatch(source):
        source, key, value = match.groups()
        options.setdefault(key, value)
    return source, options


def _row(fields: Fields) -> Row | str:
    """The row, or what is wrong with it."""
    if len(fields) != 4:
        return "not 4 columns"
    values = [value for value in fields if value is not None]
    if len(values) != 4:
        return "null value"
    try:
        lang, source, english, text = (value.decode() for value in values)
    except UnicodeDecodeError:
        return "not UTF-8"
    if not (english.strip() and text.strip()):
        return "empty side"
    if not (lang and source):
        return "no lang or source"
    return Row(lang=lang, source=source, english=english, text=text)


def _check_share(report: ReadReport, name: str) -> None:
    bad = sum(report.bad.values())
    if bad > max(BAD_SHARE * report.rows, 1 if report.rows < MIN_ROWS else 0):
        reasons = "; ".join(f"{reason}: {count}, first {report.first_bad[reason]}" for reason, count in report.bad.items())
        raise InputError(
            f"{name}: {bad} of {report.rows} rows cannot be used ({reasons}), more than {BAD_SHARE:.0%}. A row has a language, "
            "a source, an English text and its translation, in UTF-8; a TSV line is lang<TAB>source<TAB>english<TAB>text. "
            "Fix or filter the data and start again."
        )
