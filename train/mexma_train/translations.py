"""The pairs of each English segment: one English line often has forty translations, which can share the cost of its side.

E segments of a shard folder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mexma_train.data.shards import Shards


@dataclass(frozen=True, kw_only=True)
class Translations:
    """The pairs of each English segment."""

    pairs: np.ndarray  # pair numbers, those of a segment together
    first: np.ndarray  # int64 [E + 1], where those of each segment begin

    def one_of(self, rng: np.random.Generator, segments: np.ndarray) -> np.ndarray:
        """A pair of each segment, any of them alike."""
        places = self.first[segments] + rng.integers(0, self.first[segments + 1] - self.first[segments])
        return np.asarray(self.pairs[places])

    def others(self, rng: np.random.Generator, segments: np.ndarray, most: int) -> np.ndarray:
        """Up to `most` pairs of each segment, without repetition."""
        chosen = [rng.permutation(self.pairs[self.first[s] : self.first[s + 1]])[:most] for s in segments]
        return np.concatenate(chosen) if chosen else np.empty(0, np.int64)


def translations_of(shards: Shards, rows: np.ndarray) -> Translations:
    """Those among the pairs `rows`."""
    english = shards.pair_english[rows].astype(np.int64)
    by_segment = np.argsort(english, kind="stable")
    first = np.searchsorted(english[by_segment], np.arange(len(shards.english_hash) + 1))
    return Translations(pairs=np.asarray(rows, np.int64)[by_segment], first=first)
