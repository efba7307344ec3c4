"""What arms of model_ablations.py do that the product has no option for: other batches, or one more term.

Each takes a stage and returns it changed. B pairs of a batch, D dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mexma_rt import score_pairs
from mexma_rt.backends.packed_encoder import Encoder
from mexma_train.config import Recipe, WarmupConfig
from mexma_train.loop import Stage
from mexma_train.losses import contrastive_sum
from mexma_train.model import Mexma
from mexma_train.sampling import PairSampler
from mexma_train.warmup import BagBatch, bag_vectors, make_bags

POOL = 6  # batches whose English sides are searched for neighbours
TOO_NEAR = 0.9  # cosine above which a neighbour may be a second translation, not a negative: not taken
SHORT, RATIO = 3, 3.0  # pieces of a side without <s> and </s>; pieces of one side to those of the other


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a variant works with. `judge`: a copy of the start's transparent encoder that is not trained."""

    recipe: Recipe
    model: Mexma
    sampler: PairSampler
    judge: Encoder | None
    notes: dict[str, Any] = field(default_factory=dict)  # for the arm's row


def hard_negatives(stage: Stage, setting: Setting) -> Stage:
    """Batches of B/2 pairs and, of each, the pair with the nearest English side in a pool of POOL batches."""
    config = _warmup(setting)

    def rows(update: int) -> np.ndarray:
        pool = setting.sampler.batch(update, POOL * config.batch_pairs)
        english = _vectors(setting, setting.sampler.shards.english(pool, config.max_tokens))
        half = config.batch_pairs // 2
        cosines = english[:half] @ english.T
        cosines[cosines > TOO_NEAR] = -1  # itself too
        cosines[:, :half] = -1  # those are in the batch already
        return np.asarray(pool[np.union1d(np.arange(half), cosines.argmax(axis=1))])

    return replace(stage, batches=lambda update: [_bags(rows(update), setting.sampler, config)])


def filter_worst(stage: Stage, setting: Setting) -> Stage:
    return _self_filter(stage, setting, share=0.1)


def filter_half(stage: Stage, setting: Setting) -> Stage:
    return _self_filter(stage, setting, share=0.5)


def _self_filter(stage: Stage, setting: Setting, share: float) -> Stage:
    """As many pairs as without the filter: more are drawn, and of these the share of the lowest margin scores is dropped.

    A pair's neighbours are those among the drawn pairs; the margin is the ratio, k = 4.
    """
    config, shards = _warmup(setting), setting.sampler.shards

    def rows(update: int) -> np.ndarray:
        drawn = setting.sampler.batch(update, round(config.batch_pairs / (1 - share)))
        sides = (_vectors(setting, side(drawn, config.max_tokens)) for side in (shards.text, shards.english))
        source, target = sides
        scores = score_pairs(source_vectors=source, target_vectors=target, margin="ratio", k=4, progress=False)
        keep = scores > np.quantile(scores, share)
        _count(setting, drawn, keep)
        return np.asarray(drawn[keep])

    return replace(stage, batches=lambda update: [_bags(rows(update), setting.sampler, config)])


def filter_rules(stage: Stage, setting: Setting) -> Stage:
    """As many pairs as without the filter, give or take the batch's own share: those that the rules drop are drawn again."""
    config, shards = _warmup(setting), setting.sampler.shards

    def good(drawn: np.ndarray) -> np.ndarray:
        english = shards.pair_english[drawn]
        texts = np.asarray(shards.text_offsets[drawn + 1] - shards.text_offsets[drawn])
        others = np.asarray(shards.english_offsets[english + 1] - shards.english_offsets[english])
        keep = np.minimum(texts, others) >= SHORT
        keep &= np.maximum(texts, others) <= RATIO * np.minimum(texts, others)
        for i in np.flatnonzero(keep & (texts == others)):
            start, at = shards.text_offsets[drawn[i]], shards.english_offsets[english[i]]
            keep[i] = not np.array_equal(shards.text_ids[start : start + texts[i]], shards.english_ids[at : at + texts[i]])
        return np.asarray(keep)

    dropped = 1 - float(np.mean(good(setting.sampler.batch(0, 16_384))))

    def rows(update: int) -> np.ndarray:
        drawn = setting.sampler.batch(update, round(config.batch_pairs / (1 - dropped)))
        keep = good(drawn)
        _count(setting, drawn, keep)
        return np.asarray(drawn[keep])

    return replace(stage, batches=lambda update: [_bags(rows(update), setting.sampler, config)])


def mexma_teacher(stage: Stage, setting: Setting) -> Stage:
    """MEXMA's loss and InfoNCE of both sides' clean vectors against the teacher's of the English sides, as in ranking_terms."""
    config, sampler = setting.recipe.mexma, setting.sampler
    seen: list[Tensor] = []
    states = setting.model.states

    def watched(*args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        clean_2BD, hidden_MD = states(*args, **keywords)
        seen[:] = [clean_2BD]
        return clean_2BD, hidden_MD

    setting.model.states = watched  # type: ignore[method-assign]

    def terms(batch: Any) -> dict[str, Tensor]:
        found = stage.terms(batch)
        pairs = sampler.micro_batch(batch.number, config.batch_pairs, config.max_tokens)  # those of update_batches
        targets_BD = torch.from_numpy(sampler.shards.teacher_of(pairs))
        sums = [contrastive_sum(x, targets_BD, (x, targets_BD), 0, 0.07)[0] for x in seen[0].chunk(2)]
        return found | {"loss": found["loss"] + (sums[0] + sums[1]) / (2 * len(pairs))}

    return replace(stage, terms=terms)


VARIANTS: dict[str, Callable[[Stage, Setting], Stage]] = {
    f.__name__: f for f in (hard_negatives, filter_worst, filter_half, filter_rules, mexma_teacher)
}


def _warmup(setting: Setting) -> WarmupConfig:
    assert setting.recipe.warmup is not None
    return setting.recipe.warmup


@torch.no_grad()
def _vectors(setting: Setting, batch: Any) -> np.ndarray:
    assert setting.judge is not None
    return np.asarray(F.normalize(bag_vectors(setting.judge, make_bags(batch))).numpy())


def _bags(rows: np.ndarray, sampler: PairSampler, config: WarmupConfig) -> BagBatch:
    text, english = (side(rows, config.max_tokens) for side in (sampler.shards.text, sampler.shards.english))
    tokens = int(text.lengths.sum() + english.lengths.sum())
    return BagBatch(text=make_bags(text), english=make_bags(english), targets=None, pairs=len(rows), tokens=tokens)


def _count(setting: Setting, drawn: np.ndarray, keep: np.ndarray) -> None:
    """Pairs drawn and dropped of each source, into the notes."""
    names = np.array(setting.sampler.shards.sources)[setting.sampler.shards.pair_source[drawn]]
    for key, chosen in (("drawn", names), ("dropped", names[~keep])):
        setting.notes[key] = dict(Counter(setting.notes.get(key, {})) + Counter(chosen.tolist()))
