"""Cross entropy over the vocabulary at masked tokens, without ever holding all logits.

M masked tokens x V = 250,002 pieces of XLM-R are gigabytes of logits, and as much again for their gradient. The product is
therefore computed in chunks of tokens, and each chunk's gradient is computed while its logits are still there: only one chunk's
logits are in memory, and nothing is computed twice (the idea of Liger Kernel's fused linear cross entropy, arXiv 2410.10989,
in plain torch products).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def vocabulary_loss(
    states_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, labels_M: Tensor, shares_M: Tensor, *, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return sum(shares * cross entropy), differentiable, and the cross entropy of each token [M], without gradient.

    Products run in autocast's type if it is on, softmax and sums in float32 (float64 for float64 states).
    """
    both: tuple[Tensor, Tensor] = _Chunked.apply(states_MD, weight_VD, bias_V, labels_M, shares_M, chunk)  # type: ignore[no-untyped-call]  # apply has no types
    return both


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, shares: Tensor, chunk: int) -> Any:
        kind = states.device.type
        product = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        exact = torch.promote_types(states.dtype, torch.float32)
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        low_weight, low_states = weight.to(product), states.to(product)
        grad_states = torch.zeros_like(states) if wants_states else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        losses = torch.empty(len(states), dtype=exact, device=states.device)
        # Shares are about 1 / M. Scaled to at most 1 they fit float16; the sums are scaled back at the end.
        largest = shares.max() if len(shares) else 1.0
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(states), chunk):
                rows = slice(start, start + chunk)
                logits = F.linear(low_states[rows], low_weight).to(exact) + bias
                labels_C1 = labels[rows, None]
                normaliser = logits.logsumexp(dim=1, keepdim=True)
                losses[rows] = (normaliser - logits.gather(1, labels_C1))[:, 0]
                if not any(ctx.needs_input_grad):
                    continue
                # d loss / d logits = softmax - one hot, times the share.
                slope = logits.sub_(normaliser).exp_()
                slope.scatter_add_(1, labels_C1, torch.full_like(labels_C1, -1, dtype=exact))
                slope *= (shares[rows, None] / largest).to(exact)
                low_slope = slope.to(product)
                if grad_states is not None:
                    grad_states[rows] = (low_slope @ low_weight).to(exact)
                if grad_weight is not None:
                    grad_weight += low_slope.T @ low_states[rows]
                if grad_bias is not None:
                    grad_bias += slope.sum(dim=0)
        gradients = [g for g in (grad_states, grad_weight, grad_bias) if g is not None]
        for gradient in gradients:
            gradient *= largest
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses)
        return (losses * shares).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Any:
        saved = iter(ctx.saved_tensors)
        return *(next(saved) * grad if wanted else None for wanted in ctx.needs_input_grad[:3]), None, None, None
