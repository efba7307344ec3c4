"""mexma-rt: cross-lingual sentence embeddings in production. This file is the small promise; nothing else is public.

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
    from mexma_rt.mining.found import Pair
    from mexma_rt.mining.pairs import mine
    from mexma_rt.mining.score import score_pairs


__all__ = [
    "BackendError",
    "Bead",
    "BundleError",
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
    "TokenVectors",
    "TruncationWarning",
    "WordAlignment",
    "XsimResult",
    "__version__",
    "align_documents",
    "align_words",
    "embed",
    "embed_file",
    "knn",
    "load",
    "mine",
    "score_pairs",
    "xsim",
]


def load(
    model: str | os.PathLike[str] = "mexma-mini",
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
    """Load a model and verify every file of it.

    model: a bundled name, the path of a bundle folder, or a hub name "org/name" (only this may use the network).
    device: "cpu", "cuda" or "auto". backend: "onnxruntime", "tensorrt" or "rtx" (the engine that mexma-export --engine built
    into the bundle, on cuda), "torch" (the bundle's weights, without padding), or "auto". What is named runs there or raises.
    precision: of the computation: "fp32", "fp16", "int8", "mixed" (int8 embeddings, fp16 weights, fp32 products),
    "w8" and "w4" (weights of 8 or 4 bits and inputs of products of 8, both with a scale for each block of numbers), or "auto"
    for the bundle's default.
    max_length: tokens per sentence, up to the model's limit; None takes the bundle's default. Longer ones are cut.
    threads: of the CPU engine; None takes the physical cores that this process may use.
    deterministic: compute every sentence alone, so that equal text gives the same bits whatever its batch-mates, their order or
    the call, on one machine with one number of threads. It took 1.2 to 1.4 times the CPU time in bulk. Without it equal text
    may get other vectors: in fp32 and mixed in the last digits (not one bit on the CPU where it was measured), in int8,
    which takes the scale of its activations from the batch, by 0.004 in a component, cosine 0.9996
    (benchmarks/results/service.md).
    revision, offline: for hub names: a branch, tag or commit; use the local cache only. All files are of one commit, which
    `encoder.bundle.revision` names: give it here to get the same bytes for ever.

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
    model: str | os.PathLike[str] = "mexma-mini",
    normalize: bool = True,
    precision: str = "float32",
    truncate_dim: int | None = None,
    batch_tokens: int | None = None,
    progress: bool | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Embed n sentences with the bundled default model, or another, loaded once and kept; returns float32 [n, D].

    model: as for `load`, whose defaults hold; the other arguments, and what is raised, as for `Encoder.embed`.
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
    )
    warn_if_truncated(result.report, encoder.bundle.max_length_limit, stacklevel=2)
    return result.vectors


def embed_file(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = "mexma-mini",
    field: str | None = None,
    normalize: bool = True,
    precision: str = "float32",
    truncate_dim: int | None = None,
    batch_tokens: int | None = None,
    shard_rows: int | None = None,
    progress: bool | None = None,
) -> FileReport:
    """Embed a file of any size to vectors on the disk, with bounded memory; row i of the output is row i of the input.

    source: UTF-8 text with one sentence per line (plain, .gz, .xz, .zst, or "-" for standard input), JSON Lines with
    the text in `field`, or a .parquet file with the text in the column `field`. No row is skipped: a blank line
    is a row, with the vector of the text that it is; a text that is missing (null) is an error.
    output: a .parquet name gives a table with the column `vector` (fixed-size lists), any other a .npy file, to open with
    np.load(output, mmap_mode="r"). With `shard_rows`, a new folder: vectors-00000.npy and so on, listed in vectors.json.
    precision: of the stored rows, as for `Encoder.embed`: "float32", "float16", "int8", "uint8", "binary" or "ubinary".
    model, and the other arguments: as for `embed`.

    A job that was killed, at any point, goes on when the same call is made again, and gives the same bytes. Until it is
    complete, all of it is in the folder .NAME.part beside the output. Another model, input or setting refuses to go on.
    Texts are embedded in slabs of 8,192; their vectors are those of `embed` for such a slab, up to roundings that depend on
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
    )


_find, _ = doors(
    "mexma_rt",
    align="Bead WordAlignment align_documents align_words",
    embedding="EmbedReport Embedded Encoder FileReport Service TokenVectors",
    evaluation="XsimResult xsim",
    mining="Pair mine score_pairs",
)


def __getattr__(name: str) -> Any:
    if name == "knn":
        return importlib.import_module("mexma_rt.knn")
    if name == "approximate":  # where approximate_neighbours was documented before mexma_rt.knn handed it on
        return importlib.import_module("mexma_rt.knn.approximate")
    return _find(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
