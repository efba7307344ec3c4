"""mexma-rt: cross-lingual sentence embeddings in production. What this file lists is public; nothing else is.

Importing it loads numpy and nothing heavier: engines, the tokenizer and the hub client are imported where they are used.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from mexma_rt.doors import doors
from mexma_rt.errors import (
    BackendError,
    BundleError,
    FileError,
    InputError,
    MexmaError,
    MissingExtraError,
    ServiceBusyError,
    ServiceError,
    ThresholdWarning,
    TruncationWarning,
)
from mexma_rt.version import __version__

if TYPE_CHECKING:
    from mexma_rt import knn
    from mexma_rt.align.documents import Bead, align_documents
    from mexma_rt.align.words import WordAlignment, align_words
    from mexma_rt.embedding.encoder import Encoder
    from mexma_rt.embedding.files import FileReport
    from mexma_rt.embedding.report import Embedded, EmbedReport
    from mexma_rt.embedding.service import Service
    from mexma_rt.embedding.tokens import TokenVectors
    from mexma_rt.evaluation.measures import XsimResult, xsim
    from mexma_rt.mining.calibration import Calibration, calibrate
    from mexma_rt.mining.found import Pair
    from mexma_rt.mining.pairs import mine
    from mexma_rt.mining.score import score_pairs


__all__ = [
    "BackendError",
    "Bead",
    "BundleError",
    "Calibration",
    "EmbedReport",
    "Embedded",
    "Encoder",
    "FileError",
    "FileReport",
    "InputError",
    "MexmaError",
    "MissingExtraError",
    "Pair",
    "Service",
    "ServiceBusyError",
    "ServiceError",
    "ThresholdWarning",
    "TokenVectors",
    "TruncationWarning",
    "WordAlignment",
    "XsimResult",
    "__version__",
    "align_documents",
    "align_words",
    "calibrate",
    "embed",
    "embed_file",
    "knn",
    "load",
    "mine",
    "score_pairs",
    "xsim",
]


def load(
    model: str | os.PathLike[str] = "mexma-small",
    *,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "auto",
    max_length: int | None = None,
    threads: int | None = None,
    deterministic: bool = False,
    revision: str | None = None,
    offline: bool = False,
) -> Encoder:
    """Load a model, checking every file against its recorded SHA-256.

    model: a bundled name, the path of a bundle folder, or a hub name "org/name" (only this may use the network).
    device: "cpu", "cuda" ("cuda:1" for the second GPU) or "auto". backend: "onnxruntime", "tensorrt" or "rtx" (the engine that
    mexma-export engine built into the bundle, on cuda), "torch" (the bundle's weights, without padding), or "auto". A named
    choice runs there or raises; only "auto" falls back.
    precision: of the computation: "fp32", "fp16", "int8", "mixed" (int8 embeddings, fp16 weights, fp32 products),
    "w8" and "w4" (weights of 8 or 4 bits and inputs of products of 8, both with a scale for each block of numbers), or "auto"
    for the bundle's default.
    max_length: tokens per sentence, up to the model's limit; None takes the bundle's default. Longer sentences are cut.
    threads: number of CPU threads; None takes the physical cores that this process may use.
    deterministic: compute every sentence alone, so that equal text gives equal bits regardless of the rest of the batch, on one
    machine with a fixed number of threads. In bulk this took 1.2 to 1.4 times the CPU time. Without it, vectors of equal text
    can differ: in fp32 and mixed in the last digits (by no bit on the CPU where it was measured); in int8, which takes the
    scale of its activations from the batch, by 0.004 in a component, cosine 0.9996 (benchmarks/results/service.md).
    revision, offline: for hub names: a branch, tag or commit; use the local cache only. All files come from one commit,
    which `encoder.bundle.revision` names: pass it here to get the same bytes every time.

    Raises BundleError (not found, damaged), BackendError or MissingExtraError (cannot run here), InputError (other arguments).
    """
    from mexma_rt.embedding import encoder

    return encoder.load(
        model,
        device=device,
        backend=backend,
        precision=precision,
        max_length=max_length,
        threads=threads,
        deterministic=deterministic,
        revision=revision,
        offline=offline,
    )


def embed(
    texts: Iterable[str],
    *,
    model: str | os.PathLike[str] = "mexma-small",
    normalize: bool = True,
    precision: str = "float32",
    truncate_dim: int | None = None,
    batch_tokens: int | None = None,
    progress: bool | None = None,
    out: np.ndarray | None = None,
    prompt: str | None = None,
) -> np.ndarray:
    """Embed n sentences with the bundled default model or another; returns float32 [n, D]. The model is loaded once and kept.

    model: as for `load`, whose defaults apply. The other arguments and the errors are those of `Encoder.embed`.
    """
    from mexma_rt.embedding.encoder import shared_encoder
    from mexma_rt.embedding.report import warn_if_truncated

    encoder = shared_encoder(model)
    result = encoder.embed_report(
        texts,
        normalize=normalize,
        precision=precision,
        truncate_dim=truncate_dim,
        batch_tokens=batch_tokens,
        progress=progress,
        out=out,
        prompt=prompt,
    )
    warn_if_truncated(result.report, stacklevel=2)
    return result.vectors


def embed_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = "mexma-small",
    field: str | None = None,
    normalize: bool = True,
    precision: str = "float32",
    truncate_dim: int | None = None,
    batch_tokens: int | None = None,
    shard_rows: int | None = None,
    progress: bool | None = None,
    prompt: str | None = None,
) -> FileReport:
    """Embed a file of any size to vectors on disk, in bounded memory; row i of the output is row i of the input.

    source: UTF-8 text with one sentence per line (plain, .gz, .xz, .zst, or "-" for standard input), JSON Lines with
    the text in `field`, or a .parquet file with the text in the column `field` ("translation.fr": of a nested one). A pipe is
    copied beside the output first. No row is skipped: a blank line gets a vector like any other text; a missing text (null)
    is an error.
    output: a .parquet name gives a table with the column `vector` (fixed-size lists), any other a .npy file, to open with
    np.load(output, mmap_mode="r"). `shard_rows` writes a new folder of vectors-00000.npy and so on, listed in vectors.json.
    precision: of the stored rows, as for `Encoder.embed`: "float32", "float16", "int8", "uint8", "binary" or "ubinary".
    model, prompt, and the other arguments: as for `embed`.

    After a kill at any point, the same call resumes the job and produces identical bytes. Until it is complete, everything is
    in the folder .NAME.part beside the output. A job with another model, input or setting is not resumed but refused.
    Texts are embedded in slabs of 8,192; their vectors are those of `embed` for such a slab, up to rounding that depends on
    which texts share a batch. Raises InputError, FileError, BundleError, BackendError, MissingExtraError (.zst, .parquet).
    """
    from mexma_rt.embedding import files as embed_file
    from mexma_rt.embedding.encoder import shared_encoder

    return embed_file.embed_file(
        lambda: shared_encoder(model),
        source,
        output,
        field=field,
        normalize=normalize,
        precision=precision,
        truncate_dim=truncate_dim,
        batch_tokens=batch_tokens,
        shard_rows=shard_rows,
        progress=progress,
        prompt=prompt,
    )


_find, _ = doors(
    "mexma_rt",
    align="Bead WordAlignment align_documents align_words",
    embedding="EmbedReport Embedded Encoder FileReport Service TokenVectors",
    evaluation="XsimResult xsim",
    mining="Calibration Pair calibrate mine score_pairs",
)


def __getattr__(name: str) -> Any:
    if name == "knn":
        return importlib.import_module("mexma_rt.knn")
    if name == "approximate":  # where approximate_neighbours was documented before mexma_rt.knn exported it
        return importlib.import_module("mexma_rt.knn.approximate")
    return _find(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
