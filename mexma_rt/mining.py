"""Bitext mining: from two corpora, or a ready bitext, to margin scores and pairs.

The semantics are those of LASER's mining (facebookresearch/LASER, source/mine_bitexts.py): candidates are the k nearest
neighbours of each sentence, scored by margin. Unlike there, the threshold holds in every retrieval mode.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mexma_rt.errors import InputError
from mexma_rt.knn import check_dimensions, check_k, check_vectors, mutual_neighbours, unit_rows
from mexma_rt.margin import MARGINS, check_choice, margin_scores, neighbour_means
from mexma_rt.textinput import check_texts

RETRIEVALS = ("max", "intersect", "fwd", "bwd")

# Where mean F1 was best with the bundled model: nine languages to English, 1,000 Tatoeba training sentences each, 30 % of the
# lines without partner (95.4, 95.6 and 94.7 %; within 0.3 of it from 1.04 to 1.08, 0.02 to 0.04, 0.42 to 0.50).
DEFAULT_THRESHOLD = {"ratio": 1.06, "distance": 0.03, "absolute": 0.46}


class Embeds(Protocol):
    """What mining needs of an encoder; `mexma_rt.Encoder` is one."""

    def embed(self, texts: Iterable[str], *, progress: bool | None = None) -> np.ndarray:
        """Return vectors [n, D] of n texts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A mined pair: margin score, cosine, positions in the two inputs (from 0), and texts (None if only vectors came)."""

    score: float
    cosine: float
    source_index: int
    target_index: int
    source: str | None
    target: str | None


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
    progress: bool | None = None,
) -> list[Pair]:
    """Find the translations between two corpora; returns pairs by falling score, then rising source and target index.

    src, tgt: sentences; may be left out where vectors [n, D] are given (they are normalised on a copy).
    margin: "ratio", "distance" or "absolute"; k: neighbours that make a neighbourhood, and candidates per sentence.
    retrieval: "fwd" takes the best target of every source sentence, "bwd" the best source of every target sentence,
    "intersect" the pairs in both, "max" goes through both by falling score and uses every sentence at most once.
    threshold: least score of a pair, in every mode; None takes DEFAULT_THRESHOLD of the margin.
    encoder: what `mexma_rt.load` returns; None takes the bundled default model.
    unify: equal lines count once, as their first occurrence. Blank lines are never paired.

    Raises InputError for texts, vectors or arguments that cannot be used, among them a side with fewer sentences than k.
    """
    check_choice("margin", margin, MARGINS)
    check_choice("retrieval", retrieval, RETRIEVALS)
    threshold = DEFAULT_THRESHOLD[margin] if threshold is None else threshold
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.number)) or np.isnan(threshold):
        raise InputError(f"threshold={threshold!r}, but a number is needed: the least score of a pair, or -inf for all pairs.")
    source = _Side.of(src, source_vectors, "source", unify=unify)
    target = _Side.of(tgt, target_vectors, "target", unify=unify)
    _check_pools(k, source, target, "distinct sentences" if unify else "sentences")
    x, y = _unit_vectors(source, target, encoder, progress)

    cosine_xy, index_xy, cosine_yx, index_yx = mutual_neighbours(x[source.pool], y[target.pool], k, progress=progress)
    x_mean, y_mean = neighbour_means(cosine_xy), neighbour_means(cosine_yx)
    forward = _best(cosine_xy, index_xy, margin_scores(cosine_xy, x_mean[:, None], y_mean[index_xy], margin))
    backward = _best(cosine_yx, index_yx, margin_scores(cosine_yx, y_mean[:, None], x_mean[index_yx], margin))
    rows, columns, cosine, score = _retrieve(forward, backward, retrieval)
    order = np.lexsort((columns, rows, -score))
    order = order[score[order] >= threshold]
    if retrieval == "max":
        order = order[_one_to_one(rows[order].tolist(), columns[order].tolist())]
    return [
        Pair(
            score=s,
            cosine=c,
            source_index=i,
            target_index=j,
            source=None if source.texts is None else source.texts[i],
            target=None if target.texts is None else target.texts[j],
        )
        for s, c, i, j in zip(
            score[order].tolist(),
            cosine[order].tolist(),
            source.pool[rows[order]].tolist(),
            target.pool[columns[order]].tolist(),
            strict=True,
        )
    ]


def score_pairs(
    src: Iterable[str] | None = None,
    tgt: Iterable[str] | None = None,
    *,
    margin: str = "ratio",
    k: int = 4,
    encoder: Embeds | None = None,
    source_vectors: np.ndarray | None = None,
    target_vectors: np.ndarray | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Return the margin score, float32 [n], of each pair (src[i], tgt[i]) of an existing bitext.

    A sentence's neighbourhood is its k nearest among the distinct lines of the other side, so scores equal those of
    `mine` on the same lines, and a line that is often repeated is no neighbour of itself. A pair with a blank side
    scores -inf. Arguments and errors are those of `mine`; sides of unequal length raise InputError.
    """
    check_choice("margin", margin, MARGINS)
    source = _Side.of(src, source_vectors, "source", unify=True)
    target = _Side.of(tgt, target_vectors, "target", unify=True)
    if source.size != target.size:
        raise InputError(
            f"source has {source.size} lines and target {target.size}, but pairs need as many on each side. "
            "To find the pairs of two corpora that are not aligned, use mine."
        )
    _check_pools(k, source, target, "distinct sentences")
    x, y = _unit_vectors(source, target, encoder, progress)
    cosine_xy, _, cosine_yx, _ = mutual_neighbours(x[source.pool], y[target.pool], k, progress=progress)
    x_mean, y_mean = neighbour_means(cosine_xy)[source.place], neighbour_means(cosine_yx)[target.place]
    scores = margin_scores(np.einsum("nd,nd->n", x, y), x_mean, y_mean, margin).astype(np.float32)
    scores[(source.place < 0) | (target.place < 0)] = -np.inf
    return scores


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One corpus: pool [p] holds the rows that are compared, place [size] where each row's line stands in the pool or -1."""

    name: str
    size: int
    texts: list[str] | None
    vectors: np.ndarray | None
    pool: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str] | None, vectors: np.ndarray | None, name: str, unify: bool) -> _Side:
        lines = None if texts is None else check_texts(texts, name)
        array = None if vectors is None else check_vectors(vectors, f"{name}_vectors")
        if lines is None and array is None:
            raise InputError(f"{name} is missing. Give its sentences, or vectors as {name}_vectors=.")
        if lines is not None and array is not None and len(lines) != len(array):
            raise InputError(
                f"{name} has {len(lines)} sentences and {name}_vectors {len(array)} rows: give one row for each sentence."
            )
        if lines is None:
            size = len(array)  # type: ignore[arg-type]  # one of the two is there
            pool = place = np.arange(size)
        else:
            size = len(lines)
            pool, place = _pool(lines, unify)
            if size and not len(pool):
                raise InputError(f"{name} has no text: all of its {size} lines are blank.")
        return cls(name=name, size=size, texts=lines, vectors=array, pool=pool, place=place)


