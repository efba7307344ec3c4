"""Exact neighbours against a brute force; ties, tiles of every shape, and inputs that cannot be used."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mexma_rt import InputError
from mexma_rt.knn.search import mutual_neighbours, nearest, unit_rows

SMALLEST = 1  # bytes: gives the smallest tile, 256 x 256


def brute_force(x: np.ndarray, y: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and indices of the k best, by score down and then index up, in float64."""
    similarity = x.astype(np.float64) @ y.astype(np.float64).T
    index = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, index, axis=1), index


def assert_exact(x: np.ndarray, y: np.ndarray, k: int, *, memory_bytes: int = 256 << 20) -> None:
    scores_xy, index_xy, scores_yx, index_yx = mutual_neighbours(x, y, k, memory_bytes=memory_bytes)
    for scores, index, (true_scores, true_index), alone in (
        (scores_xy, index_xy, brute_force(x, y, k), nearest(x, y, k, memory_bytes=memory_bytes)),
        (scores_yx, index_yx, brute_force(y, x, k), nearest(y, x, k, memory_bytes=memory_bytes)),
    ):
        np.testing.assert_array_equal(scores, alone[0])  # one direction: the same bits
        np.testing.assert_array_equal(index, alone[1])
        assert scores.dtype == np.float32 and index.dtype == np.int64
        np.testing.assert_array_equal(index, true_index)
        np.testing.assert_allclose(scores, true_scores, atol=1e-5)


# Small whole numbers: products are exact in float32, and nearly every score is tied.
def small_integers(rows: st.SearchStrategy[int], dimensions: int) -> st.SearchStrategy[np.ndarray]:
    return rows.flatmap(lambda n: hnp.arrays(np.float32, (n, dimensions), elements=st.integers(-2, 2)))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_ties_go_to_the_lowest_index(data: st.DataObject) -> None:
    x = data.draw(small_integers(st.integers(1, 40), 2))
    y = data.draw(small_integers(st.integers(1, 40), 2))
    k = data.draw(st.integers(1, min(len(x), len(y))))
    assert_exact(x, y, k)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(1, 600), m=st.integers(1, 600), values=st.integers(1, 4), k=st.integers(1, 9)
)
def test_ties_across_groups_and_tiles(seed: int, n: int, m: int, values: int, k: int) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(-values, values + 1, (n, 3)).astype(np.float32)
    y = random.integers(-values, values + 1, (m, 3)).astype(np.float32)
    assert_exact(x, y, min(n, m, k), memory_bytes=SMALLEST)
    assert_exact(x, y, min(n, m, k))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_one_direction_needs_k_rows_on_the_other_side_only(n: int) -> None:
    random = np.random.default_rng(2)
    x, y = random.standard_normal((n, 6)).astype(np.float32), random.standard_normal((50, 6)).astype(np.float32)
    scores, index = nearest(x, y, 5)
    true_scores, true_index = brute_force(x, y, 5)
    np.testing.assert_array_equal(index, true_index)
    np.testing.assert_allclose(scores, true_scores, rtol=1e-6)
    with pytest.raises(InputError, match="y has 3 rows, too few to find k=5 neighbours"):
        nearest(x, y[:3], 5)
    with pytest.raises(InputError, match="the dimensions 6 and 5 differ"):
        nearest(x, y[:, :5], 5)


def test_all_scores_equal() -> None:
    x, y = np.ones((300, 2), np.float32), np.ones((700, 2), np.float32)
    _, index_xy, _, index_yx = mutual_neighbours(x, y, 5, memory_bytes=SMALLEST)
    assert (index_xy == np.arange(5)).all() and (index_yx == np.arange(5)).all()


@pytest.mark.parametrize(("n", "m"), [(1000, 1300), (255, 257), (512, 256), (7, 900)])
def test_real_vectors_in_many_tiles(n: int, m: int) -> None:
    random = np.random.default_rng(1)
    x, y = unit_rows(random.standard_normal((n, 24))), unit_rows(random.standard_normal((m, 24)))
    assert_exact(x, y, 7, memory_bytes=SMALLEST)
    assert_exact(x, y, 7)


