"""What one run of an engine costs whatever its size, in cells: the `run_cells` of mexma_rt/embedding/packing.py.

    python benchmarks/gpu_phases/run_cells.py BUNDLE [--device cuda] [--backend tensorrt]

Times runs of random ids, from 1 x 16 to 256 x 64 cells, in interleaved rounds; fits seconds = a + b x cells by least squares
of the relative errors. run_cells is a / b. The phase `embedding` does it with the models that it opens.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from telling import say

import mexma_rt as mexma
from mexma_rt.backends import Backend

SHAPES = [(rows, length) for length in (16, 64) for rows in (1, 2, 4, 8, 16, 64, 256)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args()
    fit(args.bundle, mexma.load(args.bundle, device=args.device, backend=args.backend).backend)


def fit(model: str, backend: Backend, shapes: list[tuple[int, int]] = SHAPES, rounds: int = 5) -> None:
    random = np.random.default_rng(0)
    seconds: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
    for _ in range(rounds + 1):  # the first warms up
        for shape in shapes:
            ids = random.integers(5, 300, shape)  # any model has so many pieces
            start = time.perf_counter()
            backend.run(ids, np.ones_like(ids))
            seconds[shape].append(time.perf_counter() - start)
    cells = np.array([rows * length for rows, length in shapes], dtype=float)
    medians = np.array([statistics.median(times[1:]) for times in seconds.values()])
    runs = [{"rows": rows, "length": length, "ms": 1e3 * ms} for (rows, length), ms in zip(shapes, medians, strict=True)]
    (a, b), *_ = np.linalg.lstsq(np.stack([1 / medians, cells / medians], axis=1), np.ones(len(cells)), rcond=None)
    say(
        what="run_cells",
        model=model,
        backend=f"{backend.name} on {backend.device}, {backend.precision}",
        ms_a_run=a * 1e3,
        cells_per_second=1 / b,
        run_cells=a / b,
        runs=runs,
    )


if __name__ == "__main__":
    main()
