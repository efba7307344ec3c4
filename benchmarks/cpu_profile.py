"""Where the time of the CPU graphs goes: shares of operators by onnxruntime's profiler, of tokenising and of packing.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/cpu_profile.py BUNDLE --graphs w4,mixed TEXTS.txt ... [-o profile.md]

Each file is one length of texts (benchmarks/embed_texts.py makes them). A graph runs on one thread, as a lane of the runtime
does for narrow models, in the batches that the runtime would make. Shares are of the sum of all rows, medians of ROUNDS.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime
from embed import machine

from mexma_rt.backends import BATCH_TOKENS
from mexma_rt.backends.onnxruntime import SWITCH
from mexma_rt.bench.run import flops_per_token, gemm_flops, read_lines
from mexma_rt.bundle.graphs import ATTENTION_MASK, INPUT_IDS, SENTENCE
from mexma_rt.bundle.manifest import TOKENIZER, Bundle
from mexma_rt.bundle.opening import open_bundle
from mexma_rt.embedding.packing import pack
from mexma_rt.embedding.tokenizer import Tokenizer

ROUNDS = 5
PARTS = {
    "products": ("MatMul", "FusedMatMul", "MatMulNBits", "Gemm", "MatMulInteger"),
    "attention (with its projections in mixed)": ("Attention", "MultiHeadAttention"),
    "GELU": ("BiasGelu", "Gelu"),
    "LayerNorm and residual sums": ("SkipLayerNormalization", "LayerNormalization"),
}
ROWS = (*PARTS, "word rows and the rest of the graph", "onnxruntime between operators", "packing", "tokenising")


def part_of(operator: str) -> str:
    """The row of the table that an operator counts in."""
    return next((part for part, kinds in PARTS.items() if operator in kinds), ROWS[len(PARTS)])


def seconds_of(bundle: Bundle, precision: str, texts: list[str], tokenizer: Tokenizer) -> list[dict[str, float]]:
    """Seconds of each row, one dictionary a round; the first round warms up and is left out."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_mem_pattern, options.log_severity_level = 1, False, 4
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(
            bundle.folder / bundle.graphs[precision], options, providers=["CPUExecutionProvider"]
        )
        switch = SWITCH in [value.name for value in session.get_overridable_initializers()]
        rounds, edges = [], []
        for _ in range(ROUNDS + 1):
            times: dict[str, float] = defaultdict(float)
            start = time.perf_counter()
            tokens = tokenizer.encode(texts, bundle.max_length)
            times["tokenising"] = time.perf_counter() - start
            start = time.perf_counter()
            batches = [tokens.batch(batch) for batch in pack(tokens.lengths, BATCH_TOKENS)]
            times["packing"] = time.perf_counter() - start
            start = time.perf_counter()
            for ids, mask in batches:
                feed = {INPUT_IDS: ids, ATTENTION_MASK: mask} | ({SWITCH: np.array(False)} if switch else {})
                session.run([SENTENCE], feed)
            times["runs"] = time.perf_counter() - start
            rounds.append(times)
            edges.append(len(batches))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs = sorted((e for e in events if e["name"] == "model_run"), key=lambda e: e["ts"])
    kernels = [e for e in events if e["name"].endswith("_kernel_time") and e["args"].get("op_name") != "If"]
    number = 0
    for times, count in zip(rounds, edges, strict=True):
        first, last = runs[number]["ts"], runs[number + count - 1]["ts"] + runs[number + count - 1]["dur"]
        number += count
        for event in kernels:
            if first <= event["ts"] <= last:
                times[part_of(event["args"]["op_name"])] += event["dur"] / 1e6
        whole = times.pop("runs")
        times["onnxruntime between operators"] = max(0.0, whole - sum(times[row] for row in ROWS[: len(PARTS) + 1]))
    return rounds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--graphs", default="w4,mixed", help="comma-separated")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    tokenizer = Tokenizer(bundle.folder / TOKENIZER, bundle.special_ids)
    lines = [f"{machine()}, onnxruntime {onnxruntime.__version__}, one thread; {ROUNDS} rounds.", ""]
    work, peak = flops_per_token(bundle), gemm_flops()
    lines += ["| | " + " | ".join(f"{p}, {t.stem}" for p in args.graphs.split(",") for t in args.texts) + " |"]
    lines += ["|---|" + "---|" * (len(args.texts) * len(args.graphs.split(",")))]
    columns, totals = [], []
    for precision in args.graphs.split(","):
        for file in args.texts:
            texts = read_lines(file)
            rounds = seconds_of(bundle, precision, texts, tokenizer)
            shares = {row: statistics.median(times[row] / sum(times.values()) for times in rounds) for row in ROWS}
            tokens = int(tokenizer.encode(texts, bundle.max_length).lengths.sum())
            rate = tokens / statistics.median(sum(times.values()) for times in rounds)
            columns.append(shares)
            totals.append((rate, rate * work / peak if work else None))
    lines += [f"| {row} | " + " | ".join(f"{column[row]:.1%}" for column in columns) + " |" for row in ROWS]
    lines.append("| tokens/s, profiled | " + " | ".join(f"{rate:,.0f}" for rate, _ in totals) + " |")
    lines.append(
        "| products of the full model, part of sgemm | " + " | ".join(f"{s:.0%}" if s else "" for _, s in totals) + " |"
    )
    lines += ["", f"sgemm here, one thread: {peak / 1e9:.0f} GFLOP/s."]
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
