"""A straightforward padded MEXMA, the yardstick of train_throughput.py: what one would write first, on transformers' modules.

XLMRobertaModel runs four times (masked and clean, source and target), each side padded to its longest sentence; the head is a
stack of transformers' layers; every place gets its logits, and the cross entropy ignores -100. B sentences, L the longest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

from mexma_train.batch import MaskedSide
from mexma_train.config import MexmaConfig, ModelConfig

PAD = 1


class PaddedHead(nn.Module):
    """The head's weights, by the names that they have in `Mexma`."""

    def __init__(self, config: XLMRobertaConfig, layers: int, vocab_size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(XLMRobertaLayer(config) for _ in range(layers))
        self.bias = nn.Parameter(torch.zeros(vocab_size))


class PaddedMexma(nn.Module):
    """The losses as facebookresearch/mexma computes them with padding, on transformers' modules."""

    def __init__(self, shape: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        common: dict[str, Any] = {
            "vocab_size": vocab_size, "hidden_size": shape.hidden_size, "max_position_embeddings": shape.max_positions,
            "hidden_dropout_prob": shape.dropout, "attention_probs_dropout_prob": 0.0, "type_vocab_size": 1,
            "pad_token_id": PAD, "attn_implementation": "sdpa",
        }  # fmt: skip
        encoder = XLMRobertaConfig(
            **common, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
            intermediate_size=shape.intermediate_size, layer_norm_eps=shape.norm_eps,
        )  # fmt: skip
        self.head_config = XLMRobertaConfig(
            **common, num_attention_heads=shape.head_heads, intermediate_size=shape.head_intermediate_size,
            layer_norm_eps=shape.head_norm_eps,
        )  # fmt: skip
        self.encoder = XLMRobertaModel(encoder, add_pooling_layer=False)
        self.head = PaddedHead(self.head_config, shape.head_layers, vocab_size)

    def forward(self, source: dict[str, Tensor], target: dict[str, Tensor], config: MexmaConfig) -> Tensor:
        """The loss; each side has int64 [B, L] `clean`, `masked`, `labels` (-100 where none) and `mask` (1 at real tokens)."""
        masked = [self.encoder(input_ids=side["masked"], attention_mask=side["mask"])[0] for side in (source, target)]
        vectors = [self.encoder(input_ids=side["clean"], attention_mask=side["mask"])[0][:, 0] for side in (source, target)]
        mlm = sum(
            self.token_loss(states, other, side)
            for states, other, side in zip(masked, reversed(vectors), (source, target), strict=True)
        )
        koleo = sum(map(padded_koleo, vectors))
        align = F.mse_loss(vectors[0], vectors[1])
        return config.mlm_weight * mlm / 2 + config.align_weight * align + config.koleo_weight * koleo / 2

    def token_loss(self, states: Tensor, other: Tensor, side: dict[str, Tensor]) -> Tensor:
        states = torch.cat([other[:, None], states[:, 1:]], dim=1)
        mask = create_bidirectional_mask(config=self.head_config, inputs_embeds=states, attention_mask=side["mask"])
        for layer in self.head.layers:
            states = layer(states, mask)
        logits = F.linear(states, self.encoder.embeddings.word_embeddings.weight, self.head.bias)
        return F.cross_entropy(logits.flatten(0, 1), side["labels"].flatten(), ignore_index=-100)


def padded_koleo(vectors: Tensor) -> Tensor:
    with torch.autocast(vectors.device.type, enabled=False):
        unit = F.normalize(vectors.float(), eps=1e-8)
        with torch.no_grad():
            nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(dim=1)
        return -torch.log(F.pairwise_distance(unit, unit[nearest], eps=1e-8) + 1e-8).mean()


def padded_side(side: MaskedSide, device: torch.device) -> dict[str, Tensor]:
    real = np.arange(side.lengths.max()) < side.lengths[:, None]

    def table(flat: np.ndarray, fill: int) -> Tensor:
        out = np.full(real.shape, fill, np.int64)
        out[real] = flat
        return torch.from_numpy(out).to(device)

    labels = np.where(side.chosen, side.clean, -100)
    return {
        "clean": table(side.clean, PAD),
        "masked": table(side.masked, PAD),
        "labels": table(labels, -100),
        "mask": torch.from_numpy(real.astype(np.int64)).to(device),
    }
