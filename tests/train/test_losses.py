"""Losses against float64 numpy written from the formulas of the paper's recipe."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from mexma_train.losses import alignment_sum, contrastive_sum, koleo_sum  # noqa: E402


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def vectors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(7, 12)), rng.normal(size=(7, 12))


def test_koleo_is_minus_log_distance_to_the_nearest_other(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    u = unit(vectors[0])
    nearest = [min(np.linalg.norm(u[i] - u[j] + 1e-8) for j in range(7) if j != i) for i in range(7)]
    expected = -np.sum(np.log(np.array(nearest) + 1e-8))
    x = torch.tensor(vectors[0])
    assert koleo_sum(x, x).item() == pytest.approx(expected, rel=1e-9)
    assert koleo_sum(x.float(), x.float()).item() == pytest.approx(expected, rel=1e-4)


def test_koleo_parts_of_a_pool_add_up_to_the_whole_with_its_gradient(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    """Two processes with the vectors of both: the shares and their gradients are those of one process."""
    whole = torch.tensor(vectors[0], requires_grad=True)
    expected = koleo_sum(whole, whole)
    expected.backward()
    cut = torch.tensor(vectors[0], requires_grad=True)
    parts = koleo_sum(cut[:3], cut, 0) + koleo_sum(cut[3:], cut, 3)
    parts.backward()
    assert parts.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(cut.grad, whole.grad, rtol=1e-10, atol=1e-12)


def test_koleo_of_a_duplicate_is_large_but_finite_and_has_a_finite_gradient() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = koleo_sum(x, x) / 3
    loss.backward()
    assert 10 < loss.item() < 20  # two of three terms are about -log(1e-8) = 18.4
    assert torch.isfinite(x.grad).all()


def test_koleo_of_one_sentence_is_zero() -> None:
    one = torch.ones(1, 4)
    assert koleo_sum(one, one).item() == 0.0


def test_koleo_stays_in_float32_under_autocast() -> None:
    x = torch.nn.functional.normalize(torch.randn(40, 256, generator=torch.Generator().manual_seed(0)), dim=1)
    x[1] = torch.nn.functional.normalize(x[0] + 1e-4 * x[1], dim=0)  # bfloat16 products could not tell these two apart
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = koleo_sum(x, x)
    assert low.item() == pytest.approx(koleo_sum(x.double(), x.double()).item(), rel=1e-3)


def test_alignment_is_the_mean_square_of_raw_differences(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = vectors
    assert alignment_sum(torch.tensor(a), torch.tensor(b)).item() / 7 == pytest.approx(((a - b) ** 2).mean(), rel=1e-12)


def test_contrastive_is_the_mean_of_both_directions(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = vectors
    sims = unit(a) @ unit(b).T / 0.1
    expected = -(np.diag(log_softmax(sims)).sum() + np.diag(log_softmax(sims.T)).sum()) / 2
    x, y = torch.tensor(a), torch.tensor(b)
    loss, right = contrastive_sum(x, y, (x, y), 0, 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert right.item() == (sims.argmax(1) == np.arange(7)).sum()
    parts = [contrastive_sum(x[i], y[i], (x, y), i.start or 0, 0.1) for i in (slice(0, 4), slice(4, 7))]
    assert sum(part[0].item() for part in parts) == pytest.approx(expected, rel=1e-9)
    assert sum(part[1].item() for part in parts) == right.item()
