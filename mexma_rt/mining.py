"""Bitext mining: from two corpora to margin scores and pairs.

The semantics are those of LASER's mining (facebookresearch/LASER, source/mine_bitexts.py): candidates are the k nearest
neighbours of each sentence, scored by margin. Unlike there, the threshold holds in every retrieval mode.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mexma_rt.candidates import RETRIEVALS, SORT_BYTES, Neighbours, OneToOne, best_first, candidate_blocks
from mexma_rt.corpus import Counts, Side
from mexma_rt.errors import InputError, require_extra
from mexma_rt.knn import check_dimensions, check_k, mutual_neighbours, unit_rows
from mexma_rt.margin import MARGINS, check_choice
from mexma_rt.mining_warnings import MiningWarning, find_warnings

if TYPE_CHECKING:
    from mexma_rt.approximate import Recall

INDEXES = ("exact", "ivfpq")

# Where mean F1 was best with the bundled model: nine languages to English, 1,000 Tatoeba training sentences each, 30 % of the
# lines without partner (95.4, 95.6 and 94.7 %; within 0.3 of it from 1.04 to 1.08, 0.02 to 0.04, 0.42 to 0.50).
DEFAULT_THRESHOLD = {"ratio": 1.06, "distance": 0.03, "absolute": 0.46}
SORT_MEMORY = 256 << 20  # bytes for sorting candidates: 1.9 million at a time


class Embeds(Protocol):
    """What mining needs of an encoder; `mexma_rt.Encoder` is one."""

    def embed(self, texts: Iterable[str], *, progress: bool | None = None) -> np.ndarray:
        """Return vectors [n, D] of n texts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A mined pair: margin score, cosine, positions in the two inputs (from 0), and texts (None if only vectors came).

    forward_rank: the place, from 1, of the target among the k nearest of the source; None if it is not among them.
    backward_rank: the place of the source among the k nearest of the target, likewise; one of the two is always there.
    source_mean, target_mean: the mean cosine of each sentence to its k nearest on the other side, which the margin
    compares the cosine with.
    """

    score: float
    cosine: float
    source_index: int
    target_index: int
    forward_rank: int | None
    backward_rank: int | None
    source_mean: float
    target_mean: float
    source: str | None
    target: str | None


@dataclass(frozen=True, kw_only=True)
class MiningReport:
    """What a mining job did. `dataclasses.asdict` makes it ready for JSON (where a threshold of -inf has no place)."""

    source: Counts
    target: Counts
    dimensions: int
    margin: str
    k: int
    retrieval: str
    threshold: float
    pairs: int
    seconds: float
    warnings: tuple[MiningWarning, ...]
    index: str = "exact"
    recall: Recall | None = None  # of "ivfpq": share of the true neighbours found, on a sample


@dataclass(frozen=True, kw_only=True)
class Mined:
    """The pairs, by falling score, and the report of the call that found them."""

    pairs: list[Pair]
    report: MiningReport


def mine(
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
    """Find the translations between two corpora; returns pairs by falling score, then rising source and target index.

    src, tgt: sentences; may be left out where vectors [n, D] are given (they are normalised on a copy).
    margin: "ratio", "distance" or "absolute"; k: neighbours that make a neighbourhood, and candidates per sentence.
    retrieval: "fwd" takes the best target of every source sentence, "bwd" the best source of every target sentence,
    "intersect" the pairs in both, "max" goes through both by falling score and uses every sentence at most once;
    "knn" gives every sentence with each of its k nearest, both ways, a pair once: all candidates, to choose from elsewhere.
    threshold: least score of a pair, in every mode; None takes DEFAULT_THRESHOLD of the margin, and for "knn" none.
    encoder: what `mexma_rt.load` returns; None takes the bundled default model.
    unify: equal lines count once, as their first occurrence. Blank lines are never paired.
    index: "exact", or "ivfpq" for corpora too large for that: candidates from an approximate index, scored exactly (needs
    mexma-rt[faiss] and at least 9,984 sentences on each side; mexma_rt/approximate.py has its settings).

    Raises InputError for texts, vectors or arguments that cannot be used, among them a side with fewer sentences than k.
    `mexma_rt.mining.mine_report` gives counts and warnings as well: corpora that are tiny, identical, or full of near
    duplicates, whose scores mean little.
    """
    settings: dict[str, Any] = {"margin": margin, "k": k, "retrieval": retrieval, "threshold": threshold, "index": index}
    search = prepare(src, tgt, encoder, source_vectors, target_vectors, unify, progress, warn=False, **settings)
    return list(search.pairs())


def mine_report(
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
    """As `mine`, and returns the report beside the pairs: counts of lines, settings, seconds, and warnings."""
    started = time.perf_counter()
    settings: dict[str, Any] = {"margin": margin, "k": k, "retrieval": retrieval, "threshold": threshold, "index": index}
    search = prepare(src, tgt, encoder, source_vectors, target_vectors, unify, progress, warn=True, **settings)
    pairs = list(search.pairs())
    return Mined(pairs=pairs, report=search.report(len(pairs), time.perf_counter() - started))


def check_threshold(threshold: float | None, margin: str, retrieval: str = "max") -> float:
    """The threshold to use. Raises InputError for NaN or what is no number, and for an unknown margin or retrieval."""
    check_choice("margin", margin, MARGINS)
    check_choice("retrieval", retrieval, RETRIEVALS)
    if threshold is None:
        return -np.inf if retrieval == "knn" else DEFAULT_THRESHOLD[margin]
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.number)) or np.isnan(threshold):
        raise InputError(f"threshold={threshold!r}, but a number is needed: the least score of a pair, or -inf for all pairs.")
    return float(threshold)


def prepare(
    src: Iterable[str] | None,
    tgt: Iterable[str] | None,
    encoder: Embeds | None,
    source_vectors: np.ndarray | None,
    target_vectors: np.ndarray | None,
    unify: bool,
    progress: bool | None,
    *,
    margin: str,
    k: int,
    retrieval: str,
    threshold: float | None,
    index: str = "exact",
    warn: bool,
) -> Search:
    """Check everything, embed what came without vectors, and find the neighbours: what `mine` does before it chooses."""
    least = check_threshold(threshold, margin, retrieval)
    check_choice("index", index, INDEXES)
    if index == "ivfpq":
        require_extra("faiss", "faiss")
    source = Side.of(src, source_vectors, "source", unify=unify)
    target = Side.of(tgt, target_vectors, "target", unify=unify)
    check_pools(k, source, target, "distinct sentences" if unify else "sentences")
    x, y = unit_vectors(source, target, encoder, progress)
    x, y = x[source.pool], y[target.pool]
    if index == "ivfpq":
        from mexma_rt.approximate import approximate_neighbours, measure_recall

        found = approximate_neighbours(x, y, k, progress=progress)
        recall = measure_recall(x, y, found) if warn else None
    else:
        found, recall = mutual_neighbours(x, y, k, progress=progress), None
    neighbours = Neighbours.of(*found, margin=margin)
    return Search(
        source=source,
        target=target,
        neighbours=neighbours,
        retrieval=retrieval,
        threshold=least,
        dimensions=x.shape[1],
        warnings=find_warnings(source, target, x, y, neighbours) if warn else (),
        index=index,
        recall=recall,
    )


@dataclass(frozen=True, kw_only=True)
class Search:
    """Two sides and their neighbours, ready to be chosen from."""

    source: Side
    target: Side
    neighbours: Neighbours
    retrieval: str
    threshold: float
    dimensions: int
    warnings: tuple[MiningWarning, ...]
    index: str = "exact"
    recall: Recall | None = None
    sort_memory: int = SORT_MEMORY

    def pairs(self, matching: OneToOne | None = None) -> Iterator[Pair]:
        """The pairs, best first. A `matching` given for "max" keeps in mind which sentences are taken."""
        least = self.threshold
        if self.retrieval == "max" and matching is None:
            matching = OneToOne(len(self.source.pool), len(self.target.pool))
        chunks = best_first(
            lambda: (block[block["score"] >= least] for block in candidate_blocks(self.neighbours, self.retrieval)),
            max(1, self.sort_memory // SORT_BYTES),
            None if matching is None else matching.free,
        )
        for chunk in chunks:
            yield from self.described(chunk if matching is None else matching.take(chunk))

    def described(self, chunk: np.ndarray) -> Iterator[Pair]:
        """Candidates with all that is known of them."""
        rows, columns = chunk["row"], chunk["column"]
        sources, targets = self.source.pool[rows], self.target.pool[columns]
        forward, backward = self.neighbours.ranks(rows, columns)
        fields: Any = (chunk["score"], chunk["cosine"], sources, targets, forward, backward)
        means = (self.neighbours.x_mean[rows], self.neighbours.y_mean[columns])
        for score, cosine, i, j, ahead, back, x_mean, y_mean in zip(*(f.tolist() for f in (*fields, *means)), strict=True):
            yield Pair(
                score=score,
                cosine=cosine,
                source_index=i,
                target_index=j,
                forward_rank=ahead or None,
                backward_rank=back or None,
                source_mean=x_mean,
                target_mean=y_mean,
                source=self.source.text(i),
                target=self.target.text(j),
            )

    def report(self, pairs: int, seconds: float) -> MiningReport:
        return MiningReport(
            source=self.source.counts,
            target=self.target.counts,
            dimensions=self.dimensions,
            margin=self.neighbours.margin,
            k=self.neighbours.cosine_xy.shape[1],
            retrieval=self.retrieval,
            threshold=self.threshold,
            pairs=pairs,
            seconds=seconds,
            warnings=self.warnings,
            index=self.index,
            recall=self.recall,
        )


def check_pools(k: int, source: Side, target: Side, what: str) -> None:
    check_k(k, {side.name: len(side.pool) for side in (source, target)}, what)


def unit_vectors(source: Side, target: Side, encoder: Embeds | None, progress: bool | None) -> tuple[np.ndarray, np.ndarray]:
    """Return both sides as normalised float32 copies [size, D], embedding the texts that came without vectors."""
    if encoder is None and (source.vectors is None or target.vectors is None):
        from mexma_rt.encoder import shared_encoder

        encoder = shared_encoder()
    x, y = (
        encoder.embed(side.texts, progress=progress) if side.vectors is None else side.vectors  # type: ignore[union-attr, arg-type]
        for side in (source, target)
    )
    check_dimensions(x, y, f"{source.name}_vectors", f"{target.name}_vectors")
    return unit_rows(x), unit_rows(y)
