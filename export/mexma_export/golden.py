"""Computes two entries of the manifest: `golden`, vectors to check an engine with, and `ranges`, to quantise vectors with.

Both describe normalised vectors of the source checkpoint in fp32, not of an exported graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mexma_export.reopen import Runner
from mexma_rt.bundle.golden import Golden
from mexma_rt.files.storage import Ranges

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The same sentence in five scripts, short so that a check costs nothing.
GOLDEN = (
    "The cat sleeps on the warm stone.",
    "Кошка спит на тёплом камне.",
    "القطة نائمة على الحجر الدافئ.",
    "बिल्ली गरम पत्थर पर सो रही है।",
    "猫在温暖的石头上睡觉。",
)
DECIMALS = 7  # numbers of a normalised vector are at most 1, where float32 has seven decimals
PRECISION_NOTE = (
    "Normalised {what} of the source checkpoint in fp32, one sentence at a time, rounded to 7 decimals. A graph agrees as "
    "far as its parity entry says: compare cosines with the lowest one there, not numbers."
)


def golden_vectors(reference: Runner, tokenizer: Tokenizer, max_length: int, *, what: str = "<s> states") -> Golden:
    """Compute the vectors [5, D] of five texts, cut at `max_length` tokens; `what` names them in the note."""
    vectors = []
    for text in GOLDEN:
        ids = tokenizer.encode(text).ids
        row = np.array([ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]], dtype=np.int64)
        vectors.append(_normalised(reference(row, np.ones_like(row))[0])[0])
    return Golden(texts=GOLDEN, vectors=tuple(map(_decimals, vectors)), precision_note=PRECISION_NOTE.format(what=what))


def vector_ranges(vectors: np.ndarray, source: str) -> Ranges:
    """Return the lowest and highest number of each dimension over sentence vectors [n, D], after normalising them.

    sentence-transformers calls these calibration ranges: with fixed ones, equal texts get equal int8 codes.
    """
    unit = _normalised(vectors)
    return Ranges(minimum=_decimals(unit.min(axis=0)), maximum=_decimals(unit.max(axis=0)), source=source)


def describe_source(sentences: Sequence[object], shipped: bool) -> str:
    """Describe, for the manifest, the sentences that the ranges of int8 vectors were measured on."""
    what = "shipped parity sentences" if shipped else "sentences of --verify"
    return f"the source checkpoint's normalised vectors of the {len(sentences)} {what}"


def _normalised(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(norms > 0, norms, 1)


def _decimals(row: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(number), DECIMALS) for number in row)
