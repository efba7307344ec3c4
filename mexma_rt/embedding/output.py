"""The result array of a call: checks its arguments, creates or accepts the array, and copies rows of equal texts."""

from __future__ import annotations

import numpy as np

from mexma_rt.checks import check_count
from mexma_rt.errors import InputError
from mexma_rt.files.storage import STORAGES

COPY_ROWS = 65536  # duplicates are copied in blocks of this many rows, so that no large temporary is made


def distinct_rows(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (the rows where a text first occurs, ascending; for each row, the first row with its text), both int64."""
    first: dict[str, int] = {}
    row_of = np.fromiter((first.setdefault(text, row) for row, text in enumerate(texts)), dtype=np.int64)
    return np.fromiter(first.values(), dtype=np.int64), row_of


def copy_duplicates(vectors: np.ndarray, row_of: np.ndarray) -> None:
    duplicates = np.flatnonzero(row_of != np.arange(len(row_of)))
    for start in range(0, len(duplicates), COPY_ROWS):
        rows = duplicates[start : start + COPY_ROWS]
        vectors[rows] = vectors[row_of[rows]]


def result_array(out: np.ndarray | None, shape: tuple[int, int], precision: str) -> np.ndarray:
    dtype = np.dtype(STORAGES[precision])
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
        found = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"out is {found}, but these texts at precision={precision!r} need an array {dtype} {shape}.")
    if not out.flags.writeable:
        raise InputError("out is read-only. Open the memmap with mode 'r+' or 'w+'.")
    return out


def check_truncate_dim(truncate_dim: int | None, dimensions: int) -> None:
    if truncate_dim is not None and check_count("truncate_dim", truncate_dim) > dimensions:
        raise InputError(f"truncate_dim={truncate_dim} is more than the {dimensions} dimensions of the model.")
