"""Runs one embedding call: computes equal texts once, stores vectors in the order of the texts, and reports."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mexma_rt.embedding.compute import compute
from mexma_rt.embedding.report import Embedded, EmbedReport
from mexma_rt.embedding.settings import EmbedSettings
from mexma_rt.errors import BackendError, InputError
from mexma_rt.files.storage import STORAGES
from mexma_rt.progress import progress_bar

if TYPE_CHECKING:
    from mexma_rt.embedding.encoder import Encoder

COPY_ROWS = 65536  # duplicates are copied in blocks of this many rows, so that no large temporary is made


def embed_texts(
    encoder: Encoder,
    texts: list[str],
    settings: EmbedSettings,
    *,
    max_rows: int | None = None,
    progress: bool | None = None,
    out: np.ndarray | None = None,
) -> Embedded:
    """Embed n checked texts, with any prompt already prepended. max_rows bounds the rows of a batch."""
    started, bundle, backend = time.perf_counter(), encoder.bundle, encoder.backend
    if backend.normalized and not settings.normalize:
        raise BackendError(
            f"normalize=False: the {backend.name} engine returns vectors of length 1, not raw ones. For raw vectors, type "
            "load(..., backend='onnxruntime')."
        )
    vectors = result_array(out, (len(texts), settings.columns(bundle.dimensions)), settings.precision)
    settings.stored(np.empty((0, bundle.dimensions), np.float32), bundle.ranges)  # raises without ranges

    distinct, row_of = distinct_rows(texts)
    once = [texts[row] for row in distinct]

    def store(rows: np.ndarray, raw: np.ndarray) -> None:
        if not np.isfinite(raw).all():
            raise _not_finite(encoder, distinct[rows[~np.isfinite(raw).all(axis=1)][0]])
        vectors[distinct[rows]] = settings.stored(raw, bundle.ranges, normalized=backend.normalized)

    # Time is proportional to characters rather than sentences, so counting characters estimates the remaining time better.
    with progress_bar(progress, total=sum(map(len, once)), desc="embed", unit="char") as advance:
        counts = compute(
            once,
            encoder.tokenizer,
            backend,
            max_length=encoder.max_length,
            batch_tokens=int(settings.batch_tokens or backend.batch_tokens),
            max_rows=1 if encoder.deterministic else max_rows,
            store=store,
            advance=advance,
        )
    copy_duplicates(vectors, row_of)

    place = np.searchsorted(distinct, row_of)  # of each text among the distinct ones
    truncated = np.flatnonzero((counts.full_lengths > counts.lengths)[place])
    report = EmbedReport(
        model=bundle.name,
        sentences=len(texts),
        distinct=len(distinct),
        tokens=int(counts.lengths.sum()),
        padded_tokens=counts.padded_tokens,
        batches=counts.batches,
        max_length=encoder.max_length,
        truncated=tuple(truncated.tolist()),
        truncated_lengths=tuple(counts.full_lengths[place[truncated]].tolist()),
        seconds=time.perf_counter() - started,
        backend=backend.name,
        device=backend.device,
        precision=backend.precision,
        reason=backend.reason,
        deterministic=encoder.deterministic,
        max_length_limit=bundle.max_length_limit,
    )
    return Embedded(vectors=vectors, report=report)


def _not_finite(encoder: Encoder, row: int) -> BackendError:
    return BackendError(
        f"{encoder!r} returned a vector that is not finite for the sentence with index {row}. "
        "Load with precision='fp32'; if it persists, export the bundle again."
    )


def distinct_rows(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (the rows where a text first occurs, ascending; for each row, the first row with its text), both int64."""
    first: dict[str, int] = {}
    row_of = np.fromiter((first.setdefault(text, row) for row, text in enumerate(texts)), dtype=np.int64)
    return np.fromiter(first.values(), dtype=np.int64), row_of


def copy_duplicates(vectors: np.ndarray, row_of: np.ndarray) -> None:
    """Fill the rows of repeated texts from those where they first occur."""
    duplicates = np.flatnonzero(row_of != np.arange(len(row_of)))
    for start in range(0, len(duplicates), COPY_ROWS):
        rows = duplicates[start : start + COPY_ROWS]
        vectors[rows] = vectors[row_of[rows]]


def result_array(out: np.ndarray | None, shape: tuple[int, int], precision: str) -> np.ndarray:
    """Return `out`, or a new array. Raises InputError unless `out` has the right shape and type and can be written."""
    dtype = np.dtype(STORAGES[precision])
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
        found = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"out is {found}, but these texts at precision={precision!r} need an array {dtype} {shape}.")
    if not out.flags.writeable:
        raise InputError("out is read-only. Open the memmap with mode 'r+' or 'w+'.")
    return out
