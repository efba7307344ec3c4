"""How near is the search on a GPU to its matrix product, where does its time go, and is it exact there?

    python benchmarks/gpu_phases/mining.py [--rows 1000000] [--dimensions 1024]     # 1,000,000 rows: 16 GB of host memory

The scan alone is timed beside the whole call, whose exact scores and proofs are made on the CPU. `--check` rows are compared
with float64. With --smoke torch's CPU takes the GPU's place.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from clock import matmul_rate
from telling import flags, say

from mexma_rt.knn import blocks, gpu
from mexma_rt.knn.gpu_arrays import TorchArrays
from mexma_rt.knn.search import neighbours, unit_rows

SIDE = 16384  # of the product that is the yardstick


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimensions", type=int, default=1024)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--check", type=int, default=200)
    args = parser.parse_args()
    rows, dimensions, k, device = args.rows, args.dimensions, args.k, "cuda"
    if args.smoke:
        rows, dimensions, args.check, device = 600, 64, 50, "cpu"
        found = gpu.OpenGpus(arrays=(TorchArrays("cpu"),), name="the CPU as a GPU", reason="--smoke")
        gpu.open_devices = lambda device: found
    side = SIDE if device == "cuda" else 256
    rate = matmul_rate(side, dimensions, side, torch.float16, device, rounds=10)
    x, y = (made(rows, dimensions, device, seed) for seed in (0, 1))
    y = unit_rows(x + y)
    devices = gpu.open_devices("cuda")
    ideal = 2.0 * rows * rows * dimensions / rate / len(devices.arrays)
    say(what="product", rows=rows, dimensions=dimensions, k=k, tflops=round(rate / 1e12, 3), seconds=ideal, on=devices.name)

    floor = np.full(rows, -np.inf, np.float32)

    def scan(n: int) -> None:
        gpu.scan_on(devices.arrays)(
            x[:n], y[:n], k + gpu.SPARE, floor[:n], floor[:n], memory_bytes=1 << 28, advance=lambda cells: None
        )

    scan(min(rows, 4096))  # warm
    started = time.perf_counter()
    scan(rows)
    scanned = time.perf_counter() - started
    say(what="scan", seconds=scanned, times_the_product=scanned / ideal)

    started = time.perf_counter()
    result = neighbours(x, y, k, device="cuda")
    whole = time.perf_counter() - started
    some = np.random.default_rng(2).choice(rows, args.check, replace=False)
    scores = (x[some].astype(np.float64) @ y.T.astype(np.float64)).astype(np.float32)
    right = float((result.index_xy[some] == np.argsort(-scores, axis=1, kind="stable")[:, :k]).mean())
    say(
        what="whole call",
        seconds=whole,
        times_the_product=whole / ideal,
        rows_computed_anew=result.computed_anew,
        spare=blocks.choose_device("cuda").spare,
        checked=args.check,
        as_in_float64=right,
    )
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)  # a device is scanned by one of its own
    with torch.profiler.profile(activities=activities(device), experimental_config=every_thread) as profile:
        scan(rows)
    for event in sorted(profile.key_averages(), key=own_time(device), reverse=True)[:12]:
        say(what="profile of the scan", operation=event.key[:100], calls=event.count, ms=own_time(device)(event) / 1e3)


def made(rows: int, dimensions: int, device: str, seed: int) -> np.ndarray:
    """Unit rows, made on the device: numpy would take longer than the search."""
    generator = torch.Generator(device).manual_seed(seed)
    drawn = torch.randn(rows, dimensions, generator=generator, device=device)
    return torch.nn.functional.normalize(drawn).cpu().numpy()


def activities(device: str) -> list[Any]:
    kinds = torch.profiler.ProfilerActivity
    return [kinds.CPU, kinds.CUDA] if device == "cuda" else [kinds.CPU]


def own_time(device: str) -> Any:
    return lambda event: event.self_device_time_total if device == "cuda" else event.self_cpu_time_total


if __name__ == "__main__":
    main()
