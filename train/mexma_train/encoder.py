"""Encoders to train: fresh ones, those of a checkpoint, and back to a checkpoint. The encoder itself is the runtime's
(mexma_rt/backends/packed_encoder.py), so that what is trained is what the torch back end runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import XLMRobertaConfig

from mexma_rt.backends.packed_encoder import PAD, Encoder
from mexma_rt.errors import InputError
from mexma_train.config import ModelConfig


def new_encoder(shape: ModelConfig, vocab_size: int) -> Encoder:
    """An encoder with BERT's fresh weights: normal(0, 0.02), biases 0, LayerNorm 1 and 0, the <pad> rows 0."""
    config = XLMRobertaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_positions,
        layer_norm_eps=shape.norm_eps,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=0.0,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=PAD,
        eos_token_id=2,
        architectures=["XLMRobertaModel"],
    )
    encoder = Encoder(config)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(0, config.initializer_range)
            if isinstance(module, nn.Linear):
                module.bias.zero_()
        for table in (encoder.embeddings.word_embeddings, encoder.embeddings.position_embeddings):
            table.weight[PAD].zero_()
    return encoder


def load_encoder(source: str | Path, *, dropout: float | None = None) -> Encoder:
    """The encoder of a Hugging Face folder or hub name (XLM-R, MEXMA, our checkpoint); safetensors only.

    Raises InputError for another architecture and for a checkpoint that lacks a weight; a pooler and an MLM head are left.
    """
    from transformers import AutoConfig, XLMRobertaModel

    config = AutoConfig.from_pretrained(source)
    if config.model_type != "xlm-roberta":
        raise InputError(f"{source} is a {config.model_type} model; MEXMA trains XLM-RoBERTa. Give an XLM-R folder or name.")
    loaded, report = cast(Any, XLMRobertaModel.from_pretrained)(
        source, add_pooling_layer=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(f"{source} lacks {len(missing)} weights of an XLM-R encoder, first {missing[0]}. Is it complete?")
    config = loaded.config
    config.attention_probs_dropout_prob = 0.0
    config.architectures = ["XLMRobertaModel"]
    if dropout is not None:
        config.hidden_dropout_prob = dropout
    encoder = Encoder(config)
    known = encoder.state_dict().keys()
    encoder.load_state_dict({name: tensor for name, tensor in loaded.state_dict().items() if name in known})
    return encoder


def save_encoder(config: XLMRobertaConfig, weights: dict[str, Tensor], folder: Path) -> None:
    """Write config.json and model.safetensors, as transformers' save_pretrained would."""
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