def _check_pools(k: int, source: _Side, target: _Side, what: str) -> None:
    check_k(k, {side.name: len(side.pool) for side in (source, target)}, what)


def _pool(lines: list[str], unify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Leave out blank lines and, with unify, all but the first of equal lines."""
    pool: list[int] = []
    seen: dict[str, int] = {}
    place = np.full(len(lines), -1, np.int64)
    for row, line in enumerate(lines):
        if not line.strip():
            continue
        known = seen.setdefault(line, len(pool)) if unify else len(pool)
        if known == len(pool):
            pool.append(row)
        place[row] = known
    return np.array(pool, np.int64), place


def _unit_vectors(source: _Side, target: _Side, encoder: Embeds | None, progress: bool | None) -> tuple[np.ndarray, np.ndarray]:
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


def _best(cosine: np.ndarray, index: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the candidate of the highest margin in each row, the nearest of equals: (index, cosine, score), each [n]."""
    each, best = np.arange(len(score)), score.argmax(axis=1)
    return index[each, best], cosine[each, best], score[each, best]


def _retrieve(forward: tuple, backward: tuple, retrieval: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return candidate pairs as (row of x, row of y, cosine, score)."""
    rows, columns = np.arange(len(forward[0])), np.arange(len(backward[0]))
    if retrieval == "bwd":
        return backward[0], columns, *backward[1:]
    if retrieval == "fwd":
        return rows, *forward
    if retrieval == "intersect":
        both = backward[0][forward[0]] == rows
        return rows[both], *(part[both] for part in forward)
    (target, *ahead), (source, *back) = forward, backward
    cosine, score = (np.concatenate(parts) for parts in zip(ahead, back, strict=True))
    return np.concatenate([rows, source]), np.concatenate([target, columns]), cosine, score


def _one_to_one(rows: list[int], columns: list[int]) -> list[int]:
    """Go through pairs, best first, and keep those whose two sentences are still free; returns positions."""
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    kept = []
    for position, (row, column) in enumerate(zip(rows, columns, strict=True)):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            kept.append(position)
    return kept
