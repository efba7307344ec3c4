"""The losses on sentence vectors, as facebookresearch/mexma computes them, and a contrastive one.

Each is a sum over this process's B sentences, so that micro-batches and processes add up to the whole batch. With several
processes, `pool` holds the vectors of all of them (N rows), and this process's rows are pool[first : first + B]; with one
process it is its own vectors. D dimensions. Everything is computed in float32 or better, regardless of autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mexma_train.config import RankingConfig, WarmupConfig


def koleo_sum(vectors_BD: Tensor, pool_ND: Tensor, first: int = 0) -> Tensor:
    """KoLeo spread of one side: sum of -log(distance to the nearest other vector + 1e-8), as in DINOv2 (arXiv 2304.07193).

    Vectors are normalised first, and the neighbour is the one with the largest dot product. Gradient flows to both vectors, but
    not through the choice. A single sentence has no neighbour, which gives 0.
    """
    if len(pool_ND) < 2:
        return vectors_BD.sum() * 0.0
    with torch.autocast(device_type=vectors_BD.device.type, enabled=False):
        unit_BD, unit_ND = (F.normalize(_exact(x), eps=1e-8) for x in (vectors_BD, pool_ND))
        with torch.no_grad():
            dots = unit_BD @ unit_ND.T
            own = torch.arange(len(dots), device=dots.device)
            dots[own, first + own] = -1
            nearest = dots.argmax(dim=1)
        distance = F.pairwise_distance(unit_BD, unit_ND.index_select(0, nearest), eps=1e-8)
        return -torch.log(distance + 1e-8).sum()


def alignment_sum(source_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Sum over sentences of the mean squared difference of raw (unnormalised) clean vectors: B times torch's mse_loss."""
    return (_exact(source_BD) - _exact(target_BD)).square().mean(dim=1).sum()


def contrastive_sum(
    source_BD: Tensor,
    target_BD: Tensor,
    pools: tuple[Tensor, Tensor],
    first: int,
    temperature: float,
    same_BN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of symmetric InfoNCE on cosines, and the number of sources whose nearest target is their own translation.

    `pools` are all sources and all targets [N, D]; each pair counts with the mean of both directions. same_BN bool [B, N] marks
    rows of the pools that are other translations of the same sentence: they are not negatives, and are left out.
    """
    with torch.autocast(device_type=source_BD.device.type, enabled=False):
        x, y, all_x, all_y = (F.normalize(_exact(v)) for v in (source_BD, target_BD, *pools))
        labels = first + torch.arange(len(x), device=x.device)
        forward, backward = x @ all_y.T / temperature, y @ all_x.T / temperature
        if same_BN is not None:
            forward = forward.masked_fill(same_BN, -torch.inf)
            backward = backward.masked_fill(same_BN[:, : backward.shape[1]], -torch.inf)
        losses = F.cross_entropy(forward, labels, reduction="sum")
        losses = losses + F.cross_entropy(backward, labels, reduction="sum")
        return losses / 2, (forward.argmax(dim=1) == labels).float().sum()


def ranking_terms(
    text_BD: Tensor,
    english_BD: Tensor,
    targets_ND: Tensor | None,
    config: WarmupConfig | RankingConfig,
    same_BB: Tensor | None = None,
) -> dict[str, Tensor]:
    """Terms of translation ranking in one process: InfoNCE of the pairs and, with targets, of each side against the teacher.

    The targets are a teacher's vectors of the English sides, then of other segments, N >= B; each side has to find its own
    among them, by the same InfoNCE as between the sides. same_BB: see contrastive_sum. Returns means over the pairs: loss and
    accuracy, with targets also contrastive and distil.
    """
    pairs = len(text_BD)
    contrastive, right = contrastive_sum(text_BD, english_BD, (text_BD, english_BD), 0, config.temperature, same_BB)
    terms = {"loss": contrastive / pairs, "accuracy": right / pairs}
    if targets_ND is None:
        return terms
    own_BD, temperature = targets_ND[:pairs], config.distil_temperature
    same_BN = None if same_BB is None else F.pad(same_BB, (0, len(targets_ND) - pairs))
    sides = [contrastive_sum(x, own_BD, (x, targets_ND), 0, temperature, same_BN)[0] for x in (text_BD, english_BD)]
    distil = (sides[0] + sides[1]) / (2 * pairs)
    loss = config.contrastive_weight * terms["loss"] + config.distil_weight * distil
    return {"loss": loss, "contrastive": terms["loss"], "distil": distil, "accuracy": terms["accuracy"]}


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
