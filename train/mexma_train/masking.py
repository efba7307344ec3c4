"""Token masking for MEXMA, as in the collator of facebookresearch/mexma.

As in BERT, 80 % of the chosen tokens become <mask>, 10 % a random piece, and 10 % stay. There are two deliberate deviations,
each with a switch in MexmaConfig: source and target draw from independent streams (the original seeds both alike, so equal
shapes get equal masks: `masks="shared"`), and a random piece is never a special one (an inserted <pad> shifts the position
numbers: `random_pieces="all"`). T tokens of S sentences laid end to end; L is the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

SPECIAL_IDS = 4  # <s> <pad> </s> <unk> come first, <mask> last


@dataclass(frozen=True, kw_only=True)
class Masked:
    """ids int64 [T] after masking; chosen bool [T]: where the loss is taken (the clean ids there are the labels)."""

    ids: np.ndarray
    chosen: np.ndarray


def mask_tokens(
    ids: np.ndarray,
    ratio: float,
    vocab_size: int,
    rng: np.random.Generator,
    *,
    random_pieces: Literal["ordinary", "all"] = "ordinary",
    grid_lengths: np.ndarray | None = None,
) -> Masked:
    """Choose ordinary tokens with probability `ratio` each (at least one, if the batch has any and ratio > 0) and mask them.

    With `grid_lengths` [S] random numbers are drawn for the padded S x L table, as in the original: two sides of equal shape
    and equal seed then have the same positions chosen.
    """

    def uniform() -> np.ndarray:
        if grid_lengths is None:
            return rng.random(len(ids))
        table = np.arange(grid_lengths.max()) < grid_lengths[:, None]
        return rng.random(table.shape)[table]

    ordinary = (ids >= SPECIAL_IDS) & (ids != vocab_size - 1)
    chosen = (uniform() < ratio) & ordinary
    if ratio > 0 and not chosen.any() and ordinary.any():
        chosen[rng.choice(np.flatnonzero(ordinary))] = True
    how = uniform()
    out = np.where(chosen & (how < 0.8), vocab_size - 1, ids)
    random_piece = chosen & (how >= 0.8) & (how < 0.9)
    low, high = (SPECIAL_IDS, vocab_size - 1) if random_pieces == "ordinary" else (0, vocab_size)
    out[random_piece] = rng.integers(low, high, random_piece.sum())
    return Masked(ids=out, chosen=chosen)
