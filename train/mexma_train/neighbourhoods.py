"""Hard negatives: English segments that a teacher puts close together, for batches in which a translation has lookalikes.

In a batch of random pairs nearly every translation is found after a few hundred updates, and little is left to learn. Here the
teacher's vectors of all English segments (`mexma-train teach`) are cut in half again and again, each time across the line
between two distant members, until at most LEAF lie together. A batch takes several segments from each of a few such
neighbourhoods, each with one of its translations. E segments, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mexma_rt.errors import InputError
from mexma_train.data.shards import Shards

LEAF = 32
NEAR = 0.95  # cosine: above it two segments may mean the same, and would be false negatives of each other
SAMPLE = 256  # members that a cut looks at


@dataclass(frozen=True, kw_only=True)
class Neighbourhoods:
    """Segments in an order in which each neighbourhood is contiguous."""

    order: np.ndarray  # int64 [E'], English segments, those with pairs to draw alone
    place: np.ndarray  # int64 [E], where a segment stands in `order`; -1 if nowhere
    starts: np.ndarray  # int64 [E'], first place of the neighbourhood at each place
    ends: np.ndarray  # int64 [E'], and the place after its last
    vectors: np.ndarray  # float16 [E, D]

    def near(self, rng: np.random.Generator, seeds: np.ndarray, group: int) -> np.ndarray:
        """Up to `group` - 1 segments beside each of the seeds (int64 segments), of the same neighbourhood."""
        found = []
        for segment in seeds:
            place = self.place[segment]
            members = self.order[self.starts[place] : self.ends[place]]
            members = members[members != segment]
            alike = self.vectors[members].astype(np.float32) @ self.vectors[segment].astype(np.float32)
            members = members[alike < NEAR]
            found.append(rng.permutation(members)[: group - 1])
        return np.concatenate(found) if found else np.empty(0, np.int64)


def make_neighbourhoods(shards: Shards, rows: np.ndarray, seed: int) -> Neighbourhoods:
    """Neighbourhoods of the English segments of the pairs `rows`. Raises InputError for shards without a teacher's vectors."""
    if shards.teacher is None:
        raise InputError(
            f"{shards.folder} has no teacher's vectors, which say what lies close together. Type: mexma-train teach "
            f"{shards.folder} --teacher BUNDLE"
        )
    english = shards.pair_english[rows].astype(np.int64)
    order, starts, ends = halves(shards.teacher, np.unique(english), np.random.default_rng(seed))
    place = np.full(len(shards.english_hash), -1, np.int64)
    place[order] = np.arange(len(order))
    return Neighbourhoods(order=order, place=place, starts=starts, ends=ends, vectors=shards.teacher)


def halves(vectors: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(members in order, start and end of each one's neighbourhood): every neighbourhood has LEAF/2 to LEAF members."""
    order = members.astype(np.int64).copy()
    starts, ends = np.zeros(len(order), np.int64), np.zeros(len(order), np.int64)
    waiting = [(0, len(order))]
    while waiting:
        start, end = waiting.pop()
        if end - start <= LEAF:
            starts[start:end], ends[start:end] = start, end
            continue
        own = order[start:end]
        sample = vectors[rng.choice(own, min(len(own), SAMPLE), replace=False)].astype(np.float32)
        far = sample @ sample[0]
        one = sample[far.argmin()]
        other = sample[(sample @ one).argmin()]
        along = np.concatenate(
            [vectors[own[i : i + 65_536]].astype(np.float32) @ (one - other) for i in range(0, len(own), 65_536)]
        )
        middle = len(own) // 2
        order[start:end] = own[np.argpartition(along, middle)]
        waiting += [(start, start + middle), (start + middle, end)]
    return order, starts, ends
