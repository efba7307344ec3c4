"""Turns sentences into raw vectors at engine speed: tokenises ahead, batches similar lengths, runs lanes in parallel.

`store` receives the vectors of each batch, in the order in which batches finish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mexma_rt.backends import Backend
from mexma_rt.embedding.packing import pack
from mexma_rt.embedding.tokenizer import Tokenizer, Tokens, slabs

WINDOW_TEXTS = 8192  # sorted and packed together: more need less padding; fewer need less memory and let a GPU start sooner
SHARED_CELLS = 64  # a batch of this area is not split for a second lane; with 256, 2 to 4 texts took 1.1 times as long

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class BatchCounts:
    """Counts of what was computed, for n sentences."""

    lengths: np.ndarray  # int64 [n], tokens after truncation
    full_lengths: np.ndarray  # int64 [n], before truncation
    padded_tokens: int
    batches: int


def compute(
    texts: list[str],
    tokenizer: Tokenizer,
    backend: Backend,
    *,
    max_length: int,
    batch_tokens: int,
    max_rows: int | None,
    store: Callable[[np.ndarray, np.ndarray], object],
    advance: Callable[[int], object],
) -> BatchCounts:
    """Run n texts through an engine; `store(rows, vectors)` gets the indices [B] and raw vectors [B, D] of each batch.

    `store` may be called from several threads at once, never twice for a row; `advance` gets characters, one call at a time.
    While the engine works on a window of texts, a thread tokenises the next one. The first error ends the work and is raised.
    """
    lock = threading.Lock()
    lengths, full_lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    padded_tokens = batches = first = 0
    for window, tokens in _tokenised(tokenizer, texts, max_length):
        area = batch_tokens
        if backend.lanes > 1 and backend.device == "cpu":  # keep every processor busy; the lanes of a GPU share it
            area = min(area, max(SHARED_CELLS, int(tokens.lengths.sum()) // backend.lanes))
        packed = pack(tokens.lengths, area, max_rows, backend.run_cells)
        characters = np.fromiter(map(len, window), dtype=np.int64, count=len(window))

        def run(batch: np.ndarray, tokens: Tokens = tokens, first: int = first, characters: np.ndarray = characters) -> int:
            input_ids, attention_mask = tokens.batch(batch)
            store(first + batch, backend.run(input_ids, attention_mask))
            with lock:
                advance(int(characters[batch].sum()))
            return input_ids.size

        padded_tokens += sum(in_lanes(run, packed, backend.lanes))
        batches += len(packed)
        first += len(window)
        lengths.append(tokens.lengths)
        full_lengths.append(tokens.full_lengths)
    return BatchCounts(
        lengths=np.concatenate(lengths),
        full_lengths=np.concatenate(full_lengths),
        padded_tokens=padded_tokens,
        batches=batches,
    )


def _tokenised(tokenizer: Tokenizer, texts: list[str], max_length: int) -> Iterator[tuple[list[str], Tokens]]:
    """Yield each window of the texts with its tokens while a thread tokenises the next; a single window needs no thread."""
    windows = list(slabs(texts, WINDOW_TEXTS))
    if len(windows) < 2:
        yield from ((window, tokenizer.encode(window, max_length)) for window in windows)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="mexma-tokenize") as ahead:
        coming = ahead.submit(tokenizer.encode, windows[0], max_length)
        for window, following in zip(windows, [*windows[1:], None], strict=True):
            tokens = coming.result()
            if following is not None:
                coming = ahead.submit(tokenizer.encode, following, max_length)
            yield window, tokens


def in_lanes(work: Callable[[Item], int], items: Sequence[Item], lanes: int) -> list[int]:
    """Call `work` for every item from up to `lanes` threads, the caller's among them; items start in order.

    After the first error no further item starts; the error is raised once the running ones have ended.
    """
    waiting, lock = iter(items), threading.Lock()
    done: list[int] = []
    errors: list[BaseException] = []

    def lane() -> None:
        while not errors:
            with lock:
                item = next(waiting, None)
            if item is None:
                return
            try:
                done.append(work(item))
            except BaseException as error:  # including Ctrl-C, which only the caller's thread gets
                errors.append(error)

    helpers = [threading.Thread(target=lane, name="mexma-lane") for _ in range(min(lanes, len(items)) - 1)]
    try:
        for helper in helpers:
            helper.start()
        lane()
        for helper in helpers:
            helper.join()
    except BaseException as error:  # Ctrl-C while waiting: let the others end too
        errors.append(error)
        for helper in helpers:
            if helper.ident is not None:
                helper.join()
    if errors:
        raise errors[0]
    return done
