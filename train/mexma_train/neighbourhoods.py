"""Hard negatives: finds English segments that are close together, for batches in which a translation has lookalikes.

In a batch of random pairs nearly every translation is found after a few hundred updates, and little is left to learn. Here the
English segments are split in half again and again, each time across the line between two distant members, until at most LEAF
are left together. A batch takes several segments from each of a few such neighbourhoods, each with one translation.
The vectors are a teacher's (`mexma-train teach`), or else made of the segments' pieces: the log inverse frequency of each,
randomly projected (Achlioptas 2003), so that segments with the same rare pieces are close. E segments, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mexma_train.data.shards import Shards

LEAF = 32
NEAR = 0.95  # cosine above which two segments may mean the same, and would be false negatives of each other
SAMPLE = 256  # members among which a split looks for two distant ones
PROJECTED = 128  # dimensions of the vectors of pieces, which gives cosines to about 1 / sqrt(128)
SLAB = 8_192  # segments computed at once


@dataclass(frozen=True, kw_only=True)
class Neighbourhoods:
    """Segments in an order in which each neighbourhood is contiguous."""

    order: np.ndarray  # int64 [E'], only the English segments that have pairs to draw
    place: np.ndarray  # int64 [E], the position of each segment in `order`; -1 if it is not there
    starts: np.ndarray  # int64 [E'], for each position in `order`, the first one of its neighbourhood
    ends: np.ndarray  # int64 [E'], and the one after its last
    vectors: np.ndarray  # float16 [E, D]

    def near(self, rng: np.random.Generator, seeds: np.ndarray, group: int) -> np.ndarray:
        """Return up to `group` - 1 other segments (int64) of the neighbourhood of each seed segment, chosen at random."""
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
    """Return the neighbourhoods of the English segments of the pairs `rows`, by a teacher's vectors if the shards have them."""
    vectors = bags_of_pieces(shards, seed) if shards.teacher is None else shards.teacher
    english = shards.pair_english[rows].astype(np.int64)
    order, starts, ends = halves(vectors, np.unique(english), np.random.default_rng(seed))
    place = np.full(len(shards.english_hash), -1, np.int64)
    place[order] = np.arange(len(order))
    return Neighbourhoods(order=order, place=place, starts=starts, ends=ends, vectors=vectors)


def bags_of_pieces(shards: Shards, seed: int) -> np.ndarray:
    """Return vectors float16 [E, PROJECTED] of length 1 (0 for a segment without pieces), a function of shards and seed."""
    ids, offsets = shards.english_ids, np.asarray(shards.english_offsets)
    frequency = np.bincount(ids, minlength=shards.vocab_size)
    weight = np.log(len(ids) / np.maximum(frequency, 1)).astype(np.float32)  # a segment rarely has a piece twice
    signs = np.random.default_rng((seed, 1)).integers(0, 2, (shards.vocab_size, PROJECTED), dtype=np.int8) * 2 - 1
    vectors = np.zeros((len(offsets) - 1, PROJECTED), np.float16)
    for start in range(0, len(vectors), SLAB):
        end = min(start + SLAB, len(vectors))
        bounds = offsets[start : end + 1]
        slab = np.asarray(ids[bounds[0] : bounds[-1]])
        filled = np.flatnonzero(np.diff(bounds))
        if not len(filled):
            continue
        sums = np.add.reduceat(signs[slab] * weight[slab, None], bounds[filled] - bounds[0], axis=0)
        vectors[start + filled] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return vectors


def halves(vectors: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (members in order, start and end of each one's neighbourhood); every neighbourhood has LEAF/2 to LEAF members."""
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
            [vectors[own[i : i + SLAB]].astype(np.float32) @ (one - other) for i in range(0, len(own), SLAB)]
        )
        middle = len(own) // 2
        order[start:end] = own[np.argpartition(along, middle)]
        waiting += [(start, start + middle), (start + middle, end)]
    return order, starts, ends
