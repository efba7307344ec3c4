"""Trains with the weights that a bundle's 4- and 8-bit graphs hold, so that the export's rounding loses nothing.

In every forward pass the matrices of the layers are rounded; the optimiser moves exact copies of them ("master"), with the
gradient at the rounded ones (straight-through, Bengio et al. 2013, arXiv 1308.3432). A checkpoint holds the rounded weights.

The grid is that of ggml's Q4_0, which onnxruntime's MatMulNBits represents exactly: BLOCK numbers along the inputs share an
fp16 scale d; a number is (code - 2^(bits-1)) * d, and d is such that the block's number of largest magnitude has code 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mexma_rt.errors import InputError

BLOCK = 32
MASTER = "master"  # key in the optimiser's state of a rounded weight, with which the run's states save it


def round_to_blocks(weight_OI: Tensor, bits: int) -> Tensor:
    """Return the nearest weights on the grid, float32 [O, I]; I is a multiple of BLOCK. Weights on it stay, bit for bit."""
    half = 2 ** (bits - 1)
    blocks = weight_OI.float().reshape(-1, BLOCK)
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    scale = (largest / -half).half().float()
    codes = (blocks / torch.where(scale == 0, 1, scale)).round().clamp(-half, half - 1)
    numbers: Tensor = (codes * scale).reshape(weight_OI.shape)
    return numbers


def product_weights(encoder: Any) -> list[torch.nn.Parameter]:
    """Return the matrices of an encoder's layers."""
    return [p for layer in encoder.encoder.layer for p in layer.parameters() if p.ndim == 2]


@torch.no_grad()
def keep_rounded(optimizer: torch.optim.Optimizer, weights: Iterable[torch.nn.Parameter], bits: int) -> None:
    """Round the weights now and after every step of the optimiser, which moves their exact copies instead.

    Raises InputError for bits other than 4 and 8, and for a matrix whose inputs are not a multiple of BLOCK.
    """
    weights = list(weights)
    odd = [tuple(weight.shape) for weight in weights if weight.shape[1] % BLOCK]
    if bits not in (4, 8) or odd:
        raise InputError(
            f"round_bits is {bits}" + (f" and a matrix is {list(odd[0])}" if odd else "") + ": bits must be 4 or 8, and inputs "
            f"a multiple of {BLOCK}, as the graphs store them. Type 0 to train without rounding."
        )

    def round_all() -> None:
        for weight in weights:
            optimizer.state[weight][MASTER] = weight.detach().clone()
            weight.copy_(round_to_blocks(weight, bits))

    @torch.no_grad()
    def before(*_: object) -> None:
        for weight in weights:  # removed from the state, because Adam does not initialise a state that holds anything
            weight.copy_(optimizer.state[weight].pop(MASTER))

    @torch.no_grad()
    def after(*_: object) -> None:
        round_all()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    round_all()
