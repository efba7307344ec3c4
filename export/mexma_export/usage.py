"""Which pieces of a tokenizer each language uses: shipped tables for `mexma-export --languages`.

Each file `pieces_*.xz` holds the table of one tokenizer: benchmarks/piece_usage.py cut text of each language into pieces, and
the table says which ones occurred. It contains no text. For each language, its header says how much text was read and what
trimming to it costs on other, held-out text: the share of tokens whose piece is gone, and of sentences with such a token. The
hash of a tokenizer's pieces, in order, identifies its table.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mexma_rt.errors import FileError, InputError
from mexma_rt.files.atomic import atomic_write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TABLES = Path(__file__).parent
FORMAT, VERSION = "mexma-piece-usage", 1
POOR = 2.0  # percent of tokens; beyond it, a third of the sentences or more change (benchmarks/results/languages.md)
# Codes that users may type instead of the table's: macrolanguages, and codes of other data sets.
OTHER_CODES = {"als": "sqi", "arb": "ara", "fas": "pes", "fil": "tgl", "lav": "lvs", "msa": "zsm", "nor": "nob", "swa": "swh"}
OTHER_CODES |= {"zho": "cmn"}


@dataclass(frozen=True, kw_only=True)
class LanguageUse:
    """A language of a table: what was read, and what trimming to this language alone costs on held-out text."""

    lang: str  # ISO 639-3
    lines: int
    pieces: int
    held_out: str  # name of the held-out set
    lost_tokens: float  # percent of the held-out tokens whose piece is gone
    changed_sentences: float  # percent of the held-out sentences with such a token

    @property
    def poor(self) -> bool:
        """Whether trimming to this language alone costs more than POOR percent of its tokens."""
        return self.lost_tokens > POOR


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The table of one tokenizer."""

    name: str  # of the tokenizer, for messages
    vocabulary: str  # the tokenizer's `vocabulary_hash`
    text: str  # description of the text that was read
    languages: Mapping[str, LanguageUse]
    pieces: Mapping[str, np.ndarray]  # int64, ascending ids


def vocabulary_hash(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of the pieces in order, as a JSON list; that of the file would depend on how it was written."""
    pieces = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    return hashlib.sha256(json.dumps(pieces, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def parse_languages(text: str) -> tuple[str, ...]:
    """Parse "fra, deu" into codes without duplicates. Raises InputError if there are none."""
    codes = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not codes:
        raise InputError(f"{text!r} names no language. Type ISO 639-3 codes, for example: --languages fra,deu,eng")
    return codes


def pieces_of(tokenizer: Tokenizer, languages: Sequence[str]) -> tuple[set[int], tuple[LanguageUse, ...]]:
    """Return (the ids that the languages use, the table's entry for each language).

    Raises InputError if there is no table for the tokenizer or a language is not in it.
    """
    usage = _find(tokenizer)
    if unknown := [code for code in languages if code not in usage.languages]:
        hints = [f"{code} is {OTHER_CODES[code]} here" for code in unknown if code in OTHER_CODES]
        raise InputError(
            f"The table has no entry for {', '.join(unknown)}, so nothing says which pieces to keep. "
            + (f"({'; '.join(hints)}.) " if hints else "")
            + f"It has these ISO 639-3 codes (fra, not fr): {' '.join(usage.languages)}. For any other language, give text: "
            "--trim-vocab CORPUS, which can be combined with --languages."
        )
    used = {i for code in languages for i in usage.pieces[code].tolist()}
    return used, tuple(usage.languages[code] for code in languages)


def write_usage(path: Path, usage: Usage, size: int) -> None:
    """Write a table for a tokenizer of `size` pieces. Equal tables give equal bytes."""
    header = {"format": FORMAT, "format_version": VERSION, "name": usage.name, "vocabulary": usage.vocabulary, "size": size}
    header |= {"text": usage.text, "languages": [asdict(language) for language in usage.languages.values()]}
    bits = np.zeros((len(usage.languages), size), bool)
    for row, code in enumerate(usage.languages):
        bits[row, usage.pieces[code]] = True
    with atomic_write(path) as stream:
        stream.write(lzma.compress(json.dumps(header).encode() + b"\n" + np.packbits(bits, axis=1).tobytes(), preset=9))


def read_usage(path: Path) -> Usage:
    """Read a table. Raises FileError if it is missing, damaged or of another version."""
    try:
        first, _, rest = lzma.decompress(path.read_bytes()).partition(b"\n")
        header = json.loads(first)
        if (header["format"], header["format_version"]) != (FORMAT, VERSION):
            raise ValueError("another format or version")
        languages = {entry["lang"]: LanguageUse(**entry) for entry in header["languages"]}
        bits = np.frombuffer(rest, np.uint8).reshape(len(languages), -1)
        rows = np.unpackbits(bits, axis=1, count=header["size"]).astype(bool)
        return Usage(
            name=header["name"],
            vocabulary=header["vocabulary"],
            text=header["text"],
            languages=languages,
            pieces={code: np.flatnonzero(row) for code, row in zip(languages, rows, strict=True)},
        )
    except (OSError, EOFError, lzma.LZMAError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path}: missing or damaged ({error}). Install mexma-rt again.") from error


def _find(tokenizer: Tokenizer) -> Usage:
    wanted, names = vocabulary_hash(tokenizer), []
    for path in sorted(TABLES.glob("pieces_*.xz")):
        usage = read_usage(path)
        if usage.vocabulary == wanted:
            return usage
        names.append(usage.name)
    raise InputError(
        f"--languages has tables for the tokenizers of {' and '.join(names)}, but this one has other pieces. Give text of the "
        "languages instead, one sentence per line: --trim-vocab CORPUS"
    )
