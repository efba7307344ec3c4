from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from mexma_train.config import SamplingConfig
from mexma_train.sampling import BUCKET, PairSampler
from mexma_train.shards import open_shards


def test_a_batch_depends_on_seed_and_step_alone(toy_shards: Path) -> None:
    first, second = (PairSampler(open_shards(toy_shards), SamplingConfig(seed=1)) for _ in range(2))
    second.batch(3, 32)
    assert (first.batch(7, 32) == second.batch(7, 32)).all()
    assert not np.array_equal(first.batch(7, 32), first.batch(8, 32))
    assert (first.length_batch(5, 8) == second.length_batch(5, 8)).all()


def test_no_english_segment_twice_in_a_batch(toy_shards: Path) -> None:
    shards = open_shards(toy_shards)
    sampler = PairSampler(shards, SamplingConfig())
    for step in range(20):
        english = np.asarray(shards.pair_english[sampler.batch(step, 300)])
        assert len(english) == len(set(english.tolist()))


def test_language_and_source_shares(toy_shards: Path) -> None:
    """p(language) ~ mass^temperature with source weights in the mass: rus without `ui` has 200 of 300 pairs, fra likewise."""
    shards = open_shards(toy_shards)
    sampler = PairSampler(shards, SamplingConfig(source_weights={"ui": 0.0}))
    drawn = np.concatenate([sampler.batch(step, 64) for step in range(200)])
    assert {shards.sources[i] for i in np.unique(shards.pair_source[drawn])} == {"toy"}
    assert (shards.pair_lang[drawn] == 0).mean() == pytest.approx(0.5, abs=0.02)


def test_length_batches_deal_out_one_draw_sorted_by_length(toy_shards: Path) -> None:
    shards = open_shards(toy_shards)
    sampler = PairSampler(shards, SamplingConfig())
    parts = [sampler.length_batch(step, 6) for step in range(BUCKET)]
    together = np.concatenate(parts)
    assert len(np.unique(shards.pair_english[together])) == len(together)
    ranges = []
    for part in parts:
        lengths = np.maximum(shards.text(part, 99).lengths, shards.english(part, 99).lengths)
        ranges.append((lengths.min(), lengths.max()))
    ranges.sort()
    assert all(low[1] <= high[0] for low, high in itertools.pairwise(ranges))
