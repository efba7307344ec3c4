"""Token masking for MEXMA (as the collator of facebookresearch/mexma). T tokens of a ragged batch laid end to end.

As BERT: of the chosen tokens 80 % become <mask>, 10 % a random piece, 10 % stay. Deviations from the original, each on purpose:
source and target draw from independent streams (the original seeds both alike, so equal shapes get equal masks), and a random
piece is never a special one (an inserted <pad> would shift the position ids).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPECIAL_IDS = 4  # <s> <pad> </s> <unk> come first, <mask> last


@dataclass(frozen=True, kw_only=True)
class Masked:
    """ids int64 [T] after masking; chosen bool [T]: where the loss is taken (the clean ids there are the labels)."""

    ids: np.ndarray
    chosen: np.ndarray


def mask_tokens(ids: np.ndarray, ratio: float, vocab_size: int, rng: np.random.Generator) -> Masked:
    """Choose ordinary tokens with probability `ratio` each; at least one of the batch if it has any and ratio > 0."""
    ordinary = (ids >= SPECIAL_IDS) & (ids != vocab_size - 1)
    chosen = (rng.random(len(ids)) < ratio) & ordinary
    if ratio > 0 and not chosen.any() and ordinary.any():
        chosen[rng.choice(np.flatnonzero(ordinary))] = True
    how = rng.random(len(ids))
    out = np.where(chosen & (how < 0.8), vocab_size - 1, ids)
    random_piece = chosen & (how >= 0.8) & (how < 0.9)
    out[random_piece] = rng.integers(SPECIAL_IDS, vocab_size - 1, random_piece.sum())
    return Masked(ids=out, chosen=chosen)
