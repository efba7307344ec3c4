"""Losses against float64 numpy written from the formulas of the paper's recipe."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from mexma_train.losses import alignment_loss, contrastive_loss, koleo_loss, masked_token_loss  # noqa: E402


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def vectors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(7, 12)), rng.normal(size=(7, 12))


def test_koleo_is_minus_mean_log_distance_to_the_nearest_other(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    u = unit(vectors[0])
    nearest = [min(np.linalg.norm(u[i] - u[j] + 1e-8) for j in range(7) if j != i) for i in range(7)]
    expected = -np.mean(np.log(np.array(nearest) + 1e-8))
    assert koleo_loss(torch.tensor(vectors[0])).item() == pytest.approx(expected, rel=1e-5)


def test_koleo_of_a_duplicate_is_large_but_finite_and_has_a_finite_gradient() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = koleo_loss(x)
    loss.backward()
    assert 10 < loss.item() < 20  # two of three terms are about -log(1e-8) = 18.4
    assert torch.isfinite(x.grad).all()


def test_koleo_of_one_sentence_is_zero() -> None:
    assert koleo_loss(torch.ones(1, 4)).item() == 0.0


def test_alignment_is_the_mean_square_of_raw_differences(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = vectors
    assert alignment_loss(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(((a - b) ** 2).mean(), rel=1e-6)


def test_contrastive_is_the_mean_of_both_directions(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = vectors
    sims = unit(a) @ unit(b).T / 0.1
    expected = -(np.diag(log_softmax(sims)).mean() + np.diag(log_softmax(sims.T)).mean()) / 2
    loss, accuracy = contrastive_loss(torch.tensor(a), torch.tensor(b), 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert accuracy.item() == pytest.approx((sims.argmax(1) == np.arange(7)).mean())


def test_masked_token_loss_is_cross_entropy_over_the_vocabulary() -> None:
    rng = np.random.default_rng(5)
    states, weight, bias, labels = rng.normal(size=(6, 4)), rng.normal(size=(9, 4)), rng.normal(size=9), rng.integers(0, 9, 6)
    expected = -log_softmax(states @ weight.T + bias)[np.arange(6), labels].mean()
    arguments = [torch.tensor(x) for x in (states, labels, weight, bias)]
    assert masked_token_loss(*arguments).item() == pytest.approx(expected, rel=1e-5)
    assert masked_token_loss(*arguments, torch.arange(9)).item() == pytest.approx(expected, rel=1e-5)


def test_reduced_softmax_runs_over_the_candidates_alone() -> None:
    rng = np.random.default_rng(6)
    states, weight, bias = rng.normal(size=(3, 4)), rng.normal(size=(9, 4)), rng.normal(size=9)
    candidates, labels = np.array([1, 4, 6, 8]), np.array([4, 8, 1])
    logits = states @ weight[candidates].T + bias[candidates]
    expected = -log_softmax(logits)[np.arange(3), [1, 3, 0]].mean()
    loss = masked_token_loss(*(torch.tensor(x) for x in (states, labels, weight, bias, candidates)))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_no_masked_token_gives_zero_and_keeps_the_graph() -> None:
    states = torch.zeros(0, 4, requires_grad=True)
    loss = masked_token_loss(states, torch.zeros(0, dtype=torch.long), torch.ones(9, 4), torch.zeros(9))
    loss.backward()
    assert loss.item() == 0.0
