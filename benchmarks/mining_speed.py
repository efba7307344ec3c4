"""How fast are exact neighbours in both directions: ours, faiss (flat), torch and a plain numpy pipeline, interleaved.

    python benchmarks/mining_speed.py --rows 32000 --rounds 3 --out benchmarks/results/mining_speed.md

Every arm is given the same unit vectors and two threads, in one process; the rate of sgemm (np.matmul, the same BLAS as ours)
is taken before each arm's turn, in tiles of the shape that ours uses and in the shape that was fastest. The peers take time in
proportion to their queries, so they answer a stated fraction of them (--peers), for both directions, and their time is scaled
up. Ours is not proportional, because its first tiles cost more: it runs the whole job, or, with --ours below 1, fewer rows
of x, which makes it look slower than it is. Peak memory (--memory) is of a process of its own for each arm.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mexma_rt.knn.search import mutual_neighbours, neighbours

BLOCK = 1024  # rows of queries at a time, for the numpy and torch pipelines


def data(rows: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors; half of the rows of y are translations: near a row of x."""
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, dimensions), np.float32)
    y = random.standard_normal((rows, dimensions), np.float32)
    y[: rows // 2] = x[: rows // 2] + y[: rows // 2]
    for side in (x, y):
        side /= np.linalg.norm(side, axis=1, keepdims=True)
    return x, y


def ours(x: np.ndarray, y: np.ndarray, k: int, queries: int) -> np.ndarray:
    return mutual_neighbours(x[:queries], y, k, progress=False)[1]


def faiss_flat(x: np.ndarray, y: np.ndarray, k: int, queries: int) -> np.ndarray:
    import faiss

    faiss.omp_set_num_threads(2)
    found = []
    for a, b in ((x, y), (y, x)):
        index = faiss.IndexFlatIP(a.shape[1])
        index.add(b)
        found.append(index.search(a[:queries], k)[1])
    return found[0]


def torch_topk(x: np.ndarray, y: np.ndarray, k: int, queries: int) -> np.ndarray:
    import torch

    torch.set_num_threads(2)
    found = []
    with torch.inference_mode():
        for a, b in ((torch.from_numpy(x), torch.from_numpy(y).T), (torch.from_numpy(y), torch.from_numpy(x).T)):
            parts = [torch.topk(a[i : i + BLOCK] @ b, k, dim=1).indices for i in range(0, queries, BLOCK)]
            found.append(torch.cat(parts)[:queries].numpy())
    return found[0]


def numpy_pipeline(x: np.ndarray, y: np.ndarray, k: int, queries: int) -> np.ndarray:
    """As one writes it: a block of queries against everything, argpartition, sort."""
    found = []
    for a, b in ((x, y), (y, x)):
        parts = []
        for i in range(0, queries, BLOCK):
            scores = a[i : min(i + BLOCK, queries)] @ b.T
            best = np.argpartition(scores, -k, axis=1)[:, -k:]
            order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
            parts.append(np.take_along_axis(best, order, axis=1))
        found.append(np.concatenate(parts))
    return found[0]


ARMS: dict[str, Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]] = {
    "mexma_rt": ours,
    "faiss IndexFlatIP, two searches": faiss_flat,
    "torch matmul + topk, two products": torch_topk,
    "numpy matmul + argpartition, two products": numpy_pipeline,
}


def sgemm(dimensions: int, seconds: float = 0.5) -> dict[str, float]:
    """FLOP/s of np.matmul: of tiles as ours makes them, and the best of three shapes."""
    rates: dict[str, float] = {}
    for name, (n, depth) in {"tile": (2048, dimensions), "deep": (2048, 2048), "large": (4096, dimensions)}.items():
        a, b = np.full((n, depth), 0.5, np.float32), np.full((n, depth), 0.25, np.float32)
        out = np.empty((n, n), np.float32)
        until, best = time.perf_counter() + seconds, 0.0
        while not best or time.perf_counter() < until:
            started = time.perf_counter()
            np.matmul(a, b.T, out=out)
            best = max(best, 2.0 * n * n * depth / (time.perf_counter() - started))
        rates[name] = best
    return rates


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(rows: int, dimensions: int, k: int, rounds: int, ours_part: float, peers_part: float) -> dict:
    x, y = data(rows, dimensions)
    exact = mutual_neighbours(x[:500], y, k, progress=False)[1]
    result: dict = {"rows": rows, "dimensions": dimensions, "k": k, "rounds": rounds, "arms": {}, "peak": []}
    flop = 2.0 * rows * rows * dimensions
    for _ in range(rounds):
        for name, arm in ARMS.items():
            queries = max(int(rows * (ours_part if name == "mexma_rt" else peers_part)), 1)
            peak = sgemm(dimensions)
            result["peak"].append(max(peak.values()))
            cpu, started = cpu_seconds(), time.perf_counter()
            found = arm(x, y, k, queries)
            seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
            entry = result["arms"].setdefault(name, {"queries": queries, "seconds": [], "cpu": [], "tile": [], "share": []})
            entry["seconds"].append(seconds * rows / queries)
            entry["cpu"].append(cpu * rows / queries)
            entry["tile"].append(flop * queries / rows / seconds / peak["tile"])
            entry["share"].append(flop * queries / rows / seconds / max(peak.values()))
            entry["agreement"] = float((np.asarray(found[:500]) == exact[: len(found)]).mean())
            print(f"  {name}: {entry['seconds'][-1]:.1f} s, {entry['share'][-1]:.2f} of sgemm", flush=True)
    return result