def test_negative_scores_beat_the_padding() -> None:
    x, y = np.full((3, 2), -1.0, np.float32), np.full((3, 2), 1.0, np.float32)
    scores, index, *_ = mutual_neighbours(x, y, 3)
    assert (scores == -2).all() and (index == [0, 1, 2]).all()


def test_k_may_be_the_whole_side() -> None:
    random = np.random.default_rng(2)
    x = random.integers(-3, 4, (300, 3)).astype(np.float32)
    assert_exact(x, x, 300, memory_bytes=SMALLEST)


def test_other_types_and_layouts_give_the_same_and_are_not_modified() -> None:
    whole = np.random.default_rng(3).integers(-3, 4, (50, 8))
    expected = mutual_neighbours(whole.astype(np.float32), whole.astype(np.float32), 3)
    for array in (whole, whole.astype(np.float16), whole.astype(np.float64), np.asfortranarray(whole.astype(np.float32))):
        before = array.copy()
        array.setflags(write=False)
        for found, true in zip(mutual_neighbours(array, array, 3), expected, strict=True):
            np.testing.assert_array_equal(found, true)
        np.testing.assert_array_equal(array, before)


def test_zero_vectors_are_allowed() -> None:
    x = np.zeros((4, 2), np.float32)
    assert (mutual_neighbours(x, x, 2)[0] == 0).all()
    assert (unit_rows(x) == 0).all()


def test_unit_rows_copies_and_survives_huge_and_tiny_rows() -> None:
    x = np.array([[3, 4], [3e30, 4e30], [3e-30, 4e-30]], np.float32)
    before = x.copy()
    np.testing.assert_allclose(unit_rows(x), [[0.6, 0.8]] * 3, rtol=1e-6)
    np.testing.assert_array_equal(x, before)


def test_memory_is_bounded() -> None:
    x = np.random.default_rng(4).standard_normal((3000, 32)).astype(np.float16)
    budget = 4 << 20
    tracemalloc.start()
    results = mutual_neighbours(x, x, 4, memory_bytes=budget, progress=False)
    peak = tracemalloc.get_traced_memory()[1] - sum(array.nbytes for array in results)
    tracemalloc.stop()
    assert peak < budget < 3000 * 3000 * 4  # the whole matrix would take 36 MB


def test_progress_bar_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.eye(5, dtype=np.float32)
    mutual_neighbours(x, x, 1, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "neighbours: 100%" in err
    mutual_neighbours(x, x, 1, progress=False)
    assert capsys.readouterr() == ("", "")


GOOD = np.ones((5, 4), np.float32)


@pytest.mark.parametrize(
    ("x", "y", "k", "message"),
    [
        (np.ones(4), GOOD, 1, r"x has shape \(4,\), but vectors are needed as \[sentences, dimensions\]"),
        (np.ones((5, 0)), GOOD, 1, r"x has shape \(5, 0\)"),
        (GOOD, np.ones((5, 3)), 1, r"x has shape \(5, 4\) and y \(5, 3\): the dimensions 4 and 3 differ"),
        (np.array([["a"]]), GOOD, 1, "x has type <U1, but vectors are real numbers"),
        (GOOD, np.array([[1, 2, 3, 4], [1, np.nan, 3, 4]]), 1, r"y has NaN or infinity in row 1 \(counted from 0\)"),
        (np.full((2, 4), np.inf), GOOD, 1, "x has NaN or infinity in row 0"),
        (np.full((2, 4), 1e300), GOOD, 1, "x has NaN or infinity in row 0"),
        (np.full((2, 4), 1e30), np.full((2, 4), 1e30), 1, "x and y are so long that their products overflow float32"),
        (GOOD[:0], GOOD, 2, "x is empty: there is nothing to compare with. Pass at least k=2 rows on each side"),
        (GOOD, GOOD[:3], 4, "y has 3 rows, too few to find k=4 neighbours among them. Type k=3 or pass more"),
        (GOOD, GOOD, 0, "k=0, but the number of neighbours is a whole number of at least 1"),
        (GOOD, GOOD, 2.0, "k=2.0, but the number"),
        (GOOD, GOOD, True, "k=True, but the number"),
    ],
)
def test_bad_input(x: np.ndarray, y: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mutual_neighbours(x, y, k)
