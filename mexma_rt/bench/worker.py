"""One route of the embedding benchmark in its own process: `python -m mexma_rt.bench.worker MODEL PRECISION DEVICE`.

Each route has its own process, so that its peak memory is measured alone and a peer may use another environment (see
benchmarks/embed_peers.py). The parent (run.py) sends one job per JSON line and gets one JSON line back for each.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Embed = Callable[[list[str]], np.ndarray]


def serve(load: Callable[[], tuple[Embed, dict[str, Any]]]) -> None:
    """Load a route, report it, and do jobs until standard input ends. `load` returns a function [n] texts -> [n, D], and notes.

    Jobs: {"texts": FILE} is timed and answers seconds; with "vectors": FILE the vectors are saved there; with "singles": N
    each of the first N texts is embedded alone, and the answer is N seconds.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps what libraries print out of the answers

    def answer(**data: Any) -> None:
        print(json.dumps(data), file=answers, flush=True)

    started = time.perf_counter()
    embed, notes = load()
    embed(["Hello world"])
    answer(load_seconds=time.perf_counter() - started, **notes)
    for line in sys.stdin:
        job = json.loads(line)
        texts = Path(job["texts"]).read_text(encoding="utf-8").rstrip("\n").split("\n")
        if "singles" in job:
            answer(seconds=[_timed(embed, [text])[0] for text in texts[: job["singles"]]])
            continue
        seconds, vectors = _timed(embed, texts)
        if "vectors" in job:
            np.save(job["vectors"], np.asarray(vectors, np.float32))
        answer(seconds=seconds, peak_mb=peak_mb())


def _timed(embed: Embed, texts: list[str]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    vectors = embed(texts)
    return time.perf_counter() - started, vectors


def peak_mb() -> float | None:
    """Return this program's peak resident memory in MB, if known. Not ru_maxrss on Linux, which starts at the parent's
    peak.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1e3
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def _load_ours() -> tuple[Embed, dict[str, Any]]:
    from mexma_rt.embedding.loading import load

    model, precision, device = sys.argv[1:4]
    encoder = load(model, device=device, precision=precision)
    return lambda texts: encoder.embed_report(texts).vectors, {}


if __name__ == "__main__":
    serve(_load_ours)
