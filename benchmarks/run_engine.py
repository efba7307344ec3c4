"""Build a bundle's TensorRT engine, run it by mexma_rt, and hold it against the fp32 graph on CPU.

    python benchmarks/run_engine.py tensorrt|rtx BUNDLE [ROWSxTOKENS,...]

BUNDLE has fp32 and fp16 graphs (mexma-export CHECKPOINT BUNDLE --precision fp32,fp16). Prints a line for each corner shape of
every profile and one for the sentences of the parity gate; ends with status 1 if a cosine is below the gate's lowest for fp16.
Needs the GPU that the engine is for, the library and cuda-bindings. Has not run on a GPU yet: see GPU_TODO.md.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

import mexma_rt
from mexma_export import load_sentences
from mexma_export.engines import build_bundle_engine, parse_profiles
from mexma_export.verdict import THRESHOLDS
from mexma_rt.backends import Backend
from mexma_rt.backends.profiles import plan

TIMED = 50  # runs
COMPARED = 8  # rows whose vectors are computed on CPU too


def main() -> None:
    kind, bundle = sys.argv[1], Path(sys.argv[2])
    profiles = parse_profiles(sys.argv[3]) if len(sys.argv) > 3 else None
    path, sidecar = build_bundle_engine(bundle, engine=kind, profiles=profiles)
    counted = f"{sidecar.half_matmuls} of {sidecar.matmuls} products in fp16, counted in the {sidecar.counted_in}"
    print(f"{path}: {sidecar.build_seconds:.1f} s, {sidecar.engine_bytes / 1e6:.1f} MB, {counted}")

    started = time.perf_counter()
    longest = max(profile.length for profile in sidecar.profiles)
    on_gpu = mexma_rt.load(bundle, backend=kind, max_length=longest)
    print(f"{on_gpu}, loaded in {time.perf_counter() - started:.1f} s, because {on_gpu.backend.reason}")
    on_cpu = mexma_rt.load(bundle, device="cpu", precision="fp32", max_length=longest)
    lowest, rng = 1.0, np.random.default_rng(0)
    pieces = json.loads((bundle / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    corners = {(rows, length) for profile in sidecar.profiles for rows in (1, profile.batch) for length in (2, profile.length)}
    for rows, length in sorted(corners):
        ids = rng.integers(4, pieces, (rows, length))
        ids[:, 0], ids[rows // 2, length // 2 + 1 :] = 0, 1  # <s> first; one padded row
        mask = (ids != 1).astype(np.int64)
        cosine = cosines(on_gpu.backend.run(ids, mask)[:COMPARED], on_cpu.backend.run(ids[:COMPARED], mask[:COMPARED]))
        ms, lowest = milliseconds(on_gpu.backend, ids, mask), min(lowest, cosine.min())
        ran = ", ".join(str(sidecar.profiles[piece.profile]) for piece in plan(rows, length, sidecar.profiles))
        print(f"{rows}x{length} in {ran}: lowest cosine {cosine.min():.7f}, {ms:.3f} ms with copies, {rows / ms * 1e3:.0f}/s")

    texts = [sentence.text for sentence in load_sentences()]
    on_gpu.embed_report(texts)
    gpu, cpu = on_gpu.embed_report(texts), on_cpu.embed_report(texts)
    cosine = cosines(gpu.vectors, cpu.vectors)
    print(
        f"{len(texts)} sentences: lowest cosine {cosine.min():.7f}, mean {cosine.mean():.7f}; "
        f"{gpu.report.sentences_per_second:.0f}/s on the GPU, {cpu.report.sentences_per_second:.0f}/s on CPU"
    )
    lowest = min(lowest, cosine.min())
    if not lowest >= THRESHOLDS["fp16"].min_cosine:
        sys.exit(f"The lowest cosine {lowest:.7f} is below the gate's {THRESHOLDS['fp16'].min_cosine}")


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def milliseconds(backend: Backend, ids: np.ndarray, mask: np.ndarray) -> float:
    """Median time of a run, after three that are not counted."""
    times = []
    for _ in range(3 + TIMED):
        started = time.perf_counter()
        backend.run(ids, mask)
        times.append((time.perf_counter() - started) * 1e3)
    return float(np.median(times[3:]))


if __name__ == "__main__":
    main()
