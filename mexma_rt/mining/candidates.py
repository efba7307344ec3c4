"""Turns neighbours into candidate pairs: scored block by block, sorted and matched in bounded memory.

Rows belong to x, columns to y. The neighbours may be arrays in memory or memory-mapped files of any size: only one block, and
while sorting a chosen number of candidates, is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mexma_rt.knn.margin import margin_scores, neighbour_means

RETRIEVALS = ("max", "intersect", "fwd", "bwd", "knn")
CANDIDATE = np.dtype([("score", np.float64), ("cosine", np.float32), ("row", np.int64), ("column", np.int64)])
SCORED_ROWS = 65_536  # rows scored at a time
# Bytes per candidate while sorting: twice the capacity is held, and a sort needs an 8-byte key and a copy.
SORT_BYTES = 3 * (2 * CANDIDATE.itemsize + 8)


@dataclass(frozen=True, kw_only=True)
class ScoredNeighbours:
    """The k nearest in both directions, as from `mutual_neighbours`, and each sentence's neighbour mean (float64)."""

    cosine_xy: np.ndarray  # [n, k]
    index_xy: np.ndarray
    cosine_yx: np.ndarray  # [m, k]
    index_yx: np.ndarray
    x_mean: np.ndarray  # [n]
    y_mean: np.ndarray  # [m]
    margin: str

    @classmethod
    def of(
        cls, cosine_xy: np.ndarray, index_xy: np.ndarray, cosine_yx: np.ndarray, index_yx: np.ndarray, margin: str
    ) -> ScoredNeighbours:
        """Compute the means for the results of a search in both directions; margin: one of MARGINS."""
        x_mean, y_mean = (
            np.concatenate(
                [neighbour_means(cosine[start : start + SCORED_ROWS]) for start in range(0, len(cosine), SCORED_ROWS)]
            )
            for cosine in (cosine_xy, cosine_yx)
        )
        return cls(
            cosine_xy=cosine_xy, index_xy=index_xy, cosine_yx=cosine_yx, index_yx=index_yx,
            x_mean=x_mean, y_mean=y_mean, margin=margin,
        )  # fmt: skip

    def turned(self) -> ScoredNeighbours:
        """The same neighbours with source and target swapped."""
        return ScoredNeighbours(
            cosine_xy=self.cosine_yx, index_xy=self.index_yx, cosine_yx=self.cosine_xy, index_yx=self.index_xy,
            x_mean=self.y_mean, y_mean=self.x_mean, margin=self.margin,
        )  # fmt: skip

    def scores(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (column, cosine, margin score) of all candidates of some rows of x, each [r, k]."""
        cosine, column = np.asarray(self.cosine_xy[rows]), np.asarray(self.index_xy[rows])
        return column, cosine, margin_scores(cosine, self.x_mean[rows][:, None], self.y_mean[column], self.margin)

    def best(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return some rows' candidates with the highest margin (the nearest of equals): (column, cosine, score), each [r]."""
        column, cosine, score = self.scores(rows)
        each, place = np.arange(len(score)), score.argmax(axis=1)
        return column[each, place], cosine[each, place], score[each, place]

    def ranks(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rank (from 1) of each column among its row's neighbours, and the reverse; 0 if it is not among the k."""
        forward, backward = self.index_xy[rows] == columns[:, None], self.index_yx[columns] == rows[:, None]
        return tuple(np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0) for hit in (forward, backward))  # type: ignore[return-value]


def candidate_blocks(neighbours: ScoredNeighbours, retrieval: str) -> Iterator[np.ndarray]:
    """Yield the pairs that a retrieval chooses from, in blocks of CANDIDATE ("max" may yield a pair once per direction)."""
    if retrieval in ("fwd", "max", "intersect"):
        for rows in _blocks(len(neighbours.x_mean)):
            block = _records(np.arange(rows.start, rows.stop), *neighbours.best(rows))
            if retrieval == "intersect":
                block = block[neighbours.turned().best(block["column"])[0] == block["row"]]
            yield block
    if retrieval in ("bwd", "max"):
        turned = neighbours.turned()
        for columns in _blocks(len(neighbours.y_mean)):
            row, *values = turned.best(columns)
            yield _records(row, np.arange(columns.start, columns.stop), *values)
    if retrieval == "knn":
        yield from _all_candidates(neighbours)


def _all_candidates(neighbours: ScoredNeighbours) -> Iterator[np.ndarray]:
    turned, k = neighbours.turned(), neighbours.cosine_xy.shape[1]
    for rows in _blocks(len(neighbours.x_mean)):
        parts = (part.ravel() for part in neighbours.scores(rows))
        yield _records(np.repeat(np.arange(rows.start, rows.stop), k), *parts)
    for columns in _blocks(len(neighbours.y_mean)):
        row, *values = (part.ravel() for part in turned.scores(columns))
        column = np.repeat(np.arange(columns.start, columns.stop), k)
        new = neighbours.ranks(row, column)[0] == 0  # the others came with their rows
        yield _records(row, column, *values)[new]


def best_first(
    blocks: Callable[[], Iterator[np.ndarray]],
    capacity: int,
    free: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[np.ndarray]:
    """Yield all candidates by descending score, then ascending row and column, in sorted chunks of at most `capacity`.

    `blocks` is called once per chunk and returns all candidates in any order; those up to the end of the last chunk are
    skipped. `free` may drop candidates, and may drop more from chunk to chunk. At most 2 * capacity candidates and one block
    are in memory.
    """
    last: np.void | None = None
    while True:
        kept, count, worst = [np.empty(0, CANDIDATE)], 0, None
        for block in blocks():
            if last is not None:
                block = block[_follows(block, last)]
            if worst is not None:
                block = block[~_follows(block, worst)]
            if free is not None:
                block = block[free(block)]
            kept.append(block)
            count += len(block)
            if count > 2 * capacity:
                kept = [_sorted(np.concatenate(kept))[:capacity]]
                count, worst = capacity, kept[0][-1]
        chunk = _sorted(np.concatenate(kept))
        more, chunk = worst is not None or len(chunk) > capacity, chunk[:capacity]
        yield chunk
        if not more:
            return
        last = chunk[-1]


class OneToOne:
    """Greedy matching: takes candidates best first and keeps those whose two sentences are both unused."""

    def __init__(self, n: int, m: int) -> None:
        self.rows, self.columns = bytearray(n), bytearray(m)

    def free(self, block: np.ndarray) -> np.ndarray:
        """Return bool [n]: which candidates of a block have neither sentence taken."""
        rows, columns = np.frombuffer(self.rows, np.uint8), np.frombuffer(self.columns, np.uint8)
        free: np.ndarray = (rows[block["row"]] | columns[block["column"]]) == 0
        return free

    def take(self, chunk: np.ndarray) -> np.ndarray:
        """Return the candidates of a sorted chunk that are kept."""
        rows, columns, kept = self.rows, self.columns, []
        for place, (row, column) in enumerate(zip(chunk["row"].tolist(), chunk["column"].tolist(), strict=True)):
            if not (rows[row] or columns[column]):
                rows[row] = columns[column] = 1
                kept.append(place)
        return chunk[kept]


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + SCORED_ROWS, size)) for start in range(0, size, SCORED_ROWS))


def _records(row: np.ndarray, column: np.ndarray, cosine: np.ndarray, score: np.ndarray) -> np.ndarray:
    block = np.empty(len(row), CANDIDATE)
    block["row"], block["column"], block["cosine"], block["score"] = row, column, cosine, score
    return block


def _sorted(candidates: np.ndarray) -> np.ndarray:
    return candidates[np.lexsort((candidates["column"], candidates["row"], -candidates["score"]))]


def _follows(block: np.ndarray, last: np.void) -> np.ndarray:
    """Return which candidates come after `last` in the order of `_sorted`."""
    row, column = block["row"], block["column"]
    later = (row > last["row"]) | ((row == last["row"]) & (column > last["column"]))
    after: np.ndarray = (block["score"] < last["score"]) | ((block["score"] == last["score"]) & later)
    return after
