"""The cost model (mexma_rt/knn/costs.py) against measurements: rates fitted on small searches predict a larger one.

    python benchmarks/plan.py -o benchmarks/results/plan.md

Clustered random vectors, so that the size is free. CPU seconds are compared, because the machine may be busy with other work;
run it with OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1, so that no thread burns time waiting.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from mexma_rt.knn import costs, ivfpq
from mexma_rt.knn.approximate import search_part
from mexma_rt.knn.costs import Rates
from mexma_rt.knn.ivfpq import IvfPq
from mexma_rt.knn.on_disk import knn_files
from mexma_rt.knn.search import unit_rows
from mexma_rt.knn.vector_files import Shard, VectorFiles

K, MEMORY = 4, 1 << 30
FITTED = [IvfPq(nprobe=8, candidates=8), IvfPq(nprobe=64, candidates=8), IvfPq(nprobe=8, candidates=64)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=3, default=[20_000, 40_000, 80_000], help="two to fit, one to predict")
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--memory", type=int, default=360_000_000, help="of the exact search, so that it has several blocks")
    parser.add_argument("--queries", type=int, default=5000, help="of the approximate search")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()

    read = [0]
    fill = VectorFiles._fill

    def counted(self: VectorFiles, block: np.ndarray, shard: Shard, first: int) -> None:
        read[0] += block.nbytes
        fill(self, block, shard, first)

    VectorFiles._fill = counted  # type: ignore[method-assign]
    table, exact, build, search = [], {}, {}, []
    for rows in args.rows:
        x, y = (vectors(rows, args.dimensions, seed) for seed in (0, 1))
        with tempfile.TemporaryDirectory() as folder:
            for name, side in (("x", x), ("y", y)):
                np.save(Path(folder, f"{name}.npy"), side)
            read[0], started = 0, time.process_time()
            knn_files(Path(folder, "x.npy"), Path(folder, "y.npy"), Path(folder, "out"), k=K, memory_bytes=args.memory)
            exact[rows] = time.process_time() - started, read[0] + x.nbytes + y.nbytes
            started = time.process_time()
            index = ivfpq.build(Path(folder, "y"), y, IvfPq(), name="y", memory_bytes=MEMORY, advance=lambda n: None)
            build[rows] = time.process_time() - started, index.disk_bytes, index.nlist, index.m
            part = index.load(0)
        for setting in [*FITTED, IvfPq()]:
            started = time.process_time()
            search_part(x[: args.queries], part, 0, K, setting)
            search.append((rows, index.nlist, index.m, setting, time.process_time() - started))
        print(rows, exact[rows], build[rows], [round(row[-1], 2) for row in search[-4:]], flush=True)

    small, large = args.rows[:2], args.rows[2]
    d = args.dimensions
    exact_flops = sum(2.0 * n * n * d for n in small) / sum(exact[n][0] for n in small)
    faiss_flops = sum(costs.build_flops(n, d, build[n][2]) for n in small) / sum(build[n][0] for n in small)
    lines, values = [], []
    for rows, nlist, m, setting, seconds in search:
        if rows in small and setting in FITTED:
            unit = {"exact_flops": 1.0, "faiss_flops": faiss_flops, "sentences": 1.0}
            parts = [
                costs.search_seconds(rows, args.queries, d, nlist, m, 1, setting, Rates(**unit, code_byte=a, component=b))
                for a, b in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
            ]
            lines.append([(parts[1] - parts[0]) / seconds, (parts[2] - parts[0]) / seconds])
            values.append(1 - parts[0] / seconds)
    code_byte, component = np.linalg.lstsq(np.array(lines), np.array(values), rcond=None)[0]
    rates = Rates(
        exact_flops=exact_flops, faiss_flops=faiss_flops, code_byte=float(code_byte), component=float(component), sentences=1.0
    )
    apart = costs.exact_cost(large, large, d, K, args.memory, rates, apart=False)
    _, _, nlist, m = build[large]
    table.append(("exact search, CPU s", apart.cpu_seconds, exact[large][0]))
    table.append(("exact search, MB read", apart.read_bytes / 1e6, exact[large][1] / 1e6))
    table.append(("index, CPU s", costs.build_flops(large, d, nlist) / faiss_flops, build[large][0]))
    table.append(("index, MB on disk", costs.index_bytes(large, d, nlist, m, 1) / 1e6, build[large][1] / 1e6))
    for rows, nlist, m, setting, seconds in search:
        if rows == large:
            predicted = costs.search_seconds(rows, args.queries, d, nlist, m, 1, setting, rates)
            name = f"{args.queries:,} queries, nprobe {setting.nprobe}, {setting.candidates} candidates, CPU s"
            table.append((name, predicted, seconds))

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    text = [
        "# The cost model: predicted and measured",
        "",
        f"{datetime.date.today()}, commit {commit}, {platform.machine()}, one thread on a busy machine (load average "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} processors); made by `python benchmarks/plan.py`. {d} dimensions, "
        f"clustered random vectors. Rates fitted on {small[0]:,} and {small[1]:,} rows a side, compared at {large:,}.",
        "",
        f"| at {large:,} x {large:,} rows | predicted | measured | error |",
        "|---|---|---|---|",
        *(f"| {name} | {p:.2f} | {q:.2f} | {p / q - 1:+.1%} |" for name, p, q in table),
        "",
        "| rate of one core | fitted |",
        "|---|---|",
        f"| exact search, GFLOP/s | {exact_flops / 1e9:.2f} |",
        f"| training and adding, GFLOP/s | {faiss_flops / 1e9:.2f} |",
        f"| byte of a code, ns | {code_byte * 1e9:.3f} |",
        f"| component of a re-scored candidate, ns | {component * 1e9:.3f} |",
    ]
    args.output.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


def vectors(rows: int, dimensions: int, seed: int) -> np.ndarray:
    """Rows of length 1 around common centres."""
    centres = np.random.default_rng(7).standard_normal((1000, dimensions))
    rng = np.random.default_rng(seed)
    return unit_rows(centres[rng.integers(0, len(centres), rows)] + 0.7 * rng.standard_normal((rows, dimensions)))


if __name__ == "__main__":
    main()
