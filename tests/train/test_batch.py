"""Batches: what one packed row holds, and that many processes together see what one would."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from mexma_train.batch import MicroBatch, prefetch, update_batches  # noqa: E402
from mexma_train.config import MexmaConfig, SamplingConfig  # noqa: E402
from mexma_train.data.shards import open_shards  # noqa: E402
from mexma_train.sampling import PairSampler  # noqa: E402

CONFIG = MexmaConfig(steps=1, batch_pairs=8, max_tokens=12)


@pytest.fixture(scope="module")
def sampler(toy_shards: Path) -> PairSampler:
    return PairSampler(open_shards(toy_shards), SamplingConfig(bucket=4))


def halves(batch: MicroBatch) -> tuple[np.ndarray, np.ndarray]:
    ids = batch.ids.numpy()
    return ids[: len(ids) // 2], ids[len(ids) // 2 :]


def sentences(flat: np.ndarray, lengths: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(part.tolist()) for part in np.split(flat, np.cumsum(lengths)[:-1])]


def test_the_row_is_both_sides_clean_then_masked(sampler: PairSampler) -> None:
    (batch, _) = update_batches(5, sampler, CONFIG, batch_pairs=8)
    clean, masked = halves(batch)
    pairs = sampler.micro_batch(10, 8, 12)  # update 5 with 2 micro-batches begins with number 10
    source, target = sampler.shards.text(pairs, 12), sampler.shards.english(pairs, 12)
    assert clean.tolist() == [*source.ids.tolist(), *target.ids.tolist()]
    assert batch.lengths.tolist() == [*source.lengths.tolist(), *target.lengths.tolist()]
    chosen = batch.chosen.numpy()
    assert (clean[chosen] == batch.labels.numpy()).all()
    unchanged = np.setdiff1d(np.arange(len(clean)), chosen)
    assert (clean[unchanged] == masked[unchanged]).all() and (clean != masked).any()
    assert (chosen[: batch.masked_source] < len(source.ids)).all() and (chosen[batch.masked_source :] >= len(source.ids)).all()
    assert batch.pairs == len(pairs) and batch.tokens == len(clean)
    assert batch.positions.numpy()[: source.lengths[0]].tolist() == list(range(2, 2 + source.lengths[0]))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_see_what_one_process_sees(sampler: PairSampler, world: int) -> None:
    one = update_batches(0, sampler, CONFIG, batch_pairs=6 * world)
    parts = [update_batches(0, sampler, CONFIG, batch_pairs=6, rank=rank, world=world) for rank in range(world)]
    for micro, whole in enumerate(one):
        mine = [part[micro] for part in parts]
        for half in (0, 1):
            expected = sorted(sentences(halves(whole)[half], whole.lengths))
            assert sorted(s for batch in mine for s in sentences(halves(batch)[half], batch.lengths)) == expected
        assert all(batch.totals == whole.totals for batch in mine)
        assert sum(len(batch.labels) for batch in mine) == len(whole.labels)
        assert mine[0].pairs_per_rank == tuple(batch.pairs for batch in mine)
        tokens = [batch.tokens for batch in mine]
        assert max(tokens) - min(tokens) <= 24  # equal work: at most a pair apart (12 tokens a side)


def test_totals_are_those_of_the_update_or_make_the_originals_mean_of_means(sampler: PairSampler) -> None:
    batches = update_batches(0, sampler, CONFIG, batch_pairs=8)
    assert batches[0].totals.source == sum(b.masked_source for b in batches)
    assert batches[0].totals.pairs == sum(b.pairs for b in batches)
    original = replace(CONFIG, reduction="micro-batch")
    for batch in update_batches(0, sampler, original, batch_pairs=8, rank=1, world=2):
        assert batch.totals.source == 2 * 2 * batch.masked_source  # 2 micro-batches x 2 processes
        assert batch.totals.pairs == 4 * batch.pairs


def test_candidates_include_every_piece_and_are_sorted_and_distinct(sampler: PairSampler) -> None:
    batch = update_batches(0, sampler, replace(CONFIG, sampled_pieces=5), batch_pairs=8)[0]
    assert batch.candidates is not None
    candidates = batch.candidates.numpy()
    assert (np.diff(candidates) > 0).all()
    assert set(batch.labels.tolist()) <= set(candidates.tolist())
    assert update_batches(0, sampler, CONFIG, batch_pairs=8)[0].candidates is None


def test_masks_of_the_sides_differ_unless_shared(sampler: PairSampler) -> None:
    draws = [update_batches(0, sampler, replace(CONFIG, masks=m), batch_pairs=8)[0] for m in ("independent", "shared")]
    assert draws[0].chosen.tolist() != draws[1].chosen.tolist()


def test_prefetch_keeps_the_order_works_ahead_and_hands_on_errors() -> None:
    made: list[int] = []
    ahead = threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if number == 1:
            ahead.set()
        if number == 3:
            raise ValueError("batch 3")
        return number

    numbers = prefetch(make, 0, 5)
    assert next(numbers) == 0
    assert ahead.wait(5) and made[:2] == [0, 1]  # made while 0 is in use
    assert [next(numbers), next(numbers)] == [1, 2]
    with pytest.raises(ValueError, match="batch 3"):
        next(numbers)
    assert list(prefetch(make, 2, 2)) == []
    end = time.monotonic() + 5
    while any(thread.name.startswith("mexma-batches") for thread in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(thread.name.startswith("mexma-batches") for thread in threading.enumerate())
