"""The rounding of a product's weight for products by rows: 8 bits, a scale for each output channel (mexma_export/rows.py)."""

from __future__ import annotations

import numpy as np

LOWEST_GELU = 0.17  # GELU's minimum is -0.16997; added to its results, so that unsigned codes hold them
TINY = 1e-30  # instead of the scale of a row of zeros


def row_codes(weight: np.ndarray, smoothing: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Round float32 [N, K], times smoothing [K] if any; returns int8 codes [N, K] and float32 scales [N].

    number = scale * code / smoothing, |code| <= 127.
    """
    weight = weight if smoothing is None else weight * smoothing
    scales = (np.maximum(np.abs(weight).max(axis=1), TINY) / 127).astype(np.float32)
    return np.rint(weight / scales[:, None]).astype(np.int8), scales
