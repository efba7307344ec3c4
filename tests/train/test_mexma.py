"""One MEXMA step against a slow reading of the recipe: one sentence at a time, no padding, every logit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

import torch.nn.functional as F  # noqa: E402

from mexma_train.config import MexmaConfig, ModelConfig, SamplingConfig  # noqa: E402
from mexma_train.losses import alignment_loss, koleo_loss  # noqa: E402
from mexma_train.mexma import Side, candidate_pieces, make_side, mexma_batch_loss, mexma_loss  # noqa: E402
from mexma_train.model import Mexma, new_encoder  # noqa: E402
from mexma_train.sampling import PairSampler  # noqa: E402
from mexma_train.shards import Ragged, open_shards  # noqa: E402

VOCAB = 60
SHAPE = ModelConfig(
    hidden_size=32, layers=2, heads=4, intermediate_size=64, max_positions=40,
    head_layers=2, head_heads=4, head_intermediate_size=48,
)  # fmt: skip
CPU = torch.device("cpu")


def small_model() -> Mexma:
    torch.manual_seed(0)
    model = Mexma(new_encoder(SHAPE, VOCAB), SHAPE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def small_side(seed: int) -> Side:
    rng = np.random.default_rng(seed)
    sentences = [np.array([0, *rng.integers(4, VOCAB - 1, n), 2]) for n in (3, 9, 6, 1)]
    ragged = Ragged(ids=np.concatenate(sentences), lengths=np.array([len(s) for s in sentences]))
    return make_side(ragged, 0.4, VOCAB, rng, CPU)


def slow_token_loss(model: Mexma, side: Side, other: torch.Tensor) -> torch.Tensor:
    """Cross entropy over every position's full logits, labels -100 where nothing is masked; sentences one by one."""
    logits, labels = [], []
    for row in range(len(side.clean)):
        length = int(side.mask[row].sum())
        states = model.encoder(input_ids=side.masked[row : row + 1, :length]).last_hidden_state
        states = torch.cat([other[row][None, None], states[:, 1:]], dim=1)
        for layer in model.head.layers:
            states = layer(states)
        logits.append(model.head.vocabulary(states[0]))
        labels.append(torch.where(side.chosen[row, :length], side.clean[row, :length], -100))
    return F.cross_entropy(torch.cat(logits), torch.cat(labels), ignore_index=-100)


def clean_vectors(model: Mexma, side: Side) -> torch.Tensor:
    rows = [model.encoder(input_ids=side.clean[i : i + 1, : int(side.mask[i].sum())]) for i in range(len(side.clean))]
    return torch.cat([row.last_hidden_state[:, 0] for row in rows])


def slow_loss(model: Mexma, source: Side, target: Side, config: MexmaConfig) -> torch.Tensor:
    x, y = clean_vectors(model, source), clean_vectors(model, target)
    mlm = (slow_token_loss(model, source, y) + slow_token_loss(model, target, x)) / 2
    return mlm + alignment_loss(x, y) + config.koleo_weight * (koleo_loss(x) + koleo_loss(y)) / 2


def test_loss_and_every_gradient_equal_the_slow_reading() -> None:
    source, target, config = small_side(1), small_side(2), MexmaConfig(steps=1)
    losses, gradients = [], []
    for compute in (
        lambda m: slow_loss(m, source, target, config),
        lambda m: mexma_loss(m, source, target, config, None)["loss"],
    ):
        model = small_model().double()
        loss = compute(model)
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for name, expected in gradients[0].items():
        if expected is None:
            assert gradients[1][name] is None, name
        else:
            torch.testing.assert_close(gradients[1][name], expected, atol=1e-8, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_other_languages_clean_vector_gets_gradient_from_the_tokens() -> None:
    """No detach anywhere: with alignment and KoLeo off, the clean source pass still learns from the target's masked tokens."""
    model = small_model()
    config = MexmaConfig(steps=1, align_weight=0, koleo_weight=0)
    source, target = small_side(1), small_side(2)
    unmasked_source = Side(clean=source.clean, masked=source.masked, mask=source.mask, chosen=torch.zeros_like(source.chosen))
    only_in_source = [i for i in source.clean.unique().tolist() if i > 3 and i not in target.clean and i not in target.masked]
    assert only_in_source
    # The tied matrix has gradient from the softmax everywhere, so look at the rows of an untied copy used for the lookup.
    words = model.encoder.embeddings.word_embeddings
    words.weight = torch.nn.Parameter(words.weight.detach().clone())
    terms = mexma_loss(model, unmasked_source, target, config, None)
    assert terms["mlm_source"].item() == 0
    terms["loss"].backward()
    assert words.weight.grad[only_in_source].abs().max() > 0


def test_tied_matrix_and_fresh_bias() -> None:
    model = small_model()
    assert model.head.vocabulary.weight is model.encoder.embeddings.word_embeddings.weight
    assert model.head.vocabulary.bias.shape == (VOCAB,)


def test_head_of_the_paper_has_its_parameter_count() -> None:
    """62,988,288 parameters for hidden 1024 in facebookresearch/mexma (its head was built and counted)."""
    with torch.device("meta"):
        model = Mexma(new_encoder(ModelConfig(), 1_000), ModelConfig())
    assert sum(p.numel() for p in model.head.layers.parameters()) == 62_988_288


def test_candidates_include_every_piece_of_the_batch() -> None:
    source, target = small_side(1), small_side(2)
    candidates = candidate_pieces(source, target, 10, VOCAB, np.random.default_rng(0))
    assert set(source.clean.unique().tolist()) | set(target.clean.unique().tolist()) <= set(candidates.tolist())
    assert (candidates[1:] > candidates[:-1]).all()
    every, full = (mexma_loss(small_model(), source, target, MexmaConfig(steps=1), c) for c in (torch.arange(VOCAB), None))
    assert every["loss"].item() == pytest.approx(full["loss"].item(), rel=1e-5)


def test_a_batch_is_repeatable_from_its_number(toy_shards: Path) -> None:
    shape = replace(SHAPE, layers=1, head_layers=1)
    shards = open_shards(toy_shards)
    torch.manual_seed(0)
    model = Mexma(new_encoder(shape, shards.vocab_size), shape).train()
    sampler = PairSampler(shards, SamplingConfig())
    config = MexmaConfig(steps=1, batch_pairs=8, sampled_pieces=10, contrastive_weight=0.5)
    first, again, other = (mexma_batch_loss(model, sampler, config, step) for step in (4, 4, 5))
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in again.items()}
    assert first["loss"].item() != other["loss"].item()
    assert set(first) == {"mlm_source", "mlm_target", "align", "koleo", "loss", "accuracy", "contrastive"}
