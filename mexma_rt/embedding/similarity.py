"""Cosines between two sets of vectors."""

from __future__ import annotations

import numpy as np

from mexma_rt.errors import InputError
from mexma_rt.files.storage import normalized


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of a [n, D] with each row of b [m, D]: float32 [n, m]; 0 for a zero row."""
    check_columns(a, b)
    found: np.ndarray = normalized(a) @ normalized(b).T
    return found


def pairwise_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of a [n, D] with the same row of b [n, D]: float32 [n]."""
    check_columns(a, b)
    if len(a) != len(b):
        raise InputError(f"{len(a)} and {len(b)} vectors cannot be paired. Pass the same number on both sides.")
    found: np.ndarray = (normalized(a) * normalized(b)).sum(axis=1)
    return found


def check_columns(a: np.ndarray, b: np.ndarray) -> None:
    """Raise InputError unless both have two axes and the same number of dimensions."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(f"Vectors of shapes {a.shape} and {b.shape} cannot be compared: both must have the same dimensions.")