def cpu_shares(dimensions: int, k: int, rows: int, height: int) -> dict[str, float]:
    """CPU seconds of ours against those of its matrix product alone: what noise from outside spares most."""
    x, y = data(rows, dimensions)
    x = x[:height]
    out = np.empty((2048, 2048), np.float32)
    times: dict[str, list[float]] = {"product": [], "ours": []}
    for _ in range(3):
        cpu = cpu_seconds()
        for i in range(0, len(x), 2048):
            for j in range(0, len(y), 2048):
                a, b = x[i : i + 2048], y[j : j + 2048]
                np.matmul(a, b.T, out=out[: len(a), : len(b)])
        times["product"].append(cpu_seconds() - cpu)
        cpu = cpu_seconds()
        neighbours(x, y, k, progress=False)
        times["ours"].append(cpu_seconds() - cpu)
    return {name: min(values) for name, values in times.items()}


def memory(arm: str, rows: int, dimensions: int, k: int, queries: int) -> float:
    """Peak resident memory while one arm runs in a process of its own, beyond what was resident before, in MB. Linux only."""
    code = (
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(Path(__file__).parent)!r}); import torch, faiss\n"
        f"import mining_speed as m\nx, y = m.data({rows}, {dimensions})\n"
        "Path('/proc/self/clear_refs').write_text('5')  # the peak so far, of making the vectors, is forgotten\n"
        "def now(name): return int(Path('/proc/self/status').read_text().partition(name + ':')[2].split()[0])\n"
        f"before = now('VmRSS'); m.ARMS[{arm!r}](x, y, {k}, {queries}); print(now('VmHWM') - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1000


def table(results: list[dict], where: str, command: str) -> str:
    lines = [
        f"## {where}",
        "",
        f"`{command}`",
        "",
        "Seconds are for the whole job (both directions), least and median of the rounds; share: of the best sgemm rate",
        "taken just before, the median; tile: of sgemm in tiles of 2048 x 2048 x D; queries: answered, before scaling.",
        "",
        "| D | k | | seconds, least | median | CPU s | share | tile | queries | neighbours as ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        for name, arm in one["arms"].items():
            seconds, share, tile = (sorted(arm[key]) for key in ("seconds", "share", "tile"))
            middle = len(seconds) // 2
            lines.append(
                f"| {one['dimensions']} | {one['k']} | {name} | {seconds[0]:.1f} | {seconds[middle]:.1f} "
                f"| {min(arm['cpu']):.0f} | {share[middle]:.2f} | {tile[middle]:.2f} | {arm['queries']:,} "
                f"| {arm['agreement']:.4f} |"
            )
        peak = sorted(one["peak"])
        lines.append(
            f"| {one['dimensions']} | {one['k']} | sgemm: {peak[0] / 1e9:.0f} to {peak[-1] / 1e9:.0f} GFLOP/s | | | | | | | |"
        )
    return "\n".join(lines) + "\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[384, 1024])
    parser.add_argument("--k", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", type=float, default=1.0, help="fraction of x that ours searches with")
    parser.add_argument("--peers", type=float, default=0.02, help="fraction of the queries that peers answer")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument("--cpu", action="store_true", help="measure CPU seconds against the product's instead, in one thread")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    command = "python benchmarks/mining_speed.py " + " ".join(sys.argv[1:])
    where = f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, numpy {np.__version__}"
    cases = [(dimensions, k) for dimensions in arguments.dimensions for k in arguments.k]
    if arguments.memory:
        lines = [f"## Memory beyond the vectors, {where}", "", f"`{command}`", "", "| D | k | | MB |", "|---|---|---|---|"]
        for dimensions, k in cases:
            for name in ARMS:
                queries = arguments.rows if name == "mexma_rt" and arguments.ours == 1 else 5000
                used = memory(name, arguments.rows, dimensions, k, queries)
                lines.append(f"| {dimensions} | {k} | {name} | {used:,.0f} |")
        text = "\n".join(lines) + "\n\n"
    elif arguments.cpu:
        lines = [
            f"## CPU seconds, {where}",
            "",
            f"`{command}`",
            "",
            "| D | k | product | mexma_rt | share |",
            "|---|---|---|---|---|",
        ]
        for dimensions, k in cases:
            took = cpu_shares(dimensions, k, arguments.rows, int(arguments.rows * arguments.ours))
            lines.append(
                f"| {dimensions} | {k} | {took['product']:.2f} | {took['ours']:.2f} | {took['product'] / took['ours']:.2f} |"
            )
        text = "\n".join(lines) + "\n\n"
    else:
        results = [
            measure(arguments.rows, dimensions, k, arguments.rounds, arguments.ours, arguments.peers) for dimensions, k in cases
        ]
        print(json.dumps(results))
        text = table(results, where, command)
    print(text)
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as stream:
            stream.write(text)


if __name__ == "__main__":
    main()
