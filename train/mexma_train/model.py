"""The encoder (XLM-R of transformers) and MEXMA's token head. B sentences, L tokens, D dimensions, V pieces.

The head is a small transformer without positions, type embeddings or input LayerNorm, then a linear layer tied to the
word embeddings with a bias of its own, as in facebookresearch/mexma.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

from mexma_train.config import ModelConfig


def encoder_config(config: ModelConfig, vocab_size: int) -> XLMRobertaConfig:
    """XLM-R configuration with the special ids of our tokenizers; attention dropout 0 as in MEXMA."""
    return XLMRobertaConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_positions,
        layer_norm_eps=config.norm_eps,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=0.0,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def new_encoder(config: ModelConfig, vocab_size: int) -> XLMRobertaModel:
    """A randomly initialised encoder without pooler."""
    return XLMRobertaModel(encoder_config(config, vocab_size), add_pooling_layer=False)


class TokenHead(nn.Module):
    """States [B, L, D], with the other language's sentence vector at position 0 -> states [B, L, D] for the vocabulary."""

    def __init__(self, config: ModelConfig, word_embeddings: nn.Embedding) -> None:
        super().__init__()
        layer_config = XLMRobertaConfig(
            hidden_size=config.hidden_size,
            num_attention_heads=config.head_heads,
            intermediate_size=config.head_intermediate_size,
            layer_norm_eps=config.head_norm_eps,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=0.0,
        )
        layer_config._attn_implementation = "sdpa"  # a layer made alone has no model that would choose one
        self.layers = nn.ModuleList(XLMRobertaLayer(layer_config) for _ in range(config.head_layers))
        self.vocabulary = nn.Linear(config.hidden_size, word_embeddings.num_embeddings)
        self.vocabulary.weight = word_embeddings.weight  # tied; the bias is fresh

    def forward(self, states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        attend = mask_BL[:, None, None, :].bool().expand(-1, 1, states_BLD.shape[1], -1)
        for layer in self.layers:
            states_BLD = layer(states_BLD, attention_mask=attend)
        return states_BLD


class Mexma(nn.Module):
    """Encoder plus head; what training optimises. Only the encoder is saved as the checkpoint."""

    def __init__(self, encoder: XLMRobertaModel, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = TokenHead(config, encoder.embeddings.word_embeddings)

    def encode(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Final states [B, L, D]; the sentence vector is row 0 of each sentence."""
        return self.encoder(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state

    def predict(self, masked_states_BLD: Tensor, other_vectors_BD: Tensor, mask_BL: Tensor) -> Tensor:
        """Head states [B, L, D] of masked sentences whose <s> is replaced by the other language's clean vector."""
        joined = torch.cat([other_vectors_BD[:, None], masked_states_BLD[:, 1:]], dim=1)
        return self.head(joined, mask_BL)
