"""Turns bitext into a shard folder (shards.py describes it); memory use does not grow with the corpus.

Rows are read, tokenised and written in slabs. Between slabs it keeps a window of recent English lines, a count for each
(language, source), and 12 MB for finding test sentences. A second pass, in blocks over the small columns of the pairs, writes
their numbers sorted by group. Peak anonymous memory, without those 12 MB, for synthetic pairs of 20 words with no English line
repeated: 122 MB for 1 M pairs and 127 MB for 4 M with a window of 2 x 20,000 lines; 252 MB and 393 MB with a window of 2 x 1 M,
which only the 4 M fill.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mexma_rt.errors import InputError
from mexma_rt.files.folders import must_be_new, new_folder
from mexma_rt.progress import progress_bar
from mexma_train.data.bitext import ReadReport, Row, read_pairs
from mexma_train.data.held_out import Screen, load_held_out
from mexma_train.data.shards import FORMAT
from mexma_train.data.tokenizer import load_tokenizer

SLAB_ROWS = 10_000  # rows tokenised at a time: enough for every core
SLAB_CHARACTERS = 4_000_000  # or fewer rows if they are long
WINDOW = 1_000_000  # English lines in a generation; two are kept, at about 140 bytes a line (measured), so 280 MB
SORTED_PAIRS = 1_000_000  # pairs sorted at a time: some 40 MB (measured)
MAX_GROUPS = 2**16  # languages and sources are stored as uint16, and their table is kept in memory


def prepare(
    pairs: str | Path | Sequence[str | Path],
    folder: str | Path,
    tokenizer_path: str | Path,
    *,
    progress: bool | None = None,
    allow_held_out: bool = False,
    **options: str,
) -> dict[str, Any]:
    """Tokenise one or more sources of bitext (formats and options: bitext.py) into a shard folder; returns its meta.json.

    Rows with a test sentence on either side (held_out.py) are dropped and counted by language, separately from the bad rows;
    `allow_held_out` keeps them. The folder appears when it is complete: an error, Ctrl-C or a kill leaves nothing under its
    name. Raises FileError if it cannot be written; InputError if it exists, no row is usable, or bad rows or groups are too
    many.
    """
    folder = Path(folder)
    must_be_new(folder)
    tokenizer = load_tokenizer(tokenizer_path)
    report = ReadReport()
    screen = None if allow_held_out else Screen(load_held_out())
    with new_folder(folder, tidy=True) as work:
        with _Writer(work, tokenizer) as writer, progress_bar(progress, total=0, desc="prepare", unit="pairs") as advance:
            for slab in _slabs(read_pairs(pairs, report, **options)):
                writer.add(slab if screen is None else screen.keep(slab))
                advance(len(slab))
        if not writer.pairs:
            held_out = f", {sum(screen.dropped.values())} of them held out" if screen and screen.dropped else ""
            raise InputError(
                f"{pairs} contains no usable pair ({report.rows} rows read{held_out}, bad rows: {report.bad or 'none'})."
            )
        groups = _groups(writer.counts)
        english_tokens = _second_pass(work, writer.pairs, groups)
        shutil.copyfile(tokenizer_path, work / "tokenizer.json")
        meta = {
            "format": FORMAT,
            "languages": list(writer.languages),
            "sources": list(writer.sources),
            "groups": groups,
            "pairs": writer.pairs,
            "english_segments": writer.english.count,
            "tokens": {"english": english_tokens, "text": writer.text.tokens},
            "vocab_size": tokenizer.get_vocab_size(),
            "tokenizer_sha256": hashlib.sha256((work / "tokenizer.json").read_bytes()).hexdigest(),
            "rows_read": report.rows,
            "rows_skipped": report.bad,
            "first_skipped": report.first_bad,
            "held_out": None if screen is None else screen.report(),
        }
        (work / "meta.json").write_text(json.dumps(meta, ensure_ascii=False) + "\n", encoding="utf-8")
    return meta


def _slabs(rows: Iterator[Row]) -> Iterator[list[Row]]:
    slab: list[Row] = []
    characters = 0
    for row in rows:
        slab.append(row)
        characters += len(row.english) + len(row.text)
        if len(slab) == SLAB_ROWS or characters >= SLAB_CHARACTERS:
            yield slab
            slab, characters = [], 0
    if slab:
        yield slab


class _Array:
    """A one-dimensional .npy file that grows."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.dtype, self.count = np.dtype(dtype), 0
        self.file = path.open("wb")
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, self.dtype).tobytes())
        self.count += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def _write_header(self) -> None:
        # numpy pads the header so that an array can grow along its first axis: it takes 128 bytes whatever the count.
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.count,)}
        np.lib.format.write_array_header_1_0(self.file, header)


