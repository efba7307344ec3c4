"""The probe: vectors of raw text as the export side would see them, and masked tokens guessed right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from transformers import PreTrainedTokenizerFast, XLMRobertaModel  # noqa: E402

from mexma_train import probe  # noqa: E402
from mexma_train.config import ModelConfig  # noqa: E402
from mexma_train.data.tokenizer import load_tokenizer  # noqa: E402
from mexma_train.encoder import new_encoder, save_encoder  # noqa: E402
from mexma_train.model import Mexma  # noqa: E402

SHAPE = ModelConfig(
    hidden_size=32, layers=2, heads=4, intermediate_size=64, max_positions=40,
    head_layers=1, head_heads=4, head_intermediate_size=64,
)  # fmt: skip
TEXTS = ["sun moon", "река дом дом дом вода", "", "pain eau soleil lune maison fleuve chien chat", "sun moon"]


@pytest.fixture(scope="module")
def model(toy_tokenizer: Path) -> Mexma:
    torch.manual_seed(0)
    return Mexma(new_encoder(SHAPE, load_tokenizer(toy_tokenizer).get_vocab_size()), SHAPE).train()


def test_vectors_are_transformers_cls_states_in_the_order_of_the_texts(
    model: Mexma, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "BATCH_TOKENS", 12)  # several batches
    vectors = probe.embed_texts(model.encoder, load_tokenizer(toy_tokenizer), TEXTS, max_tokens=8, attention="padded")
    assert vectors.shape == (5, 32) and vectors.dtype == np.float32
    assert model.encoder.training  # as it was
    save_encoder(model.encoder.config, model.encoder.state_dict(), tmp_path / "folder")
    theirs = XLMRobertaModel.from_pretrained(tmp_path / "folder", add_pooling_layer=False).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(toy_tokenizer))
    for vector, text in zip(vectors, TEXTS, strict=True):
        ids = tokenizer(text, truncation=True, max_length=8, return_tensors="pt")["input_ids"]
        state = theirs(ids).last_hidden_state[0, 0].detach()
        np.testing.assert_allclose(vector, (state / state.norm()).numpy(), atol=2e-6)


def test_a_head_that_knows_the_answer_is_100_percent_right_and_one_that_cannot_0(model: Mexma, toy_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(toy_tokenizer)
    sun = tokenizer.encode("sun sun sun", add_special_tokens=False).ids
    pairs = [("sun sun sun", "sun sun sun")] * 3
    with torch.no_grad():
        for wanted, percent in ((set(sun), 100.0 if len(set(sun)) == 1 else None), (set(), 0.0)):
            model.head.bias.fill_(0)
            model.head.bias[list(wanted) or [0]] = 1e4  # the bias decides alone: always this piece, or always <s>
            accuracy = probe.masked_accuracy(model, tokenizer, pairs, max_tokens=20, ratio=0.5, attention="padded")
            if percent is not None:
                assert accuracy == percent
            else:
                assert 0 < accuracy < 100
    assert model.training


def test_the_masks_are_the_same_at_every_call(model: Mexma, toy_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(toy_tokenizer)
    pairs = [("sun moon house river", "soleil lune maison fleuve"), ("dog cat", "chien chat")] * 20
    calls = [probe.masked_accuracy(model, tokenizer, pairs, max_tokens=20, ratio=0.4, attention=a) for a in ("padded", "block")]
    assert calls[0] == calls[1]
