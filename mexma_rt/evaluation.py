"""How well two aligned sets of sentence vectors find each other: xsim error and retrieval accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mexma_rt.errors import InputError
from mexma_rt.knn import check_dimensions, check_vectors, mutual_neighbours, unit_rows
from mexma_rt.margin import margin_scores, neighbour_means


@dataclass(frozen=True, kw_only=True)
class XsimResult:
    """error_rate is 100 * errors / total, in percent; predictions [n] are the rows of y that were found."""

    error_rate: float
    errors: int
    total: int
    predictions: np.ndarray = field(repr=False, compare=False)


def xsim(x: np.ndarray, y: np.ndarray, *, margin: str = "ratio", k: int = 4, text: Sequence[str] | None = None) -> XsimResult:
    """Return how often x[i] does not find y[i] by margin, as LASER's xsim (facebookresearch/LASER, source/xsim.py).

    x [n, D] and y [m, D] are of any length and never modified. One direction, x -> y: the candidates of x[i] are its k
    nearest rows of y; the highest margin wins, the nearest of equals. Without text, m must be n. With text, the m lines
    of y, a row found also counts as right when its line equals line i, and y may go on after row n with lines that have
    no partner.

    Raises InputError for shapes that do not fit, NaN, an unknown margin and a k above n or m.
    """
    x, y = _aligned(x, y, pool=text is not None)
    if text is not None and (isinstance(text, str) or len(text) != len(y)):
        raise InputError(f"text has {len(text)} lines, but y has {len(y)} vectors: give the line of each row of y.")
    cosine_xy, index_xy, cosine_yx, _ = mutual_neighbours(x, y, k)
    scores = margin_scores(cosine_xy, neighbour_means(cosine_xy)[:, None], neighbour_means(cosine_yx)[index_xy], margin)
    found = index_xy[np.arange(len(x)), scores.argmax(axis=1)]
    right = found == np.arange(len(x))
    if text is not None:
        right |= np.array([text[j] == text[i] for i, j in enumerate(found.tolist())])
    errors = int((~right).sum())
    return XsimResult(error_rate=100 * errors / len(x), errors=errors, total=len(x), predictions=found)


def retrieval_accuracy(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the percentage of rows whose nearest row by cosine is their partner: (x -> y, y -> x).

    x and y are [n, D], of any length and never modified. This is the protocol of the Tatoeba test set (Artetxe and
    Schwenk, TACL 2019, arXiv 1812.10464). Of equal cosines the lower index is taken.
    """
    x, y = _aligned(x, y, pool=False)
    _, index_xy, _, index_yx = mutual_neighbours(x, y, 1)
    truth = np.arange(len(x))
    return 100 * float((index_xy[:, 0] == truth).mean()), 100 * float((index_yx[:, 0] == truth).mean())


def _aligned(x: np.ndarray, y: np.ndarray, pool: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return normalised copies, or raise InputError unless row i of x has its partner in row i of y."""
    x, y = check_vectors(x, "x"), check_vectors(y, "y")
    check_dimensions(x, y, "x", "y")
    if len(y) < len(x) or (len(y) > len(x) and not pool):
        raise InputError(
            f"x has {len(x)} rows and y {len(y)}, but row i of x is compared with row i of y. "
            "Give as many rows on each side (more in y only together with text)."
        )
    return unit_rows(x), unit_rows(y)
