"""The reference itself, against transformers' XLM-R and against numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest

pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")
pytest.importorskip("transformers", reason="part of mexma-rt[train]")

import torch
import transformers
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

from mexma_train.config import ModelConfig

from .reference import encode, info_nce, koleo_of, layer, mean_square, reference_terms, token_loss

VOCAB = 50
SHAPE = ModelConfig(
    hidden_size=24, layers=3, heads=4, intermediate_size=40, max_positions=30, norm_eps=1e-5,
    head_layers=2, head_heads=3, head_intermediate_size=36, head_norm_eps=1e-12,
)  # fmt: skip
IDS = [[0, 7, 44, 13, 8, 2], [0, 31, 2], [0, 5, 9, 9, 27, 1, 4, 33, 2]]  # <pad> inside the last: the original's masking does it
OFF: dict[str, Any] = {"koleo_weight": 0.0, "align_weight": 0.0, "mlm_weight": 1.0}
Module = TypeVar("Module", bound=torch.nn.Module)


def hugging_face_config(**changes: object) -> transformers.XLMRobertaConfig:
    values: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
        "max_position_embeddings": 30, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "attn_implementation": "sdpa",
    }  # fmt: skip
    return transformers.XLMRobertaConfig(**values | changes)


def shaken(module: Module) -> Module:
    """Biases and norms away from 0 and 1, so that leaving one out would show."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.double().eval()


def fresh() -> tuple[transformers.XLMRobertaModel, list[torch.nn.Module], dict[str, torch.Tensor]]:
    """Transformers' encoder, its layers in the shape of the head, and the weights of both under the reference's names."""
    torch.manual_seed(0)
    encoder = shaken(transformers.XLMRobertaModel(hugging_face_config(), add_pooling_layer=False))
    config = hugging_face_config(num_attention_heads=3, intermediate_size=36, layer_norm_eps=1e-12)
    head: list[torch.nn.Module] = [shaken(XLMRobertaLayer(config)) for _ in range(2)]
    weights: dict[str, torch.Tensor] = {f"encoder.{name}": p for name, p in encoder.named_parameters()}
    for i, module in enumerate(head):
        weights.update({f"head.layers.{i}.{name}": p for name, p in module.named_parameters()})
    weights["head.bias"] = torch.randn(VOCAB, dtype=torch.float64)
    return encoder, head, weights


def test_states_and_gradients_of_the_encoder_equal_transformers_on_a_padded_batch() -> None:
    encoder, _, weights = fresh()
    longest = max(map(len, IDS))
    batch = torch.tensor([ids + [1] * (longest - len(ids)) for ids in IDS])
    mask = torch.arange(longest) < torch.tensor([[len(ids)] for ids in IDS])
    states = encoder(input_ids=batch, attention_mask=mask.long()).last_hidden_state
    factors = torch.randn_like(states)
    expected_loss = sum((states[i, : len(ids)] * factors[i, : len(ids)]).sum() for i, ids in enumerate(IDS))
    expected = torch.autograd.grad(expected_loss, list(encoder.parameters()))
    ours = [encode(weights, SHAPE, ids) for ids in IDS]
    for i, ids in enumerate(IDS):
        torch.testing.assert_close(ours[i], states[i, : len(ids)], atol=1e-10, rtol=1e-10)
    loss = torch.stack([(ours[i] * factors[i, : len(ids)]).sum() for i, ids in enumerate(IDS)]).sum()
    gradients = torch.autograd.grad(loss, list(encoder.parameters()))
    for (name, _), got, want in zip(encoder.named_parameters(), gradients, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9, msg=partial("{}: {}".format, name))


def test_a_head_layer_equals_transformers_with_its_own_heads_width_and_eps() -> None:
    _, head, weights = fresh()
    states = torch.randn(7, 24, dtype=torch.float64)
    for i, module in enumerate(head):
        expected = module(states[None])[0]
        torch.testing.assert_close(layer(weights, f"head.layers.{i}.", states, 3, 1e-12), expected, atol=1e-10, rtol=1e-10)


def test_token_loss_reads_the_other_languages_clean_vector_at_place_0() -> None:
    """Without head layers the scores at place 0 are those of the other sentence's vector: no masked state is in them."""
    encoder, _, weights = fresh()
    clean, masked, other = IDS[0], [0, 49, 44, 49, 8, 2], encoder(input_ids=torch.tensor([IDS[2]])).last_hidden_state[0, 0]
    side = [(clean, masked, [True, False, False, False, False, False])]
    logits = encoder.embeddings.word_embeddings.weight @ other + weights["head.bias"]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(0))
    loss = token_loss(weights, replace(SHAPE, head_layers=0), side, [encode(weights, SHAPE, IDS[2])[0]])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_token_loss_is_the_mean_over_the_chosen_places_of_all_sentences() -> None:
    """With a zero word matrix the bias alone scores: a piece of probability p costs -log p wherever it stands."""
    _, _, weights = fresh()
    weights["encoder.embeddings.word_embeddings.weight"] = torch.zeros(VOCAB, 24, dtype=torch.float64)
    probabilities = torch.full((VOCAB,), 0.25 / (VOCAB - 2), dtype=torch.float64)
    probabilities[7], probabilities[31] = 0.5, 0.25
    weights["head.bias"] = probabilities.log() + 3.0  # a constant on all scores changes nothing
    side = [
        ([0, 7, 31, 9, 2], [0, 49, 49, 9, 2], [False, True, True, False, False]),
        ([0, 7, 2], [0, 7, 2], [False, False, False]),
        ([0, 7, 2], [0, 12, 2], [False, True, False]),
    ]
    vectors = [torch.zeros(24, dtype=torch.float64)] * 3
    assert token_loss(weights, SHAPE, side, vectors).item() == pytest.approx((2 * math.log(2) + math.log(4)) / 3, rel=1e-12)


