"""MEXMA: the encoder, the token head, and the losses of one packed micro-batch.

Four passes (clean and masked, source and target) go through one shared encoder as one packed row. The sentence vector is the
`<s>` state of the *clean* pass; the head predicts the masked tokens of one language from their masked-pass states with
position 0 replaced by the clean sentence vector of the *other* language. Nothing is detached: both paths carry gradient.
B pairs, T tokens of the packed row, D dimensions, M masked tokens, V pieces.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mexma_rt.backends.packed_attention import make_layout
from mexma_rt.backends.packed_encoder import Encoder, Layer
from mexma_train.batch import MicroBatch
from mexma_train.config import MexmaConfig, ModelConfig
from mexma_train.losses import alignment_sum, contrastive_sum, koleo_sum
from mexma_train.parallel import World, gather_rows
from mexma_train.vocabulary import vocabulary_loss


class TokenHead(nn.Module):
    """Layers without positions, type embeddings or input LayerNorm, then the encoder's word matrix with a bias of its own.

    The layers keep torch's default (kaiming uniform) weights, as in facebookresearch/mexma. The tied matrix is not registered
    here, so that every parameter has one name; `Mexma` multiplies with it.
    """

    def __init__(self, shape: ModelConfig, width: int, vocab_size: int) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(
            Layer(
                width=width,
                heads=shape.head_heads,
                intermediate=shape.head_intermediate_size,
                norm_eps=shape.head_norm_eps,
                dropout=shape.dropout,
            )
            for _ in range(shape.head_layers)
        )
        self.bias = nn.Parameter(torch.empty(vocab_size).uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width)))


class Mexma(nn.Module):
    """Encoder plus head, which training optimises. Only the encoder is saved in the checkpoint."""

    def __init__(self, encoder: Encoder, shape: ModelConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = TokenHead(shape, encoder.config.hidden_size, encoder.config.vocab_size)

    def forward(
        self, batch: MicroBatch, config: MexmaConfig, *, attention: str, chunk: int = 1024, world: World | None = None
    ) -> dict[str, Tensor]:
        """Return the loss terms of a micro-batch, divided by its totals, and their weighted sum `loss`.

        Their sums over micro-batches and processes are the update's. `accuracy` is the share of sources whose own translation
        is the nearest target in the batch.
        """
        clean_2BD, hidden_MD = self.states(batch, attention, token_gradients=config.token_gradients)
        source_BD, target_BD = clean_2BD.chunk(2)
        totals, split = batch.totals, batch.masked_source
        labels, candidates = batch.labels, batch.candidates
        words: Tensor = self.encoder.embeddings.word_embeddings.weight
        bias: Tensor = self.head.bias
        if candidates is not None:
            words, bias, labels = words[candidates], bias[candidates], torch.searchsorted(candidates, labels)
        exact = torch.promote_types(hidden_MD.dtype, torch.float32)
        shares_M = torch.full_like(hidden_MD[:, 0], 0.5 / totals.target, dtype=exact)
        shares_M[:split] = 0.5 / totals.source
        mlm, token_losses_M = vocabulary_loss(hidden_MD, words, bias, labels, shares_M, chunk=chunk)

        pools, first = (source_BD, target_BD), 0
        if config.gather_vectors and world is not None and world.size > 1:
            pools = (gather_rows(source_BD, batch.pairs_per_rank, world), gather_rows(target_BD, batch.pairs_per_rank, world))
            first = sum(batch.pairs_per_rank[: world.rank])
        koleo = (koleo_sum(source_BD, pools[0], first) + koleo_sum(target_BD, pools[1], first)) / 2
        contrastive, right = contrastive_sum(source_BD, target_BD, pools, first, config.contrastive_temperature)
        terms: dict[str, Tensor] = {
            "mlm_source": token_losses_M[:split].sum() / totals.source,
            "mlm_target": token_losses_M[split:].sum() / totals.target,
            "align": alignment_sum(source_BD, target_BD) / totals.pairs,
            "koleo": koleo / totals.pairs,
            "contrastive": contrastive / totals.pairs,
            "accuracy": right / totals.pairs,
        }
        alignment = terms["contrastive"] if config.alignment == "contrastive" else terms["align"]
        terms["loss"] = (
            config.mlm_weight * mlm
            + config.align_weight * alignment
            + config.koleo_weight * terms["koleo"]
            + config.contrastive_weight * terms["contrastive"]
        )
        return terms

    def states(self, batch: MicroBatch, attention: str, *, token_gradients: bool = True) -> tuple[Tensor, Tensor]:
        """Return clean sentence vectors [2B, D] (sources, then targets) and the head's states [M, D] of the masked tokens.

        Without token gradients the masked-pass states are detached before the head: the paper's ablation, in which masked
        tokens update the encoder only through the sentence vectors.
        """
        device, count = batch.ids.device, len(batch.lengths)
        layout = make_layout(np.concatenate([batch.lengths, batch.lengths]), attention, device)
        half = make_layout(batch.lengths, attention, device)
        # The last layer's feed-forward part is computed only where it is read: <s> of the clean half, and the masked half.
        rows = torch.cat([half.starts_S, torch.arange(half.tokens, layout.tokens, device=device)])
        states = self.encoder(batch.ids, batch.positions, layout, rows)
        clean_2BD, masked_TD = states[:count], states[count:]
        if not token_gradients:
            masked_TD = masked_TD.detach()
        source_BD, target_BD = clean_2BD.chunk(2)
        masked_TD = masked_TD.index_copy(0, half.starts_S, torch.cat([target_BD, source_BD]))
        *lower, last = self.head.layers
        for layer in lower:
            masked_TD = layer(masked_TD, half)
        return clean_2BD, last(masked_TD, half, batch.chosen)
