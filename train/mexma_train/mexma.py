"""One MEXMA step: batch of pairs -> loss terms. B pairs, L tokens, D dimensions, M masked tokens.

Four encoder passes (masked and clean, source and target) through one shared encoder. The sentence vector is the `<s>` state of
the *clean* pass; the head predicts the masked tokens of one language from their masked-pass states with position 0 replaced
by the clean sentence vector of the *other* language. Nothing is detached: both ways carry gradient to the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mexma_train.config import MexmaConfig
from mexma_train.losses import alignment_loss, contrastive_loss, koleo_loss, masked_token_loss
from mexma_train.masking import SPECIAL_IDS, mask_tokens
from mexma_train.model import Mexma
from mexma_train.sampling import PairSampler
from mexma_train.shards import Ragged

PAD = 1


@dataclass(frozen=True, kw_only=True)
class Side:
    """One language of a batch, padded on the right: int64 [B, L]; mask and chosen are bool [B, L]."""

    clean: Tensor
    masked: Tensor
    mask: Tensor
    chosen: Tensor

    @property
    def labels(self) -> Tensor:
        """Pieces [M] at the masked places, row by row."""
        return self.clean[self.chosen]


def make_side(batch: Ragged, ratio: float, vocab_size: int, rng: np.random.Generator, device: torch.device) -> Side:
    """Mask a ragged batch and pad it to its longest sentence."""
    masked = mask_tokens(batch.ids, ratio, vocab_size, rng)
    mask_BL = np.arange(batch.lengths.max()) < batch.lengths[:, None]

    def pad(flat: np.ndarray, fill: int | bool) -> Tensor:
        out = np.full(mask_BL.shape, fill, flat.dtype)
        out[mask_BL] = flat
        return torch.from_numpy(out).to(device)

    return Side(
        clean=pad(batch.ids, PAD),
        masked=pad(masked.ids, PAD),
        mask=torch.from_numpy(mask_BL).to(device),
        chosen=pad(masked.chosen, False),
    )


def candidate_pieces(source: Side, target: Side, extra: int, vocab_size: int, rng: np.random.Generator) -> Tensor:
    """Sorted distinct ids: every piece of the batch and `extra` random ones (a reduced softmax that includes all labels)."""
    random_ids = torch.from_numpy(rng.integers(SPECIAL_IDS, vocab_size - 1, extra)).to(source.clean.device)
    return torch.unique(torch.cat([source.clean.flatten(), target.clean.flatten(), random_ids]))


def encode_side(model: Mexma, side: Side) -> tuple[Tensor, Tensor]:
    """Clean sentence vectors [B, D] and masked-pass states [B, L, D]; the two passes run as one batch of 2B rows."""
    ids, mask = torch.cat([side.clean, side.masked]), torch.cat([side.mask, side.mask])
    clean_BLD, masked_BLD = model.encode(ids, mask).chunk(2)
    return clean_BLD[:, 0], masked_BLD


def mexma_loss(model: Mexma, source: Side, target: Side, config: MexmaConfig, candidates: Tensor | None) -> dict[str, Tensor]:
    """All loss terms of a batch and their weighted sum `loss`; accuracy is that of the ranking in the batch."""
    source_BD, source_states = encode_side(model, source)
    target_BD, target_states = encode_side(model, target)

    def token_loss(side: Side, states_BLD: Tensor, other_BD: Tensor) -> Tensor:
        hidden = model.predict(states_BLD, other_BD, side.mask)[side.chosen]
        return masked_token_loss(hidden, side.labels, model.head.vocabulary.weight, model.head.vocabulary.bias, candidates)

    terms = {
        "mlm_source": token_loss(source, source_states, target_BD),
        "mlm_target": token_loss(target, target_states, source_BD),
        "align": alignment_loss(source_BD, target_BD),
        "koleo": (koleo_loss(source_BD) + koleo_loss(target_BD)) / 2,
    }
    terms["loss"] = (
        config.mlm_weight * (terms["mlm_source"] + terms["mlm_target"]) / 2
        + config.align_weight * terms["align"]
        + config.koleo_weight * terms["koleo"]
    )
    contrastive, terms["accuracy"] = contrastive_loss(source_BD, target_BD, config.contrastive_temperature)
    if config.contrastive_weight:
        terms["contrastive"] = contrastive
        terms["loss"] = terms["loss"] + config.contrastive_weight * contrastive
    return terms


def mexma_batch_loss(model: Mexma, sampler: PairSampler, config: MexmaConfig, step: int) -> dict[str, Tensor]:
    """Loss terms of micro-batch number `step`: sampling, masks and dropout depend on (seed, step) alone."""
    torch.manual_seed(config.seed * 1_000_003 + step)
    device, vocab_size = model.head.vocabulary.weight.device, model.head.vocabulary.out_features
    pairs = sampler.length_batch(step, config.batch_pairs)
    source_rng, target_rng, candidate_rng = (np.random.default_rng((config.seed, step, stream)) for stream in range(3))
    source = make_side(sampler.shards.text(pairs, config.max_tokens), config.mask_ratio, vocab_size, source_rng, device)
    target = make_side(sampler.shards.english(pairs, config.max_tokens), config.mask_ratio, vocab_size, target_rng, device)
    candidates = (
        candidate_pieces(source, target, config.sampled_pieces, vocab_size, candidate_rng) if config.sampled_pieces else None
    )
    with torch.autocast(device_type=device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        return mexma_loss(model, source, target, config, candidates)
