"""Our packed encoder against transformers' XLMRobertaModel, and checkpoints both ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from transformers import XLMRobertaForMaskedLM, XLMRobertaModel  # noqa: E402

from mexma_rt.backends.packed_attention import make_layout  # noqa: E402
from mexma_rt.backends.packed_encoder import Encoder, position_numbers  # noqa: E402
from mexma_rt.errors import InputError  # noqa: E402
from mexma_train.config import ModelConfig  # noqa: E402
from mexma_train.encoder import load_encoder, new_encoder, save_encoder  # noqa: E402

SHAPE = ModelConfig(hidden_size=32, layers=3, heads=4, intermediate_size=48, max_positions=30)
LENGTHS = np.array([5, 2, 12])


def small() -> Encoder:
    torch.manual_seed(0)
    encoder = new_encoder(SHAPE, 50).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def ids() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([[0, *rng.integers(4, 49, n - 2), 2] for n in LENGTHS])


def states(encoder: Encoder, kind: str = "padded", rows: torch.Tensor | None = None) -> torch.Tensor:
    tokens = ids()
    positions = torch.from_numpy(position_numbers(tokens, LENGTHS))
    return encoder(torch.from_numpy(tokens), positions, make_layout(LENGTHS, kind), rows)


def peer(encoder: Encoder, folder: Path) -> XLMRobertaModel:
    save_encoder(encoder.config, encoder.state_dict(), folder)
    model, report = XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("kind", ["padded", "block"])
def test_states_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    encoder = small()
    theirs = peer(encoder, tmp_path / "folder").double()
    ours, start = states(encoder.double(), kind), 0
    for length in LENGTHS:
        expected = theirs(input_ids=torch.from_numpy(ids()[None, start : start + length])).last_hidden_state[0]
        torch.testing.assert_close(ours[start : start + length], expected, atol=1e-10, rtol=1e-10)
        start += length


def test_wanted_rows_are_the_rows_of_the_whole() -> None:
    encoder = small().double()
    rows = torch.tensor([0, 5, 7, 18])
    torch.testing.assert_close(states(encoder, rows=rows), states(encoder)[rows], atol=1e-12, rtol=1e-12)


def test_positions_start_after_the_padding_index_in_each_sentence_and_skip_an_inserted_pad() -> None:
    tokens = np.array([0, 9, 2, 0, 1, 9, 2])
    assert position_numbers(tokens, np.array([3, 4])).tolist() == [2, 3, 4, 2, 1, 3, 4]
    from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaEmbeddings

    theirs = XLMRobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([[0, 1, 9, 2]]), padding_idx=1)
    assert theirs[0].tolist() == [2, 1, 3, 4]


def test_fresh_weights_are_berts() -> None:
    torch.manual_seed(0)
    encoder = new_encoder(ModelConfig(hidden_size=256, layers=1, heads=4, intermediate_size=512), 500)
    assert encoder.embeddings.word_embeddings.weight[2:].std().item() == pytest.approx(0.02, rel=0.02)
    assert encoder.encoder.layer[0].intermediate.dense.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert encoder.encoder.layer[0].intermediate.dense.bias.abs().max() == 0
    assert encoder.embeddings.word_embeddings.weight[1].abs().max() == 0


def test_dropout_acts_in_training_only() -> None:
    encoder = small()
    torch.testing.assert_close(states(encoder), states(encoder), atol=0, rtol=0)
    assert not torch.equal(states(encoder.train()), states(encoder))


def test_loading_takes_our_folder_and_a_masked_language_model(tmp_path: Path) -> None:
    encoder = small()
    save_encoder(encoder.config, encoder.state_dict(), tmp_path / "ours")
    config = XLMRobertaForMaskedLM.config_class.from_pretrained(tmp_path / "ours")
    language_model = XLMRobertaForMaskedLM(config)  # the form of FacebookAI/xlm-roberta-large: "roberta." names and an LM head
    language_model.roberta.load_state_dict(encoder.state_dict())
    language_model.save_pretrained(tmp_path / "mlm")
    for folder in ("ours", "mlm"):
        loaded = load_encoder(tmp_path / folder, dropout=0.25)
        assert loaded.config.hidden_dropout_prob == 0.25 and loaded.config.attention_probs_dropout_prob == 0
        for name, value in encoder.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name


def test_a_checkpoint_that_lacks_a_weight_or_is_another_model_is_refused(tmp_path: Path) -> None:
    encoder = small()
    weights = encoder.state_dict()
    del weights["encoder.layer.1.output.dense.weight"]
    save_encoder(encoder.config, weights, tmp_path / "lacking")
    with pytest.raises(
        InputError, match=r"lacks 1 weights of an XLM-R encoder, first encoder\.layer\.1\.output\.dense\.weight"
    ):
        load_encoder(tmp_path / "lacking")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="is a bert model; MEXMA trains XLM-RoBERTa"):
        load_encoder(tmp_path / "bert")
