"""Chooses one of the five attention implementations (mexma_rt/backends/packed_attention.py) for a run, and gives the reason."""

from __future__ import annotations

import torch

from mexma_rt.backends.packed_attention import KINDS
from mexma_rt.errors import InputError


def choose_attention(kind: str, device: torch.device, precision: str) -> tuple[str, str]:
    """Return (implementation, reason). With "auto" it chooses; a named implementation is returned, or raises InputError."""
    half = precision in ("bf16", "fp16")
    if kind == "auto":
        if device.type == "cpu":
            return "equal", "CPU: FlexAttention has no backward pass there, block masks cost T x T cells, and padding is copied"
        if half:
            return "varlen", f"CUDA and {precision}: flash attention without padding"
        return "flex", f"CUDA and {precision}: flash attention needs bf16 or fp16"
    if kind not in KINDS:
        raise InputError(f"run.attention is {kind!r}; choose one of auto, {', '.join(KINDS)}.")
    if kind == "varlen" and (device.type != "cuda" or not half):
        raise InputError(
            f"run.attention is varlen, but the device is {device} and mexma.precision {precision}: flash attention needs a "
            "CUDA GPU and bf16 or fp16. Type --run.attention auto."
        )
    if kind == "flex" and device.type == "cpu":
        raise InputError("run.attention is flex, but torch's FlexAttention cannot train on CPU. Type --run.attention equal.")
    return kind, "named"
