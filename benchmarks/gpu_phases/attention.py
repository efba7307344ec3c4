"""The four ways to attend (mexma_rt/backends/packed_attention.py) on one device: times forward and backward, and agreement.

XLM-R-large's heads, sentences of the lengths that train_work.py draws. The yardstick is `block` in float32.
"""

from __future__ import annotations

import numpy as np
import torch
from clock import seconds
from telling import flags, say
from train_work import made_up_pairs

from mexma_rt.backends.packed_attention import Layout, attend, make_layout

HEADS, SIZE = 16, 64


def main() -> None:
    args = flags(__doc__).parse_args()
    device, tokens = ("cpu", 256) if args.smoke else ("cuda", 16384)
    side = made_up_pairs(np.random.default_rng(0), tokens // 20, 1000, 200)[0].lengths
    lengths = side[np.cumsum(side) <= tokens]
    torch.manual_seed(0)
    exact = [torch.randn(int(lengths.sum()), HEADS, SIZE, device=device) for _ in range(4)]  # q, k, v, gradient of the result
    few = lengths[: max(2, len(lengths) // 8)]  # block has tokens x tokens cells, and its backward pass more than once
    ways = [("padded", torch.float32), ("block", torch.float32)]
    if not args.smoke:
        ways += [("flex", torch.float32)]
        ways += [(kind, dtype) for dtype in (torch.bfloat16, torch.float16) for kind in ("varlen", "padded", "flex")]
    yardstick = passes(make_layout(few, "block", device), [x[: int(few.sum())] for x in exact], torch.float32, backward=True)
    for kind, dtype in ways:
        try:
            got = passes(make_layout(few, kind, device), [x[: int(few.sum())] for x in exact], dtype, backward=True)
            apart = [float((a.float() - b).abs().max()) for a, b in zip(got, yardstick, strict=False)]
            record = {"result_apart": apart[0], "gradients_apart": max(apart[1:])}
            if kind != "block":
                layout = make_layout(lengths, kind, device)
                record["tokens"] = layout.tokens
                record["forward_ms"] = 1e3 * seconds(lambda: passes(layout, exact, dtype, backward=False), device)  # noqa: B023
                both = seconds(lambda: passes(layout, exact, dtype, backward=True), device)  # noqa: B023
                record["forward_and_backward_ms"] = 1e3 * both
            say(what=kind, dtype=str(dtype), sentences=len(lengths), **record)
        except Exception as error:  # one way that fails takes no other with it
            say(what=kind, dtype=str(dtype), error=f"{type(error).__name__}: {error}"[:500])


def passes(layout: Layout, exact: list[torch.Tensor], dtype: torch.dtype, *, backward: bool) -> list[torch.Tensor]:
    """The result, and the gradients of q, k and v."""
    q, k, v, gradient = (x.to(dtype) for x in exact)
    if not backward:
        with torch.inference_mode():
            return [attend(q, k, v, layout)]
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    result = attend(q, k, v, layout)
    return [result.detach(), *torch.autograd.grad(result, (q, k, v), gradient)]


if __name__ == "__main__":
    main()
