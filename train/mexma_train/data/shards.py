"""Bitext tokenised ahead of training: the format of a shard folder, and how it is read.

A shard folder holds flat .npy files that are read as memory maps, so a corpus may be larger than memory. For N pairs:
    english.ids uint16 [T], english.offsets int64 [E+1]    English segments, without <s> and </s>
    english.hash uint64 [E]                                hashes of their ids: equal segments have equal ones
    text.ids    uint16 [S], text.offsets    int64 [N+1]    the other side of each pair
    pair_english int64 [N], pair_lang uint16 [N], pair_source uint16 [N]
    order int64 [N]    pair numbers grouped by (language, source), in file order within a group
    meta.json   format, languages, sources, groups (language, source, start in order, count), token counts, bad rows, ...
    tokenizer.json    a copy of the tokenizer that made the ids
    teacher.npy float16 [E, D], teacher.json    only after `mexma-train teach`: a teacher's vector of each English segment
Ids are uint32 when the tokenizer has more than 65,536 pieces. English lines that prepare.py recognises as repeated are stored
once, because an English line often has dozens of translations.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mexma_rt.errors import FileError, InputError

FORMAT = 2  # format 1 had no hashes, order or token counts, and only 16-bit ids
ARRAYS = (
    "english.ids",
    "english.offsets",
    "english.hash",
    "text.ids",
    "text.offsets",
    "pair_english",
    "pair_lang",
    "pair_source",
    "order",
)
TEACHER = ("teacher.json", "teacher.npy", "teacher.projection.npy")  # in the order in which it is safe to delete them


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Sentences laid end to end: ids int64 [sum(lengths)], lengths int64 [B]."""

    ids: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Group:
    """The pairs of one language and source: order[start : start + count]. lang and source index the lists of names."""

    lang: int
    source: int
    start: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Shards:
    """An open shard folder. The arrays are memory maps; their meaning is in the module's docstring."""

    folder: Path
    languages: list[str]
    sources: list[str]
    groups: list[Group]
    vocab_size: int
    english_tokens: int  # over all pairs, counting a shared segment once for each pair, without <s> and </s>
    text_tokens: int
    english_ids: np.ndarray
    english_offsets: np.ndarray
    english_hash: np.ndarray
    text_ids: np.ndarray
    text_offsets: np.ndarray
    pair_english: np.ndarray
    pair_lang: np.ndarray
    pair_source: np.ndarray
    order: np.ndarray
    teacher: np.ndarray | None = None  # float16 [E, D], rows of length 1; None until `mexma-train teach` has run

    def __len__(self) -> int:
        return len(self.pair_english)

    def english(self, pairs: np.ndarray, max_tokens: int) -> Ragged:
        """The English side of these pairs (int64 [B]): token ids with <s> and </s>, cut to max_tokens."""
        return _gather(self.english_ids, self.english_offsets, self.pair_english[pairs], max_tokens)

    def text(self, pairs: np.ndarray, max_tokens: int) -> Ragged:
        """The other side of these pairs (int64 [B]): token ids with <s> and </s>, cut to max_tokens."""
        return _gather(self.text_ids, self.text_offsets, pairs, max_tokens)

    def teacher_of(self, pairs: np.ndarray) -> np.ndarray:
        """The teacher's vectors of the English side of these pairs: float32 [B, D]. Raises InputError if there are none."""
        if self.teacher is None:
            raise InputError(
                f"{self.folder} has no teacher vectors, and this run needs them as targets. "
                f"Type: mexma-train teach {self.folder} --teacher MODEL"
            )
        return np.asarray(self.teacher[self.pair_english[pairs]], np.float32)

    def lengths(self, pairs: np.ndarray, max_tokens: int | None = None) -> np.ndarray:
        """Tokens of both sides of these pairs together, <s> and </s> included, each side cut to max_tokens: int64 [B]."""
        english = self.pair_english[pairs]
        sides = (
            self.english_offsets[english + 1] - self.english_offsets[english] + 2,
            self.text_offsets[pairs + 1] - self.text_offsets[pairs] + 2,
        )
        if max_tokens is not None:
            sides = (np.minimum(sides[0], max_tokens), np.minimum(sides[1], max_tokens))
        return np.asarray(sides[0] + sides[1], np.int64)

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer that made the ids."""
        return self.folder / "tokenizer.json"


def open_shards(folder: str | Path) -> Shards:
    """Open a shard folder as memory maps. Raises FileError for another folder, another format, and damaged files."""
    folder = Path(folder)
    again = f"Delete it and type: mexma-train prepare PAIRS {folder} --tokenizer tokenizer.json"
    if not (folder / "meta.json").is_file():
        raise FileError(
            f"{folder} is not a shard folder: it has no meta.json. Type: mexma-train prepare PAIRS {folder} "
            "--tokenizer tokenizer.json"
        )
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(f"{folder / 'meta.json'} is damaged: {error}. {again}") from None
    if (found := meta.get("format", 1)) != FORMAT:
        raise FileError(f"{folder} has shard format {found}, but this version of mexma-train reads format {FORMAT}. {again}")
    missing = [name for name in (*(f"{a}.npy" for a in ARRAYS), "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        raise FileError(f"{folder} is an incomplete shard folder: {', '.join(missing)} missing. {again}")
    try:
        maps = {name.replace(".", "_"): np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    except (ValueError, OSError) as error:  # of a truncated file numpy says "mmap length is greater than file size"
        raise FileError(f"{folder} is damaged: {error}. {again}") from None
    shards = Shards(
        folder=folder,
        languages=meta["languages"],
        sources=meta["sources"],
        groups=[Group(lang=g[0], source=g[1], start=g[2], count=g[3]) for g in meta["groups"]],
        vocab_size=meta["vocab_size"],
        english_tokens=meta["tokens"]["english"],
        text_tokens=meta["tokens"]["text"],
        **maps,
        teacher=_teacher(folder, meta, len(maps["english_ids"])),
    )
    _check_sizes(shards, meta, again)
    return shards


def _teacher(folder: Path, meta: dict[str, Any], tokens: int) -> np.ndarray | None:
    """The teacher's vectors float16 [E, D]; None without a teacher.json, which teacher.py writes last."""
    if not (folder / "teacher.json").is_file():
        return None
    names = " ".join(str(folder / name) for name in TEACHER)
    again = f"Delete them and teach again:\n    rm -f {names}\n    mexma-train teach {folder} --teacher MODEL"
    try:
        about: dict[str, Any] = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
        shape = (about["segments"], about["dimensions"])
        made_for = (about["segments"], about["tokens"])
        teacher: np.ndarray = np.load(folder / "teacher.npy", mmap_mode="r")
    except (ValueError, KeyError, TypeError, OSError) as error:  # no JSON, a field or the array missing, an array cut short
        raise FileError(f"The teacher's vectors in {folder} are damaged: {error!r}. {again}") from None
    if made_for != (meta["english_segments"], tokens):
        raise FileError(
            f"The teacher's vectors in {folder} were made for other shards, of {made_for[0]} English segments and "
            f"{made_for[1]} tokens; these have {meta['english_segments']} and {tokens}. {again}"
        )
    if (teacher.shape, teacher.dtype) != (shape, np.dtype("<f2")):
        raise FileError(
            f"The teacher's vectors in {folder} are damaged: teacher.npy is {teacher.dtype} {list(teacher.shape)} instead of "
            f"float16 {list(shape)}. {again}"
        )
    return teacher


def _check_sizes(shards: Shards, meta: dict[str, Any], again: str) -> None:
    pairs, segments = meta["pairs"], meta["english_segments"]
    sizes = {
        "english.offsets": (len(shards.english_offsets), segments + 1),
        "english.hash": (len(shards.english_hash), segments),
        "english.ids": (len(shards.english_ids), shards.english_offsets[-1]),
        "text.offsets": (len(shards.text_offsets), pairs + 1),
        "text.ids": (len(shards.text_ids), shards.text_offsets[-1]),
        **{name: (len(getattr(shards, name)), pairs) for name in ("pair_english", "pair_lang", "pair_source", "order")},
    }
    for name, (found, expected) in sizes.items():
        if found != expected:
            raise FileError(f"{shards.folder} is damaged: {name}.npy holds {found} entries instead of {expected}. {again}")


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
