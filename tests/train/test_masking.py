from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_train.masking import mask_tokens

VOCAB = 1_000
MASK = VOCAB - 1


def test_shares_are_berts() -> None:
    """40 % chosen; of these 80 % <mask>, 10 % random, 10 % kept: within 4 standard errors of 200,000 draws."""
    ids = np.full(200_000, 17)
    masked = mask_tokens(ids, 0.4, VOCAB, np.random.default_rng(0))
    chosen = masked.chosen.mean()
    assert chosen == pytest.approx(0.4, abs=4 * (0.4 * 0.6 / 200_000) ** 0.5)
    of_chosen = masked.ids[masked.chosen]
    assert (of_chosen == MASK).mean() == pytest.approx(0.8, abs=0.006)
    assert (of_chosen == 17).mean() == pytest.approx(0.1 + 0.1 / 995, abs=0.005)
    assert (masked.ids[~masked.chosen] == 17).all()


@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 2**32))
def test_special_ids_are_never_chosen_nor_inserted(tokens: list[int], ratio: float, seed: int) -> None:
    ids = np.array(tokens)
    before = ids.copy()
    masked = mask_tokens(ids, ratio, VOCAB, np.random.default_rng(seed))
    special = (ids < 4) | (ids == MASK)
    assert not (masked.chosen & special).any()
    assert (ids == before).all()
    changed = masked.ids != ids
    assert not (changed & ~masked.chosen).any()
    assert (masked.ids[changed] >= 4).all()


def test_at_least_one_token_is_chosen_and_a_side_of_specials_ends() -> None:
    """The original loops for ever on a side made of special tokens only."""
    rng = np.random.default_rng(0)
    assert mask_tokens(np.array([0, 7, 2]), 1e-9, VOCAB, rng).chosen.tolist() == [False, True, False]
    assert not mask_tokens(np.array([0, 2]), 0.4, VOCAB, rng).chosen.any()
    assert not mask_tokens(np.array([0, 7, 2]), 0.0, VOCAB, rng).chosen.any()


def test_the_originals_random_pieces_may_be_special() -> None:
    ids = np.full(200_000, 17)
    masked = mask_tokens(ids, 0.4, 20, np.random.default_rng(0), random_pieces="all")
    assert set(masked.ids[masked.chosen].tolist()) == set(range(20))


def test_the_originals_shared_stream_masks_equal_shapes_alike() -> None:
    lengths = np.array([4, 9, 6])
    ids = np.full(19, 17)
    sides = [mask_tokens(ids + i, 0.4, VOCAB, np.random.default_rng(5), grid_lengths=lengths) for i in range(2)]
    assert (sides[0].chosen == sides[1].chosen).all() and sides[0].chosen.any()
    # The numbers belong to places of the padded table: a shorter first sentence moves no mask of the others.
    shorter = mask_tokens(ids[:17], 0.4, VOCAB, np.random.default_rng(5), grid_lengths=np.array([2, 9, 6]))
    assert (shorter.chosen[2:] == sides[0].chosen[4:]).all()
