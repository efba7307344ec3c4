"""Bitext mining: finds translation pairs between two corpora by margin score.

The semantics are those of LASER's mining (facebookresearch/LASER, source/mine_bitexts.py): candidates are the k nearest
neighbours of each sentence, scored by margin. Unlike there, the threshold holds in every retrieval mode.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mexma_rt.checks import check_choice, check_dimensions, check_k
from mexma_rt.errors import InputError, ThresholdWarning, require_extra
from mexma_rt.knn.margin import MARGINS
from mexma_rt.knn.search import mutual_neighbours, unit_rows
from mexma_rt.mining.candidates import RETRIEVALS, ScoredNeighbours
from mexma_rt.mining.found import MiningReport, Pair, Search
from mexma_rt.mining.sides import Side
from mexma_rt.mining.thresholds import DEFAULT_THRESHOLD, resolved
from mexma_rt.mining.warnings import find_warnings

INDEXES = ("exact", "ivfpq")


class Embeds(Protocol):
    """The part of an encoder that mining needs; `mexma_rt.Encoder` is one."""

    def embed(self, texts: list[str], /, *, progress: bool | None = None) -> np.ndarray:
        """Return vectors [n, D] of n texts."""


@dataclass(frozen=True, kw_only=True)
class MineSettings:
    """The settings of a mining call, as `mine` describes them; making one raises InputError for an unusable value."""

    margin: str = "ratio"
    k: int = 4
    retrieval: str = "max"
    threshold: float | None = None
    unify: bool = True
    index: str = "exact"

    def __post_init__(self) -> None:
        check_choice("margin", self.margin, MARGINS)
        check_choice("retrieval", self.retrieval, RETRIEVALS)
        check_choice("index", self.index, INDEXES)
        check_k(self.k, {}, "")
        number = isinstance(self.threshold, (int, float, np.number)) and not isinstance(self.threshold, bool)
        if self.threshold is not None and (not number or np.isnan(self.threshold)):
            raise InputError(
                f"threshold={self.threshold!r}, but a number is needed: the lowest score of a pair, or -inf for all pairs."
            )

    @property
    def least_score(self) -> float:
        """The threshold, or the margin's default."""
        if self.threshold is None:
            return -np.inf if self.retrieval == "knn" else DEFAULT_THRESHOLD[self.margin]
        return float(self.threshold)


@dataclass(frozen=True, kw_only=True)
class Mined:
    """Pairs by descending score, and the report of the call that found them."""

    pairs: list[Pair]
    report: MiningReport


def mine(  # noqa: PLR0913  (public keywords)
    src: Iterable[str] | None = None,
    tgt: Iterable[str] | None = None,
    *,
    margin: str = "ratio",
    k: int = 4,
    retrieval: str = "max",
    threshold: float | None = None,
    encoder: Embeds | None = None,
    source_vectors: np.ndarray | None = None,
    target_vectors: np.ndarray | None = None,
    unify: bool = True,
    index: str = "exact",
    progress: bool | None = None,
) -> list[Pair]:
    """Find the translations between two corpora; return pairs by descending score, then ascending source and target index.

    src, tgt: sentences; may be omitted if vectors [n, D] are given (they are normalised on a copy).
    margin: "ratio", "distance" or "absolute"; k: neighbours in a neighbourhood, and candidates per sentence.
    retrieval: "fwd" takes the best target of every source sentence, "bwd" the best source of every target sentence,
    "intersect" the pairs in both, "max" goes through both by descending score and uses every sentence at most once;
    "knn" returns every sentence with each of its k nearest, both ways, each pair once: all candidates, for your own selection.
    threshold: lowest score of a pair, in every mode; None takes the one in the encoder's bundle, which `calibrate` finds, or
    the bundled model's (with a ThresholdWarning if another model embeds); "knn" has none by default.
    encoder: what `mexma_rt.load` returns; None takes the bundled default model.
    unify: equal lines count once, at their first occurrence. Blank lines are never paired.
    index: "exact", or "ivfpq" for larger corpora: candidates from an approximate index, scored exactly (needs
    mexma-rt[faiss] and at least 9,984 sentences on each side; mexma_rt/knn/approximate.py has its settings).

    Raises InputError for unusable texts, vectors or arguments, such as a side with fewer sentences than k.
    `mexma_rt.mining.pairs.mine_report` also returns counts and warnings about corpora that are tiny, identical, or full of near
    duplicates, whose scores mean little.
    """
    settings = MineSettings(margin=margin, k=k, retrieval=retrieval, threshold=threshold, unify=unify, index=index)
    search = prepare(src, tgt, encoder, source_vectors, target_vectors, settings, progress, warn=False)
    for warning in search.warnings:  # without `warn` there is only one kind
        warnings.warn(warning.message, ThresholdWarning, stacklevel=2)
    return list(search.pairs())


