"""Document alignment: which sentences of one document translate which of another, in the same order.

The method is Thompson and Koehn's "Vecalign" (EMNLP 2019): dynamic programming over beads of one or more consecutive
sentences on each side, in time and memory linear in the length of the documents. See beads.py and band.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mexma_rt.align.beads import Segments, find_beads
from mexma_rt.align.wordsplit import join_words
from mexma_rt.checks import check_choice, check_dimensions, check_texts, check_vectors
from mexma_rt.errors import InputError
from mexma_rt.knn.search import unit_rows
from mexma_rt.mining.pairs import Embeds
from mexma_rt.mining.sides import compared_rows

SEGMENTS = ("text", "mean")
# Of 0.002 to 0.05, the best F1 on documents made from WMT news (German, Finnish, Chinese; one sentence in ten without a
# partner): 90.4 % of the beads, against 89.3 at 0.01 and 87.8 at 0.05. vecalign's is 0.2.
DELETION = 0.002
RADIUS = 10  # sentences on both sides of the coarser path; vecalign uses 5
MOST = 12  # highest max_size: segments of up to 11 sentences, each embedded


@dataclass(frozen=True, kw_only=True, slots=True)
class Bead:
    """Sentences that translate each other, as indices from 0 in the two documents; an empty side is a deletion.

    score: 1 for equal vectors, 0 for the average of random segments of the two documents: 1 - distance / their distance.
    A deletion scores 0. Blank lines are in no bead, but a bead may span them.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    score: float


def align_documents(
    doc_a: Iterable[str] | None = None,
    doc_b: Iterable[str] | None = None,
    *,
    max_size: int = 4,
    segments: str = "text",
    deletion: float = DELETION,
    encoder: Embeds | None = None,
    source_vectors: np.ndarray | None = None,
    target_vectors: np.ndarray | None = None,
    progress: bool | None = None,
) -> list[Bead]:
    """Align the sentences of two documents that translate each other in the same order; return beads, ascending.

    Every sentence that is not blank is in exactly one bead, and beads do not cross.
    doc_a, doc_b: sentences; may be omitted if the sentences' vectors [n, D] are given (normalised on a copy).
    max_size: maximum sentences in a bead, both sides together: 4 allows 1-1, 1-2, 2-1, 1-3, 3-1 and 2-2.
    segments: how beads of several sentences on a side get their vector: "text" embeds the joined sentences (max_size - 1 times
    the work), "mean" takes the mean of the sentences' vectors. Given vectors have no text, so "mean" is used.
    deletion: cost of a sentence without a partner, as a quantile (0 to 1) of the costs of random pairs: lower gives more
    deletions. encoder: what `mexma_rt.load` returns; None takes the bundled default model. progress: bars on stderr.

    Memory: the vectors of all segments, n x (max_size - 1) x D x 4 bytes per side. Sentences with more than max_length tokens
    are cut, with a TruncationWarning, and so are longer segments. Raises InputError for unusable input.
    """
    check_choice("segments", segments, SEGMENTS)
    if type(max_size) is not int or not 2 <= max_size <= MOST:
        raise InputError(f"max_size={max_size!r} must be a whole number from 2 (pairs only) to {MOST}, such as 4.")
    if isinstance(deletion, bool) or not isinstance(deletion, (int, float, np.number)) or not 0 <= deletion <= 1:
        raise InputError(f"deletion={deletion!r} must be a quantile: a number from 0 to 1, such as {DELETION}.")
    source = _Document.of(doc_a, source_vectors, "doc_a", "source_vectors")
    target = _Document.of(doc_b, target_vectors, "doc_b", "target_vectors")
    if encoder is None and (source.vectors is None or target.vectors is None):
        from mexma_rt.embedding.loading import shared_encoder

        encoder = shared_encoder()
    x, y = (_segments(side, max_size - 1, segments, encoder, progress) for side in (source, target))
    check_dimensions(x[0], y[0], "source_vectors", "target_vectors")
    if not (len(x[0]) and len(y[0])):
        alone = [Bead(source=(row,), target=(), score=0.0) for row in source.rows.tolist()]
        return alone + [Bead(source=(), target=(row,), score=0.0) for row in target.rows.tolist()]
    beads, costs = find_beads(x, y, max_size, float(deletion), RADIUS, progress)
    result = []
    for a, b, c, d in beads:
        paired = a < b and c < d
        distance = costs.distance((b - a, d - c), slice(a, a + 1), slice(c, c + 1)).item() if paired else 1.0
        rows, columns = source.rows[a:b].tolist(), target.rows[c:d].tolist()
        result.append(Bead(source=tuple(rows), target=tuple(columns), score=1.0 - distance))
    return result


@dataclass(frozen=True, kw_only=True)
class _Document:
    """rows [n]: the lines that are not blank; texts or vectors of all lines."""

    texts: list[str]
    vectors: np.ndarray | None
    rows: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str] | None, vectors: np.ndarray | None, name: str, vectors_name: str) -> _Document:
        if texts is None and vectors is None:
            raise InputError(f"{name} is missing. Pass its sentences, or their vectors as {vectors_name}=.")
        array = None if vectors is None else check_vectors(vectors, vectors_name)
        if texts is None:
            return cls(texts=[], vectors=array, rows=np.arange(len(array)))  # type: ignore[arg-type]  # one of the two is there
        lines = check_texts(texts, name)
        if array is not None and len(lines) != len(array):
            raise InputError(
                f"{name} has {len(lines)} sentences and {vectors_name} {len(array)} rows: give one row for each sentence."
            )
        return cls(texts=lines, vectors=array, rows=compared_rows(lines, unify=False)[0])


def _segments(document: _Document, sizes: int, how: str, encoder: Embeds | None, progress: bool | None) -> Segments:
    """Return the vectors of segments of 1 to `sizes` sentences."""
    lines = [document.texts[row] for row in document.rows] if document.texts else []
    if document.vectors is not None:
        vectors = document.vectors[document.rows]
    else:
        assert encoder is not None
        vectors = encoder.embed(lines, progress=progress)
    single = unit_rows(vectors)
    if document.vectors is not None or how == "mean":
        sums = np.concatenate([np.zeros((1, single.shape[1])), np.cumsum(single, axis=0, dtype=np.float64)])
        return [single, *(unit_rows(sums[size:] - sums[:-size]) for size in range(2, sizes + 1))]
    assert encoder is not None
    texts = [[join_words(lines[i : i + size])[0] for i in range(len(lines) - size + 1)] for size in range(2, sizes + 1)]
    joined = unit_rows(_embed_quietly(encoder, [text for part in texts for text in part], progress))
    return [single, *np.split(joined, np.cumsum([len(part) for part in texts])[:-1])]


def _embed_quietly(encoder: Embeds, texts: list[str], progress: bool | None) -> np.ndarray:
    """Embed without a TruncationWarning: segment numbers mean nothing to the caller, who was already warned of cut lines."""
    if (report := getattr(encoder, "embed_report", None)) is not None:
        vectors: np.ndarray = report(texts, progress=progress).vectors
        return vectors
    return encoder.embed(texts, progress=progress)
