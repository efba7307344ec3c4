"""What the phases of gpu_once.py share with torch: the clock, and the measured peak."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str, rounds: int = 5, warm: int = 1) -> float:
    """Median seconds of a call that ends when the device has done it."""
    taken = []
    for _ in range(warm + rounds):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[warm:])


def matmul_rate(rows: int, inner: int, columns: int, dtype: torch.dtype, device: str, rounds: int = 20) -> float:
    """FLOP/s of [rows, inner] @ [inner, columns], random numbers: the median of `rounds`. (Zeros would be faster.)"""
    a = torch.randn(rows, inner, device=device, dtype=dtype)
    b = torch.randn(columns, inner, device=device, dtype=dtype).T
    return 2.0 * rows * inner * columns / seconds(lambda: a @ b, device, rounds, warm=3)


def peak(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a large square product, against which the shares are taken."""
    size = 8192 if device == "cuda" else 256
    return matmul_rate(size, size, size, dtype, device)