def mine_report(  # noqa: PLR0913  (public keywords)
    src: Iterable[str] | None = None,
    tgt: Iterable[str] | None = None,
    *,
    margin: str = "ratio",
    k: int = 4,
    retrieval: str = "max",
    threshold: float | None = None,
    encoder: Embeds | None = None,
    source_vectors: np.ndarray | None = None,
    target_vectors: np.ndarray | None = None,
    unify: bool = True,
    index: str = "exact",
    progress: bool | None = None,
) -> Mined:
    """Like `mine`, but returns the pairs with a report: line counts, settings, seconds and warnings."""
    started = time.perf_counter()
    settings = MineSettings(margin=margin, k=k, retrieval=retrieval, threshold=threshold, unify=unify, index=index)
    search = prepare(src, tgt, encoder, source_vectors, target_vectors, settings, progress, warn=True)
    pairs = list(search.pairs())
    return Mined(pairs=pairs, report=search.report(len(pairs), time.perf_counter() - started))


def prepare(
    src: Iterable[str] | None,
    tgt: Iterable[str] | None,
    encoder: Embeds | None,
    source_vectors: np.ndarray | None,
    target_vectors: np.ndarray | None,
    settings: MineSettings,
    progress: bool | None,
    *,
    warn: bool,
) -> Search:
    """Check everything, embed texts without vectors, and find the neighbours: what `mine` does before choosing pairs."""
    k, unify, approximate = settings.k, settings.unify, settings.index == "ivfpq"
    if approximate:
        require_extra("faiss", "faiss")
    source = Side.of(src, source_vectors, "source", unify=unify)
    target = Side.of(tgt, target_vectors, "target", unify=unify)
    check_pools(k, source, target, "distinct sentences" if unify else "sentences")
    x, y = unit_vectors(source, target, encoder, progress)
    x, y = x[source.pool], y[target.pool]
    if approximate:
        from mexma_rt.knn.approximate import approximate_neighbours, measure_recall

        found = approximate_neighbours(x, y, k, progress=progress)
        recall = measure_recall(x, y, found) if warn else None
    else:
        found, recall = mutual_neighbours(x, y, k, progress=progress), None
    neighbours = ScoredNeighbours.of(*found, margin=settings.margin)
    settings, foreign = resolved(settings, encoder)
    told = find_warnings(source, target, x, y, neighbours) if warn else ()
    return Search(
        source=source,
        target=target,
        neighbours=neighbours,
        retrieval=settings.retrieval,
        threshold=settings.least_score,
        dimensions=x.shape[1],
        warnings=told if foreign is None else (foreign, *told),
        index=settings.index,
        recall=recall,
    )


def check_pools(k: int, source: Side, target: Side, what: str) -> None:
    """Raise InputError unless both sides have k rows to compare; `what` names them."""
    check_k(k, {side.name: len(side.pool) for side in (source, target)}, what)


def unit_vectors(source: Side, target: Side, encoder: Embeds | None, progress: bool | None) -> tuple[np.ndarray, np.ndarray]:
    """Return both sides as normalised float32 copies [size, D], embedding the texts that came without vectors."""
    if encoder is None and (source.vectors is None or target.vectors is None):
        from mexma_rt.embedding.loading import shared_encoder

        encoder = shared_encoder()
    x, y = (
        encoder.embed(side.texts, progress=progress) if side.vectors is None else side.vectors  # type: ignore[union-attr, arg-type]
        for side in (source, target)
    )
    check_dimensions(x, y, f"{source.name}_vectors", f"{target.name}_vectors")
    return unit_rows(x), unit_rows(y)
