"""Storage formats of vectors: what a row holds, and how to get comparable numbers back.

| precision | array holds                              | back to float32 [n, D] (`Encoder.restore`)          |
|-----------|------------------------------------------|-----------------------------------------------------|
| float32   | float32 [n, D]                           | unchanged                                           |
| float16   | float16 [n, D]                           | x.astype(np.float32)                                |
| uint8     | uint8 [n, D], one of 256 equal buckets   | minimum + (x + 0.5) * (maximum - minimum) / 255     |
| int8      | int8 [n, D], the same bucket minus 128   | minimum + (x + 128.5) * (maximum - minimum) / 255   |
| ubinary   | uint8 [n, ceil(D / 8)], sign bits        | np.unpackbits(x, axis=1) * 2.0 - 1                  |
| binary    | int8, the same bytes minus 128           | as ubinary, of (x.astype(int) + 128).astype("u1")   |

Names and bytes match sentence-transformers' quantize_embeddings, given the same ranges. The per-dimension ranges of int8 and
uint8 come from the bundle and never from the batch, so that rows of two calls, two files or two machines can be compared; a
component outside its range goes to the outermost bucket. The ranges describe vectors of length 1 with all D dimensions: with
`truncate_dim` the first columns of those rows are kept without renormalising, which would leave the ranges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mexma_rt.errors import InputError

STORAGES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}
BUCKETS = ("int8", "uint8")
SIGNS = ("binary", "ubinary")


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The lowest and highest value of each of the D dimensions, over many sentence vectors of length 1."""

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    source: str = field(default="", compare=False)  # which vectors they were measured on

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's entry `ranges`."""
        return {"minimum": list(self.minimum), "maximum": list(self.maximum), "source": self.source}

    @property
    def start_and_step(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the first bucket begins and how wide each is, float32 [D] twice. A constant dimension has a step of 1."""
        start = np.array(self.minimum, np.float32)
        step = (np.array(self.maximum, np.float32) - start) / 255
        return start, np.where(step == 0, np.float32(1), step)


def read_ranges(value: Any, dimensions: int) -> Ranges:
    """Parse the manifest's entry `ranges`. Raises ValueError saying what is wrong."""
    sides: list[Any] = [value.get(name) if isinstance(value, dict) else None for name in ("minimum", "maximum")]
    for side in sides:
        if not isinstance(side, list) or len(side) != dimensions or not all(type(x) in (int, float) for x in side):
            raise ValueError(f"ranges does not have {dimensions} numbers under both minimum and maximum")
    if not np.isfinite(sides).all() or (np.array(sides[0]) > np.array(sides[1])).any():
        raise ValueError("ranges has a minimum that is greater than its maximum, or a number that is not finite")
    source = str(value.get("source", ""))
    return Ranges(minimum=tuple(map(float, sides[0])), maximum=tuple(map(float, sides[1])), source=source)


def check_storage(precision: str, normalize: bool) -> None:
    """Raise InputError for an unknown storage, or one that would lose the lengths of unnormalised vectors."""
    if precision not in STORAGES:
        raise InputError(
            f"precision={precision!r} is not a storage format. Type one of: {', '.join(STORAGES)}. "
            "(The precision of the computation is an argument of load.)"
        )
    if not normalize and precision not in ("float32", "float16"):
        raise InputError(
            f"{precision} keeps directions only, so raw vectors would lose their lengths. Type 'float32' or 'float16'."
        )


def stored_columns(dimensions: int, precision: str) -> int:
    """Return the number of columns that store vectors of D dimensions."""
    return -(-dimensions // 8) if precision in SIGNS else dimensions


def finish(raw: np.ndarray, *, normalize: bool, precision: str, truncate_dim: int | None, ranges: Ranges | None) -> np.ndarray:
    """Truncate, normalise and quantise raw sentence vectors [n, D] as requested; see the table above."""
    if precision in BUCKETS:
        buckets = _buckets(normalized(raw), _needed(ranges, precision))[:, :truncate_dim]
        return buckets.astype(np.uint8) if precision == "uint8" else (buckets - 128).astype(np.int8)
    if precision in SIGNS:  # of normalised vectors, in which the very smallest numbers become zero
        bits = np.packbits(normalized(raw)[:, :truncate_dim] > 0, axis=1)
        return bits if precision == "ubinary" else (bits ^ 128).view(np.int8)
    vectors = raw[:, :truncate_dim]
    return (normalized(vectors) if normalize else vectors).astype(STORAGES[precision], copy=False)


def restore(vectors: np.ndarray, dimensions: int, ranges: Ranges | None, precision: str | None = None) -> np.ndarray:
    """Turn stored vectors [n, d] of a model with D dimensions into float32 [n, d]; see `Encoder.restore`."""
    if vectors.dtype.kind == "f" and precision in (None, "float32", "float16"):
        return vectors.astype(np.float32, copy=False)
    kinds = {name: np.dtype(dtype) for name, dtype in STORAGES.items() if np.dtype(dtype) == vectors.dtype}
    if precision is None:
        fitting = [name for name in kinds if stored_columns(dimensions, name) == vectors.shape[1]]
        if len(fitting) != 1:
            raise InputError(
                f"Vectors {vectors.dtype} {vectors.shape} are not whole vectors of {dimensions} dimensions, so say how they "
                f"are stored: precision={' or '.join(map(repr, kinds)) or 'float32'}."
            )
        (precision,) = fitting
    if precision not in kinds or vectors.shape[1] > stored_columns(dimensions, precision):
        raise InputError(
            f"Vectors {vectors.dtype} {vectors.shape} cannot be {precision} of a model with {dimensions} dimensions."
        )
    if precision in SIGNS:
        bits = vectors.astype(np.uint8) if precision == "ubinary" else vectors.view(np.uint8) ^ np.uint8(128)
        return np.unpackbits(bits, axis=1, count=min(8 * bits.shape[1], dimensions)).astype(np.float32) * 2 - 1
    start, step = _needed(ranges, precision).start_and_step
    first = np.float32(0.5 if precision == "uint8" else 128.5)
    middles: np.ndarray = start[: vectors.shape[1]] + (vectors.astype(np.float32) + first) * step[: vectors.shape[1]]
    return middles


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Divide each row by its L2 norm; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def _buckets(vectors: np.ndarray, ranges: Ranges) -> np.ndarray:
    start, step = ranges.start_and_step
    buckets: np.ndarray = np.clip(np.floor((vectors - start) / step), 0, 255)
    return buckets


def _needed(ranges: Ranges | None, precision: str) -> Ranges:
    if ranges is None:
        raise InputError(
            f"precision={precision!r} needs a range per dimension, but this bundle has none: it was made by an earlier "
            "mexma-export. Export it again, or type 'float16' or 'ubinary', which need none. (Ranges of the batch, which "
            "sentence-transformers uses, would make the rows of two calls incomparable.)"
        )
    return ranges
