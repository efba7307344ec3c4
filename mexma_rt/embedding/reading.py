"""Reads a file's texts twice: once to check, count and hash them, once to embed them slab by slab."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mexma_rt.errors import FileError
from mexma_rt.files.texts import read_texts
from mexma_rt.progress import progress_bar

# A slab is embedded at once: enough sentences to sort by length, but limited in text so that its tokens stay small.
SLAB_ROWS = 8192
SLAB_CHARACTERS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What the first pass found."""

    rows: int
    slabs: int
    largest_slab: int  # characters
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Second pass: yields (first row, texts) of every slab after the first `done` rows; works in another process too."""

    source: str
    field: str | None
    texts: Texts
    done: int
    slab: tuple[int, int]  # most rows, most characters

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """Raises InputChangedError at the end if the texts have changed since the first pass."""
        digest, row = hashlib.sha256(), 0
        for slab in _slabs(read_texts(self.source, self.field), *self.slab):
            _hash(digest, slab)
            if row + len(slab) > self.texts.rows:
                break
            if row >= self.done:
                yield row, slab
            row += len(slab)
        if digest.hexdigest() != self.texts.sha256:
            raise InputChangedError(
                "The input changed while it was read, so its vectors may mix two versions, and none were kept. Run the "
                "command again, and do not change the input until it ends."
            )


class InputChangedError(FileError):
    """The input changed between the two passes, so there is nothing to resume."""


def first_reading(source: str | os.PathLike[str], field: str | None, progress: bool | None) -> Texts:
    """Check, count and hash a file's texts. Raises InputError or FileError if something cannot be embedded."""
    digest, rows, slabs, largest = hashlib.sha256(), 0, 0, 0
    with progress_bar(progress, total=None, desc="check", unit="row") as advance:
        for slab in _slabs(read_texts(source, field), SLAB_ROWS, SLAB_CHARACTERS):
            largest = max(largest, _hash(digest, slab))
            rows, slabs = rows + len(slab), slabs + 1
            advance(len(slab))
    return Texts(rows=rows, slabs=slabs, largest_slab=largest, sha256=digest.hexdigest())


def _slabs(texts: Iterable[str], most_rows: int, most_characters: int) -> Iterator[list[str]]:
    """Yield consecutive texts in slabs, bounded in texts and (beyond the first) in characters; at least one, if empty."""
    slab: list[str] = []
    characters = 0
    for text in texts:
        characters += len(text)
        if slab and (len(slab) == most_rows or characters > most_characters):
            yield slab
            slab, characters = [], len(text)
        slab.append(text)
    yield slab


def _hash(digest: hashlib._Hash, slab: list[str]) -> int:
    """Add a slab's lengths and texts to the digest; return its number of characters."""
    lengths = np.fromiter(map(len, slab), dtype="<i8", count=len(slab))
    digest.update(lengths.tobytes())
    digest.update("".join(slab).encode())
    return int(lengths.sum())
