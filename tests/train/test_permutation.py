from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_rt.errors import InputError
from mexma_train.permutation import permute

SEEDS = st.integers(0, 2**64 - 1)


@given(n=st.integers(1, 5000), seed=SEEDS)
def test_every_place_is_hit_once(n: int, seed: int) -> None:
    assert (np.sort(permute(np.arange(n), n, seed)) == np.arange(n)).all()


def test_every_small_length() -> None:
    for n in range(1, 300):
        assert (np.sort(permute(np.arange(n), n, 7)) == np.arange(n)).all(), n


@given(n=st.integers(1, 2**62), seed=SEEDS, data=st.data())
def test_random_access_stays_in_range_and_distinct(n: int, seed: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True)))
    got = permute(index, n, seed)
    assert got.dtype == np.int64 and ((got >= 0) & (got < n)).all()
    assert len(np.unique(got)) == len(index)
    assert [int(permute(np.array([i]), n, seed)[0]) for i in index] == got.tolist()  # one by one or together


def test_seeds_give_different_permutations() -> None:
    first, second = (permute(np.arange(10_000), 10_000, seed) for seed in (1, 2))
    assert (first == second).sum() < 10  # of two random permutations about one place agrees


def test_all_orders_of_four_places_are_about_equally_frequent() -> None:
    seeds = 3_000
    counts = Counter(tuple(permute(np.arange(4), 4, seed).tolist()) for seed in range(seeds))
    assert set(counts) == set(itertools.permutations(range(4)))
    expected = seeds / 24
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 49.7  # 23 degrees of freedom: 1 in 1,000 uniform samples is beyond


def test_neighbours_are_torn_apart_evenly() -> None:
    """Of a long permutation: where the first 20,000 places go, and how far neighbours land from each other, is uniform."""
    n = 1_000_003
    got = permute(np.arange(20_000), n, 5)
    for values in (got, np.diff(got) % n):
        counts = np.bincount(values * 50 // n, minlength=50)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 85.4  # 49 degrees of freedom, 1 in 1,000
    assert abs(np.corrcoef(np.arange(20_000), got)[0, 1]) < 0.025  # 3.5 standard deviations of no correlation


def test_shape_and_emptiness() -> None:
    assert permute(np.zeros((2, 3), np.int64), 9, 1).shape == (2, 3)
    assert permute(np.array([], np.int64), 9, 1).shape == (0,)


@pytest.mark.parametrize(
    ("index", "n", "message"), [([0], 0, "permutation of 0 elements"), ([9], 9, "0 to 8"), ([-1], 9, "0 to 8")]
)
def test_places_out_of_range_are_refused(index: list[int], n: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        permute(np.array(index), n, 1)
