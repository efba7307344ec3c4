"""MEXMA's losses as facebookresearch/mexma computes them, and a contrastive one.

Shapes: B sentences, D dimensions, M masked tokens, V pieces.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def koleo_loss(vectors_BD: Tensor) -> Tensor:
    """KoLeo spread of one side: -mean log(distance to the nearest other vector + 1e-8), as in DINOv2 (arXiv 2304.07193).

    Vectors are normalised first; the neighbour is the one of largest dot product; gradient flows to both ends, not through
    the choice. Always float32. A single sentence has no neighbour: 0.
    """
    if len(vectors_BD) < 2:
        return vectors_BD.sum() * 0.0
    with torch.autocast(device_type=vectors_BD.device.type, enabled=False):
        unit = F.normalize(vectors_BD.float(), eps=1e-8)
        with torch.no_grad():
            dots = unit @ unit.T
            dots.fill_diagonal_(-1)
            nearest = dots.argmax(dim=1)
        distance = F.pairwise_distance(unit, unit[nearest], eps=1e-8)
        return -torch.log(distance + 1e-8).mean()


def alignment_loss(source_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Mean squared error over sentences and dimensions of the raw (unnormalised) clean sentence vectors."""
    return F.mse_loss(source_BD.float(), target_BD.float())


def contrastive_loss(source_BD: Tensor, target_BD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE on cosines, and the share of sources whose nearest target is their own translation."""
    similarity = F.normalize(source_BD.float()) @ F.normalize(target_BD.float()).T / temperature
    labels = torch.arange(len(similarity), device=similarity.device)
    loss = (F.cross_entropy(similarity, labels) + F.cross_entropy(similarity.T, labels)) / 2
    return loss, (similarity.argmax(dim=1) == labels).float().mean()


def masked_token_loss(
    states_MD: Tensor, labels_M: Tensor, weight_VD: Tensor, bias_V: Tensor, candidates_C: Tensor | None = None
) -> Tensor:
    """Cross entropy of masked tokens only: head states [M, D] at masked places against their pieces [M].

    Projecting only masked places gives the same loss as projecting all (CE ignores the others). With `candidates_C` (distinct,
    sorted piece ids that include every label) the softmax runs over these pieces alone: a cheaper, biased estimate.
    """
    if len(labels_M) == 0:
        return states_MD.sum() * 0.0
    if candidates_C is not None:
        weight_VD, bias_V = weight_VD[candidates_C], bias_V[candidates_C]
        labels_M = torch.searchsorted(candidates_C, labels_M)
    return F.cross_entropy(F.linear(states_MD, weight_VD, bias_V).float(), labels_M)
