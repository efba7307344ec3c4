"""The XLM-R encoder for packed sentences. Weights carry the names of transformers' XLMRobertaModel, so that a checkpoint
needs no conversion either way; the computation is equal to its forward pass (tests/train/test_encoder.py).

Written out here because transformers' own pads, and so that one layer serves the encoder and MEXMA's token head.
T packed tokens, R wanted rows, D dimensions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import XLMRobertaConfig

from mexma_rt.errors import InputError
from mexma_train.attention import Layout, attend
from mexma_train.config import ModelConfig

PAD = 1  # XLM-R's; position numbers start after it


class Layer(nn.Module):
    """Post-norm transformer layer: attention, then a GELU feed-forward network, each with residual and LayerNorm."""

    def __init__(self, *, width: int, heads: int, intermediate: int, norm_eps: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        projections = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        output = {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=norm_eps)}
        self.attention: Any = nn.ModuleDict({"self": nn.ModuleDict(projections), "output": nn.ModuleDict(output)})
        self.intermediate: Any = nn.ModuleDict({"dense": nn.Linear(width, intermediate)})
        self.output: Any = nn.ModuleDict(
            {"dense": nn.Linear(intermediate, width), "LayerNorm": nn.LayerNorm(width, eps=norm_eps)}
        )

    def forward(self, states_TD: Tensor, layout: Layout, rows_R: Tensor | None = None) -> Tensor:
        """States [T, D], or [R, D] at the wanted rows alone: what the last layer need not compute, it does not."""
        project, low_TD = self.attention.self, states_TD
        if torch.is_autocast_enabled(states_TD.device.type):  # one cast, kept once; autocast itself would make and keep three
            low_TD = states_TD.to(torch.get_autocast_dtype(states_TD.device.type))
        query_THE, key_THE, value_THE = (
            p(low_TD).unflatten(-1, (self.heads, -1)) for p in (project.query, project.key, project.value)
        )
        context = attend(query_THE, key_THE, value_THE, layout).flatten(1)
        if rows_R is not None:
            context, states_TD = context.index_select(0, rows_R), states_TD.index_select(0, rows_R)
        attended = self.attention.output.LayerNorm(self._drop(self.attention.output.dense(context)) + states_TD)
        widened = F.gelu(self.intermediate.dense(attended))
        return self.output.LayerNorm(self._drop(self.output.dense(widened)) + attended)

    def _drop(self, states: Tensor) -> Tensor:
        return F.dropout(states, self.dropout, self.training)


class Encoder(nn.Module):
    """XLM-R without pooler. `config` is transformers' own, written beside the weights."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.config, width = config, config.hidden_size
        self.embeddings: Any = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, width, padding_idx=PAD),  # no gradient to a <pad>, as theirs
                "position_embeddings": nn.Embedding(config.max_position_embeddings, width, padding_idx=PAD),
                "token_type_embeddings": nn.Embedding(1, width),
                "LayerNorm": nn.LayerNorm(width, eps=config.layer_norm_eps),
            }
        )
        layers = (
            Layer(
                width=width,
                heads=config.num_attention_heads,
                intermediate=config.intermediate_size,
                norm_eps=config.layer_norm_eps,
                dropout=config.hidden_dropout_prob,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.encoder: Any = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(self, ids_T: Tensor, positions_T: Tensor, layout: Layout, rows_R: Tensor | None = None) -> Tensor:
        """Final states [T, D], or [R, D] at the wanted rows; a sentence's vector is the state of its <s>."""
        tables = self.embeddings
        embedded = tables.word_embeddings(ids_T) + tables.position_embeddings(positions_T)
        states_TD = tables.LayerNorm(embedded + tables.token_type_embeddings.weight[0])
        states_TD = F.dropout(states_TD, self.config.hidden_dropout_prob, self.training)
        *lower, last = self.encoder.layer
        for layer in lower:
            states_TD = layer(states_TD, layout)
        return last(states_TD, layout, rows_R)


def position_numbers(ids_T: np.ndarray, lengths_S: np.ndarray) -> np.ndarray:
    """Row of the position table of each token, as transformers counts: 2, 3, ... per sentence; a <pad> inside gets 1."""
    real = ids_T != PAD
    counted = np.cumsum(real)
    before = np.concatenate([[0], counted])[np.cumsum(lengths_S) - lengths_S]
    return np.where(real, counted - np.repeat(before, lengths_S) + PAD, PAD)


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
