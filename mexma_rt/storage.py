"""How vectors are stored in files: what a row holds, and the one line of numpy that gives it back.

| storage | file holds                             | back to float32 vectors [n, D] of length 1                |
|---------|----------------------------------------|-----------------------------------------------------------|
| float32 | float32 [n, D]                         | as it is                                                  |
| float16 | float16 [n, D]                         | x.astype(np.float32)                                      |
| int8    | int8 [n, D], each row by its own scale | x / np.linalg.norm(x.astype(np.float32), axis=1)[:, None] |
| ubinary | uint8 [n, ceil(D / 8)], sign bits      | only the signs: np.unpackbits(x, axis=1, count=D)         |

int8: a row is the vector times 127 / its largest absolute component, rounded. The scale needs no storing, because the vector
has length 1: dividing by the norm undoes it. Compare rows by cosine; their bare inner products are not comparable. (The int8 of
sentence-transformers' quantize_embeddings has ranges per dimension taken from the batch or a calibration set, without which
its bytes cannot be read: two files of the same model may then not be comparable.)
ubinary: the same bytes as sentence-transformers' quantize_embeddings(precision="ubinary"), and what faiss.IndexBinary takes.
"""

from __future__ import annotations

import numpy as np

from mexma_rt.errors import InputError

STORAGES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "ubinary": np.uint8}


def check_storage(storage: str, normalize: bool) -> None:
    """Raise InputError for an unknown storage, or one that would lose the lengths of vectors that are not normalised."""
    if storage not in STORAGES:
        raise InputError(f"precision={storage!r} is no storage of vectors in files. Known: {', '.join(STORAGES)}.")
    if not normalize and storage in ("int8", "ubinary"):
        raise InputError(
            f"{storage} keeps directions only, so raw vectors would lose their lengths. Type 'float32' or 'float16'."
        )


def stored_columns(dimensions: int, storage: str) -> int:
    """Columns of the stored array for vectors of D dimensions."""
    return -(-dimensions // 8) if storage == "ubinary" else dimensions


def store(vectors: np.ndarray, storage: str) -> np.ndarray:
    """Vectors float32 [n, D] as the array of a storage; see the table above."""
    if storage == "ubinary":
        return np.packbits(vectors > 0, axis=1)
    if storage == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
        return np.rint(vectors * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)
    return vectors.astype(STORAGES[storage], copy=False)


def finish(raw: np.ndarray, *, normalize: bool, precision: str, truncate_dim: int | None) -> np.ndarray:
    """Raw sentence vectors [n, D] as a call asked for them: cut, then normalised, then stored."""
    vectors = raw[:, :truncate_dim]
    return store(normalized(vectors) if normalize else vectors, precision)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its L2 norm; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
