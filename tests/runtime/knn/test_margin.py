"""Margin scores against the published formulas, written out by hand in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_rt import InputError
from mexma_rt.knn.margin import margin_scores, neighbour_means

cosines = st.floats(-1, 1, width=32)


def test_values_worked_out_by_hand() -> None:
    arguments = np.array(0.9), np.array(0.5), np.array(0.7)  # a cosine, and neighbour means whose mean is 0.6
    assert margin_scores(*arguments, "ratio") == pytest.approx(1.5)
    assert margin_scores(*arguments, "distance") == pytest.approx(0.3)
    assert margin_scores(*arguments, "absolute") == pytest.approx(0.9)


@given(cosine=cosines, x_mean=cosines, y_mean=cosines)
def test_formulas(cosine: float, x_mean: float, y_mean: float) -> None:
    arguments = np.array([cosine], np.float32), np.array([x_mean]), np.array([y_mean])
    assert margin_scores(*arguments, "absolute") == [cosine]
    assert margin_scores(*arguments, "distance") == pytest.approx(cosine - (x_mean + y_mean) / 2)
    ratio = margin_scores(*arguments, "ratio")
    if x_mean + y_mean > 0:
        assert ratio == pytest.approx(2 * cosine / (x_mean + y_mean))
    else:
        assert ratio == [0.0]


def test_ratio_without_meaning_is_zero_and_finite() -> None:
    scores = margin_scores(np.array([0.5, 0.5, -0.5]), np.array([0.0, -0.2, -0.2]), np.array([0.0, 0.1, 0.1]), "ratio")
    np.testing.assert_array_equal(scores, 0)


def test_candidates_broadcast() -> None:
    cosine, x_mean, y_mean = np.full((3, 4), 0.8), np.full((3, 1), 0.4), np.full((3, 4), 0.4)
    np.testing.assert_allclose(margin_scores(cosine, x_mean, y_mean, "ratio"), np.full((3, 4), 2.0))


def test_means_are_taken_in_float64() -> None:
    scores = np.array([[0.1, 0.2, 0.4]], np.float32)
    means = neighbour_means(scores)
    assert means.dtype == np.float64
    assert means[0] == sum(float(score) for score in scores[0]) / 3


def test_unknown_margin() -> None:
    with pytest.raises(InputError, match=r"margin='cosine' is not known. Type one of: ratio, distance, absolute\."):
        margin_scores(np.ones(1), np.ones(1), np.ones(1), "cosine")
