"""Throughput of `embed` beside sentence-transformers on the same bundle and sentences: interleaved rounds, medians, ratios.

    python benchmarks/embed.py BUNDLE SENTENCES.txt -o benchmarks/results/embed.md

BUNDLE must hold its weights (exported without --no-weights); SENTENCES.txt has one sentence per line. Both sides get ready
texts and give normalised float32 vectors; loading is not timed. The machine's speed drifts, so only the ratios inside a
round are to be quoted.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

import mexma_rt as mexma


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()

    import torch
    from sentence_transformers import SentenceTransformer

    texts = args.sentences.read_text(encoding="utf-8").rstrip("\n").split("\n")
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    peer = SentenceTransformer(str(args.bundle), device="cpu")
    precisions = list(mexma.load(args.bundle).bundle.graphs)
    ours = {precision: mexma.load(args.bundle, precision=precision) for precision in precisions}

    runs: dict[str, Callable[[], np.ndarray]] = {
        "sentence-transformers, torch fp32 (its defaults)": lambda: peer.encode(texts),
        "sentence-transformers, batch_size=128": lambda: peer.encode(texts, batch_size=128),
    }
    for precision, encoder in ours.items():
        runs[f"mexma embed, {precision}"] = partial(encoder.embed, texts)
    reference = np.asarray(peer.encode(texts))  # also the warm-up of the peer
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    cosine = {}
    for name, run in runs.items():
        cosine[name] = float((np.asarray(run()) * reference).sum(axis=1).min())
    for _ in range(args.rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)

    base = seconds["sentence-transformers, torch fp32 (its defaults)"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    report = ours[precisions[0]].embed_report(texts).report
    rows = [
        f"# Embedding {len(texts)} sentences with `{report.model}` on {threads} CPU threads",
        "",
        f"{datetime.date.today()}, commit {commit}, {platform.machine()}, torch {torch.__version__};",
        f"made by `python benchmarks/embed.py`. {args.rounds} interleaved rounds. Our padding: {report.padding:.3f}.",
        "",
        "| route | median sentences/s | ratio to the first row, median (min-max) of rounds | lowest cosine to the first row |",
        "|---|---|---|---|",
    ]
    for name, values in seconds.items():
        ratios = [b / v for b, v in zip(base, values, strict=True)]
        rows.append(
            f"| {name} | {len(texts) / statistics.median(values):.0f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f}) | {cosine[name]:.5f} |"
        )
    args.output.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(rows[5:]))


if __name__ == "__main__":
    main()
