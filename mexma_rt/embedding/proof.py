"""Runs a bundle's golden sentences through an engine and compares: catches an engine that opens but computes wrong numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mexma_rt.bundle.golden import LEAST_COSINE
from mexma_rt.bundle.structure import buildable
from mexma_rt.bundle.weights import holder
from mexma_rt.errors import BackendError

if TYPE_CHECKING:
    from mexma_rt.backends import Backend
    from mexma_rt.embedding.encoder import Encoder


def prove(encoder: Encoder, engine: Backend) -> str:
    """Run the golden sentences of the encoder's bundle through an engine; returns the result as text.

    Raises BackendError if a vector differs from the bundle's. A bundle without golden vectors is only run on one sentence.
    """
    golden = encoder.bundle.golden
    precision = engine.precision
    if precision in buildable(encoder.bundle):  # it has the rounded weights of the graph that it is built from
        precision = holder(encoder.bundle)
    measured = encoder.bundle.parity.get(precision, {}).get("min_cosine", 1.0)
    least = min(LEAST_COSINE[precision], 1 - 2 * (1 - measured))
    texts = list(golden.texts) if golden else [""]
    vectors = replace(encoder, backend=engine, max_length=encoder.bundle.max_length).embed_report(texts).vectors
    if golden is None:
        return "computed a vector, which could not be compared: the bundle has no golden vectors (export it again to have them)"
    lowest = golden.lowest_cosine(vectors)
    if not lowest >= least:
        raise BackendError(
            f"{engine.name} computes wrong vectors in {engine.precision} on {engine.device}: of {len(texts)} golden sentences "
            f"of the bundle the lowest cosine is {lowest:.6f}, and {least:g} is needed. Do not use it: update or reinstall "
            f"{engine.name} and its drivers, or name another device, backend or precision."
        )
    return f"{len(texts)} golden sentences: lowest cosine {lowest:.6f}, needed {least:g}"
