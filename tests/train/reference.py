"""The MEXMA loss written from its formulas: slow, obvious, float64, independent of the package's own model and losses.

One sentence at a time, so there is no padding and no mask; every place is scored over the whole vocabulary; no torch.nn.
Gradients come from autograd. Formulas: MEXMA (arXiv 2409.12737) as facebookresearch/mexma implements it; XLM-R's encoder as in
its paper and checkpoints (post-norm transformer layers, positions from padding_idx + 1, one token type, exact GELU).

Weights are a dict of float64 tensors under Hugging Face's names: `encoder.` + the names of XLMRobertaModel, which hold the word
matrix once, `head.layers.{i}.` + the names of an XLM-R layer, and `head.bias` [V].

Shapes: B pairs, T tokens of one sentence, D dimensions, H heads, E head width, V pieces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mexma_train.config import ModelConfig

Weights = dict[str, Tensor]
Sentence = tuple[Sequence[int], Sequence[int], Sequence[bool]]  # clean ids, masked ids, chosen for prediction; <s> ... </s>

PAD = 1  # <pad>, which a random replacement of the original may put into a sentence


def reference_terms(
    weights: Weights,
    shape: ModelConfig,
    source: Sequence[Sentence],
    target: Sequence[Sentence],
    *,
    koleo_weight: float,
    align_weight: float,
    mlm_weight: float,
    alignment: Literal["mse", "contrastive"] = "mse",
    temperature: float = 0.05,
    contrastive_weight: float = 0.0,
    token_gradients: bool = True,
) -> dict[str, Tensor]:
    """Scalar terms of one micro-batch, means over it: mlm_source, mlm_target, align, koleo, contrastive (if weighted), loss.

    `source[b]` and `target[b]` translate each other. Without `token_gradients` the masked passes are detached before the head,
    so that the tokens reach the encoder through the clean sentence vectors alone. At least two pairs are needed for KoLeo.
    """
    source_vectors = [encode(weights, shape, clean)[0] for clean, _, _ in source]
    target_vectors = [encode(weights, shape, clean)[0] for clean, _, _ in target]

    # Each side's tokens are predicted from its own masked states and the OTHER side's clean sentence vector.
    mlm_source = token_loss(weights, shape, source, target_vectors, token_gradients=token_gradients)
    mlm_target = token_loss(weights, shape, target, source_vectors, token_gradients=token_gradients)

    x, y = torch.stack(source_vectors), torch.stack(target_vectors)
    align = mean_square(x, y) if alignment == "mse" else info_nce(x, y, temperature)
    koleo = (koleo_of(x) + koleo_of(y)) / 2

    terms = {"mlm_source": mlm_source, "mlm_target": mlm_target, "align": align, "koleo": koleo}
    loss = mlm_weight * (mlm_source + mlm_target) / 2 + align_weight * align + koleo_weight * koleo
    if contrastive_weight:
        terms["contrastive"] = info_nce(x, y, temperature)
        loss = loss + contrastive_weight * terms["contrastive"]
    terms["loss"] = loss
    return terms


def token_loss(
    weights: Weights, shape: ModelConfig, side: Sequence[Sentence], other: Sequence[Tensor], *, token_gradients: bool = True
) -> Tensor:
    """Mean cross entropy of the clean ids at the chosen places of all sentences of one side; 0 where none is chosen."""
    losses = []
    for (clean, masked, chosen), other_vector in zip(side, other, strict=True):
        tokens = encode(weights, shape, masked)[1:]
        if not token_gradients:
            tokens = tokens.detach()
        states = torch.cat([other_vector[None], tokens])
        for i in range(shape.head_layers):
            states = layer(weights, f"head.layers.{i}.", states, shape.head_heads, shape.head_norm_eps)
        logits = states @ weights["encoder.embeddings.word_embeddings.weight"].T + weights["head.bias"]
        for place, is_chosen in enumerate(chosen):
            if is_chosen:
                losses.append(torch.logsumexp(logits[place], dim=0) - logits[place, clean[place]])
    if not losses:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack(losses).mean()


def encode(weights: Weights, shape: ModelConfig, ids: Sequence[int]) -> Tensor:
    """Last-layer states [T, D] of one sentence, <s> and </s> included.

    Positions count from padding_idx + 1 = 2. A <pad> inside the sentence is not counted, has position 1 and, as in
    transformers' embeddings, learns nothing at the lookup; it is attended to like any other token.
    """
    words = weights["encoder.embeddings.word_embeddings.weight"]
    positions = weights["encoder.embeddings.position_embeddings.weight"]
    types = weights["encoder.embeddings.token_type_embeddings.weight"]
    rows, counted = [], 0
    for piece in map(int, ids):
        if piece == PAD:
            rows.append(words[PAD].detach() + positions[PAD].detach() + types[0])
        else:
            counted += 1
            rows.append(words[piece] + positions[PAD + counted] + types[0])
    states = layer_norm(weights, "encoder.embeddings.LayerNorm.", torch.stack(rows), shape.norm_eps)
    for i in range(shape.layers):
        states = layer(weights, f"encoder.encoder.layer.{i}.", states, shape.heads, shape.norm_eps)
    return states


def layer(weights: Weights, name: str, states: Tensor, heads: int, eps: float) -> Tensor:
    """A post-norm transformer layer on one sentence, [T, D] to [T, D]."""
    attended = linear(weights, name + "attention.output.dense.", attention(weights, name + "attention.self.", states, heads))
    states = layer_norm(weights, name + "attention.output.LayerNorm.", states + attended, eps)
    wide = gelu(linear(weights, name + "intermediate.dense.", states))
    return layer_norm(weights, name + "output.LayerNorm.", states + linear(weights, name + "output.dense.", wide), eps)


def attention(weights: Weights, name: str, states: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(E)) v of each head over the whole sentence, heads side by side: [T, D] to [T, D]."""
    query, key, value = (linear(weights, f"{name}{part}.", states) for part in ("query", "key", "value"))
    width = states.shape[1] // heads
    out = []
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        scores = query[:, own] @ key[:, own].T / math.sqrt(width)
        out.append(torch.softmax(scores, dim=1) @ value[:, own])
    return torch.cat(out, dim=1)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[name + "weight"].T + weights[name + "bias"]


