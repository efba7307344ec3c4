"""Retrieval between two aligned sets of sentence vectors: xsim and xsim++ error rates, and accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mexma_rt.checks import check_dimensions, check_vectors
from mexma_rt.errors import InputError
from mexma_rt.evaluation.augmented import MISALIGNED, Augmented
from mexma_rt.knn.search import mutual_neighbours, unit_rows
from mexma_rt.mining.candidates import ScoredNeighbours


@dataclass(frozen=True, kw_only=True)
class XsimResult:
    """error_rate is 100 * errors / total, in percent; predictions [n] are the rows of y that were found.

    by_type (with error_types only) counts errors by what was found: the kind of alteration for an altered copy of the right
    line, otherwise "Misaligned".
    """

    error_rate: float
    errors: int
    total: int
    predictions: np.ndarray = field(repr=False, compare=False)
    by_type: dict[str, int] | None = None


def xsim(
    x: np.ndarray,
    y: np.ndarray,
    *,
    margin: str = "ratio",
    k: int = 4,
    text: Sequence[str] | None = None,
    error_types: Mapping[str, Augmented] | None = None,
) -> XsimResult:
    """Return how often x[i] does not find y[i] by margin, as LASER's xsim (facebookresearch/LASER, source/xsim.py).

    x [n, D] and y [m, D] need not be normalised and are never modified. One direction, x -> y: the candidates for x[i] are its
    k nearest rows of y; the highest margin wins, and the nearest among equals. Without text, m must equal n. With text, the m
    lines of y, a row found is also right if its line equals line i, and y may continue after row n with lines that have no
    partner.

    xsim++ (Chen et al., ACL 2023, arXiv 2306.12907): y and text are the n right lines followed by their altered copies, and
    error_types says which line each copy was made from, and how; `mexma_rt.evaluation.read_augmented` reads both from LASER's
    files. Raises InputError for shapes that do not match, NaN, an unknown margin and a k above n or m.
    """
    x, y = _aligned(x, y, pool=text is not None)
    if text is not None and (isinstance(text, str) or len(text) != len(y)):
        raise InputError(f"text has {len(text)} lines, but y has {len(y)} vectors: pass the line of each row of y.")
    if error_types is not None and text is None:
        raise InputError("error_types needs lines, but text is missing: pass the line of each row of y as text=.")
    neighbours = ScoredNeighbours.of(*mutual_neighbours(x, y, k, progress=False), margin=margin)
    return _result(neighbours, text, error_types)


def xsim_both(
    x: np.ndarray,
    y: np.ndarray,
    *,
    margin: str = "ratio",
    k: int = 4,
    x_text: Sequence[str] | None = None,
    y_text: Sequence[str] | None = None,
) -> tuple[XsimResult, XsimResult]:
    """Compute `xsim` for x -> y and y -> x, for sides [n, D] of n rows each, from one matrix product."""
    x, y = _aligned(x, y, pool=False)
    neighbours = ScoredNeighbours.of(*mutual_neighbours(x, y, k, progress=False), margin=margin)
    return _result(neighbours, y_text, None), _result(neighbours.turned(), x_text, None)


def retrieval_accuracy(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the percentage of rows whose nearest row by cosine is their partner: (x -> y, y -> x).

    x and y are [n, D], of any norm, and never modified. This is the protocol of the Tatoeba test set (Artetxe and
    Schwenk, TACL 2019, arXiv 1812.10464). Ties go to the lower index.
    """
    x, y = _aligned(x, y, pool=False)
    _, index_xy, _, index_yx = mutual_neighbours(x, y, 1, progress=False)
    truth = np.arange(len(x))
    return 100 * float((index_xy[:, 0] == truth).mean()), 100 * float((index_yx[:, 0] == truth).mean())


def _result(
    neighbours: ScoredNeighbours, text: Sequence[str] | None, error_types: Mapping[str, Augmented] | None
) -> XsimResult:
    total = len(neighbours.x_mean)
    found = neighbours.best(slice(None))[0]
    right = found == np.arange(total)
    if text is not None:
        right |= np.array([text[j] == text[i] for i, j in enumerate(found.tolist())])
    errors = int((~right).sum())
    by_type = None
    if error_types is not None and text is not None:
        by_type = dict.fromkeys([*sorted({a.kind for a in error_types.values()}), MISALIGNED], 0)
        for i in np.flatnonzero(~right).tolist():
            altered = error_types.get(text[found[i]])
            by_type[altered.kind if altered is not None and altered.source == text[i] else MISALIGNED] += 1
    return XsimResult(error_rate=100 * errors / total, errors=errors, total=total, predictions=found, by_type=by_type)


def _aligned(x: np.ndarray, y: np.ndarray, pool: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return normalised copies, or raise InputError unless row i of x has its partner in row i of y."""
    x, y = check_vectors(x, "x"), check_vectors(y, "y")
    check_dimensions(x, y, "x", "y")
    if len(y) < len(x) or (len(y) > len(x) and not pool):
        raise InputError(
            f"x has {len(x)} rows and y {len(y)}, but row i of x is compared with row i of y. "
            "Pass the same number of rows on each side (more in y only together with text)."
        )
    return unit_rows(x), unit_rows(y)
