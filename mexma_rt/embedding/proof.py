"""Runs a bundle's golden sentences through an engine and compares: catches an engine that opens but computes wrong numbers."""

from __future__ import annotations

import numpy as np

from mexma_rt.backends import ENGINES, Backend
from mexma_rt.bundle.golden import LEAST_COSINE
from mexma_rt.bundle.manifest import WEIGHTS, Bundle
from mexma_rt.bundle.structure import buildable
from mexma_rt.bundle.weights import holder
from mexma_rt.embedding.tokenizer import Tokenizer
from mexma_rt.errors import BackendError


def prove(bundle: Bundle, tokenizer: Tokenizer, backend: Backend) -> str:
    """Run a bundle's golden sentences through a back end, together and each alone; return the result as text.

    Together and alone, because an engine has different kernels for each of its profiles. Raises BackendError if a vector
    differs from the bundle's. Without golden vectors, only one sentence is run.
    """
    golden, precision = bundle.golden, backend.precision
    if WEIGHTS not in bundle.files if backend.name == "torch" else precision in buildable(bundle):
        precision = holder(bundle)  # its weights are those of this graph, rounded
    measured = bundle.parity.get(precision, {}).get("min_cosine", 1.0)
    least = min(LEAST_COSINE[precision], 1 - 2 * (1 - measured))
    tokens = tokenizer.encode(list(golden.texts) if golden else [""], bundle.max_length)
    fits = np.flatnonzero(tokens.lengths <= (backend.longest or bundle.max_length))
    batches = [fits, *fits[:, None]] if len(fits) > 1 else [fits]
    vectors = [backend.run(*tokens.batch(rows)) for rows in batches if len(rows)]
    if golden is None:
        return "computed a vector, which could not be compared: the bundle has no golden vectors (export it again to have them)"
    if not len(fits):
        return f"not compared: every golden sentence of the bundle is longer than {backend.longest} tokens"
    lowest = min(golden.lowest_cosine(found, rows) for rows, found in zip(batches, vectors, strict=True))
    if not lowest >= least:
        raise BackendError(
            f"{backend.name} computes wrong vectors in {backend.precision} on {backend.device}: over {len(fits)} golden "
            f"sentences of the bundle the lowest cosine is {lowest:.6f}, but {least:g} is needed. Do not use it: "
            f"{_remedy(bundle, backend)}, or name another device, backend or precision."
        )
    return f"{len(fits)} golden sentences: lowest cosine {lowest:.6f}, needed {least:g}"


def _remedy(bundle: Bundle, backend: Backend) -> str:
    if backend.name in ENGINES:
        return f"build the engine again (mexma-export engine {bundle.folder} {backend.name})"
    return f"update or reinstall {backend.name} and its drivers"
