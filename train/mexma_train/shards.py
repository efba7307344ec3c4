"""Pre-tokenised bitext on disk, so that tokenisation is off the training path.

A shard folder holds plain .npy files, read back as memory maps:
    english.ids uint16 [T], english.offsets int64 [E+1]    every English segment once, without <s> and </s>
    text.ids    uint16 [S], text.offsets    int64 [N+1]    the other side of each of the N pairs
    pair_english int32 [N], pair_lang uint16 [N], pair_source uint16 [N]
    meta.json   languages, sources, counts, SHA-256 of tokenizer.json, report of bad rows
English is stored once because one English line often has dozens of translations; its number also tells duplicates in a batch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from mexma_rt.errors import FileError, InputError
from mexma_rt.files import move_folder
from mexma_train.bitext import ReadReport, read_pairs
from mexma_train.tokenizer import load_tokenizer

SLAB = 50_000  # rows tokenised at a time
ARRAYS = ("english.ids", "english.offsets", "text.ids", "text.offsets", "pair_english", "pair_lang", "pair_source")


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Sentences laid end to end: ids int64 [sum(lengths)], lengths int64 [B]."""

    ids: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Shards:
    folder: Path
    languages: list[str]
    sources: list[str]
    vocab_size: int
    english_ids: np.ndarray
    english_offsets: np.ndarray
    text_ids: np.ndarray
    text_offsets: np.ndarray
    pair_english: np.ndarray
    pair_lang: np.ndarray
    pair_source: np.ndarray

    def __len__(self) -> int:
        return len(self.pair_english)

    def english(self, pairs: np.ndarray, max_tokens: int) -> Ragged:
        """Token ids (with <s> and </s>, cut to max_tokens) of the English side of these pairs."""
        return _gather(self.english_ids, self.english_offsets, self.pair_english[pairs], max_tokens)

    def text(self, pairs: np.ndarray, max_tokens: int) -> Ragged:
        """Token ids (with <s> and </s>, cut to max_tokens) of the other side of these pairs."""
        return _gather(self.text_ids, self.text_offsets, pairs, max_tokens)

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"


def _gather(ids: np.ndarray, offsets: np.ndarray, rows: np.ndarray, max_tokens: int) -> Ragged:
    starts = np.asarray(offsets[rows])
    kept = np.minimum(np.asarray(offsets[rows + 1]) - starts, max_tokens - 2)
    lengths = kept + 2
    ends = np.cumsum(lengths)
    flat = np.empty(ends[-1] if len(ends) else 0, np.int64)
    flat[ends - lengths] = 0  # <s>
    flat[ends - 1] = 2  # </s>
    # Position of each kept token in the stored ids: its sentence's start plus its rank inside the sentence.
    rank = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
    flat[np.repeat(ends - lengths + 1, kept) + rank] = ids[np.repeat(starts, kept) + rank]
    return Ragged(ids=flat, lengths=lengths)


class _Ragged:
    """Appends token lists to a flat array on disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.offsets = path, path.with_suffix(".raw").open("wb"), [0]

    def add(self, tokenizer: Tokenizer, texts: list[str]) -> None:
        for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
            ids = np.asarray(encoding.ids, np.uint16)
            self.file.write(ids.tobytes())
            self.offsets.append(self.offsets[-1] + len(ids))

    def finish(self) -> None:
        self.file.close()
        raw = self.path.with_suffix(".raw")
        np.save(self.path.parent / f"{self.path.name}.ids.npy", np.fromfile(raw, np.uint16))
        np.save(self.path.parent / f"{self.path.name}.offsets.npy", np.asarray(self.offsets, np.int64))
        raw.unlink()


def prepare(pairs: str | Path, folder: str | Path, tokenizer_path: str | Path, *, progress: bool | None = None) -> dict:
    """Tokenise a TSV into a shard folder (written under a temporary name, then renamed). Returns the meta data."""
    folder = Path(folder)
    if folder.exists():
        raise FileError(f"{folder} exists already. Name another folder, or delete it first.")
    tokenizer = load_tokenizer(tokenizer_path)
    if tokenizer.get_vocab_size() > 2**16:
        raise InputError(f"{tokenizer_path} has {tokenizer.get_vocab_size()} pieces; shards hold uint16 ids, at most 65,536.")
    work = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    english, text = _Ragged(work / "english"), _Ragged(work / "text")
    numbers: dict[str, int] = {}
    columns: tuple[list[int], list[int], list[int]] = ([], [], [])
    langs: dict[str, int] = {}
    sources: dict[str, int] = {}
    new_english: list[str] = []
    texts: list[str] = []
    report = ReadReport()

    def flush() -> None:
        english.add(tokenizer, new_english)
        text.add(tokenizer, texts)
        new_english.clear()
        texts.clear()

    for row in tqdm(read_pairs(pairs, report), unit="pairs", disable=None if progress is None else not progress):
        number = numbers.get(row.english)
        if number is None:
            number = numbers[row.english] = len(numbers)
            new_english.append(row.english)
        texts.append(row.text)
        columns[0].append(number)
        columns[1].append(langs.setdefault(row.lang, len(langs)))
        columns[2].append(sources.setdefault(row.source, len(sources)))
        if len(texts) == SLAB:
            flush()
    flush()
    if not columns[0]:
        raise InputError(f"{pairs} holds no usable pair. Each line must be lang<TAB>source<TAB>english<TAB>text.")
    english.finish()
    text.finish()
    np.save(work / "pair_english.npy", np.asarray(columns[0], np.int32))
    np.save(work / "pair_lang.npy", np.asarray(columns[1], np.uint16))
    np.save(work / "pair_source.npy", np.asarray(columns[2], np.uint16))
    shutil.copyfile(tokenizer_path, work / "tokenizer.json")
    meta = {
        "languages": list(langs),
        "sources": list(sources),
        "pairs": len(columns[0]),
        "english_segments": len(numbers),
        "vocab_size": tokenizer.get_vocab_size(),
        "tokenizer_sha256": hashlib.sha256(Path(tokenizer_path).read_bytes()).hexdigest(),
        "rows_read": report.rows,
        "rows_skipped": report.bad,
    }
    (work / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    move_folder(work, folder)
    return meta


def open_shards(folder: str | Path) -> Shards:
    """Open a shard folder as memory maps. Raises FileError if a file is missing."""
    folder = Path(folder)
    missing = [name for name in (*(f"{a}.npy" for a in ARRAYS), "meta.json", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        raise FileError(f"{folder} is no shard folder: {', '.join(missing)} missing. Type: mexma-train prepare PAIRS {folder}")
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    maps = {name.replace(".", "_"): np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    return Shards(folder=folder, languages=meta["languages"], sources=meta["sources"], vocab_size=meta["vocab_size"], **maps)
