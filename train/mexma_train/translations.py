"""The pairs of each English segment: a line often has forty translations, for which its English side is then encoded once.

E is the number of English segments in a shard folder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mexma_train.data.shards import Shards


@dataclass(frozen=True, kw_only=True)
class Translations:
    """The pairs of segment e are pairs[first[e] : first[e + 1]]."""

    pairs: np.ndarray  # int64, pair numbers grouped by segment
    first: np.ndarray  # int64 [E + 1]

    def one_of(self, rng: np.random.Generator, segments: np.ndarray) -> np.ndarray:
        """Return a random pair of each segment."""
        places = self.first[segments] + rng.integers(0, self.first[segments + 1] - self.first[segments])
        return np.asarray(self.pairs[places])

    def others(self, rng: np.random.Generator, segments: np.ndarray, most: int) -> np.ndarray:
        """Return up to `most` random pairs of each segment, without repetition."""
        chosen = [rng.permutation(self.pairs[self.first[s] : self.first[s + 1]])[:most] for s in segments]
        return np.concatenate(chosen) if chosen else np.empty(0, np.int64)


def translations_of(shards: Shards, rows: np.ndarray) -> Translations:
    """Return the translations among the pairs `rows`."""
    english = shards.pair_english[rows].astype(np.int64)
    by_segment = np.argsort(english, kind="stable")
    first = np.searchsorted(english[by_segment], np.arange(len(shards.english_hash) + 1))
    return Translations(pairs=np.asarray(rows, np.int64)[by_segment], first=first)
