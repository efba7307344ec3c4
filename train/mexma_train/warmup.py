"""Warm start: translation ranking with static tokens, so that MEXMA begins with a `<s>` state that is a sentence vector.

The trick is to make layers 1 .. N-1 of the encoder the identity (output projections zero, LayerNorms plain) and the position
table zero. Every token then reaches the last layer as LayerNorm(word embedding), whatever its position, and the last layer's
`<s>` row is a sum over *distinct pieces*: exp(score of the piece) * value of the piece, divided by the sum of the exps.
That is a sparse matrix product: a batch of 4,096 sentences costs milliseconds instead of seconds, and the result is exactly
that of XLM-R's forward pass (tests/train/test_warmup.py), so the weights need no conversion.
The loss is symmetric InfoNCE over the batch's pairs (LaBSE's translation ranking without margin, arXiv 2007.01852).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mexma_rt.backends.packed_encoder import Encoder
from mexma_train.config import RankingConfig, WarmupConfig
from mexma_train.data.shards import Ragged
from mexma_train.losses import ranking_terms
from mexma_train.sampling import PairSampler

ROW_NORM = 0.5  # length of a word row after the warm start: BERT's 0.02 per dimension gives 0.32 at 256, 0.64 at 1,024
POSITION_NORM = 0.05  # a tenth of that; cost 0.8 points of Tatoeba accuracy at first (10 languages: 75.4 -> 74.6)


def make_transparent(encoder: Encoder) -> None:
    """Make layers 1 .. N-1 and the last layer's value and output projections the identity, positions and types zero."""
    with torch.no_grad():
        embeddings: Any = encoder.embeddings
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.zero_()
        # Rows of norm 1: LayerNorm makes their scale irrelevant to the output, but it sets how far a step of Adam turns them.
        embeddings.word_embeddings.weight.normal_(0, encoder.config.hidden_size**-0.5)
        layers: Any = encoder.encoder.layer
        for layer in layers[:-1]:
            for dense in (layer.attention.output.dense, layer.output.dense):
                dense.weight.zero_()
                dense.bias.zero_()
        last = layers[-1].attention
        last.self.value.weight.copy_(torch.eye(encoder.config.hidden_size))
        last.output.dense.weight.copy_(torch.eye(encoder.config.hidden_size))


def prepare_for_masking(encoder: Encoder) -> None:
    """After the warm start: scale the word rows to one length and fill the position table with sinusoids, which MLM needs.

    LayerNorm makes each row's mean and length irrelevant to the encoder, but the token head multiplies by the same rows: as the
    warm start leaves them, the first MLM loss was 19.8, where a uniform guess over the batch's 3,500 candidates gives 8.2.
    """
    embeddings: Any = encoder.embeddings
    words, table = embeddings.word_embeddings.weight, embeddings.position_embeddings.weight
    count, width = table.shape
    with torch.no_grad():
        words.sub_(words.mean(dim=1, keepdim=True))
        words.mul_(ROW_NORM / words.norm(dim=1, keepdim=True).clamp_min(1e-12))
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
        angle = torch.arange(count)[:, None] * rate
        waves = torch.stack([angle.sin(), angle.cos()], dim=2).reshape(count, width)
        table.copy_(waves * (POSITION_NORM / waves.norm(dim=1, keepdim=True)))
        table[encoder.config.pad_token_id].zero_()


