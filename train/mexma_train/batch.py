"""Turns pair numbers into the model's input: one packed row of four passes, masked and without padding.

Every process draws and masks the *whole* micro-batch of all processes and keeps its own part. A run on many processes therefore
sees, token for token, what one process with the larger batch would see, and knows all totals without communication. Everything
depends only on (seed, number). B pairs of this process, T tokens of the packed row, M masked tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mexma_rt.backends.packed_encoder import position_numbers
from mexma_train.config import MexmaConfig
from mexma_train.data.shards import Ragged
from mexma_train.masking import SPECIAL_IDS, mask_tokens
from mexma_train.sampling import PairSampler, deal

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What the sums of a micro-batch are divided by: masked tokens of each side, and pairs (see MexmaConfig.reduction)."""

    source: float
    target: float
    pairs: float


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The packed row is clean source, clean target, masked source, masked target, each with its sentences in the same order."""

    number: int
    ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    lengths: np.ndarray  # int64 [2B], of the clean half; the masked half has the same
    chosen: Tensor  # int64 [M], positions of the masked tokens within the masked half
    labels: Tensor  # int64 [M]
    masked_source: int  # how many of `chosen` belong to the source; they come first
    candidates: Tensor | None  # int64 [C], sorted: the reduced softmax runs over these pieces
    pairs_per_rank: tuple[int, ...]
    totals: Totals

    @property
    def pairs(self) -> int:
        """Pairs of this process in the batch."""
        return len(self.lengths) // 2

    @property
    def tokens(self) -> int:
        """Clean tokens of both sides; the encoder sees each of them twice."""
        return len(self.ids) // 2

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch with its tensors on a device, copied asynchronously."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class MaskedSide:
    """One language of a whole micro-batch: ids end to end int64, chosen bool, lengths [pairs]."""

    clean: np.ndarray
    masked: np.ndarray
    chosen: np.ndarray
    lengths: np.ndarray

    def take(self, pairs: np.ndarray) -> MaskedSide:
        """The side of some of the pairs (bool [pairs]), in the same order."""
        tokens = np.repeat(pairs, self.lengths)
        return MaskedSide(
            clean=self.clean[tokens], masked=self.masked[tokens], chosen=self.chosen[tokens], lengths=self.lengths[pairs]
        )


def mask_side(batch: Ragged, config: MexmaConfig, vocab_size: int, rng: np.random.Generator) -> MaskedSide:
    """Choose and mask the tokens of one language of a whole micro-batch."""
    masked = mask_tokens(
        batch.ids,
        config.mask_ratio,
        vocab_size,
        rng,
        random_pieces=config.random_pieces,
        grid_lengths=batch.lengths if config.masks == "shared" else None,
    )
    return MaskedSide(clean=batch.ids, masked=masked.ids, chosen=masked.chosen, lengths=batch.lengths)


def join_sides(
    source: MaskedSide,
    target: MaskedSide,
    totals: Totals,
    *,
    number: int = 0,
    candidates: np.ndarray | None = None,
    pairs_per_rank: tuple[int, ...] | None = None,
) -> MicroBatch:
    """Concatenate both sides into the packed row of one process."""
    lengths = np.concatenate([source.lengths, target.lengths])
    clean = np.concatenate([source.clean, target.clean])
    ids = np.concatenate([clean, source.masked, target.masked])
    chosen = np.flatnonzero(np.concatenate([source.chosen, target.chosen]))
    return MicroBatch(
        number=number,
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(position_numbers(ids, np.concatenate([lengths, lengths]))),
        lengths=lengths,
        chosen=torch.from_numpy(chosen),
        labels=torch.from_numpy(clean[chosen]),
        masked_source=int(source.chosen.sum()),
        candidates=None if candidates is None else torch.from_numpy(candidates),
        pairs_per_rank=pairs_per_rank or (len(source.lengths),),
        totals=totals,
    )


def whole_totals(source: MaskedSide, target: MaskedSide) -> Totals:
    """Return the totals of a micro-batch by itself, with which every term is a mean."""
    return Totals(source=max(1, source.chosen.sum()), target=max(1, target.chosen.sum()), pairs=len(source.lengths))


def update_batches(
    update: int, sampler: PairSampler, config: MexmaConfig, *, batch_pairs: int, rank: int = 0, world: int = 1
) -> list[MicroBatch]:
    """Return this process's micro-batches of an update; `batch_pairs` is the pairs in one micro-batch of one process."""
    vocab_size = sampler.shards.vocab_size
    drawn: list[tuple[int, MaskedSide, MaskedSide]] = []
    for micro in range(config.accumulation):
        number = update * config.accumulation + micro
        pairs = sampler.micro_batch(number, batch_pairs * world, config.max_tokens)
        streams = (0, 0) if config.masks == "shared" else (0, 1)
        source_rng, target_rng = (np.random.default_rng((config.seed, number, stream)) for stream in streams)
        source = mask_side(sampler.shards.text(pairs, config.max_tokens), config, vocab_size, source_rng)
        target = mask_side(sampler.shards.english(pairs, config.max_tokens), config, vocab_size, target_rng)
        drawn.append((number, source, target))

    whole = Totals(
        source=max(1, sum(int(source.chosen.sum()) for _, source, _ in drawn)),
        target=max(1, sum(int(target.chosen.sum()) for _, _, target in drawn)),
        pairs=sum(len(source.lengths) for _, source, _ in drawn),
    )
    batches = []
    for number, source, target in drawn:
        ranks = deal(source.lengths + target.lengths, world)
        own_source, own_target = source.take(ranks == rank), target.take(ranks == rank)
        totals = whole if config.reduction == "update" else _scaled(whole_totals(own_source, own_target), len(drawn) * world)
        candidates = _candidates(source, target, config, vocab_size, number) if config.sampled_pieces else None
        counts = tuple(np.bincount(ranks, minlength=world).tolist())
        batches.append(join_sides(own_source, own_target, totals, number=number, candidates=candidates, pairs_per_rank=counts))
    return batches


def _scaled(totals: Totals, factor: int) -> Totals:
    """Totals that make the update the mean of `factor` micro-batches' means."""
    return Totals(source=totals.source * factor, target=totals.target * factor, pairs=totals.pairs * factor)


def _candidates(source: MaskedSide, target: MaskedSide, config: MexmaConfig, vocab_size: int, number: int) -> np.ndarray:
    """Sorted distinct ids: every piece of the batch and `sampled_pieces` random ones, so that every label is among them."""
    rng = np.random.default_rng((config.seed, number, 2))
    random_ids = rng.integers(SPECIAL_IDS, vocab_size - 1, config.sampled_pieces)
    return np.unique(np.concatenate([source.clean, target.clean, random_ids]))


def prefetch(make: Callable[[int], T], first: int, end: int) -> Iterator[T]:
    """Yield make(first), ..., make(end - 1), each prepared one ahead in a thread, so the device does not wait for numpy."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="mexma-batches") as pool:
        coming = pool.submit(make, first) if first < end else None
        for number in range(first, end):
            assert coming is not None
            ready = coming.result()
            coming = pool.submit(make, number + 1) if number + 1 < end else None
            yield ready
