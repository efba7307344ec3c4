"""One route of the embedding benchmark in a process of its own: `python -m mexma_rt.bench.worker MODEL PRECISION DEVICE`.

Each route has its own process, so that peak memory is its own and a peer may use another environment (see
benchmarks/embed_peers.py). The parent (run.py) sends one job per JSON line and gets a JSON line for each.
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
    """Load a route, say so, and do jobs until standard input ends. `load` gives a function [n] texts -> [n, D], and notes.

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
    """Peak resident memory of this program in MB, where the system tells. On Linux not by ru_maxrss, which begins with the peak
    of the process that started this one.
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