class _SumBags(torch.autograd.Function):
    """counts [B, U] @ rows [U, D], with the sparse counts given by columns and row starts; backward uses the transpose.

    torch's own backward pass of embedding_bag took 117 ms, this one 4 (4,096 bags, 101,000 tokens, D = 260, 2 cores).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, starts: Tensor, back_columns: Tensor, back_starts: Tensor) -> Tensor:
        ctx.save_for_backward(back_columns, back_starts)
        return F.embedding_bag(columns, rows, starts, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        back_columns, back_starts = ctx.saved_tensors
        return F.embedding_bag(back_columns, grad.contiguous(), back_starts, mode="sum"), None, None, None, None


@dataclass(frozen=True, kw_only=True)
class Bags:
    """A batch of sentences as bags of pieces: distinct ids [U], and the sparse matrix of counts [B, U] and its transpose."""

    pieces: Tensor
    columns: Tensor
    starts: Tensor
    back_columns: Tensor
    back_starts: Tensor

    def to(self, device: torch.device) -> Bags:
        """The same bags on a device."""
        return Bags(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def make_bags(batch: Ragged) -> Bags:
    """Return the bags of a batch of sentences; every piece of `pieces` occurs at least once."""
    pieces, columns = np.unique(batch.ids, return_inverse=True)
    sentence = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
    counts = np.bincount(columns, minlength=len(pieces))

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.int64))

    return Bags(
        pieces=tensor(pieces),
        columns=tensor(columns),
        starts=tensor(np.cumsum(batch.lengths) - batch.lengths),
        back_columns=tensor(sentence[np.argsort(columns, kind="stable")]),
        back_starts=tensor(np.cumsum(counts) - counts),
    )


def bag_vectors(encoder: Encoder, bags: Bags) -> Tensor:
    """Return the `<s>` states [B, D] of a transparent encoder, computed from the bags alone (without dropout)."""
    embeddings: Any = encoder.embeddings
    layer: Any = encoder.encoder.layer[-1]
    attention, heads = layer.attention.self, encoder.config.num_attention_heads
    tokens_UD = embeddings.LayerNorm(embeddings.word_embeddings(bags.pieces))
    start_D = embeddings.LayerNorm(embeddings.word_embeddings.weight[encoder.config.bos_token_id])
    query_HE = attention.query(start_D).view(heads, -1)
    # There is one query only, so it is folded into the key matrix; the key bias is the same for all pieces and cancels.
    key_HED = attention.key.weight.view(heads, -1, encoder.config.hidden_size)
    scores_UH = tokens_UD @ torch.einsum("hed,he->dh", key_HED, query_HE) / math.sqrt(query_HE.shape[1])
    weights_UH = torch.exp(scores_UH - scores_UH.detach().amax(0))  # the shift cancels in the quotient below
    values_UHE = attention.value(tokens_UD).view(len(bags.pieces), heads, -1)
    weighted_UX = torch.cat([(weights_UH[:, :, None] * values_UHE).flatten(1), weights_UH], dim=1)
    sums_BX = _SumBags.apply(weighted_UX, bags.columns, bags.starts, bags.back_columns, bags.back_starts)  # type: ignore[no-untyped-call]  # apply has no types
    size = encoder.config.hidden_size
    pooled_BHE = sums_BX[:, :size].view(-1, heads, size // heads) / sums_BX[:, size:, None]
    attended_BD = layer.attention.output.LayerNorm(layer.attention.output.dense(pooled_BHE.flatten(1)) + start_D)
    states_BD: Tensor = layer.output.LayerNorm(layer.output.dense(F.gelu(layer.intermediate.dense(attended_BD))) + attended_BD)
    return states_BD


def warmup_parameters(encoder: Encoder, config: WarmupConfig) -> list[dict[str, Any]]:
    """Return Adam's groups: the word embeddings at the full rate, the last layer at a tenth; nothing else is trained."""
    words, last = encoder.embeddings.word_embeddings.weight, encoder.encoder.layer[-1]
    return [{"params": [words], "lr": config.lr}, {"params": list(last.parameters()), "lr": config.lr / 10}]


@dataclass(frozen=True, kw_only=True)
class BagBatch:
    """A batch of pairs as bags; `tokens` counts both sides."""

    text: Bags
    english: Bags
    targets: Tensor | None  # float32 [N, D]: see teacher_targets
    pairs: int
    tokens: int

    def to(self, device: torch.device) -> BagBatch:
        """The same batch with its tensors on a device."""
        targets = None if self.targets is None else self.targets.to(device)
        return replace(self, text=self.text.to(device), english=self.english.to(device), targets=targets)


def warmup_batch(update: int, sampler: PairSampler, config: WarmupConfig) -> BagBatch:
    """Return the batch of an update, a function of (seed, update)."""
    pairs = sampler.batch(update, config.batch_pairs)
    text, english = (side(pairs, config.max_tokens) for side in (sampler.shards.text, sampler.shards.english))
    tokens = int(text.lengths.sum() + english.lengths.sum())
    targets = teacher_targets(update, pairs, sampler, config)
    return BagBatch(text=make_bags(text), english=make_bags(english), targets=targets, pairs=len(pairs), tokens=tokens)


def teacher_targets(
    update: int, pairs: np.ndarray, sampler: PairSampler, config: WarmupConfig | RankingConfig
) -> Tensor | None:
    """The teacher's vectors of the English sides of an update's pairs, then of its pool: float32 [B + P, D]; or None."""
    if not config.distil_weight:
        return None
    others = sampler.others(update, config.distil_pool, pairs)
    return torch.from_numpy(sampler.shards.teacher_of(np.concatenate([pairs, others])))


def warmup_terms(encoder: Encoder, batch: BagBatch, config: WarmupConfig) -> dict[str, Tensor]:
    """Return the loss terms of one batch of a transparent encoder, as `ranking_terms` does."""
    return ranking_terms(bag_vectors(encoder, batch.text), bag_vectors(encoder, batch.english), batch.targets, config)


def warmup_rate(step: int, config: WarmupConfig) -> float:
    """Share of the learning rate at an update: up for 100 updates (a third of a short run), then linear down to 0."""
    return min(1.0, (step + 1) / max(1.0, min(100.0, config.steps / 3))) * (1 - step / config.steps)
