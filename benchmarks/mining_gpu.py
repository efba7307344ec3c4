"""How near is the search on a GPU to the roofline of its matrix product?

    python benchmarks/mining_gpu.py --rows 1000000 --dimensions 1024 --out benchmarks/results/mining_gpu.md

The roofline is measured here: half-precision products of 16384 x 16384 x D in the same process. Besides the whole call the scan
alone is timed, because lengths, exact scores and proofs are made on the CPU. `--check` rows are compared with float64.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from mexma_rt.knn import blocks, gpu
from mexma_rt.knn.search import neighbours, unit_rows


def roofline(dimensions: int) -> float:
    a = torch.randn(16384, dimensions, device="cuda", dtype=torch.float16)
    rates = []
    for _ in range(20):
        torch.cuda.synchronize()
        started = time.perf_counter()
        _ = a @ a.T
        torch.cuda.synchronize()
        rates.append(2.0 * 16384**2 * dimensions / (time.perf_counter() - started))
    return sorted(rates)[len(rates) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=1024)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--check", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows, dimensions, k = arguments.rows, arguments.dimensions, arguments.k
    random = np.random.default_rng(0)
    x = unit_rows(random.standard_normal((rows, dimensions), np.float32))
    y = unit_rows(x + random.standard_normal((rows, dimensions), np.float32))
    rate, devices = roofline(dimensions), gpu.open_devices("cuda")
    flop, floor = 2.0 * rows * rows * dimensions, np.full(rows, -np.inf, np.float32)
    scan, nothing = gpu.scan_on(devices.arrays), lambda cells: None
    scan(x[:4096], y[:4096], k + gpu.SPARE, floor[:4096], floor[:4096], memory_bytes=1 << 28, advance=nothing)  # warm
    started = time.perf_counter()
    scan(x, y, k + gpu.SPARE, floor, floor, memory_bytes=1 << 28, advance=nothing)
    scanned = time.perf_counter() - started
    started = time.perf_counter()
    found = neighbours(x, y, k, device="cuda")
    whole = time.perf_counter() - started
    some = random.choice(rows, arguments.check, replace=False)
    exact = np.argsort(-(x[some].astype(np.float64) @ y.T.astype(np.float64)).astype(np.float32), axis=1, kind="stable")[:, :k]
    right = float((found.index_xy[some] == exact).mean())
    ideal = flop / rate / len(devices.arrays)
    text = (
        f"{time.strftime('%Y-%m-%d')}, {torch.cuda.get_device_name()}, {found.device}, torch {torch.__version__}, "
        f"{rows:,} x {rows:,} x {dimensions}, k={k}: roofline {rate / 1e12:.0f} TFLOP/s, {ideal:.1f} s; "
        f"scan {scanned:.1f} s ({scanned / ideal:.2f} x)"
        f", whole call {whole:.1f} s ({whole / ideal:.2f} x); "
        f"{found.computed_anew:,} rows computed anew (of {2 * rows:,}, spare "
        f" {blocks.choose_device('cuda').spare}); {right:.4f} of {arguments.check} rows' neighbours as in float64\n"
    )
    print(text)
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as stream:
            stream.write(text)


if __name__ == "__main__":
    main()
