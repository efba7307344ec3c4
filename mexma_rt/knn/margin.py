"""Margin scores (Artetxe and Schwenk, ACL 2019, arXiv 1811.01136): how far a pair stands out from its neighbourhoods.

A plain cosine misleads, because some sentences are close to everything. The margin compares the cosine of a pair with
the mean cosine of each sentence to its k nearest neighbours on the other side.
"""

from __future__ import annotations

import numpy as np

from mexma_rt.checks import check_choice

MARGINS = ("ratio", "distance", "absolute")


def neighbour_means(scores: np.ndarray) -> np.ndarray:
    """Return the mean cosine of each sentence to its neighbours: scores [n, k] -> float64 [n]."""
    means: np.ndarray = scores.mean(axis=1, dtype=np.float64)
    return means


def margin_scores(cosine: np.ndarray, x_mean: np.ndarray, y_mean: np.ndarray, margin: str) -> np.ndarray:
    """Return float64 scores of candidate pairs from their cosines and neighbour means, all of shapes that broadcast.

    With mean = (x_mean + y_mean) / 2, "ratio" is cosine / mean, "distance" is cosine - mean and "absolute" is the cosine.
    Where the mean is not positive the ratio is meaningless (division would invert the order) and is set to 0.
    """
    check_choice("margin", margin, MARGINS)
    cosine = np.asarray(cosine, np.float64)
    if margin == "absolute":
        return cosine
    mean = (np.asarray(x_mean, np.float64) + y_mean) / 2
    scores = np.zeros(np.broadcast_shapes(cosine.shape, mean.shape))
    if margin == "distance":
        np.subtract(cosine, mean, out=scores)
    else:
        np.divide(cosine, mean, out=scores, where=mean > 0)
    return scores
