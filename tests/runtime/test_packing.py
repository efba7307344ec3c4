"""Batches hold every sentence once, stay below their area, and waste little."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_rt.packing import pack

LENGTHS = st.lists(st.integers(2, 512), max_size=300).map(np.array)


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 4096), max_rows=st.none() | st.integers(1, 40))
def test_every_sentence_once_and_area_bounded(lengths, batch_tokens, max_rows):
    batches = pack(lengths, batch_tokens, max_rows)
    assert sorted(np.concatenate([*batches, []]).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= batch_tokens
        assert max_rows is None or len(batch) <= max_rows


@given(lengths=LENGTHS)
def test_longest_first_and_equal_lengths_in_input_order(lengths):
    order = np.concatenate([*pack(lengths, 512), []]).astype(int).tolist()
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 4096))
def test_a_batch_ends_only_where_the_area_or_the_length_says_so(lengths, batch_tokens):
    for batch, following in pairwise(pack(lengths, batch_tokens)):
        longest = lengths[batch].max()
        area = (len(batch) + 1) * longest
        assert area > batch_tokens or (area > 512 and lengths[following[0]] < 0.95 * longest)


def test_nothing_gives_no_batch():
    assert pack(np.array([], dtype=np.int64), 4096) == []


@pytest.mark.parametrize("batch_tokens", [1024, 4096, 16384])
def test_padding_on_lengths_of_natural_text(batch_tokens):
    # Log-normal with a median of 25 tokens: the shape of sentence lengths in news and web text.
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(25), 0.6, 2000).astype(int), 3, 128)

    def padding(batches):
        return sum(len(batch) * lengths[batch].max() for batch in batches) / lengths.sum()

    assert 1 <= padding(pack(lengths, batch_tokens)) <= 1.03
    assert padding(np.arange(2000)[i : i + 32] for i in range(0, 2000, 32)) > 1.9  # what the sorting saves
