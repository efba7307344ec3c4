"""IVF-PQ candidates with exact re-scoring beside exact search: recall, time, bytes per vector, for a few settings.

    python benchmarks/approximate.py SOURCE.npy TARGET.npy -o benchmarks/results/approximate.md

SOURCE.npy and TARGET.npy are vectors of two corpora from `mexma embed`. The index is that of TARGET; the queries are random
rows of SOURCE, and both searches get the same. Rounds are interleaved, because the machine's speed drifts: quote the ratios.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from mexma_rt.knn import ivfpq
from mexma_rt.knn.approximate import search_part
from mexma_rt.knn.ivfpq import IvfPq
from mexma_rt.knn.keys import neighbours_of
from mexma_rt.knn.search import mutual_neighbours

K = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nlist", type=int, nargs="+", default=[1024])
    parser.add_argument("--m", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--nprobe", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--candidates", type=int, nargs="+", default=[32])
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()

    vectors = np.load(args.target, mmap_mode="r")
    source = np.load(args.source, mmap_mode="r")
    rows = np.sort(np.random.default_rng(0).choice(len(source), args.queries, replace=False))
    queries = np.ascontiguousarray(source[rows], np.float32)
    started = time.perf_counter()
    exact = mutual_neighbours(queries, vectors, K, progress=False)
    exact_seconds = [time.perf_counter() - started]

    settings, indexes, built = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for nlist in args.nlist:
            for m in args.m:
                choice = IvfPq(nlist=nlist, m=m)
                started = time.perf_counter()
                indexes[nlist, m] = ivfpq.build(
                    Path(folder, f"{nlist}-{m}"), vectors, choice, name="y", memory_bytes=2 << 30, advance=lambda rows: None
                )
                built[nlist, m] = time.perf_counter() - started
                print(f"nlist {nlist}, m {m}: built in {built[nlist, m]:.1f} s", flush=True)
                settings += [
                    IvfPq(nlist=nlist, m=m, nprobe=nprobe, candidates=candidates)
                    for nprobe in args.nprobe
                    for candidates in args.candidates
                ]
        seconds: dict[IvfPq, list[float]] = {setting: [] for setting in settings}
        recall, best = {}, {}
        parts = {
            key: [(index.load(part), first) for part, (first, _) in enumerate(index.parts)] for key, index in indexes.items()
        }
        for number in range(args.rounds):
            if number:
                started = time.perf_counter()
                mutual_neighbours(queries, vectors, K, progress=False)
                exact_seconds.append(time.perf_counter() - started)
            for setting in settings:
                ((part, first),) = parts[setting.nlist, setting.m]
                started = time.perf_counter()
                scores, index = neighbours_of(search_part(queries, part, first, K, setting))
                seconds[setting].append(time.perf_counter() - started)
                recall[setting] = float((scores >= exact[0][:, -1:]).mean())
                best[setting] = float((index[:, 0] == exact[1][:, 0]).mean())
        disk = {key: index.disk_bytes / len(vectors) for key, index in indexes.items()}

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    lines = [
        f"# IVF-PQ with exact re-scoring, {len(vectors):,} real vectors of {vectors.shape[1]} dimensions",
        "",
        f"{datetime.date.today()}, commit {commit}, {platform.machine()}, OMP_NUM_THREADS={threads}; made by "
        f"`python benchmarks/approximate.py`. {len(queries):,} queries, {args.rounds} interleaved rounds; load average "
        f"{os.getloadavg()[0]:.1f} at the end, on {os.cpu_count()} processors: only ratios count.",
        f"Exact search of the same queries (it gives both directions): {statistics.median(exact_seconds):.2f} s. "
        f"Recall@{K}: share of the true {K} nearest found; first: share of queries whose nearest row is the true one. "
        f"Bytes: index on disk per vector, centroids included (float32 vectors have {4 * vectors.shape[1]:,}).",
        "",
        f"| nlist | m | nprobe | candidates | recall@{K} | first | seconds | exact / this (min-max) | bytes | build s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in settings:
        ratios = [a / b for a, b in zip(exact_seconds, seconds[s], strict=True)]
        lines.append(
            f"| {s.nlist} | {s.m} | {s.nprobe} | {s.candidates} | {recall[s]:.4f} | {best[s]:.4f} | "
            f"{statistics.median(seconds[s]):.2f} | {statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f}) | "
            f"{disk[s.nlist, s.m]:.1f} | {built[s.nlist, s.m]:.0f} |"
        )
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
