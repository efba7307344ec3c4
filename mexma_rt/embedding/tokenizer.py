"""Turns texts into ragged integer arrays. The tokenizer is configured once, so that threads can share it.

Long sentences are cut here, after encoding, so that the report can say which ones and how long they were. The text is not
shortened first: tokenising is linear (measured: 1 MB of one word takes 0.6 s, 1 MB of anything at most 1.1 s).
Special tokens written in a text (`</s>`) are recognised, as Hugging Face tokenizers do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mexma_rt.bundle.graphs import PAD, XLMR, SpecialIds
from mexma_rt.errors import BundleError

if TYPE_CHECKING:
    import tokenizers

# A slab is what the tokenizer gets at once. Its Encoding objects cost a few hundred bytes per token, so a slab is bounded
# in characters; 2,048 sentences are enough to keep its threads busy.
SLAB_TEXTS = 2048
SLAB_CHARACTERS = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """n tokenised sentences in one flat array: sentence i is ids[offsets[i] : offsets[i + 1]]."""

    ids: np.ndarray  # int32 [total]
    offsets: np.ndarray  # int64 [n + 1]
    full_lengths: np.ndarray  # int64 [n], before the cut
    pad: int = PAD

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per sentence after the cut, int64 [n]."""
        return np.diff(self.offsets)

    @property
    def truncated(self) -> np.ndarray:
        """Which sentences were cut, bool [n]."""
        return self.full_lengths > self.lengths

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sentences `rows` [B] as input_ids [B, L], padded on the right, and attention_mask [B, L], both int64."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        columns = np.arange(lengths.max())
        mask = columns < lengths[:, None]
        input_ids = np.full(mask.shape, self.pad, dtype=np.int64)
        input_ids[mask] = self.ids[(self.offsets[rows, None] + columns)[mask]]
        return input_ids, mask.astype(np.int64)


class Tokenizer:
    """The `tokenizer.json` of a bundle: `<s> ... </s>`, without its own padding and truncation."""

    def __init__(self, path: Path, special_ids: SpecialIds = XLMR) -> None:
        import tokenizers

        self.special_ids, around = special_ids, [special_ids.bos, special_ids.eos]

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{path} is not a tokenizer that can be loaded: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if (found := self._tokenizer.encode("").ids) != around:
            which = "(<s> </s>): it is not an XLM-R tokenizer" if special_ids == XLMR else "as the manifest says"
            raise BundleError(
                f"{path} encodes an empty sentence as {found}, not as {around} {which}. "
                "Export the bundle again, from a checkpoint that has one."
            )

    def encode(self, texts: list[str], max_length: int) -> Tokens:
        """Tokenise; a sentence of more than `max_length` tokens keeps its first ones and its final `</s>`."""
        ids: list[np.ndarray] = []
        lengths: list[int] = []
        full_lengths: list[int] = []
        for slab in slabs(texts):
            rows = []
            for encoding in self._tokenizer.encode_batch_fast(slab):
                row = encoding.ids
                full_lengths.append(len(row))
                rows.append(row if len(row) <= max_length else [*row[: max_length - 1], self.special_ids.eos])
                lengths.append(len(rows[-1]))
            ids.append(np.fromiter(chain.from_iterable(rows), dtype=np.int32))
        return Tokens(
            ids=np.concatenate(ids) if ids else np.empty(0, dtype=np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            full_lengths=np.array(full_lengths, dtype=np.int64),
            pad=self.special_ids.pad,
        )

    def with_offsets(self, texts: list[str]) -> list[tokenizers.Encoding]:
        """Like `encode`, with pieces and character spans, for at most one slab of texts: a few hundred bytes per token."""
        return self._tokenizer.encode_batch(texts)


def slabs(texts: list[str], most_texts: int | None = None) -> Iterator[list[str]]:
    """Consecutive slices of `texts`, each of at most `most_texts` (SLAB_TEXTS if left out) texts and, beyond its first,
    SLAB_CHARACTERS characters.
    """
    most_texts = most_texts or SLAB_TEXTS
    start = characters = 0
    for index, text in enumerate(texts):
        characters += len(text)
        if index > start and (index - start == most_texts or characters > SLAB_CHARACTERS):
            yield texts[start:index]
            start, characters = index, len(text)
    if start < len(texts):
        yield texts[start:]
