"""The XLM-R encoder for packed sentences. Weights are named as in transformers' XLMRobertaModel, so checkpoints need no
conversion either way; the computation equals its forward pass (tests/train/test_encoder.py). Needs torch.

Written here because transformers' own pads, and so that one layer serves the torch back end, training and its token head.
T packed tokens, R requested rows, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mexma_rt.backends.packed_attention import Layout, attend

PAD = 1  # XLM-R's padding id; position numbers start after it


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
        """Return states [T, D], or [R, D] for the requested rows only, which saves work in the last layer."""
        project, low_TD = self.attention.self, states_TD
        if torch.is_autocast_enabled(states_TD.device.type):  # one cast; autocast itself would make and keep three
            low_TD = states_TD.to(torch.get_autocast_dtype(states_TD.device.type))
        query_THE, key_THE, value_THE = (
            p(low_TD).unflatten(-1, (self.heads, -1)) for p in (project.query, project.key, project.value)
        )
        context = attend(query_THE, key_THE, value_THE, layout).flatten(1)
        if rows_R is not None:
            context, states_TD = context.index_select(0, rows_R), states_TD.index_select(0, rows_R)
        attended = self.attention.output.LayerNorm(self._drop(self.attention.output.dense(context)) + states_TD)
        widened = F.gelu(self.intermediate.dense(attended))
        states: Tensor = self.output.LayerNorm(self._drop(self.output.dense(widened)) + attended)
        return states

    def _drop(self, states: Tensor) -> Tensor:
        return F.dropout(states, self.dropout, self.training)


class Encoder(nn.Module):
    """XLM-R without a pooler. `config` has XLMRobertaConfig's fields, and must be one if it will be written."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, width = config, config.hidden_size
        self.embeddings: Any = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config.vocab_size, width, padding_idx=PAD),  # no gradient to <pad>, as theirs
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
        """Return final states [T, D], or [R, D] for the requested rows; a sentence's vector is the state of its <s>."""
        back_T = layout.back_T if layout.order_T is not None else None
        if back_T is not None:  # reorder tokens by sentence length, once for all layers
            ids_T, positions_T = ids_T.index_select(0, layout.order_T), positions_T.index_select(0, layout.order_T)
            rows_R, layout = None if rows_R is None else back_T.index_select(0, rows_R), layout.in_order()
        tables = self.embeddings
        embedded = tables.word_embeddings(ids_T) + tables.position_embeddings(positions_T)
        states_TD = tables.LayerNorm(embedded + tables.token_type_embeddings.weight[0])
        states_TD = F.dropout(states_TD, self.config.hidden_dropout_prob, self.training)
        *lower, last = self.encoder.layer
        for layer in lower:
            states_TD = layer(states_TD, layout)
        states: Tensor = last(states_TD, layout, rows_R)
        return states if rows_R is not None or back_T is None else states.index_select(0, back_T)


def position_numbers(ids_T: np.ndarray, lengths_S: np.ndarray, pad: int = PAD) -> np.ndarray:
    """Return each token's row in the position table, as transformers counts: 2, 3, ... per sentence; a <pad> inside gets 1."""
    real = ids_T != pad
    counted = np.cumsum(real)
    before = np.concatenate([[0], counted])[np.cumsum(lengths_S) - lengths_S]
    return np.where(real, counted - np.repeat(before, lengths_S) + pad, pad)
