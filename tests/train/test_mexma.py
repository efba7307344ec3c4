"""A MEXMA micro-batch in float64 against tests/train/reference.py: every loss term, and the gradient of every parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

import torch

from mexma_train.batch import MaskedSide, MicroBatch, Totals, join_sides, mask_side, whole_totals
from mexma_train.config import MexmaConfig, ModelConfig
from mexma_train.data.shards import Ragged
from mexma_train.encoder import new_encoder
from mexma_train.model import Mexma

from .reference import Sentence, Weights, reference_terms

VOCAB = 60
SHAPE = ModelConfig(
    hidden_size=32, layers=2, heads=4, intermediate_size=64, max_positions=40, norm_eps=1e-5,
    head_layers=2, head_heads=2, head_intermediate_size=48, head_norm_eps=1e-12,
)  # fmt: skip
CONFIG = MexmaConfig(steps=1)
TERMS = ("mlm_source", "mlm_target", "align", "koleo", "loss")

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "other weights": {"mlm_weight": 0.3, "align_weight": 2.0, "koleo_weight": 0.5},
    "koleo off": {"koleo_weight": 0.0},
    "token gradients off": {"token_gradients": False},
    "tokens alone": {"koleo_weight": 0.0, "align_weight": 0.0},
    "tokens alone, token gradients off": {"koleo_weight": 0.0, "align_weight": 0.0, "token_gradients": False},
    "contrastive instead of mse": {"alignment": "contrastive", "contrastive_temperature": 0.2},
    "contrastive beside mse": {"contrastive_weight": 0.7, "contrastive_temperature": 0.1},
    "contrastive twice": {"alignment": "contrastive", "contrastive_weight": 0.7},
}


def double_model(shape: ModelConfig = SHAPE) -> Mexma:
    """Random weights of a size at which every part matters; dropout is off."""
    torch.manual_seed(0)
    model = Mexma(new_encoder(shape, VOCAB), shape).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def masked_side(seed: int, lengths: tuple[int, ...] = (3, 9, 6, 1, 12), **changes: Any) -> MaskedSide:
    """Sentences of so many pieces between <s> and </s>, masked by the package."""
    rng = np.random.default_rng(seed)
    sentences = [np.array([0, *rng.integers(4, VOCAB - 1, n), 2]) for n in lengths]
    ragged = Ragged(ids=np.concatenate(sentences), lengths=np.array([len(s) for s in sentences]))
    return mask_side(ragged, replace(CONFIG, **changes), VOCAB, rng)


def without_choice(side: MaskedSide) -> MaskedSide:
    return replace(side, chosen=np.zeros_like(side.chosen))


def sentences(side: MaskedSide) -> list[Sentence]:
    ends = np.cumsum(side.lengths)
    return [
        (side.clean[end - n : end].tolist(), side.masked[end - n : end].tolist(), side.chosen[end - n : end].tolist())
        for end, n in zip(ends, side.lengths, strict=True)
    ]


def whole(source: MaskedSide, target: MaskedSide, candidates: np.ndarray | None = None) -> MicroBatch:
    return join_sides(source, target, whole_totals(source, target), candidates=candidates)


def slow_terms(model: Mexma, source: MaskedSide, target: MaskedSide, config: MexmaConfig) -> dict[str, torch.Tensor]:
    weights: Weights = dict(model.named_parameters())
    return reference_terms(
        weights,
        SHAPE,
        sentences(source),
        sentences(target),
        koleo_weight=config.koleo_weight,
        align_weight=config.align_weight,
        mlm_weight=config.mlm_weight,
        alignment=config.alignment,
        temperature=config.contrastive_temperature,
        contrastive_weight=config.contrastive_weight,
        token_gradients=config.token_gradients,
    )


def gradients(model: Mexma, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of every parameter; zeros where the loss does not depend on it."""
    model.zero_grad()
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def assert_same_gradients(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(got) == set(expected)
    for name, want in expected.items():
        torch.testing.assert_close(got[name], want, atol=1e-10, rtol=1e-5, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_term_and_every_gradient_equal_the_reference(setting: str) -> None:
    config, source, target = replace(CONFIG, **SETTINGS[setting]), masked_side(1), masked_side(2, (4, 7, 8, 2, 5))
    model = double_model()
    slow = slow_terms(model, source, target, config)
    expected = gradients(model, slow["loss"])
    assert (expected["encoder.embeddings.word_embeddings.weight"].abs().sum(dim=1) > 0).all()  # through the softmax
    # What the reference calls align is the term that align_weight multiplies; ours reports both by their own names.
    align = "contrastive" if config.alignment == "contrastive" else "align"
    values = {align if name == "align" else name: term.item() for name, term in slow.items()}
    assert all(values.values())
    for attention in ("padded", "equal", "block"):
        ours = model(whole(source, target), config, attention=attention, chunk=7)  # several chunks, the last one incomplete
        for name, value in values.items():
            assert ours[name].item() == pytest.approx(value, rel=1e-6), (attention, name)
        assert_same_gradients(gradients(model, ours["loss"]), expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_gives_the_references_terms() -> None:
    """Forward only: torch's FlexAttention has no backward on CPU. On CUDA tests/train/test_attention.py compares gradients."""
    source, target = masked_side(1), masked_side(2, (4, 7, 8, 2, 5))
    model = double_model()
    with torch.no_grad():
        ours = model(whole(source, target), CONFIG, attention="flex")
        slow = slow_terms(model, source, target, CONFIG)
    for name in TERMS:
        assert ours[name].item() == pytest.approx(slow[name].item(), rel=1e-6), name


def test_the_originals_masking_with_special_pieces_equals_the_reference() -> None:
    """With random_pieces="all" a <pad> may stand inside a sentence: it then shifts the positions behind it."""
    source, target = masked_side(1), masked_side(2, (4, 7, 8, 2, 5))
    place = np.flatnonzero(source.chosen)[1]
    source.masked[place] = 1
    assert source.chosen[place] and source.masked[place + 1] != 0
    model = double_model()
    slow = slow_terms(model, source, target, CONFIG)
    expected = gradients(model, slow["loss"])
    ours = model(whole(source, target), CONFIG, attention="padded")
    got = gradients(model, ours["loss"])
    for name in TERMS:
        assert ours[name].item() == pytest.approx(slow[name].item(), rel=1e-6), name
    assert_same_gradients(got, expected)


def test_the_softmax_over_candidates_equals_the_full_one_without_the_other_pieces() -> None:
    source, target = masked_side(1, (3, 2)), masked_side(2, (4, 3))
    model = double_model()
    full = gradients(model, model(whole(source, target), CONFIG, attention="padded")["loss"])
    every = gradients(model, model(whole(source, target, np.arange(VOCAB)), CONFIG, attention="padded")["loss"])
    for name, want in full.items():
        torch.testing.assert_close(every[name], want, atol=1e-12, rtol=1e-10, msg=partial("{}: {}".format, name))

    candidates = np.unique(np.concatenate([source.clean, target.clean, [50, 51]]))
    others = np.setdiff1d(np.arange(VOCAB), candidates)
    assert len(others) > 10
    ours = model(whole(source, target, candidates), CONFIG, attention="padded")
    got = gradients(model, ours["loss"])
    with torch.no_grad():
        model.head.bias[torch.from_numpy(others)] = -1e6  # a piece of probability exp(-1e6) = 0 leaves the softmax
    slow = slow_terms(model, source, target, CONFIG)
    for name in TERMS:
        assert ours[name].item() == pytest.approx(slow[name].item(), rel=1e-6), name
    assert_same_gradients(got, gradients(model, slow["loss"]))


def test_micro_batches_of_an_update_add_up_to_one_large_batch() -> None:
    """reduction="update": with the totals of the whole update, the parts' sums are the means over all its pairs and tokens."""
    config = replace(CONFIG, koleo_weight=0.0)  # KoLeo looks for neighbours in the micro-batch: another value by design
    parts = [(masked_side(1), masked_side(2)), (masked_side(3, (20, 1)), masked_side(4, (2, 5)))]
    together = [
        MaskedSide(
            **{k: np.concatenate([getattr(part[i], k) for part in parts]) for k in ("clean", "masked", "chosen", "lengths")}
        )
        for i in (0, 1)
    ]
    totals = whole_totals(*together)
    model = double_model()
    losses = [model(join_sides(*part, totals), config, attention="padded")["loss"] for part in parts]
    total = torch.stack(losses).sum()
    got = gradients(model, total)
    slow = slow_terms(model, together[0], together[1], config)["loss"]
    assert total.item() == pytest.approx(slow.item(), rel=1e-6)
    assert_same_gradients(got, gradients(model, slow))


def test_totals_of_the_original_give_the_mean_of_the_micro_batches_means() -> None:
    """reduction="micro-batch": each part is divided by its own totals and by the number of parts."""
    parts = [(masked_side(1), masked_side(2)), (masked_side(3, (20, 1)), masked_side(4, (2, 5)))]
    model = double_model()
    total = 0.0
    for part in parts:
        own = whole_totals(*part)
        doubled = Totals(source=2 * own.source, target=2 * own.target, pairs=2 * own.pairs)
        total += model(join_sides(*part, doubled), CONFIG, attention="padded")["loss"].item()
    expected = sum(slow_terms(model, *part, CONFIG)["loss"].item() for part in parts) / 2
    assert total == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def lookups() -> Iterator[list[torch.Tensor]]:
    """The word vectors [T, D] of each forward pass, with their gradients: the tied matrix itself hides whose they are."""
    seen: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == VOCAB:
            output.retain_grad()
            seen.append(output)

    handle = torch.nn.modules.module.register_module_forward_hook(keep)
    yield seen
    handle.remove()


def learnt(lookups: list[torch.Tensor], batch: MicroBatch, source: MaskedSide) -> dict[str, bool]:
    """Which of the four passes gets gradient at its words."""
    (words,) = lookups
    assert words.shape == (len(batch.ids), SHAPE.hidden_size) and words.grad is not None
    n, half = len(source.clean), batch.tokens
    rows = {
        "clean source": (0, n),
        "clean target": (n, half),
        "masked source": (half, half + n),
        "masked target": (half + n, None),
    }
    return {name: bool(words.grad[start:end].abs().max() > 0) for name, (start, end) in rows.items()}


@pytest.mark.parametrize("token_gradients", [True, False])
def test_tokens_teach_the_other_languages_clean_pass_and_if_wanted_their_own(
    lookups: list[torch.Tensor], token_gradients: bool
) -> None:
    """Nothing but target tokens is predicted: the clean source pass learns, and the masked target pass unless detached."""
    config = replace(CONFIG, align_weight=0.0, koleo_weight=0.0, token_gradients=token_gradients)
    source, target = without_choice(masked_side(1)), masked_side(2)
    batch = whole(source, target)
    terms = double_model()(batch, config, attention="padded")
    assert terms["mlm_source"].item() == 0 and terms["mlm_target"].item() > 0
    terms["loss"].backward()
    assert learnt(lookups, batch, source) == {
        "clean source": True,
        "clean target": False,
        "masked source": False,
        "masked target": token_gradients,
    }


def test_sentence_losses_teach_the_clean_passes_alone(lookups: list[torch.Tensor]) -> None:
    source, target = masked_side(1), masked_side(2)
    batch = whole(source, target)
    double_model()(batch, replace(CONFIG, mlm_weight=0.0), attention="padded")["loss"].backward()
    expected = {"clean source": True, "clean target": True, "masked source": False, "masked target": False}
    assert learnt(lookups, batch, source) == expected


def test_dropout_differs_between_the_passes_and_is_off_in_evaluation() -> None:
    """Source and target are the same text: any difference between their clean vectors is dropout's."""
    shape, side = replace(SHAPE, dropout=0.2), without_choice(masked_side(1))
    model = double_model(shape)
    batch = whole(side, side)
    assert model(batch, CONFIG, attention="padded")["align"].item() < 1e-25
    assert model.train()(batch, CONFIG, attention="padded")["align"].item() > 1e-3


def test_accuracy_is_the_share_of_pairs_whose_nearest_is_the_translation() -> None:
    model, side = double_model(), masked_side(1)
    assert model(whole(side, side), CONFIG, attention="padded")["accuracy"].item() == 1.0
    rolled = masked_side(1, (9, 3, 1, 6, 12))
    assert model(whole(side, rolled), CONFIG, attention="padded")["accuracy"].item() < 1.0


def test_the_word_matrix_is_tied_and_the_bias_fresh() -> None:
    model = Mexma(new_encoder(SHAPE, VOCAB), SHAPE)
    names = [name for name, parameter in model.named_parameters() if VOCAB in parameter.shape]
    assert names == ["encoder.embeddings.word_embeddings.weight", "head.bias"]
    assert model.head.bias.shape == (VOCAB,)
    # Torch's Linear starts its bias uniformly within 1/sqrt(fan in), as the original's vocabulary layer does.
    assert 0 < model.head.bias.abs().max() <= SHAPE.hidden_size**-0.5


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(ModelConfig(), 62_988_288), (ModelConfig(hidden_size=768, layers=12, heads=12, intermediate_size=3072), 42_527_232)],
)
def test_the_originals_head_has_its_parameter_count(shape: ModelConfig, expected: int) -> None:
    """As counted on the head that facebookresearch/mexma builds for XLM-R large and base."""
    with torch.device("meta"):
        model = Mexma(new_encoder(shape, 1_000), shape)
    assert sum(p.numel() for p in model.head.layers.parameters()) == expected


def test_head_layers_start_as_torchs_linear_layers_do() -> None:
    """The original's default is nn.Linear's kaiming-uniform, within 1/sqrt(fan in), not Hugging Face's normal(0, 0.02)."""
    torch.manual_seed(0)
    shape = replace(SHAPE, hidden_size=64, intermediate_size=96)
    head = Mexma(new_encoder(shape, VOCAB), shape).head
    matrices = {name: p for name, p in head.layers.named_parameters() if p.dim() == 2}
    assert len(matrices) == 2 * 6
    for name, matrix in matrices.items():
        bound = matrix.shape[1] ** -0.5
        assert 0.98 * bound < matrix.abs().max() <= bound, name
        assert matrix.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name
