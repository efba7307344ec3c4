"""Holds out English segments from training, so that recipes and thresholds can be chosen on pairs outside the test sets.

E is the number of English segments in a shard folder.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mexma_train.data.shards import Group, Shards

SPLIT_SEED = 7


def held_out_segments(shards: Shards, share: float) -> np.ndarray:
    """Return bool [E], True for the English segments left out of training: about `share` of them, and all their duplicates.

    They are drawn by segment number, which prepare assigns to lines regardless of their ids, so shards of the same pairs hold
    out the same lines whatever the tokenizer.
    """
    drawn = np.random.default_rng(SPLIT_SEED).random(len(shards.english_hash)) < share
    # A line that recurs outside prepare's window gets a second number, and lines of unknown characters may be equal too.
    return np.isin(shards.english_hash, shards.english_hash[drawn])


def training_part(shards: Shards, held: np.ndarray) -> Shards:
    """Return the shards without the pairs of the held-out segments (bool [E]), for a sampler with order="draw".

    Only groups and order change, which is all that such a sampler uses; order="epochs" would still go through all pairs.
    """
    keep = ~held[shards.pair_english[shards.order]]
    before = np.concatenate([[0], np.cumsum(keep)])
    groups = []
    for group in shards.groups:
        start, end = (int(before[place]) for place in (group.start, group.start + group.count))
        groups.append(Group(lang=group.lang, source=group.source, start=start, count=end - start))
    return replace(shards, order=np.asarray(shards.order)[keep], groups=groups)
