"""Batches hold every sentence once, stay below their area, and waste little."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_rt.embedding.packing import pack

LENGTHS = st.lists(st.integers(2, 512), max_size=300).map(np.array)


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 4096), max_rows=st.none() | st.integers(1, 40))
def test_every_sentence_once_and_area_bounded(lengths: np.ndarray, batch_tokens: int, max_rows: int | None) -> None:
    batches = pack(lengths, batch_tokens, max_rows)
    assert sorted(np.concatenate([*batches, []]).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= batch_tokens
        assert max_rows is None or len(batch) <= max_rows


@given(lengths=LENGTHS)
def test_longest_first_and_equal_lengths_in_input_order(lengths: np.ndarray) -> None:
    order = np.concatenate([*pack(lengths, 512), []]).astype(int).tolist()
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def work(batches: list[np.ndarray], lengths: np.ndarray, run_cells: int) -> int:
    return sum(len(batch) * lengths[batch].max() + run_cells for batch in batches)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9).map(np.array), run_cells=st.integers(0, 80))
def test_no_other_way_to_cut_the_sorted_sentences_is_less_work(lengths: np.ndarray, run_cells: int) -> None:
    order = np.argsort(-lengths, kind="stable")
    ways = []  # all of them: a bit for each gap between neighbours says whether a batch ends there
    for bits in range(2 ** (len(lengths) - 1)):
        gaps = [i + 1 for i in range(len(lengths) - 1) if bits >> i & 1]
        ways.append(work(np.split(order, gaps), lengths, run_cells))
    assert work(pack(lengths, 10**6, run_cells=run_cells), lengths, run_cells) == min(ways)


@given(lengths=LENGTHS, batch_tokens=st.integers(512, 4096), run_cells=st.integers(0, 600))
def test_bounds_cost_no_more_than_filling_batch_after_batch(lengths: np.ndarray, batch_tokens: int, run_cells: int) -> None:
    batches, place = [], 0
    order = np.argsort(-lengths, kind="stable")
    while place < len(order):
        batches.append(order[place : place + batch_tokens // lengths[order[place]]])
        place += len(batches[-1])
    found = work(pack(lengths, batch_tokens, run_cells=run_cells), lengths, run_cells)
    assert found <= work(batches, lengths, run_cells) + run_cells * len(batches)  # the search counts bounded batches from above


def test_nothing_gives_no_batch() -> None:
    assert pack(np.array([], dtype=np.int64), 4096) == []


@pytest.mark.parametrize("batch_tokens", [1024, 4096, 16384])
def test_padding_on_lengths_of_natural_text(batch_tokens: int) -> None:
    # Log-normal with a median of 25 tokens: the shape of sentence lengths in news and web text.
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(25), 0.6, 2000).astype(int), 3, 128)

    def padding(batches: Iterable[np.ndarray]) -> float:
        return sum(len(batch) * lengths[batch].max() for batch in batches) / lengths.sum()

    assert 1 <= padding(pack(lengths, batch_tokens)) <= 1.01
    assert padding(np.arange(2000)[i : i + 32] for i in range(0, 2000, 32)) > 1.9  # what the sorting saves
