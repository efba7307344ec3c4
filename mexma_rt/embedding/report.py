"""Reports of embedding calls, as data rather than log lines."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from mexma_rt.errors import TruncationWarning


@dataclass(frozen=True, kw_only=True)
class EmbedReport:
    """Counts, truncated sentences, speed and device of one call. `dataclasses.asdict` prepares it for JSON."""

    model: str
    sentences: int
    distinct: int  # sentences computed; equal texts are computed once
    tokens: int  # of the distinct sentences, after the cut, <s> and </s> included
    padded_tokens: int  # cells computed: sum over batches of rows x longest row
    batches: int
    max_length: int
    truncated: tuple[int, ...]  # indices into the input
    truncated_lengths: tuple[int, ...]  # tokens of those sentences before the cut
    seconds: float
    backend: str
    device: str
    precision: str
    reason: str  # why this back end, device and precision
    deterministic: bool = False  # as load() was told
    max_length_limit: int | None = None  # the maximum number of tokens that the model accepts; None: unknown

    @property
    def padding(self) -> float:
        """Cells computed per token: 1.0 is no padding."""
        return self.padded_tokens / self.tokens if self.tokens else 1.0

    @property
    def sentences_per_second(self) -> float:
        """Sentences per second, counting repeated ones."""
        return self.sentences / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Vectors [n, D] and the report of the call that made them."""

    vectors: np.ndarray
    report: EmbedReport


def how_to_keep(report: EmbedReport, option: str) -> str:
    """Say what to type if texts were cut, within the model's limit. option: "--max-length {}"."""
    longest = max(report.truncated_lengths)
    limit = longest if report.max_length_limit is None else report.max_length_limit
    remedies = [f"To keep more, type {option.format(min(longest, limit))}."] if limit > report.max_length else []
    if longest > limit:
        remedies.append(f"The model takes no more than {limit} tokens: split longer texts into sentences.")
    return " ".join(remedies)


def warn_if_truncated(report: EmbedReport, stacklevel: int) -> None:
    """Emit one TruncationWarning for a call that cut texts; `stacklevel` counts from the caller, as in warnings.warn."""
    if report.truncated:
        warnings.warn(
            f"{len(report.truncated)} of {report.sentences} texts were longer than max_length={report.max_length} tokens "
            f"and were cut; the first has index {report.truncated[0]} and {report.truncated_lengths[0]} tokens; "
            f"embed_report() lists them all. {how_to_keep(report, 'load(..., max_length={})')}",
            TruncationWarning,
            stacklevel=stacklevel + 1,
        )
