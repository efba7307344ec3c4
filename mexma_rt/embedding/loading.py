"""Opens models: `load`, and `embed` and `embed_file`, which share a model that is opened once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from functools import partial

import numpy as np

from mexma_rt.backends import open_backend
from mexma_rt.bundle.manifest import TOKENIZER
from mexma_rt.bundle.opening import DEFAULT_MODEL, open_bundle
from mexma_rt.embedding.encoder import Encoder
from mexma_rt.embedding.files import FileReport, write_vectors
from mexma_rt.embedding.processes import Source
from mexma_rt.embedding.proof import prove
from mexma_rt.embedding.report import warn_if_truncated
from mexma_rt.embedding.settings import EmbedSettings
from mexma_rt.embedding.tokenizer import Tokenizer
from mexma_rt.errors import InputError


def load(
    model: str | os.PathLike[str] = DEFAULT_MODEL,
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
    choice is used or raises; only "auto" falls back. Engines and torch must compute the bundle's golden vectors first.
    precision: of the computation: "fp32", "fp16", "int8" (8-bit products with one scale a row), "mixed" (int8 embeddings,
    fp16 weights, fp32 products), "w8" and "w4" (8- or 4-bit weights and 8-bit inputs of products, with a scale for each
    block of numbers), or "auto" for the bundle's default.
    max_length: tokens per sentence, up to the model's limit; None takes the bundle's default. Longer sentences are cut.
    threads: number of CPU threads; None takes the physical cores that this process may use.
    deterministic: compute every sentence alone, so that equal text gives equal bits regardless of the rest of the batch, on one
    machine with a fixed number of threads. In bulk this took 1.2 to 1.4 times the CPU time. Without it, vectors of equal text
    can differ in the last digits (in fp32 and mixed not by a bit on the CPU where it was measured;
    benchmarks/results/service.md).
    revision, offline: for hub names: a branch, tag or commit; use the local cache only. All files come from one commit,
    which `encoder.bundle.revision` names: pass it here to get the same bytes every time.

    Raises BundleError (not found, damaged), BackendError or MissingExtraError (cannot run here), InputError (other arguments).
    """
    bundle = open_bundle(model, revision=revision, offline=offline)
    length = bundle.max_length if max_length is None else max_length
    if type(length) is not int or not 3 <= length <= bundle.max_length_limit:
        raise InputError(
            f"max_length={length!r} must be a whole number of tokens from 3 (<s>, one piece, </s>) to "
            f"{bundle.max_length_limit}, the limit of {bundle.name!r}."
        )
    tokenizer = Tokenizer(bundle.folder / TOKENIZER, bundle.special_ids)
    proof = partial(prove, bundle, tokenizer)
    opened = open_backend(bundle, device=device, backend=backend, precision=precision, threads=threads, prove=proof)
    if opened.name == "onnxruntime" and opened.precision not in bundle.graphs:
        proof(opened)  # the graph was built on this machine, so no parity gate has checked it
    return Encoder(
        bundle=bundle,
        tokenizer=tokenizer,
        backend=opened,
        max_length=length,
        deterministic=deterministic,
        source=Source.of(model, offline=offline, threads=threads),
    )


def embed(
    texts: Iterable[str],
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    normalize: bool = True,
    precision: str = "float32",
    truncate_dim: int | None = None,
    batch_tokens: int | None = None,
    progress: bool | None = None,
    out: np.ndarray | None = None,
    prompt: str | None = None,
) -> np.ndarray:
    """Embed n sentences with the bundled default model or another; return float32 [n, D]. The model is loaded once and kept.

    model: as for `load`, whose defaults apply. The other arguments and the errors are those of `Encoder.embed`.
    """
    settings = EmbedSettings(
        normalize=normalize, precision=precision, truncate_dim=truncate_dim, batch_tokens=batch_tokens, prompt=prompt
    )
    result = shared_encoder(model).embed_with(texts, settings, progress=progress, out=out)
    warn_if_truncated(result.report, stacklevel=2)
    return result.vectors


def embed_file(  # noqa: PLR0913  (public keywords)
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
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
    the text in `field`, or a .parquet file with the text in the column `field` (nested: "translation.fr"). A pipe is first
    copied beside the output. No row is skipped: a blank line gets a vector like any other text; a missing text (null) is an
    error.
    output: a .parquet name gives a table with the column `vector` (fixed-size lists), any other a .npy file, to open with
    np.load(output, mmap_mode="r"). `shard_rows` writes a new folder of vectors-00000.npy and so on, listed in vectors.json.
    precision: storage of the rows, as for `Encoder.embed`: "float32", "float16", "int8", "uint8", "binary" or "ubinary".
    model, prompt, and the other arguments: as for `embed`.

    After a kill at any point, the same call resumes the job and produces identical bytes. Until it is complete, everything is
    in the folder .NAME.part beside the output. A job with another model, input or setting is refused, not resumed.
    Texts are embedded in slabs of 8,192; their vectors equal those of `embed` for such a slab, up to rounding that depends on
    which texts share a batch. Raises InputError, FileError, BundleError, BackendError, MissingExtraError (.zst, .parquet).
    """
    settings = EmbedSettings(
        normalize=normalize, precision=precision, truncate_dim=truncate_dim, batch_tokens=batch_tokens, prompt=prompt
    )
    return write_vectors(
        lambda: shared_encoder(model), source, output, settings, field=field, shard_rows=shard_rows, progress=progress
    )


_shared: dict[str, Encoder] = {}
_shared_lock = threading.Lock()


def shared_encoder(model: str | os.PathLike[str] = DEFAULT_MODEL) -> Encoder:
    """Return a model with `load`'s defaults, loaded on the first call and shared by the process as long as it runs."""
    with _shared_lock:
        name = os.fspath(model)
        if name not in _shared:
            _shared[name] = load(model)
        return _shared[name]
