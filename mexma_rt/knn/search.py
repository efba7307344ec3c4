"""Exact nearest neighbours by inner product, in both directions from one matrix product, with numpy alone.

This is the in-memory search, with its checks; blocks.py has the step that it repeats, tiles.py and exact.py make that step fast
and exact, and on_disk.py searches vectors larger than memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mexma_rt.checks import check_dimensions, check_k, check_vectors
from mexma_rt.errors import InputError
from mexma_rt.knn.blocks import Block, absorb_blocks, choose_device, neighbours_of, no_neighbours
from mexma_rt.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The k nearest rows of the other side for x [n, D] and y [m, D], best first, and how they were found."""

    scores_xy: np.ndarray  # [n, k] float32
    index_xy: np.ndarray  # [n, k] int64
    scores_yx: np.ndarray  # [m, k]
    index_yx: np.ndarray  # [m, k]
    device: str
    reason: str  # why this device
    precision: str  # of the scan; scores are exact whatever it is
    computed_anew: int  # rows of both sides whose scan result could not be proved complete


def mutual_neighbours(
    x: np.ndarray,
    y: np.ndarray,
    k: int,
    *,
    memory_bytes: int = 256 << 20,
    progress: bool | None = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the k nearest rows of y for every row of x and the k nearest rows of x for every row of y.

    x is [n, D] and y is [m, D]; any real type, taken as float32; neither is modified. The result is
    (scores_xy [n, k] float32, index_xy [n, k] int64, scores_yx [m, k], index_yx [m, k]), best first, and lower indices first
    among equal scores. Scores are inner products in float64, rounded once to float32: the result depends only on the vectors,
    not on tiles, threads, the BLAS or the device, and equal rows tie.
    memory_bytes bounds the working memory besides inputs and results (a tile of 256 x 256 is the minimum; a side in which a row
    occurs more than k times is copied).
    progress: a bar on stderr; None shows it on a terminal if the job takes longer than a second.
    device: "cpu", "cuda" (all GPUs; by torch or cupy) or "auto". `neighbours` is the same call with a report.
    On a CPU, the whole process's BLAS is limited to one thread during products of more than 2 million cells (lanes.py).

    Raises InputError for arrays that are not two-dimensional or disagree in D, for NaN, infinity or values so large that
    their product overflows float32, and for a k below 1 or above the size of either side; BackendError or MissingExtraError for
    "cuda" if there is none.
    """
    found = neighbours(x, y, k, memory_bytes=memory_bytes, progress=progress, device=device)
    return found.scores_xy, found.index_xy, found.scores_yx, found.index_yx


def neighbours(
    x: np.ndarray,
    y: np.ndarray,
    k: int,
    *,
    memory_bytes: int = 256 << 20,
    progress: bool | None = None,
    device: str = "cpu",
) -> Neighbours:
    """Like `mutual_neighbours`, but also report what ran and how many rows had to be recomputed to be exact."""
    x, y = _checked(x, y)
    check_k(k, {"x": len(x), "y": len(y)}, "rows")
    where = choose_device(device)
    blocks = (Block.of(side, k, 0, where=where) for side in (x, y))
    by_x, by_y = no_neighbours(len(x), k), no_neighbours(len(y), k)
    with progress_bar(progress, total=len(x) * len(y), desc="neighbours", unit="cell") as advance:
        anew = absorb_blocks(by_x, by_y, *blocks, memory_bytes=memory_bytes, advance=advance, where=where)
    (scores_xy, index_xy), (scores_yx, index_yx) = neighbours_of(by_x), neighbours_of(by_y)
    return Neighbours(
        scores_xy=scores_xy,
        index_xy=index_xy,
        scores_yx=scores_yx,
        index_yx=index_yx,
        device=where.name,
        reason=where.reason,
        precision=where.precision,
        computed_anew=anew,
    )


def nearest(x: np.ndarray, y: np.ndarray, k: int, *, memory_bytes: int = 256 << 20) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest rows of y for every row of x only: (scores [n, k] float32, index [n, k] int64).

    Equal bit for bit to `mutual_neighbours`, without the work for the other direction; x may have any number of rows. Raises
    the same errors.
    """
    x, y = _checked(x, y)
    check_k(k, {"y": len(y)}, "rows")
    by_x = no_neighbours(len(x), k)
    if len(x):
        absorb_blocks(by_x, None, Block.of(x, k, 0), Block.of(y, k, 0), memory_bytes=memory_bytes)
    return neighbours_of(by_x)


def _checked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = check_vectors(x, "x"), check_vectors(y, "y")
    check_dimensions(x, y, "x", "y")
    if len(x) and len(y) and _largest(x) * _largest(y) * x.shape[1] > float(np.finfo(np.float32).max):
        raise InputError("x and y are so long that their products overflow float32. Normalise them, for example by unit_rows.")
    return x, y


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Return a float32 copy of vectors [n, D] with rows of length 1; a zero row stays zero."""
    unit = np.array(vectors, np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", unit, unit, dtype=np.float64))
    unit /= np.where(lengths > 0, lengths, 1)[:, None]
    return unit


def _largest(vectors: np.ndarray) -> float:
    return max(float(vectors.max()), -float(vectors.min()))
