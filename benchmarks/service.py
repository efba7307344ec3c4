"""Concurrent calls with and without `encoder.service()`; how far a vector depends on its batch-mates; what exactness costs.

    python benchmarks/service.py SENTENCES.txt -o benchmarks/results/service.md [--bundle FOLDER ...]

SENTENCES.txt has one sentence per line. Part 1 uses the bundled model, part 2 it or the named bundles, in each precision.
Rounds are interleaved, and only the ratios inside a round are to be quoted: the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

import mexma_rt as mexma
from mexma_rt.bundle.opening import open_bundle

CALLS = 192  # of one sentence, in a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--bundle", type=Path, action="append", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", help="of the named bundles: only this one")
    parser.add_argument("--no-callers", action="store_true", help="leave part 1 out")
    parser.add_argument("--texts", type=int, default=200, help="of part 2")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    texts = list(dict.fromkeys(args.sentences.read_text(encoding="utf-8").rstrip("\n").split("\n")))

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows = [
        "# Concurrent calls, batch-mates, exactness",
        "",
        f"{datetime.date.today()}, commit {commit}, {len(os.sched_getaffinity(0))} CPU cores, {platform.machine()}, "
        f"onnxruntime {onnxruntime.__version__}; made by `python benchmarks/service.py`, {args.rounds} interleaved rounds.",
        "",
        "## Many callers with one sentence each",
        "",
        f"`mexma-small`, {CALLS} calls of one sentence a round. Ratios above 1 are for the service: medians (lowest to "
        "highest) of the rounds, of wall-clock time and of CPU time of the process (which others on the machine disturb less). "
        "Latencies are of the median round.",
        "",
        "| callers | encoder.embed, calls/s | service, calls/s | ratio of times | ratio of CPU times | p50 / p99 ms, embed "
        "| p50 / p99 ms, service | sentences per batch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds = () if args.no_callers else ("threads", "tasks")
    rows += [callers(texts[:CALLS], kind, count, args.rounds) for kind in kinds for count in COUNTS[kind]]
    rows += [
        "",
        "## What batch-mates change",
        "",
        f"{args.texts} sentences, each alone and in five batches of random mates (the usual packing): greatest difference of a "
        "component of a vector of length 1, lowest cosine, share of the vectors that differ in any bit. The last column is "
        "what `load(deterministic=True)` costs, whose vectors are equal bit for bit: the same sentences in one call, ratio of "
        "the CPU times.",
        "",
        "| bundle, precision | greatest difference | lowest cosine | vectors that differ | deterministic, times as long |",
        "|---|---|---|---|---|",
    ]
    for bundle in args.bundle or ["mexma-small"]:
        for precision in [args.precision] if args.precision else open_bundle(bundle).graphs:
            rows.append(mates(texts[: args.texts], bundle, precision, args.rounds))
            print(rows[-1], flush=True)
    args.output.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(rows))


COUNTS = {"threads": (1, 4, 16, 64), "tasks": (64, 192)}


def callers(texts: list[str], kind: str, count: int, rounds: int) -> str:
    encoder = mexma.load()
    encoder.embed(texts[:50])
    seconds: dict[str, list[float]] = {"embed": [], "service": []}
    cpu: dict[str, list[float]] = {"embed": [], "service": []}
    latencies: dict[str, list[list[float]]] = {"embed": [], "service": []}
    merged = 0.0
    for _ in range(rounds):
        for name in seconds:
            with encoder.service() as service:
                one = service if name == "service" else encoder
                took: list[float] = []
                started, cpu_started = time.perf_counter(), time.process_time()
                in_threads(one.embed, texts, count, took) if kind == "threads" else in_tasks(one.aembed, texts, count, took)
                seconds[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - cpu_started)
                latencies[name].append(took)
                merged = service.report().sentences_per_batch or merged
    middle = {name: latencies[name][int(np.argsort(values)[len(values) // 2])] for name, values in seconds.items()}
    tails = {name: " / ".join(f"{1000 * np.percentile(values, p):.1f}" for p in (50, 99)) for name, values in middle.items()}
    return (
        f"| {count} {kind} | {len(texts) / statistics.median(seconds['embed']):.0f} | "
        f"{len(texts) / statistics.median(seconds['service']):.0f} | {ratio(seconds['embed'], seconds['service'])} | "
        f"{ratio(cpu['embed'], cpu['service'])} | {tails['embed']} | {tails['service']} | {merged:.1f} |"
    )


def in_threads(embed: Callable, texts: list[str], count: int, took: list[float]) -> None:
    def call(text: str) -> None:
        started = time.perf_counter()
        embed([text])
        took.append(time.perf_counter() - started)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(call, texts))


def in_tasks(aembed: Callable, texts: list[str], count: int, took: list[float]) -> None:
    async def all_of_them() -> None:
        free = asyncio.Semaphore(count)

        async def call(text: str) -> None:
            async with free:
                started = time.perf_counter()
                await aembed([text])
                took.append(time.perf_counter() - started)

        await asyncio.gather(*map(call, texts))

    asyncio.run(all_of_them())


def mates(texts: list[str], bundle: str | Path, precision: str, rounds: int) -> str:
    encoder, exact = (mexma.load(bundle, precision=precision, deterministic=flag) for flag in (False, True))
    alone = np.concatenate([encoder.embed_report([text]).vectors for text in texts])
    rng = np.random.default_rng(0)
    greatest, lowest, differ = 0.0, 1.0, 0.0
    for size in (2, 8, 32, 100, len(texts)):
        order = rng.permutation(len(texts))
        for start in range(0, len(texts), size):
            chosen = order[start : start + size]
            vectors = encoder.embed_report([texts[i] for i in chosen]).vectors
            greatest = max(greatest, float(np.abs(vectors - alone[chosen]).max()))
            lowest = min(lowest, float((vectors.astype(np.float64) * alone[chosen]).sum(axis=1).min()))
            differ += float((vectors != alone[chosen]).any(axis=1).sum()) / (5 * len(texts))
    for _ in range(2):
        order = rng.permutation(len(texts))
        assert np.array_equal(exact.embed_report([texts[i] for i in order]).vectors, exact.embed_report(texts).vectors[order])
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for one, row in zip((encoder, exact), times, strict=True):
            started = time.process_time()
            one.embed_report(texts)
            row.append(time.process_time() - started)
    return (
        f"| {Path(bundle).name}, {precision} | {greatest:.1e} | {min(lowest, 1):.6f} | {differ:.0%} | "
        f"{ratio(times[1], times[0])} |"
    )


def ratio(numerators: list[float], denominators: list[float]) -> str:
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
