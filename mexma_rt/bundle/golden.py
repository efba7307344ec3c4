"""Golden vectors of a bundle: computed by the exporter, to be reproduced on every machine.

A few sentences, with the unit vectors that the source checkpoint computes for them in fp32. A back end that opens and returns
numbers may still return wrong ones (a broken driver, a miscompiled kernel, a damaged library); these reveal it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# The cosine that every golden sentence must reach, per precision: the thresholds of mexma-export's parity gate. (A bundle that
# was allowed through with less is held to twice the greatest distance that its export measured.)
LEAST_COSINE = {"fp32": 0.99999, "fused": 0.99999, "fp16": 0.9999, "mixed": 0.999, "int8": 0.995, "w8": 0.995, "w4": 0.995}


@dataclass(frozen=True, kw_only=True)
class Golden:
    """n sentences and their vectors [n, D]."""

    texts: tuple[str, ...]
    vectors: tuple[tuple[float, ...], ...]
    precision_note: str = ""  # how they were computed

    def to_json(self) -> dict[str, Any]:
        """The entry `golden` of a manifest."""
        return {"texts": list(self.texts), "vectors": list(map(list, self.vectors)), "precision_note": self.precision_note}

    def lowest_cosine(self, vectors: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        """Return the lowest cosine between vectors [n, D] and the golden ones, row by row; NaN if a number is not finite.

        rows: numbers [n] of the golden sentences that the vectors belong to; by default all.
        """
        golden, vectors = np.array(self.vectors)[rows], vectors.astype(np.float64)
        lengths = np.linalg.norm(golden, axis=1) * np.linalg.norm(vectors, axis=1)
        return float(((golden * vectors).sum(axis=1) / np.where(lengths > 0, lengths, 1)).min())


def read_golden(value: Any, dimensions: int) -> Golden:
    """Parse the manifest's entry `golden`. Raises ValueError saying what is wrong."""
    texts, vectors = (value.get("texts"), value.get("vectors")) if isinstance(value, dict) else (None, None)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("golden has no texts")
    try:
        rows = np.array(vectors, np.float64)
    except (TypeError, ValueError):
        rows = np.empty(0)
    if rows.shape != (len(texts), dimensions) or not np.isfinite(rows).all():
        raise ValueError(f"golden does not have {len(texts)} vectors of {dimensions} finite numbers")
    note = str(value.get("precision_note", ""))
    return Golden(texts=tuple(texts), vectors=tuple(map(tuple, rows.tolist())), precision_note=note)
