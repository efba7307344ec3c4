"""Margin scores of a ready bitext."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mexma_rt.corpus import Side
from mexma_rt.errors import InputError
from mexma_rt.knn import mutual_neighbours
from mexma_rt.margin import MARGINS, check_choice, margin_scores, neighbour_means
from mexma_rt.mining import Embeds, check_pools, unit_vectors


def score_pairs(
    src: Iterable[str] | None = None,
    tgt: Iterable[str] | None = None,
    *,
    margin: str = "ratio",
    k: int = 4,
    encoder: Embeds | None = None,
    source_vectors: np.ndarray | None = None,
    target_vectors: np.ndarray | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Return the margin score, float32 [n], of each pair (src[i], tgt[i]) of an existing bitext.

    A sentence's neighbourhood is its k nearest among the distinct lines of the other side, so scores equal those of
    `mine` on the same lines, and a line that is often repeated is no neighbour of itself. A pair with a blank side
    scores -inf. Arguments and errors are those of `mine`; sides of unequal length raise InputError.
    """
    check_choice("margin", margin, MARGINS)
    source = Side.of(src, source_vectors, "source", unify=True)
    target = Side.of(tgt, target_vectors, "target", unify=True)
    if source.size != target.size:
        raise InputError(
            f"source has {source.size} lines and target {target.size}, but pairs need as many on each side. "
            "To find the pairs of two corpora that are not aligned, use mine."
        )
    check_pools(k, source, target, "distinct sentences")
    x, y = unit_vectors(source, target, encoder, progress)
    cosine_xy, _, cosine_yx, _ = mutual_neighbours(x[source.pool], y[target.pool], k, progress=progress)
    x_mean, y_mean = neighbour_means(cosine_xy)[source.place], neighbour_means(cosine_yx)[target.place]
    scores = margin_scores(np.einsum("nd,nd->n", x, y), x_mean, y_mean, margin).astype(np.float32)
    scores[(source.place < 0) | (target.place < 0)] = -np.inf
    return scores
