"""The warm-up's shortcut must be the XLM-R forward pass itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

import torch

from mexma_rt.backends.packed_attention import make_layout
from mexma_rt.backends.packed_encoder import Encoder, position_numbers
from mexma_train.config import ModelConfig, SamplingConfig, WarmupConfig
from mexma_train.data.shards import Ragged, open_shards
from mexma_train.encoder import new_encoder
from mexma_train.sampling import PairSampler
from mexma_train.warmup import (
    bag_vectors,
    make_bags,
    make_transparent,
    prepare_for_masking,
    warmup_batch,
    warmup_parameters,
    warmup_terms,
)

SHAPE = ModelConfig(hidden_size=32, layers=3, heads=4, intermediate_size=64, max_positions=40)


def batch() -> Ragged:
    rng = np.random.default_rng(0)
    sentences = [np.array([0, *rng.integers(4, 99, n), 2]) for n in (1, 5, 5, 20, 0)]
    return Ragged(ids=np.concatenate(sentences), lengths=np.array([len(s) for s in sentences]))


def full_pass(model: Encoder, sentences: Ragged) -> torch.Tensor:
    """The same vectors through every layer (held against transformers in test_encoder.py)."""
    layout = make_layout(sentences.lengths, "padded")
    positions = torch.from_numpy(position_numbers(sentences.ids, sentences.lengths))
    return model(torch.from_numpy(sentences.ids), positions, layout)[layout.starts_S]


def encoder() -> Encoder:
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
    ragged = batch()
    with torch.no_grad():
        expected = full_pass(model, ragged)
        torch.testing.assert_close(bag_vectors(model, make_bags(ragged)), expected, atol=2e-5, rtol=1e-5)


def test_gradients_equal_those_of_the_full_forward_pass() -> None:
    """The hand-written transpose of the sparse sum, checked against autograd through the whole encoder."""
    ragged = batch()
    pull = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    gradients = []
    for forward in (
        lambda m: full_pass(m, ragged),
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


def test_terms_are_the_ranking_of_the_batch(toy_shards: Path) -> None:
    torch.manual_seed(0)
    sampler = PairSampler(open_shards(toy_shards), SamplingConfig())
    model = new_encoder(SHAPE, sampler.shards.vocab_size).eval()
    make_transparent(model)
    config = WarmupConfig(steps=1, batch_pairs=16, temperature=0.1)
    drawn = warmup_batch(3, sampler, config)
    terms = warmup_terms(model, drawn, config)
    pairs = sampler.batch(3, 16)
    sides = (sampler.shards.text(pairs, 64), sampler.shards.english(pairs, 64))
    x, y = (full_pass(model, side).detach().double().numpy() for side in sides)
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    scores = x @ y.T / 0.1
    losses = [-np.log(np.exp(s)[np.arange(len(s)), np.arange(len(s))] / np.exp(s).sum(axis=1)) for s in (scores, scores.T)]
    assert terms["loss"].item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert terms["accuracy"].item() == pytest.approx((scores.argmax(axis=1) == np.arange(len(scores))).mean())
    assert drawn.pairs == len(pairs) and drawn.tokens == sum(len(side.ids) for side in sides)


def test_settling_changes_no_vector_but_for_the_positions() -> None:
    model = encoder()
    ragged = batch()
    with torch.no_grad():
        expected = bag_vectors(model, make_bags(ragged))  # of the bags alone: positions do not enter
        prepare_for_masking(model)
        torch.testing.assert_close(bag_vectors(model, make_bags(ragged)), expected, atol=2e-2, rtol=0)  # LayerNorm's eps
    torch.testing.assert_close(model.embeddings.word_embeddings.weight.norm(dim=1), torch.full((100,), 0.5))
    positions = model.embeddings.position_embeddings.weight
    assert positions[1].abs().max() == 0  # padding
    torch.testing.assert_close(positions[2:].norm(dim=1), torch.full((38,), 0.05))
    assert positions[2:].unique(dim=0).shape[0] == 38
