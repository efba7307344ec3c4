"""Token vectors with character offsets: the pipeline of encoder.py with the states of all tokens instead of just `<s>`."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mexma_rt.checks import check_texts
from mexma_rt.embedding.compute import in_lanes
from mexma_rt.embedding.packing import pack
from mexma_rt.embedding.tokenizer import Tokens, slabs
from mexma_rt.errors import BackendError, TruncationWarning
from mexma_rt.progress import progress_bar

if TYPE_CHECKING:
    import tokenizers

    from mexma_rt.embedding.encoder import Encoder

BATCH_TOKENS = 4096  # cells per batch: 16 MB of states at 1,024 dimensions
WORD_START = "▁"  # SentencePiece's mark; as a piece of its own it stands for no character


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenVectors:
    """The t tokens of one text, without `<s>` and `</s>`: vectors [t, D] float32, offsets [t, 2] int64, pieces (t strings).

    text[start:end] of an offset is what the piece was made from, in code points of the original text: before Unicode
    normalisation, without surrounding white space. Pieces made from one character (½ becomes 1, ⁄ and 2) share it; a
    character merged into another (a combining accent) belongs to that one's piece; the mark "▁", if it is a piece by itself,
    is an empty span. full_length: tokens of the text before truncation, `<s>` and `</s>` included.
    """

    vectors: np.ndarray
    offsets: np.ndarray
    pieces: tuple[str, ...]
    full_length: int

    @property
    def truncated(self) -> bool:
        """Whether the text was longer than the encoder's max_length, so that its last tokens have no vectors."""
        return self.full_length > len(self.pieces) + 2


def embed_tokens(
    encoder: Encoder, texts: Iterable[str], *, normalize: bool, batch_tokens: int | None, progress: bool | None
) -> list[TokenVectors]:
    """Do the work of `Encoder.embed_tokens`, which warns about truncated texts."""
    items = check_texts(texts)
    cells = BATCH_TOKENS if batch_tokens is None else batch_tokens
    distinct = list(dict.fromkeys(items))
    known: dict[str, TokenVectors] = {}
    with progress_bar(progress, total=len(distinct), desc="tokens", unit="text") as advance:
        for slab in slabs(distinct):
            known.update(zip(slab, _embed_slab(encoder, slab, normalize, cells), strict=True))
            advance(len(slab))
    return [known[text] for text in items]


def warn_if_cut(results: list[TokenVectors], encoder: Encoder, stacklevel: int) -> None:
    """Issue one TruncationWarning for a call that cut texts; `stacklevel` counts from the caller, as in warnings.warn."""
    cut = [index for index, result in enumerate(results) if result.truncated]
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(results)} texts were longer than max_length={encoder.max_length} tokens and were cut, so "
            f"their last characters have no vectors; the first has index {cut[0]} and {results[cut[0]].full_length} tokens. To "
            f"keep more, type load(..., max_length=N) with N up to {encoder.bundle.max_length_limit}, or split the texts.",
            TruncationWarning,
            stacklevel=stacklevel + 1,
        )


def _embed_slab(encoder: Encoder, texts: list[str], normalize: bool, cells: int) -> Iterator[TokenVectors]:
    encodings = encoder.tokenizer.with_offsets(texts)
    full_lengths = np.array([len(encoding.ids) for encoding in encodings], np.int64)
    kept = np.minimum(full_lengths, encoder.max_length)
    starts = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    ids = np.empty(starts[-1], np.int32)
    for row, encoding in enumerate(encodings):
        ids[starts[row] : starts[row + 1]] = encoding.ids[: kept[row]]
    special = encoder.tokenizer.special_ids
    ids[starts[1:] - 1] = special.eos  # also of those that were cut
    tokens = Tokens(ids=ids, offsets=starts, full_lengths=full_lengths, pad=special.pad)
    states: list[np.ndarray] = [np.empty(0)] * len(texts)

    def run(batch: np.ndarray) -> int:
        raw = encoder.backend.run_tokens(*tokens.batch(batch))
        for row, values in zip(batch.tolist(), raw, strict=True):
            states[row] = _checked(encoder, texts[row], values[1 : kept[row] - 1], normalize)
        return len(batch)

    in_lanes(run, pack(kept, cells, run_cells=encoder.backend.run_cells), encoder.backend.lanes)
    for text, encoding, vectors in zip(texts, encodings, states, strict=True):
        pieces = tuple(encoding.tokens[1 : len(vectors) + 1])
        spans = own_characters(text, encoding)[: len(vectors)]
        offsets = np.array(spans, np.int64).reshape(-1, 2)
        yield TokenVectors(vectors=vectors, offsets=offsets, pieces=pieces, full_length=len(encoding.ids))


def _checked(encoder: Encoder, text: str, raw: np.ndarray, normalize: bool) -> np.ndarray:
    """Check the states and copy them, so that the padded batch is not kept alive."""
    if not np.isfinite(raw).all():
        raise BackendError(
            f"{encoder!r} returned token vectors that are not finite for the text {text[:60]!r}. "
            "Load with precision='fp32'; if it persists, export the bundle again."
        )
    if not normalize:
        return raw.copy()
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    return raw / np.where(norms > 0, norms, 1)


def own_characters(text: str, encoding: tokenizers.Encoding) -> list[tuple[int, int]]:
    """Return the tokenizer's spans of the pieces between `<s>` and `</s>`, corrected.

    The tokenizer includes the white space before a piece, gives the mark "▁" the first character of what follows, and omits
    characters that normalisation joined to the previous one (a letter and its combining accent).
    """
    pieces, spans = encoding.tokens[1:-1], encoding.offsets[1:-1]
    corrected = []
    for index, (piece, (start, end)) in enumerate(zip(pieces, spans, strict=True)):
        first, last = start, end
        while first < last and _is_blank(text[first]):
            first += 1
        while first < last and _is_blank(text[last - 1]):
            last -= 1
        following = spans[index + 1][0] if index + 1 < len(spans) else len(text)
        if piece == WORD_START:  # before the piece that follows, which may be made of the same control character
            first = last = first if first < last else min(end, following)
        elif first == last:
            first, last = start, end  # a piece for a control or format character
        else:
            while last < following and not _is_blank(text[last]):
                last += 1
        corrected.append((first, last))
    return corrected


def _is_blank(character: str) -> bool:
    """Whether it is white space, or control and format characters, which these tokenizers treat alike."""
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf")
