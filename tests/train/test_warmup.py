"""The warm-up's shortcut must be the XLM-R forward pass itself."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from mexma_train.config import ModelConfig, WarmupConfig  # noqa: E402
from mexma_train.model import new_encoder  # noqa: E402
from mexma_train.shards import Ragged  # noqa: E402
from mexma_train.warmup import bag_vectors, make_bags, make_transparent, settle, warmup_parameters  # noqa: E402

SHAPE = ModelConfig(hidden_size=32, layers=3, heads=4, intermediate_size=64, max_positions=40)


def batch() -> tuple[Ragged, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    sentences = [np.array([0, *rng.integers(4, 99, n), 2]) for n in (1, 5, 5, 20, 0)]
    lengths = np.array([len(s) for s in sentences])
    ids = np.ones((5, lengths.max()), np.int64)
    for row, sentence in zip(ids, sentences, strict=True):
        row[: len(sentence)] = sentence
    return Ragged(ids=np.concatenate(sentences), lengths=lengths), torch.tensor(ids), torch.tensor(ids != 1)


def encoder() -> torch.nn.Module:
    torch.manual_seed(1)
    model = new_encoder(SHAPE, 100).eval()
    make_transparent(model)
    with torch.no_grad():  # a last layer as training leaves it, and word rows large enough for LayerNorm's eps not to show
        model.embeddings.word_embeddings.weight.mul_(30)
        for parameter in model.encoder.layer[-1].parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_bag_vectors_equal_the_full_forward_pass() -> None:
    model = encoder()
    ragged, ids, mask = batch()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[:, 0]
        torch.testing.assert_close(bag_vectors(model, make_bags(ragged)), expected, atol=2e-5, rtol=1e-5)


def test_gradients_equal_those_of_the_full_forward_pass() -> None:
    """The hand-written transpose of the sparse sum, checked against autograd through transformers' own layers."""
    ragged, ids, mask = batch()
    pull = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    gradients = []
    for forward in (
        lambda m: m(input_ids=ids, attention_mask=mask.long()).last_hidden_state[:, 0],
        lambda m: bag_vectors(m, make_bags(ragged)),
    ):
        model = encoder()
        (forward(model) * pull).sum().backward()
        groups = warmup_parameters(model, WarmupConfig(steps=1))
        gradients.append([p.grad for group in groups for p in group["params"]])
    for full, bag in zip(*gradients, strict=True):
        if bag is None:  # the key bias: it cancels in the softmax, so the shortcut leaves it out
            assert full.abs().max() < 1e-5
        else:
            torch.testing.assert_close(bag, full, atol=1e-4, rtol=1e-3)


def test_settling_changes_no_vector_but_for_the_positions() -> None:
    model = encoder()
    ragged, _, _ = batch()
    with torch.no_grad():
        expected = bag_vectors(model, make_bags(ragged))  # of the bags alone: positions do not enter
        settle(model)
        torch.testing.assert_close(bag_vectors(model, make_bags(ragged)), expected, atol=2e-2, rtol=0)  # LayerNorm's eps
    torch.testing.assert_close(model.embeddings.word_embeddings.weight.norm(dim=1), torch.full((100,), 0.5))
    positions = model.embeddings.position_embeddings.weight
    assert positions[1].abs().max() == 0  # padding
    torch.testing.assert_close(positions[2:].norm(dim=1), torch.full((38,), 0.05))
    assert positions[2:].unique(dim=0).shape[0] == 38
