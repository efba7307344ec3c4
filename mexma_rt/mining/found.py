"""Search results: two sides and their neighbours, from which pairs are selected, and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mexma_rt.mining.candidates import (
    CANDIDATE,
    SCORED_ROWS,
    SORT_BYTES,
    OneToOne,
    ScoredNeighbours,
    best_first,
    candidate_blocks,
)
from mexma_rt.mining.sides import Side, SideCounts
from mexma_rt.mining.warnings import MiningWarning

if TYPE_CHECKING:
    from mexma_rt.knn.approximate import Recall

SORT_MEMORY = 256 << 20  # bytes for sorting candidates: 1.9 million at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A mined pair: margin score, cosine, positions in the two inputs (from 0), and texts (None if only vectors were passed).

    forward_rank: rank, from 1, of the target among the k nearest of the source; None if it is not among them.
    backward_rank: rank of the source among the k nearest of the target, likewise; at least one of the two is not None.
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
    """What a mining job did. `dataclasses.asdict` prepares it for JSON (which cannot hold a threshold of -inf)."""

    source: SideCounts
    target: SideCounts
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
class Search:
    """Two sides and their neighbours, from which pairs are selected."""

    source: Side
    target: Side
    neighbours: ScoredNeighbours
    retrieval: str
    threshold: float
    dimensions: int
    warnings: tuple[MiningWarning, ...]
    index: str = "exact"
    recall: Recall | None = None
    sort_memory: int = SORT_MEMORY

    def matching(self) -> OneToOne | None:
        """Return the state of "max" retrieval (which sentences are used); None for other retrievals."""
        return OneToOne(len(self.source.pool), len(self.target.pool)) if self.retrieval == "max" else None

    def pairs(self) -> Iterator[Pair]:
        """Yield the pairs, best first."""
        for chunk in self.chunks(self.matching()):
            yield from self.described(chunk)

    def chunks(self, matching: OneToOne | None) -> Iterator[np.ndarray]:
        """Yield the pairs as candidates, best first, a bounded number at a time."""
        return self._chosen(matching, lambda score: score >= self.threshold, max(1, self.sort_memory // SORT_BYTES))

    def below(self, matching: OneToOne | None, count: int) -> np.ndarray:
        """Return the best `count` candidates below the threshold whose sentences are unused; call it after taking all pairs."""
        found = [np.empty(0, CANDIDATE)]
        for chunk in self._chosen(matching, lambda score: score < self.threshold, max(count, 1000)):
            found.append(chunk)
            if sum(map(len, found)) >= count:
                break
        return np.concatenate(found)[:count]

    def lowest(self, count: int) -> np.ndarray:
        """Return the `count` candidates with the lowest scores, the lowest last."""
        found = np.empty(0, CANDIDATE)
        for block in candidate_blocks(self.neighbours, self.retrieval):
            both = np.concatenate([found, block])
            found = both[np.lexsort((both["column"], both["row"], both["score"]))][:count]
        return found[::-1]

    def best_scores(self) -> Iterator[np.ndarray]:
        """Yield the score of every source sentence's best target ("bwd": every target's best source), block by block."""
        return (block["score"] for block in candidate_blocks(self.neighbours, "bwd" if self.retrieval == "bwd" else "fwd"))

    def _chosen(
        self, matching: OneToOne | None, wanted: Callable[[np.ndarray], np.ndarray], capacity: int
    ) -> Iterator[np.ndarray]:
        blocks = lambda: (block[wanted(block["score"])] for block in candidate_blocks(self.neighbours, self.retrieval))  # noqa: E731
        for chunk in best_first(blocks, capacity, None if matching is None else matching.free):
            taken = chunk if matching is None else matching.take(chunk)
            for start in range(0, len(taken), SCORED_ROWS):
                yield taken[start : start + SCORED_ROWS]

    def described(self, chunk: np.ndarray) -> Iterator[Pair]:
        """Yield candidates as `Pair`s with all their details."""
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
        """Return the report of a call that kept this many pairs."""
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
