"""The chunked loss against torch's own cross entropy over all logits, gradients included."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

import torch
import torch.nn.functional as F

from mexma_train.vocabulary import vocabulary_loss

M, D, V = 11, 6, 23


Leaves = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # states, weight and bias


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Leaves, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((M, D), (V, D), (V,))
    states, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    )
    shares = torch.rand(M, generator=generator, dtype=torch.float64).to(dtype) / M
    return (states, weight, bias), torch.randint(0, V, (M,), generator=generator), shares


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_value_and_gradients_equal_cross_entropy_over_all_logits(chunk: int) -> None:
    ours, labels, shares = inputs()
    total, losses = vocabulary_loss(*ours, labels, shares, chunk=chunk)
    (3 * total).backward()
    theirs, _, _ = inputs()
    every = F.cross_entropy(F.linear(theirs[0], theirs[1], theirs[2]), labels, reduction="none")
    (3 * (every * shares).sum()).backward()
    torch.testing.assert_close(losses, every.detach(), rtol=1e-12, atol=1e-12)
    assert total.item() == pytest.approx((every * shares).sum().item(), rel=1e-12)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    leaves, labels, shares = inputs()
    assert torch.autograd.gradcheck(lambda *x: vocabulary_loss(x[0], x[1], x[2], labels, shares, chunk=5)[0], leaves)


def test_frozen_words_get_no_gradient_and_evaluation_makes_none() -> None:
    (states, weight, bias), labels, shares = inputs()
    total, _ = vocabulary_loss(states, weight.detach(), bias, labels, shares, chunk=4)
    total.backward()
    assert states.grad is not None and bias.grad is not None
    with torch.no_grad():
        total, losses = vocabulary_loss(states, weight, bias, labels, shares, chunk=4)
    assert not total.requires_grad and losses.shape == (M,)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision_products_keep_small_shares(low: torch.dtype) -> None:
    """A share of 1e-7 is below float16's range; the gradient must survive it, to the rounding of the products."""
    (states, weight, bias), labels, shares = inputs(torch.float32)
    exact = [x.detach().clone().requires_grad_() for x in (states, weight, bias)]
    with torch.autocast("cpu", dtype=low):
        vocabulary_loss(states, weight, bias, labels, shares * 1e-7, chunk=4)[0].backward()
    (F.cross_entropy(F.linear(*exact), labels, reduction="none") * shares * 1e-7).sum().backward()
    for ours, theirs in zip((states, weight, bias), exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert F.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.999
        assert ours.grad.norm().item() == pytest.approx(theirs.grad.norm().item(), rel=0.02)


def test_no_masked_token_gives_zero_and_keeps_the_graph() -> None:
    states = torch.zeros(0, D, requires_grad=True)
    total, losses = vocabulary_loss(
        states, torch.ones(V, D), torch.zeros(V), torch.zeros(0, dtype=torch.long), torch.zeros(0), chunk=4
    )
    total.backward()
    assert total.item() == 0 and len(losses) == 0
