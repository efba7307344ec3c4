"""Keeps sentences of public test sets out of training: a shipped list of hashes, and the check of rows against it.

Two lines count as the same if `normalise` makes them equal, whatever their language. `held_out.bin.xz` holds the first 5 bytes
of the BLAKE2b of every sentence in FLORES-200 devtest (90 languages) and in LASER's Tatoeba test set (112 languages, both
sides), so the sentences themselves are not distributed; benchmarks/held_out.py rebuilds it from the test sets. A line that is
in neither matches by chance with probability S / 2^40 for S listed hashes (248,872: one line in 4.4 million).

Measured on the bundled model's 5,586,702 training rows, from which equal lines (in lower case, without punctuation, but with
spaces) had already been removed: 24 rows are dropped, of which 23 differ from a test sentence in spacing or in a mark inside a
word ("any more", "cell phone") and one is a false alarm. Every sentence is listed, however short, because that costs little: of
the 5,286,296 rows that are not from Tatoeba, 1,114 have a side of at most ten letters that is among the 502,105 distinct lines
of the Tatoeba part, so half as many listed lines drop about one row in 10,000.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mexma_rt.errors import FileError
from mexma_train.data.bitext import Row

LIST = Path(__file__).parent / "held_out.bin.xz"
FORMAT, VERSION = "mexma-held-out", 1
HASH_BYTES = 5  # 40 bits: half the file that 64 bits would need, and one false alarm in millions of lines
SLOTS = 2**20  # English lines remembered as clean, 8 MB: the bitext of many languages often repeats a line

_NEWLINE = ord("\n")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The list of hashes. sets: {test set: its number of lines, duplicates included}."""

    hashes: np.ndarray  # uint64 [S], ascending
    sets: Mapping[str, int]

    def contains(self, lines: Sequence[str]) -> np.ndarray:
        """Whether each line is held out; bool [len(lines)]."""
        hashes = hash_lines(lines)
        if not len(self.hashes):
            return np.zeros(len(hashes), bool)
        place = np.searchsorted(self.hashes, hashes)
        return np.asarray(self.hashes[np.minimum(place, len(self.hashes) - 1)] == hashes)


