"""Word alignment: which words of two sentences translate each other, from the similarity of their token vectors.

The procedure is that of Jalili Sabet et al., "SimAlign" (Findings of EMNLP 2020): words, or their pieces, are linked by the
similarity of their vectors. Nothing is trained, so it works for any two languages of the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mexma_rt.align.links import METHODS, find_links
from mexma_rt.align.wordsplit import join_words, split_words
from mexma_rt.checks import check_choice, check_texts, text_items
from mexma_rt.embedding.tokens import TokenVectors, embed_tokens
from mexma_rt.errors import InputError, TruncationWarning
from mexma_rt.progress import progress_bar

if TYPE_CHECKING:
    from mexma_rt.embedding.encoder import Encoder

UNITS = ("piece", "word")
SLAB_PAIRS = 512  # sentence pairs whose token vectors are in memory at once: some 100 MB at 1,024 dimensions


@dataclass(frozen=True, kw_only=True, slots=True)
class WordAlignment:
    """The links of one sentence pair: (source word, target word), counted from 0, ascending, and the cosine of each.

    source_words, target_words: the words counted. truncated: a sentence was longer than the encoder's max_length, so its last
    words could not be linked.
    """

    links: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]
    source_words: tuple[str, ...]
    target_words: tuple[str, ...]
    truncated: bool

    @property
    def pharaoh(self) -> str:
        """The links as "0-0 1-2", the format of Pharaoh and Moses."""
        return " ".join(f"{i}-{j}" for i, j in self.links)


def align_words(
    src: Iterable[str | Sequence[str]],
    tgt: Iterable[str | Sequence[str]],
    *,
    method: str = "itermax",
    unit: str = "word",
    threshold: float = -1.0,
    encoder: Encoder | None = None,
    batch_tokens: int | None = None,
    progress: bool | None = None,
) -> list[WordAlignment]:
    """Align the words of n sentence pairs (src[i], tgt[i]); return n `WordAlignment`, in order.

    src, tgt: each sentence a str, or a list of its words. A str is split at white space; in scripts without spaces between
    words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), the words are its characters with their marks (see
    mexma_rt/align/wordsplit.py). `WordAlignment.source_words` lists them.
    method: "inter" links mutual nearest neighbours (fewest links, most precise); "itermax" does so a second time over
    the rest; "match" is the one-to-one matching of greatest similarity (every word of the shorter side is linked; needs
    mexma-rt[align]); "ot" links the pairs between which an entropic optimal transport moves the most mass.
    unit: "word" links the mean vectors of words; "piece" links pieces, and two words if any of their pieces are linked.
    threshold: links with a lower cosine are dropped.
    encoder: what `mexma_rt.load` returns; None takes the bundled default model. batch_tokens, progress: as for `embed`.

    Sentences with more than max_length tokens are cut, with one TruncationWarning. Raises InputError for unusable texts or
    arguments, BackendError for an engine without token vectors.
    """
    check_choice("method", method, METHODS)
    check_choice("unit", unit, UNITS)
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.number)) or np.isnan(threshold):
        raise InputError(f"threshold={threshold!r}, but a number is needed: the lowest cosine of a link, or -1 for all links.")
    source, target = _sentences(src, "src"), _sentences(tgt, "tgt")
    if len(source) != len(target):
        raise InputError(
            f"src has {len(source)} sentences and tgt {len(target)}, but word alignment needs pairs: the same number "
            "on each side. To pair the sentences of two documents first, use align_documents."
        )
    if encoder is None:
        from mexma_rt.embedding.loading import shared_encoder

        encoder = shared_encoder()
    results: list[WordAlignment] = []
    with progress_bar(progress, total=len(source), desc="align", unit="pair") as advance:
        for start in range(0, len(source), SLAB_PAIRS):
            pairs = list(zip(source[start : start + SLAB_PAIRS], target[start : start + SLAB_PAIRS], strict=True))
            texts = [side.text for pair in pairs for side in pair]
            tokens = embed_tokens(encoder, texts, normalize=True, batch_tokens=batch_tokens, progress=False)
            for (a, b), x, y in zip(pairs, tokens[::2], tokens[1::2], strict=True):
                results.append(_align(a, b, x, y, method, unit, threshold))
            advance(len(pairs))
    _warn_if_cut(results, encoder)
    return results


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sentence:
    text: str
    words: tuple[str, ...]
    spans: list[tuple[int, int]]


def _sentences(sentences: Iterable[str | Sequence[str]], name: str) -> list[_Sentence]:
    result = []
    for index, item in enumerate(text_items(sentences, name)):
        if isinstance(item, (list, tuple)):
            text, spans = join_words(check_texts(item, f"{name}[{index}]"))
        else:
            text, spans = item, split_words(item) if isinstance(item, str) else []
        result.append(_Sentence(text=text, spans=spans, words=tuple(text[a:b] for a, b in spans)))
    check_texts([sentence.text for sentence in result], name)
    return result


def _align(
    source: _Sentence, target: _Sentence, x: TokenVectors, y: TokenVectors, method: str, unit: str, threshold: float
) -> WordAlignment:
    members, vectors = zip(*(_units(side, tokens, unit) for side, tokens in ((source, x), (target, y))), strict=True)
    cosine = vectors[0] @ vectors[1].T
    found = find_links((cosine + 1) / 2, method) & (cosine >= threshold)
    best: dict[tuple[int, int], float] = {}
    for i, j in np.argwhere(found).tolist():
        for link in ((a, b) for a in members[0][i] for b in members[1][j]):
            best[link] = max(best.get(link, -1.0), float(cosine[i, j]))
    links = sorted(best)
    return WordAlignment(
        links=tuple(links),
        scores=tuple(best[link] for link in links),
        source_words=source.words,
        target_words=target.words,
        truncated=x.truncated or y.truncated,
    )


def _units(sentence: _Sentence, tokens: TokenVectors, unit: str) -> tuple[list[range], np.ndarray]:
    """Return (the words of each unit to link, its vector). A piece that spans several words, as in Chinese, is in each."""
    spans = np.array(sentence.spans, np.int64).reshape(-1, 2)
    first = np.searchsorted(spans[:, 1], tokens.offsets[:, 0], side="right")
    last = np.searchsorted(spans[:, 0], tokens.offsets[:, 1], side="left")
    used = np.flatnonzero(first < last)  # skip bare word-start marks, and pieces outside any word
    pieces = [range(a, b) for a, b in zip(first[used].tolist(), last[used].tolist(), strict=True)]
    vectors = tokens.vectors[used]
    if unit == "piece":
        return pieces, vectors
    sums = np.zeros((len(spans), vectors.shape[1]), np.float32)
    for words, vector in zip(pieces, vectors, strict=True):
        sums[words.start : words.stop] += vector
    lengths = np.linalg.norm(sums, axis=1)
    present = np.flatnonzero(lengths)
    return [range(word, word + 1) for word in present.tolist()], sums[present] / lengths[present, None]


def _warn_if_cut(results: list[WordAlignment], encoder: Encoder) -> None:
    cut = [index for index, result in enumerate(results) if result.truncated]
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(results)} sentence pairs have a side with more than max_length={encoder.max_length} tokens, "
            f"which was cut: its last words have no links; the first has index {cut[0]}. To keep more, type load(..., "
            f"max_length=N) with N up to {encoder.bundle.max_length_limit}, or split the sentences.",
            TruncationWarning,
            stacklevel=3,
        )