def test_alignment_by_hand() -> None:
    x, y = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[0.0, 4.0], [0.0, 2.0]])
    assert mean_square(x, y).item() == (1 + 4 + 0 + 9) / 4


def test_koleo_by_hand() -> None:
    """Directions at 0, 60 and 90 degrees: the nearest chords are 2 sin 30 = 1 and twice 2 sin 15 degrees."""
    x = torch.tensor([[3.0, 0.0], [0.5, math.sqrt(0.75)], [0.0, 0.2]], dtype=torch.float64)
    expected = -(math.log(1.0) + 2 * math.log(2 * math.sin(math.pi / 12))) / 3
    assert koleo_of(x).item() == pytest.approx(expected, abs=1e-7)  # the two eps of 1e-8 are left out of the hand's number


def test_koleo_of_equal_vectors_is_made_of_its_two_eps() -> None:
    """Four dimensions that differ by 1e-8 each are 2e-8 apart; then 1e-8 is added before the logarithm."""
    assert koleo_of(torch.ones(2, 4, dtype=torch.float64)).item() == pytest.approx(-math.log(3e-8), rel=1e-12)


def test_contrastive_by_hand() -> None:
    """Two pairs of cosines 1 and 0: -log(e^2 / (e^2 + 1)) in both directions at temperature 0.5."""
    x = torch.tensor([[2.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    assert info_nce(x, 3 * x, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-12)
    # One direction sees the other's column: cosines [[1, 1], [0, 0]], so forward is log 2 and backward the mean of both.
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    backward = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert info_nce(x, y, 0.5).item() == pytest.approx((math.log(2) + backward) / 2, rel=1e-12)


def two_pairs() -> tuple[list, list]:
    source = [(IDS[0], [0, 49, 44, 13, 8, 2], [False, True, False, False, True, False]), (IDS[1], [0, 31, 2], [False] * 3)]
    target = [
        (IDS[2], [*IDS[2][:4], 49, *IDS[2][5:]], [False] * 4 + [True] + [False] * 4),
        (IDS[1], [0, 49, 2], [False, True, False]),
    ]
    return source, target


def test_loss_is_the_weighted_sum_of_the_terms() -> None:
    _, _, weights = fresh()
    source, target = two_pairs()
    weighted: dict[str, Any] = {
        "koleo_weight": 0.3,
        "align_weight": 0.7,
        "mlm_weight": 0.9,
        "contrastive_weight": 0.2,
        "temperature": 0.1,
    }
    terms = {k: v.item() for k, v in reference_terms(weights, SHAPE, source, target, **weighted).items()}
    assert set(terms) == {"mlm_source", "mlm_target", "align", "koleo", "contrastive", "loss"}
    mlm = (terms["mlm_source"] + terms["mlm_target"]) / 2
    expected = 0.9 * mlm + 0.7 * terms["align"] + 0.3 * terms["koleo"] + 0.2 * terms["contrastive"]
    assert terms["loss"] == pytest.approx(expected, rel=1e-12)
    swapped = reference_terms(weights, SHAPE, target, source, **weighted)
    assert swapped["mlm_source"].item() == pytest.approx(terms["mlm_target"], rel=1e-12)
    assert swapped["loss"].item() == pytest.approx(terms["loss"], rel=1e-12)
    instead = reference_terms(weights, SHAPE, source, target, alignment="contrastive", temperature=0.1, **OFF)
    assert instead["align"].item() == pytest.approx(terms["contrastive"], rel=1e-12)


@pytest.mark.parametrize("token_gradients", [True, False])
def test_without_token_gradients_the_masked_passes_learn_nothing(token_gradients: bool) -> None:
    """The masked sentences are longer than the clean ones here, so the last positions are seen by the masked passes alone."""
    _, _, weights = fresh()
    side = [([0, 7, 2], [0, 49, 13, 8, 2], [False, True, False, False, False])] * 2
    terms = reference_terms(weights, SHAPE, side, side, token_gradients=token_gradients, **OFF)
    (gradient,) = torch.autograd.grad(terms["loss"], [weights["encoder.embeddings.position_embeddings.weight"]])
    assert gradient[2:5].abs().max() > 0  # the clean passes
    assert (gradient[5:7].abs().max() > 0) == token_gradients
