"""Our packed encoder against transformers' XLMRobertaModel, and checkpoints both ways."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

import torch
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaModel

from mexma_rt.backends.packed_attention import make_layout
from mexma_rt.backends.packed_encoder import Encoder, position_numbers
from mexma_rt.errors import InputError
from mexma_train.config import ModelConfig
from mexma_train.encoder import load_encoder, new_encoder, save_encoder

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
    loaded: Any = XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("kind", ["padded", "equal", "block"])
def test_states_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    encoder = small()
    theirs = peer(encoder, tmp_path / "folder").double()
    ours, start = states(encoder.double(), kind), 0
    for length in LENGTHS:
        expected = theirs(input_ids=torch.from_numpy(ids()[None, start : start + length])).last_hidden_state[0]
        torch.testing.assert_close(ours[start : start + length], expected, atol=1e-10, rtol=1e-10)
        start += length


@pytest.mark.parametrize("kind", ["padded", "equal"])
def test_wanted_rows_are_the_rows_of_the_whole(kind: str) -> None:
    encoder = small().double()
    rows = torch.tensor([0, 5, 7, 18])
    torch.testing.assert_close(states(encoder, kind, rows=rows), states(encoder)[rows], atol=1e-12, rtol=1e-12)


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
    config = XLMRobertaConfig.from_pretrained(tmp_path / "ours")
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
    with pytest.raises(InputError, match=r"lack 1 tensors of the encoder.*\(first: encoder\.layer\.1\.output\.dense\.weight\)"):
        load_encoder(tmp_path / "lacking")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "modernbert"}))
    with pytest.raises(InputError, match=r"cannot be trained: .*model_type is 'modernbert': rotary positions and pre-norm"):
        load_encoder(tmp_path / "other")


def bert(folder: Path, tokenizer: Path, *, rows: int = 90) -> BertModel:
    """A random BERT with the toy tokenizer's pieces, `rows` of them, as multilingual-e5-small has XLM-R's."""
    torch.manual_seed(1)
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=rows, max_position_embeddings=30, type_vocab_size=2, pad_token_id=0, **shape)
    model = BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    return model


def test_a_bert_with_xlmrs_pieces_gives_berts_states(tmp_path: Path, toy_tokenizer: Path) -> None:
    theirs = bert(tmp_path / "bert", toy_tokenizer)
    ours = load_encoder(tmp_path / "bert", dropout=0.0).eval()
    assert (ours.config.model_type, ours.config.max_position_embeddings) == ("xlm-roberta", 32)
    packed, start = states(ours), 0
    for length in LENGTHS:
        expected = theirs(input_ids=torch.from_numpy(ids()[None, start : start + length])).last_hidden_state[0]
        assert (packed[start : start + length] - expected).abs().max() <= 1e-6
        start += length
    longest = torch.arange(4, 34)[None]  # the last row of the position table too
    positions = torch.from_numpy(position_numbers(longest[0].numpy(), np.array([30])))
    alone = ours(longest[0], positions, make_layout(np.array([30]), "padded"))
    assert (alone - theirs(input_ids=longest).last_hidden_state[0]).abs().max() <= 1e-6


def test_what_a_bert_becomes_loads_in_transformers(tmp_path: Path, toy_tokenizer: Path) -> None:
    theirs = bert(tmp_path / "bert", toy_tokenizer)
    again = peer(load_encoder(tmp_path / "bert", dropout=0.0), tmp_path / "saved")
    text = torch.from_numpy(ids()[None, :5])
    assert (again(text).last_hidden_state - theirs(text).last_hidden_state).abs().max() <= 1e-6


def test_spare_rows_of_a_table_are_cut_and_other_pieces_refused(tmp_path: Path, toy_tokenizer: Path) -> None:
    bert(tmp_path / "bert", toy_tokenizer, rows=96)
    assert load_encoder(tmp_path / "bert").config.vocab_size == 96
    encoder = load_encoder(tmp_path / "bert", pieces=toy_tokenizer)
    assert encoder.config.vocab_size == len(encoder.embeddings.word_embeddings.weight) == 90
    other = json.loads(toy_tokenizer.read_text(encoding="utf-8"))
    vocabulary = other["model"]["vocab"]
    vocabulary[10], vocabulary[11] = vocabulary[11], vocabulary[10]
    (tmp_path / "other.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(InputError, match=r"different pieces, or the same ones at different ids\. Prepare the shards again"):
        load_encoder(tmp_path / "bert", pieces=tmp_path / "other.json")


def test_a_bert_with_its_own_wordpiece_and_damaged_weights_are_refused(tmp_path: Path, toy_tokenizer: Path) -> None:
    bert(tmp_path / "bert", toy_tokenizer)
    weights = (tmp_path / "bert" / "model.safetensors").read_bytes()
    (tmp_path / "bert" / "model.safetensors").write_bytes(weights[:-1000])
    with pytest.raises(InputError, match=r"the weights do not load: .*not copied whole"):
        load_encoder(tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").write_bytes(weights)
    wordpiece = Tokenizer(models.WordPiece({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}, unk_token="[UNK]"))
    wordpiece.save(str(tmp_path / "bert" / "tokenizer.json"))
    with pytest.raises(InputError, match=r"<s> <pad> </s> <unk> <mask> have ids \[None, .*but XLM-R's are"):
        load_encoder(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").rename(tmp_path / "bert" / "vocab.txt")
    with pytest.raises(InputError, match=r"its own WordPiece vocabulary \(vocab\.txt\), and MEXMA trains models with XLM-R's"):
        load_encoder(tmp_path / "bert")
    with pytest.raises(InputError, match="is not a folder here, and the Hugging Face hub did not provide"):
        load_encoder(tmp_path / "nowhere" / "such")
