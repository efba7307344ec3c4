"""Warns of corpora whose mining scores mean little: too small, nearly equal on both sides, or full of near duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mexma_rt.mining.candidates import ScoredNeighbours
from mexma_rt.mining.sides import Side

# Measured with the model before mexma-small on Tatoeba (deu, hin, jpn, tur), corpora without any translation: ratio >= 1.06
# keeps 72 to 75 % of 8 lines, 55 to 61 % of 64, 43 to 48 % of 500. With so few lines, some pair always stands out.
FEW_LINES = 1000
# Share of lines that have another line of the same side this near: 0.2 % or less in Tatoeba and FLORES (eng, deu, jpn, khm).
NEAR_COSINE, NEAR_SHARE = 0.98, 0.05
SHARED = 0.2  # share of the smaller side's lines (without texts, vectors) that the other side has too
SAME_COSINE = 0.9999  # of equal vectors, stored in float16 at worst
SAMPLE = 1000  # lines whose nearest line of the same side is searched
COMPARED_ROWS = 65_536

KINDS = {  # of warnings, and what a page calls them
    "tiny": "Few lines",
    "zeros": "Vectors of zeros",
    "identical": "Identical lines",
    "near-duplicates": "Near-duplicates",
    "threshold": "Threshold of another model",
    "prompt": "Threshold of another prompt",
}


@dataclass(frozen=True, kw_only=True)
class MiningWarning:
    """kind: of KINDS; side: "source", "target" or "both".

    share: of the lines concerned (tiny: the fewest lines).
    """

    kind: str
    side: str
    share: float
    message: str


def find_warnings(
    source: Side, target: Side, x: np.ndarray, y: np.ndarray, neighbours: ScoredNeighbours
) -> tuple[MiningWarning, ...]:
    """Return the warnings, most important first. x, y: unit vectors [p, D], [q, D] of the compared lines."""
    found = [_tiny(source, target)]
    found += [_zeros(side, cosine) for side, cosine in ((source, neighbours.cosine_xy), (target, neighbours.cosine_yx))]
    found.append(_identical(source, target, neighbours))
    found += [_near_duplicates(side, vectors) for side, vectors in ((source, x), (target, y))]
    return tuple(warning for warning in found if warning is not None)


def _tiny(source: Side, target: Side) -> MiningWarning | None:
    few = [side for side in (source, target) if len(side.pool) < FEW_LINES]
    if not few:
        return None
    counts = " and ".join(f"the {side.name} {len(side.pool):,}" for side in few)
    return MiningWarning(
        kind="tiny",
        side="both" if len(few) == 2 else few[0].name,
        share=min(len(side.pool) for side in few),
        message=f"Fewer than {FEW_LINES:,} different lines ({counts}): among so few, some pair always stands out, so a score "
        "proves little. Read the pairs, raise the threshold, or align parallel documents instead.",
    )


def _zeros(side: Side, cosine: np.ndarray) -> MiningWarning | None:
    """Find zero vectors by their cosines [n, k] to the neighbours: no other vector has exactly 0 to all of them."""
    count = sum(
        int((cosine[start : start + COMPARED_ROWS] == 0).all(axis=1).sum()) for start in range(0, len(cosine), COMPARED_ROWS)
    )
    if not count:
        return None
    return MiningWarning(
        kind="zeros",
        side=side.name,
        share=count / len(cosine),
        message=f"{count:,} vectors of the {side.name} are zeros, or find nothing but zeros on the other side: their cosines "
        "are all 0, so their scores are meaningless. Embed their lines again.",
    )


def _identical(source: Side, target: Side, neighbours: ScoredNeighbours) -> MiningWarning | None:
    if source.texts is not None and target.texts is not None:
        lines = {target.texts[row] for row in target.pool.tolist()}
        count, what = sum(source.texts[row] in lines for row in source.pool.tolist()), "lines"
    else:
        count, what = int((np.asarray(neighbours.cosine_xy[:, 0]) >= SAME_COSINE).sum()), "vectors"
    share = count / min(len(source.pool), len(target.pool))
    if share < SHARED:
        return None
    return MiningWarning(
        kind="identical",
        side="both",
        share=min(1.0, share),
        message=f"{count:,} {what} of the source ({min(1.0, share):.0%} of the smaller side) are on the target side as well: "
        "they find themselves, with the highest scores. Check that these are the right files; copies in a bitext are dropped "
        "by: mexma filter.",
    )


def _near_duplicates(side: Side, vectors: np.ndarray) -> MiningWarning | None:
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(SAMPLE, len(vectors))).astype(np.int64))
    sample, nearest = np.asarray(vectors[rows]), np.full(len(rows), -1, np.float32)
    for start in range(0, len(vectors), COMPARED_ROWS):
        cosine = sample @ np.asarray(vectors[start : start + COMPARED_ROWS]).T
        own = (rows >= start) & (rows < start + COMPARED_ROWS)
        cosine[own, rows[own] - start] = -1
        nearest = np.maximum(nearest, cosine.max(axis=1))
    share = float((nearest >= NEAR_COSINE).mean())
    if share < NEAR_SHARE:
        return None
    return MiningWarning(
        kind="near-duplicates",
        side=side.name,
        share=share,
        message=f"{share:.0%} of the {side.name} lines have another {side.name} line with a cosine of {NEAR_COSINE} or more "
        f"(of a sample of {len(rows):,}): near duplicates fill the neighbourhoods, which lowers the margin of right pairs, and "
        "which of the copies is chosen is chance. Remove near duplicates first, or raise k.",
    )
