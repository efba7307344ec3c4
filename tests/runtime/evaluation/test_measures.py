"""xsim and retrieval accuracy against a plain float64 loop over LASER's formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_rt import InputError, xsim
from mexma_rt.evaluation.measures import retrieval_accuracy


def reference(x: np.ndarray, y: np.ndarray, margin: str, k: int) -> list[int]:
    """The row of y that each row of x finds."""
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x.astype(np.float64), y.astype(np.float64)))
    cosine = x @ y.T
    x_mean = [np.sort(row)[-k:].mean() for row in cosine]
    y_mean = [np.sort(column)[-k:].mean() for column in cosine.T]
    found = []
    for i in range(len(x)):
        candidates = np.argsort(-cosine[i], kind="stable")[:k]
        mean = [(x_mean[i] + y_mean[j]) / 2 for j in candidates]
        if margin == "ratio":
            scores = [cosine[i, j] / b if b > 0 else 0 for j, b in zip(candidates, mean, strict=True)]
        elif margin == "distance":
            scores = [cosine[i, j] - b for j, b in zip(candidates, mean, strict=True)]
        else:
            scores = [cosine[i, j] for j in candidates]
        found.append(int(candidates[int(np.argmax(scores))]))
    return found


def noisy(seed: int, n: int = 80, d: int = 10) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, d)) + 0.5
    return x, x + random.standard_normal((n, d)) * 0.8


@pytest.mark.parametrize("margin", ["ratio", "distance", "absolute"])
@pytest.mark.parametrize("k", [1, 4])
def test_xsim_equals_the_reference(margin: str, k: int) -> None:
    x, y = noisy(seed=k)
    expected = reference(x, y, margin, k)
    result = xsim(x, y, margin=margin, k=k)
    assert result.predictions.tolist() == expected
    errors = sum(found != i for i, found in enumerate(expected))
    assert 0 < errors < 80
    assert (result.errors, result.total, result.error_rate) == (errors, 80, 100 * errors / 80)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_ties_take_the_first_candidate(seed: int) -> None:
    # One-hot rows: all cosines are 0 or 1, exactly tied in any precision.
    random = np.random.default_rng(seed)
    x, y = np.eye(4)[random.integers(0, 4, 12)], np.eye(4)[random.integers(0, 4, 12)]
    assert xsim(x, y, margin="absolute").predictions.tolist() == reference(x, y, "absolute", 4)


def test_the_margin_can_overrule_the_cosine() -> None:
    # y[0] is a hub: near to everything. The cosine picks it for x[1] too, the margin does not.
    x = np.array([[1.0, 0, 0.2], [0, 1, 0.9], [0, 0.1, 1]])
    y = np.array([[1, 1, 2.0], [0, 1, 0], [0, 0, 1.0]])
    assert xsim(x, y, margin="absolute", k=2).predictions.tolist() == reference(x, y, "absolute", 2)
    assert xsim(x, y, margin="ratio", k=2).predictions.tolist() == reference(x, y, "ratio", 2)
    assert xsim(x, y, margin="absolute", k=2).predictions[1] == 0 != xsim(x, y, margin="ratio", k=2).predictions[1]


def test_text_makes_an_equal_line_right_and_allows_a_longer_pool() -> None:
    x = np.eye(4)
    y = np.eye(4)[[1, 0, 2, 3]]
    assert xsim(x, y, k=1).errors == 2
    assert xsim(x, y, k=1, text=["same", "same", "c", "d"]).errors == 0
    assert xsim(x, y, k=1, text=["a", "b", "c", "d"]).errors == 2
    pool = np.concatenate([x, x[:1] * 3])
    assert xsim(x, pool, k=1, text=["a", "b", "c", "d", "e"]).errors == 0
    with pytest.raises(InputError, match="x has 4 rows and y 5, but row i of x is compared with row i of y"):
        xsim(x, pool, k=1)
    with pytest.raises(InputError, match="text has 4 lines, but y has 5 vectors"):
        xsim(x, pool, k=1, text=list("abcd"))


def test_accuracy_in_both_directions() -> None:
    x = np.array([[1, 0], [0, 1], [1, 1.0]])
    y = np.array([[1, 0.1], [0.5, 1], [0.6, 1.0]])
    # By hand: x[0] -> y[0], x[1] -> y[1], x[2] -> y[2] (cosines .774 .949 .970); y[0] -> x[0], y[1] and y[2] -> x[2].
    assert retrieval_accuracy(x, y) == pytest.approx((100.0, 200 / 3))


def test_inputs_are_never_modified() -> None:
    x, y = noisy(seed=3)
    x.setflags(write=False)
    y.setflags(write=False)
    xsim(x, y)
    retrieval_accuracy(x * 7, y)
    assert xsim(x * 7, y).errors == xsim(x, y).errors


@pytest.mark.parametrize(
    ("x", "y", "keywords", "message"),
    [
        (np.ones((3, 2)), np.ones((3, 2)), {}, "x has 3 rows, too few to find k=4 neighbours among them. Type k=3"),
        (np.ones((3, 2)), np.ones((2, 2)), {}, "x has 3 rows and y 2"),
        (np.ones((0, 2)), np.ones((0, 2)), {}, "x is empty"),
        (np.ones((3, 2)), np.ones((3, 4)), {}, "the dimensions 2 and 4 differ"),
        (np.ones((5, 2)), np.ones((5, 2)), {"margin": None}, "margin=None is not known"),
        (np.full((5, 2), np.nan), np.ones((5, 2)), {}, "x has NaN or infinity in row 0"),
    ],
)
def test_bad_input(x: np.ndarray, y: np.ndarray, keywords: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        xsim(x, y, **keywords)