class _Sentences:
    """Appends sentences to two files: their token ids end to end, and their offsets."""

    def __init__(self, work: Path, name: str, dtype: str) -> None:
        self.ids, self.offsets = _Array(work / f"{name}.ids.npy", dtype), _Array(work / f"{name}.offsets.npy", "<i8")
        self.offsets.append(np.zeros(1))
        self.count = self.tokens = 0

    def append(self, tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
        """Tokenise and append; returns the ids of each text."""
        encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        flat = np.fromiter(itertools.chain.from_iterable(encoded), self.ids.dtype)
        ends = np.cumsum([len(ids) for ids in encoded], dtype=np.int64)
        self.ids.append(flat)
        self.offsets.append(self.tokens + ends)
        self.count += len(texts)
        self.tokens += len(flat)
        return np.split(flat, ends[:-1]) if texts else []


class _Seen:
    """The numbers of recently seen English lines: at least the last WINDOW distinct ones, at most twice as many.

    There are two generations of a dict: when the young one is full it becomes the old one, and a line seen again moves to the
    young one. (A single dict that drops its oldest key for each new one would scan a growing run of deleted keys.) The keys are
    16 bytes of BLAKE2, so different lines are never confused.
    """

    def __init__(self) -> None:
        self.young: dict[bytes, int] = {}
        self.old: dict[bytes, int] = {}

    def number(self, line: str, new: int) -> int:
        """The number this line was seen under; for an unknown line `new`, which becomes its number."""
        key = hashlib.blake2b(line.encode(), digest_size=16).digest()
        number = self.young.get(key)
        if number is None:
            number = self.old.get(key, new)
            if len(self.young) == WINDOW:
                self.young, self.old = {}, self.young
            self.young[key] = number
        return number


class _Writer:
    """Writes the arrays of a shard folder, with the pairs in file order."""

    def __init__(self, work: Path, tokenizer: Tokenizer) -> None:
        ids = "<u2" if tokenizer.get_vocab_size() <= 2**16 else "<u4"
        self.tokenizer = tokenizer
        self.english, self.text = _Sentences(work, "english", ids), _Sentences(work, "text", ids)
        self.english_hash = _Array(work / "english.hash.npy", "<u8")
        self.pair_english = _Array(work / "pair_english.npy", "<i8")
        self.pair_lang, self.pair_source = _Array(work / "pair_lang.npy", "<u2"), _Array(work / "pair_source.npy", "<u2")
        self.seen = _Seen()
        self.languages: dict[str, int] = {}
        self.sources: dict[str, int] = {}
        self.counts: dict[tuple[int, int], int] = {}  # pairs of each (language, source)
        self.pairs = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for side in (self.english, self.text):
            side.ids.close()
            side.offsets.close()
        for array in (self.english_hash, self.pair_english, self.pair_lang, self.pair_source):
            array.close()

    def add(self, rows: list[Row]) -> None:
        new: list[str] = []
        columns = np.empty((3, len(rows)), np.int64)
        for i, row in enumerate(rows):
            following = self.english.count + len(new)
            number = self.seen.number(row.english, following)
            if number == following:
                new.append(row.english)
            lang = self.languages.setdefault(row.lang, len(self.languages))
            source = self.sources.setdefault(row.source, len(self.sources))
            self.counts[lang, source] = self.counts.get((lang, source), 0) + 1
            columns[:, i] = number, lang, source
        if len(self.counts) > MAX_GROUPS:
            raise InputError(
                f"the first {self.pairs + len(rows)} pairs have {len(self.languages)} languages and {len(self.sources)} "
                f"sources in more than {MAX_GROUPS} combinations. `lang` is a code such as fra and `source` names a corpus, "
                "not a document; give them for all rows: mexma-train prepare PAIRS,lang=fra,source=NAME SHARDS ..."
            )
        ids = self.english.append(self.tokenizer, new)
        hashes = [int.from_bytes(hashlib.blake2b(i.tobytes(), digest_size=8).digest(), "little") for i in ids]
        self.english_hash.append(np.array(hashes, np.uint64))
        self.text.append(self.tokenizer, [row.text for row in rows])
        self.pair_english.append(columns[0])
        self.pair_lang.append(columns[1])
        self.pair_source.append(columns[2])
        self.pairs += len(rows)


def _groups(counts: dict[tuple[int, int], int]) -> list[list[int]]:
    """Sorted rows (language, source, start, count) that cut range(pairs) into consecutive parts."""
    keys = sorted(counts)
    starts = itertools.accumulate((counts[key] for key in keys), initial=0)
    return [[*key, start, counts[key]] for key, start in zip(keys, starts, strict=False)]


def _second_pass(work: Path, pairs: int, groups: list[list[int]]) -> int:
    """Write order.npy, a counting sort of the pairs by group; returns the number of English tokens over all pairs.

    Arrays are mapped again for each block, and the result is written by seeking, so that mapped pages do not pile up.
    """

    def column(name: str) -> np.ndarray:
        mapped: np.ndarray = np.load(work / f"{name}.npy", mmap_mode="r")
        return mapped

    codes = np.array([lang << 16 | source for lang, source, _, _ in groups])
    places = np.array([start for _, _, start, _ in groups])  # where the next pair of each group goes
    english_tokens = 0
    with (work / "order.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (pairs,)})
        base = file.tell()
        for first in range(0, pairs, SORTED_PAIRS):
            block = slice(first, min(first + SORTED_PAIRS, pairs))
            code = column("pair_lang")[block].astype(np.int64) << 16 | column("pair_source")[block]
            group = np.searchsorted(codes, code)
            order = (first + np.argsort(group, kind="stable")).astype("<i8")
            counts = np.bincount(group, minlength=len(groups))
            ends = np.cumsum(counts)
            for g in np.flatnonzero(counts):
                file.seek(base + 8 * int(places[g]))
                file.write(order[ends[g] - counts[g] : ends[g]].tobytes())
            places += counts
            number, offsets = column("pair_english")[block], column("english.offsets")
            english_tokens += int((offsets[number + 1] - offsets[number]).sum())
    return english_tokens
