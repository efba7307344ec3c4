"""One side of a mining job: its texts or vectors, and which of its rows are compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mexma_rt.checks import check_texts, check_vectors
from mexma_rt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SideCounts:
    """Line counts of a side: all, blank, repeats of an earlier line (if those are dropped), and compared."""

    lines: int
    blank: int
    repeated: int
    compared: int


@dataclass(frozen=True, kw_only=True)
class Side:
    """One corpus: pool [p] holds the compared rows, place [size] the position of each row's line in the pool, or -1."""

    name: str
    size: int
    texts: list[str] | None
    vectors: np.ndarray | None
    pool: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str] | None, vectors: np.ndarray | None, name: str, unify: bool) -> Side:
        """Make a side. Raises InputError for unusable texts or vectors, or if there are none, or only blank lines."""
        lines = None if texts is None else check_texts(texts, name)
        array = None if vectors is None else check_vectors(vectors, f"{name}_vectors")
        if lines is None and array is None:
            raise InputError(f"{name} is missing. Pass its sentences, or vectors as {name}_vectors=.")
        if lines is not None and array is not None and len(lines) != len(array):
            raise InputError(
                f"{name} has {len(lines)} sentences and {name}_vectors {len(array)} rows: give one row for each sentence."
            )
        if lines is None:
            size = len(array)  # type: ignore[arg-type]  # one of the two is there
            pool = place = np.arange(size)
        else:
            size = len(lines)
            pool, place = compared_rows(lines, unify)
            if size and not len(pool):
                raise InputError(f"{name} has no text: all of its {size} lines are blank.")
        return cls(name=name, size=size, texts=lines, vectors=array, pool=pool, place=place)

    @property
    def counts(self) -> SideCounts:
        """Line counts, for a report."""
        blank = int((self.place < 0).sum())
        return SideCounts(lines=self.size, blank=blank, repeated=self.size - blank - len(self.pool), compared=len(self.pool))

    def text(self, row: int) -> str | None:
        """The line of a row; None without texts."""
        return None if self.texts is None else self.texts[row]


def compared_rows(lines: list[str], unify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return a side's pool and place: without blank lines and, with unify, without all but the first of equal lines."""
    pool: list[int] = []
    seen: dict[str, int] = {}
    place = np.full(len(lines), -1, np.int64)
    for row, line in enumerate(lines):
        if not line.strip():
            continue
        known = seen.setdefault(line, len(pool)) if unify else len(pool)
        if known == len(pool):
            pool.append(row)
        place[row] = known
    return np.array(pool, np.int64), place