def layer_norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    variance = (centred**2).mean(dim=1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * weights[name + "weight"] + weights[name + "bias"]


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution's cumulative function: the exact form, not the tanh one."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def mean_square(x: Tensor, y: Tensor) -> Tensor:
    """Mean over pairs and dimensions of the squared difference of the raw vectors [B, D]."""
    return ((x - y) ** 2).mean()


def koleo_of(x: Tensor) -> Tensor:
    """-mean log distance of each unit vector to its nearest other one, as DINOv2: x [B, D], B at least 2."""
    unit = x / x.norm(dim=1, keepdim=True).clamp_min(1e-8)
    logs = []
    for i in range(len(unit)):
        similarities = [-1.0 if j == i else float(unit[i].detach() @ unit[j].detach()) for j in range(len(unit))]
        nearest = max(range(len(unit)), key=similarities.__getitem__)  # no gradient through the choice
        distance = torch.sqrt(((unit[i] - unit[nearest] + 1e-8) ** 2).sum())
        logs.append(torch.log(distance + 1e-8))
    return -torch.stack(logs).mean()


def info_nce(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE: cross entropy of the right translation among the batch's, mean of both directions; x, y [B, D]."""
    cosines = (x / x.norm(dim=1, keepdim=True)) @ (y / y.norm(dim=1, keepdim=True)).T / temperature
    right = cosines.diagonal()
    forward = (torch.logsumexp(cosines, dim=1) - right).mean()
    backward = (torch.logsumexp(cosines, dim=0) - right).mean()
    return (forward + backward) / 2