class Screen:
    """Drops rows with a held-out side; remembers clean English lines so that repeats need no second lookup.

    Python's 64-bit hashes of clean English lines are kept in a table of fixed size, where later ones overwrite earlier ones. A
    forgotten line is only looked up again; a held-out line is missed if its hash equals that of a clean one (one in 2^64).
    """

    def __init__(self, listed: HeldOut) -> None:
        self.listed = listed
        self.dropped: dict[str, int] = {}  # language -> rows
        self.clean = np.zeros(SLOTS, np.int64)

    def keep(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with neither side held out; the others are counted in `dropped`."""
        held = self._held([row.english for row in rows], [row.text for row in rows])
        for i in np.flatnonzero(held).tolist():
            self.dropped[rows[i].lang] = self.dropped.get(rows[i].lang, 0) + 1
        return [row for row, drop in zip(rows, held, strict=True) if not drop]

    def report(self) -> dict[str, object]:
        """What was dropped so far and which test sets were checked, for meta.json."""
        return {"rows": sum(self.dropped.values()), "languages": dict(self.dropped), "sets": dict(self.listed.sets)}

    def _held(self, english: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        held = self.listed.contains(texts)
        marks = np.fromiter(map(hash, english), np.int64, len(english))
        slots = marks & (SLOTS - 1)
        unknown = np.flatnonzero(self.clean[slots] != marks)
        found = self.listed.contains([english[i] for i in unknown.tolist()])
        held[unknown] |= found
        clean = unknown[~found]
        self.clean[slots[clean]] = marks[clean]
        return held


def normalise(line: str) -> str:
    """Return the letters, combining marks and numbers (Unicode categories L, M and N) of a line in NFKC and lower case.

    Punctuation, symbols, white space and control characters are removed, so case, quotation marks and spacing do not matter.
    """
    return _normalise([line])[0].decode()


def hash_lines(lines: Sequence[str]) -> np.ndarray:
    """The first 5 bytes of the BLAKE2b-512 of each normalised line in UTF-8, as big-endian numbers; uint64 [len(lines)]."""
    return _hash(_normalise(lines)) if len(lines) else np.zeros(0, np.uint64)


def _hash(normalised: Sequence[bytes]) -> np.ndarray:
    digests = b"".join([hashlib.blake2b(line).digest()[:HASH_BYTES] for line in normalised])
    padded = np.zeros((len(normalised), 8), np.uint8)
    padded[:, -HASH_BYTES:] = np.frombuffer(digests, np.uint8).reshape(-1, HASH_BYTES)
    return padded.view(">u8").ravel().astype(np.uint64)


def _normalise(lines: Iterable[str]) -> list[bytes]:
    """`normalise` for all lines at once, in UTF-8. 1.8 times as fast (measured) as str.translate line by line."""
    composed = [unicodedata.normalize("NFKC", line.replace("\n", " ")) for line in lines]
    codes = np.frombuffer("\n".join(composed).lower().encode("utf-32-le", "surrogatepass"), "<u4")
    kept: bytes = codes[_kept_characters()[codes]].tobytes()
    return kept.decode("utf-32-le").encode().split(b"\n")


@functools.cache
def _kept_characters() -> np.ndarray:
    """bool [0x110000]: which code points are kept; the line feed is, because it separates the lines."""
    kept = np.fromiter((unicodedata.category(chr(code))[0] in "LMN" for code in range(0x110000)), bool, 0x110000)
    kept[_NEWLINE] = True
    return kept


def encode_list(sets: Mapping[str, Sequence[str]]) -> bytes:
    """Return the list's file for {test set: its lines}; equal sets give equal bytes.

    Lines without letters or numbers are left out. The file is xz of a line of JSON and the differences of the ascending
    hashes, 5 bytes each: all lowest bytes first, then all second ones, and so on.
    """
    lines = [line for part in sets.values() for line in part]
    hashes = np.unique(_hash([line for line in _normalise(lines) if line]))
    steps = np.diff(hashes, prepend=np.uint64(0)).astype("<u8").view(np.uint8).reshape(-1, 8)[:, :HASH_BYTES]
    header = {
        "format": FORMAT,
        "version": VERSION,
        "hash": "first 5 bytes of BLAKE2b-512; NFKC, lower case, Unicode categories L, M and N only",
        "sets": {name: len(part) for name, part in sets.items()},
        "hashes": len(hashes),
    }
    plain = json.dumps(header).encode() + b"\n" + steps.T.tobytes()
    return lzma.compress(plain, preset=6)  # preset 9 is no smaller, and takes 64 MB to unpack


def load_held_out(path: Path = LIST) -> HeldOut:
    """Read a list. Raises FileError if it is missing, damaged or of another format."""
    remedy = "Type:\n    pip install --force-reinstall --no-deps mexma-rt"
    try:
        header, _, planes = lzma.decompress(path.read_bytes()).partition(b"\n")
        fields = json.loads(header)
        kind, version, count = fields["format"], fields["version"], fields["hashes"]
    except OSError as error:
        raise FileError(f"{path}, the list of test sentences, cannot be read: {error.strerror}. {remedy}") from error
    except (lzma.LZMAError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path}, the list of test sentences, is damaged ({error}). {remedy}") from error
    if (kind, version) != (FORMAT, VERSION):
        raise FileError(f"{path} has format {kind} {version}, but this mexma-train reads {FORMAT} {VERSION}. {remedy}")
    if len(planes) != HASH_BYTES * count:
        raise FileError(f"{path} is damaged: {len(planes)} bytes for {count} hashes of {HASH_BYTES}. {remedy}")
    steps = np.zeros((count, 8), np.uint8)
    steps[:, :HASH_BYTES] = np.frombuffer(planes, np.uint8).reshape(HASH_BYTES, -1).T
    return HeldOut(hashes=np.cumsum(steps.view("<u8").ravel(), dtype=np.uint64), sets=fields["sets"])
