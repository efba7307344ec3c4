"""Matrix products at the shapes that encoding, training and mining make, and the copies between host and device."""

from __future__ import annotations

import torch
from clock import matmul_rate, seconds
from telling import flags, say

TOKENS = 16384
SHAPES = {  # rows, inner, columns
    "square": (8192, 8192, 8192),
    "large, attention": (TOKENS, 1024, 1024),
    "large, widening": (TOKENS, 1024, 4096),
    "large, narrowing": (TOKENS, 4096, 1024),
    "large, vocabulary": (4096, 1024, 250_002),
    "384, attention": (TOKENS, 384, 384),
    "384, widening": (TOKENS, 384, 1536),
    "mining tile": (32768, 1024, 32768),
}


def main() -> None:
    args = flags(__doc__).parse_args()
    device, part = ("cpu", 128) if args.smoke else ("cuda", 1)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        if args.smoke and dtype != torch.float32:
            continue
        for name, whole in SHAPES.items():
            if dtype == torch.float32 and name not in ("square", "large, widening"):
                continue
            rows, inner, columns = shape = [max(n // part, 1) for n in whole]
            rate = matmul_rate(rows, inner, columns, dtype, device)
            say(what=name, shape=shape, dtype=str(dtype), tflops=round(rate / 1e12, 3))
    for pinned in (False, True):
        host = torch.empty((256 << 20) // part, dtype=torch.uint8, pin_memory=pinned and device == "cuda")
        there = torch.empty_like(host, device=device)
        for way, work in (("up", lambda: there.copy_(host)), ("down", lambda: host.copy_(there))):  # noqa: B023
            say(what=f"copy {way}", pinned=pinned, gigabytes_per_second=round(host.numel() / seconds(work, device) / 1e9, 2))


if __name__ == "__main__":
    main()
