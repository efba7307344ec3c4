"""What one run of an engine costs whatever its size, in cells: the `run_cells` of packing.py.

    python benchmarks/run_cells.py BUNDLE [--device cuda] [--backend tensorrt]

Times runs of random ids, from 1 x 16 to 256 x 64 cells, in interleaved rounds; fits seconds = a + b x cells by least squares
of the relative errors. run_cells is a / b.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import mexma_rt as mexma

SHAPES = [(rows, length) for length in (16, 64) for rows in (1, 2, 4, 8, 16, 64, 256)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    backend = mexma.load(arguments.bundle, device=arguments.device, backend=arguments.backend).backend
    random = np.random.default_rng(0)
    seconds: dict[tuple[int, int], list[float]] = {shape: [] for shape in SHAPES}
    for _ in range(arguments.rounds + 1):  # the first warms up
        for shape in SHAPES:
            ids = random.integers(5, 1000, shape)
            start = time.perf_counter()
            backend.run(ids, np.ones_like(ids))
            seconds[shape].append(time.perf_counter() - start)
    cells = np.array([rows * length for rows, length in SHAPES], dtype=float)
    medians = np.array([statistics.median(times[1:]) for times in seconds.values()])
    for (rows, length), median in zip(SHAPES, medians, strict=True):
        print(f"{rows:>4} x {length}: {median * 1e3:8.2f} ms, {rows * length / median:10,.0f} cells/s")
    (a, b), *_ = np.linalg.lstsq(np.stack([1 / medians, cells / medians], axis=1), np.ones(len(cells)), rcond=None)
    print(f"{backend.name} on {backend.device}: {a * 1e3:.2f} ms a run, {1 / b:,.0f} cells/s: run_cells = {a / b:.0f}")


if __name__ == "__main__":
    main()
