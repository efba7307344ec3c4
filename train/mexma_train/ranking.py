"""Translation ranking with the whole encoder, between the warm start and MEXMA.

The warm start knows words but no word order, because its lower layers are the identity. They learn here, from the same loss
(and the same teacher, if there is one) on clean sentences: two encoder passes without a vocabulary product, a fraction of the
cost of a MEXMA update with as many pairs. T packed tokens, B pairs, E English segments, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mexma_rt.backends.packed_attention import make_layout
from mexma_rt.backends.packed_encoder import Encoder, position_numbers
from mexma_train.config import RankingConfig
from mexma_train.losses import ranking_terms
from mexma_train.sampling import PairSampler
from mexma_train.warmup import teacher_targets


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Texts, then English segments, end to end: ids and positions int64 [T], lengths [B + E]; a teacher's targets [N, D]."""

    ids: Tensor
    positions: Tensor
    lengths: np.ndarray
    english_of: Tensor  # int64 [B], the English segment of each text; segments are numbered in the order of their first texts
    targets: Tensor | None

    @property
    def pairs(self) -> int:
        """Pairs in the batch."""
        return len(self.english_of)

    @property
    def tokens(self) -> int:
        """Tokens of both sides."""
        return len(self.ids)

    def to(self, device: torch.device) -> PairBatch:
        """The same batch with its tensors on a device, copied asynchronously."""
        ids, positions, english_of = (x.to(device, non_blocking=True) for x in (self.ids, self.positions, self.english_of))
        targets = None if self.targets is None else self.targets.to(device, non_blocking=True)
        return replace(self, ids=ids, positions=positions, english_of=english_of, targets=targets)


def ranking_batch(update: int, sampler: PairSampler, config: RankingConfig) -> PairBatch:
    """Return the batch of an update, a function of (seed, update)."""
    pairs = draw(update, sampler, config)
    segments, first, english_of = np.unique(sampler.shards.pair_english[pairs], return_index=True, return_inverse=True)
    by_first = np.argsort(first)
    place = np.empty(len(segments), np.int64)
    place[by_first] = np.arange(len(segments))
    shards = sampler.shards
    sides = [shards.text(pairs, config.max_tokens), shards.english(pairs[first[by_first]], config.max_tokens)]
    ids = np.concatenate([side.ids for side in sides])
    lengths = np.concatenate([side.lengths for side in sides])
    return PairBatch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(position_numbers(ids, lengths)),
        lengths=lengths,
        english_of=torch.from_numpy(place[english_of]),
        targets=teacher_targets(update, pairs, sampler, config),
    )


def draw(update: int, sampler: PairSampler, config: RankingConfig) -> np.ndarray:
    """Return the pair numbers of an update."""
    first = max(1, config.batch_pairs // config.translations)
    if config.neighbours > 1:
        pairs = sampler.neighbour_batch(update, first, config.neighbours)
    else:
        pairs = sampler.micro_batch(update, first, config.max_tokens)
    return pairs if config.translations == 1 else sampler.more_translations(update, pairs, config.translations)


def whole_terms(encoder: Encoder, batch: PairBatch, config: RankingConfig, attention: str) -> dict[str, Tensor]:
    """Return the loss terms of one batch, as `ranking_terms` does."""
    layout = make_layout(batch.lengths, attention, batch.ids.device)
    text_BD, english_ED = encoder(batch.ids, batch.positions, layout, layout.starts_S).split(
        [batch.pairs, len(batch.lengths) - batch.pairs]
    )
    same_BB = None
    if len(english_ED) < len(text_BD):
        same_BB = batch.english_of[:, None] == batch.english_of
        same_BB.fill_diagonal_(False)
    return ranking_terms(text_BD, english_ED.index_select(0, batch.english_of), batch.targets, config, same_BB)


def ranking_parameters(encoder: Encoder, config: RankingConfig) -> list[dict[str, Any]]:
    """Return Adam's groups: the top layer at config.lr, each one below at layer_decay times that, the embeddings; the words."""
    words = encoder.embeddings.word_embeddings.weight
    words.requires_grad_(config.words_lr > 0)
    below = [p for p in encoder.embeddings.parameters() if p is not words]
    groups, lr = [], config.lr
    for parameters in [*(list(layer.parameters()) for layer in reversed(encoder.encoder.layer)), below]:
        groups.append({"params": parameters, "lr": lr})
        lr *= config.layer_decay
    return groups + ([{"params": [words], "lr": config.words_lr}] if config.words_lr else [])


def ranking_rate(update: int, config: RankingConfig) -> float:
    """Share of the peak learning rates at an update: linear up over warmup_share, then linear down to 0."""
    return min((update + 1) / max(1.0, config.warmup_share * config.steps), 1.0) * (1 - update / config.steps)
