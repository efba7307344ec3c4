"""Margin scores of an existing bitext."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from mexma_rt.checks import check_choice
from mexma_rt.errors import InputError
from mexma_rt.knn.margin import MARGINS, margin_scores, neighbour_means
from mexma_rt.knn.search import mutual_neighbours
from mexma_rt.mining.background import Background, model_identity, open_background
from mexma_rt.mining.pairs import Embeds, check_pools, unit_vectors
from mexma_rt.mining.sides import Side


def score_pairs(
    src: Iterable[str] | None = None,
    tgt: Iterable[str] | None = None,
    *,
    margin: str = "ratio",
    k: int = 4,
    encoder: Embeds | None = None,
    source_vectors: np.ndarray | None = None,
    target_vectors: np.ndarray | None = None,
    background: Background | str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Return the margin score, float32 [n], of each pair (src[i], tgt[i]) of an existing bitext.

    A sentence's neighbourhood is its k nearest among the distinct lines of the other side, so scores equal those of `mine` on
    the same lines, and a repeated line is not its own neighbour. A pair with a blank side scores -inf.

    background: a `Background` (background.py), or a file of one, whose lines form the neighbourhoods instead, so that the
    scores of several chunks can be compared. Requires texts, the same k and the same model.

    Arguments and errors are those of `mine`; sides of unequal length raise InputError.
    """
    check_choice("margin", margin, MARGINS)
    source = Side.of(src, source_vectors, "source", unify=True)
    target = Side.of(tgt, target_vectors, "target", unify=True)
    if source.size != target.size:
        raise InputError(
            f"source has {source.size} lines and target {target.size}, but pairs need the same number on each side. "
            "To find the pairs of two corpora that are not aligned, use mine."
        )
    if background is not None:
        return _against(background, source, target, margin, k, encoder, progress)
    check_pools(k, source, target, "distinct sentences")
    x, y = unit_vectors(source, target, encoder, progress)
    cosine_xy, _, cosine_yx, _ = mutual_neighbours(x[source.pool], y[target.pool], k, progress=progress)
    x_mean, y_mean = neighbour_means(cosine_xy)[source.place], neighbour_means(cosine_yx)[target.place]
    scores = margin_scores(np.einsum("nd,nd->n", x, y), x_mean, y_mean, margin).astype(np.float32)
    scores[(source.place < 0) | (target.place < 0)] = -np.inf
    return scores


def _against(
    background: Background | str | os.PathLike[str],
    source: Side,
    target: Side,
    margin: str,
    k: int,
    encoder: Embeds | None,
    progress: bool | None,
) -> np.ndarray:
    if source.texts is None or target.texts is None:
        raise InputError("A background identifies its lines by their text: pass src and tgt as well as the vectors.")
    around = background if isinstance(background, Background) else open_background(background)
    given = source.vectors is not None and target.vectors is not None
    if encoder is None and not given:
        from mexma_rt.embedding.loading import shared_encoder

        encoder = shared_encoder()
    # Given vectors do not say which model made them: the caller vouches for that.
    around.check(k=k, model=around.model if encoder is None else model_identity(encoder))
    x, y = unit_vectors(source, target, encoder, progress)
    return around.scores(source.texts, target.texts, x, y, margin=margin)
