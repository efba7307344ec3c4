"""What the parity gate demands of a graph, what it measured, and the error for a graph that fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TypedDict

import numpy as np

from mexma_rt.bundle.golden import LEAST_COSINE
from mexma_rt.errors import MexmaError

# The search for forms (sensitivity.py) demands as much of centred cosines as of plain ones. The gate allows them twice the
# distance from 1, because even the finest form, 8 bits in blocks of 32, has its limits (a mean of 0.99886 on random layers of
# width 32).
CENTRED = 2


class ParityError(MexmaError):
    """An exported graph does not reproduce the vectors of its checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a graph must reach. `min_cosine` applies to every sentence, every length bucket and every way of batching.

    `centred`: the sentences' centred cosines must reach both limits too, at CENTRED times their distance from 1. Search ranks
    by differences between vectors. If a model's vectors are close together (any two of e5 have a cosine of 0.7 or more), an
    error that the plain cosine hardly shows is large relative to these differences. If vectors point in all directions, the two
    cosines are about the same.
    """

    min_cosine: float
    mean_cosine: float
    centred: bool = False
    min_token_cosine: float | None = None  # over all token states; None: reported only


# The lowest cosine is the one that the runtime demands of an engine (`mexma doctor`).
LEAST = {precision: Thresholds(min_cosine=least, mean_cosine=least) for precision, least in LEAST_COSINE.items()}
THRESHOLDS: dict[str, Thresholds] = {
    # fp32 differs only in the order of additions: 1 - cosine was about 1e-12. fused is fp32 with other operators
    **{precision: replace(LEAST[precision], min_token_cosine=0.99999) for precision in ("fp32", "fused")},
    # fp16 has 11 bits: 1 - cosine was at most 3.1e-6 for a trained model (62 languages, lengths to 512, torch and onnxruntime)
    "fp16": replace(LEAST["fp16"], min_token_cosine=0.9999),
    # centred: they have finer forms to fall back on (sensitivity.py)
    "int8": replace(LEAST["int8"], mean_cosine=0.999, centred=True),
    "w8": replace(LEAST["w8"], mean_cosine=0.999, centred=True),
    "w4": replace(LEAST["w4"], mean_cosine=0.999, centred=True),
    "mixed": replace(LEAST["mixed"], mean_cosine=0.9995, centred=True),  # stricter: only the embeddings are rounded
}


class Worst(TypedDict):
    """The sentence whose vector differs most."""

    lang: str
    text: str
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Agreement of one graph with the checkpoint. Bucket keys are lengths in tokens, `<s>` and `</s>` included."""

    precision: str
    sentences: int
    languages: int
    min_cosine: float
    mean_cosine: float
    max_abs_error: float
    min_centred_cosine: float
    mean_centred_cosine: float
    min_token_cosine: float
    first_state_min_cosine: float  # <s> among the token states, which a graph may compute separately
    first_state_mean_cosine: float
    batch_min_cosine: float  # the graph against itself: a sentence alone and inside a batch
    padding_min_cosine: float  # the graph against itself: a sentence alone and followed by padding
    padded_row_finite: bool  # a row of padding alone has finite results
    buckets: dict[int, float]  # exact length -> lowest cosine
    by_language: dict[str, float]  # language -> lowest cosine
    worst: Worst
    thresholds: Thresholds
    failures: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether every figure reached its threshold."""
        return not self.failures

    def summary(self) -> dict[str, object]:
        """The graph's entry in the manifest."""
        keys = ["sentences", "languages", "min_cosine", "mean_cosine", "max_abs_error"]
        return {key: getattr(self, key) for key in keys} | {"passed": self.passed}

    def full(self) -> dict[str, object]:
        """The graph's entry in parity.json; None stands for NaN, such as the centred cosine of a single sentence."""
        return {key: _without_nan(value) for key, value in asdict(self).items()} | {"passed": self.passed}


def require_passed(results: Mapping[str, Parity]) -> None:
    """Raise ParityError for the first graph that failed, with figures, thresholds, the worst sentence, and what to try."""
    for precision, parity in results.items():
        if parity.passed:
            continue
        worst = parity.worst
        others = [name for name in results if name != precision and results[name].passed and name in LEAST_COSINE]
        if precision in ("int8", "w8", "w4") and "mixed" not in results:
            others.append("mixed")  # its products are in fp32, so it may pass
        remedy = (
            f"--precision {','.join(others)} writes the bundle without this graph"
            if others
            else "this model does not work with the exporter: please report it with the model's config.json"
        )
        raise ParityError(
            f"The {precision} graph does not reproduce the checkpoint's vectors, so no bundle was written: "
            f"{'; '.join(parity.failures)}. Worst sentence: {worst['lang']} {worst['text'][:80]!r} at cosine "
            f"{worst['cosine']:.6f}. What to try: {remedy}."
        )


def failures_of(parity: Parity, *, plain: bool) -> tuple[str, ...]:
    """Return a phrase for each figure below its threshold, as NaN always is. `plain`: see `check_parity`."""
    limits = parity.thresholds
    checks = [
        ("lowest cosine", parity.min_cosine, limits.min_cosine),
        ("mean cosine", parity.mean_cosine, limits.mean_cosine),
        ("lowest cosine of a sentence alone to itself in a batch", parity.batch_min_cosine, limits.min_cosine),
        ("lowest cosine of a sentence without padding to itself with padding", parity.padding_min_cosine, limits.min_cosine),
    ]
    if limits.centred and parity.sentences > 1:  # a single sentence is its own mean
        checks += [
            ("lowest centred cosine", parity.min_centred_cosine, _further(limits.min_cosine)),
            ("mean centred cosine", parity.mean_centred_cosine, _further(limits.mean_cosine)),
        ]
    if plain:
        checks += [
            ("lowest cosine of <s> among the token states", parity.first_state_min_cosine, limits.min_cosine),
            ("mean cosine of <s> among the token states", parity.first_state_mean_cosine, limits.mean_cosine),
        ]
    if limits.min_token_cosine is not None:
        checks.append(("lowest cosine of a token state", parity.min_token_cosine, limits.min_token_cosine))
    checks += [(f"lowest cosine at {n} tokens", value, limits.min_cosine) for n, value in parity.buckets.items()]
    phrases = [f"{what} {value:.6f}, threshold {limit}" for what, value, limit in checks if not value >= limit]
    if not parity.padded_row_finite:
        phrases.append("a row of padding alone gives NaN or infinite numbers")
    return tuple(phrases)


def _further(limit: float) -> float:
    return round(1 - CENTRED * (1 - limit), 9)


def _without_nan(value: object) -> object:
    """Replace NaN and infinity, which JSON lacks, with None, in a number or a dictionary of them."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
