"""All that only a GPU can decide, by one command of about six minutes on a machine with one and without network.

    python benchmarks/gpu_once.py OUT [--only mining,run] [--seconds 560] [--shards FOLDER] [--texts FILE] [--smoke]

Each phase is a script of benchmarks/gpu_phases, a process of its own with its own limit of time, so that one that fails or
hangs takes no other with it. They append what they find to OUT/gpu_once.jsonl line by line, and what they print else to
OUT/gpu_once.log: whatever ends the command, all that was measured before is there. After --seconds nothing runs.
Ends with status 1 if a phase failed.

Needs torch with CUDA, transformers, safetensors and what mexma-rt itself needs; for a phase each cuda-bindings, sentencepiece
and pytest; sentence-transformers is measured where it is installed.

--shards: a folder of `mexma-train prepare` for the phase `run` (default: made-up pairs). --texts: one sentence a line, for
`embedding` (default: those of the parity gate and the examples). --smoke: everything tiny on the CPU, as the tests run it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PHASES = REPOSITORY / "benchmarks" / "gpu_phases"
ROOTS = (".", "train", "export", "benchmarks")
PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "cuda-bindings", "cupy-cuda13x", "numpy")
LEAST = 15  # seconds: with less left than this no phase is started
PATIENCE = 5  # times as long is a phase waited for with --smoke: busy machines run it, and nothing is measured


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A script of gpu_phases. seconds: after so many it is stopped."""

    name: str
    seconds: int
    decides: str
    words: tuple[str, ...] = ()


ALL = (
    Phase(name="gemm", seconds=40, decides="the peak that every other share is of"),
    Phase(name="bindings", seconds=20, decides="whether cuda.py's calls hold: pinned memory, copies, capture, launch"),
    Phase(name="attention", seconds=100, decides="which way to attend is fastest, and whether all agree, backward too"),
    Phase(
        name="embedding",
        seconds=120,
        decides="the torch back end beside sentence-transformers, GPU_BATCH_TOKENS, GPU_RUN_CELLS",
    ),
    Phase(name="training", seconds=120, decides="packed training beside padded, and its share of the peak"),
    Phase(name="mining", seconds=90, decides="the search beside its matrix product, and where its time goes"),
    Phase(name="run", seconds=90, decides="whether a run stops, resumes and gives what an uninterrupted one gives"),
    Phase(name="gpu_tests", seconds=120, decides="whether the tests that need a GPU pass"),
    Phase(name="training", seconds=150, words=("--compile",), decides="whether torch.compile is worth its time"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", help="names of phases, with commas between")
    parser.add_argument("--seconds", type=float, default=560, help="for everything")
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    started = time.monotonic()
    wanted = args.only.split(",") if args.only else [phase.name for phase in ALL]
    chosen = [phase for phase in ALL if phase.name in wanted]
    if unknown := set(wanted) - {phase.name for phase in ALL}:
        parser.error(f"no phase {', '.join(sorted(unknown))}; there are {', '.join(dict.fromkeys(p.name for p in ALL))}")
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "gpu_once.jsonl"
    tell(results, phase="about", **about(sys.argv[1:]))
    ended = []
    for phase in chosen:
        left = args.seconds - (time.monotonic() - started)
        limit = min(phase.seconds * (PATIENCE if args.smoke else 1), left)
        status, took = ("left out: no time", 0.0) if left < LEAST else run(phase, args, results, limit)
        ended.append(status)
        name = " ".join((phase.name, *phase.words))
        tell(results, phase=phase.name, words=phase.words, status=status, seconds=round(took, 1), decides=phase.decides)
        print(f"{name}: {status}, {took:.0f} s", flush=True)
    if any(status.startswith("failed") for status in ended):
        sys.exit(f"A phase failed: see the end of {args.out / 'gpu_once.log'}")


def run(phase: Phase, args: argparse.Namespace, results: Path, seconds: float) -> tuple[str, float]:
    """How a phase ended, and after how many seconds."""
    words = [str(PHASES / f"{phase.name}.py"), *phase.words, *(["--smoke"] if args.smoke else [])]
    if args.shards and phase.name == "run":
        words += ["--shards", str(args.shards.resolve())]
    if args.texts and phase.name == "embedding":
        words += ["--texts", str(args.texts.resolve())]
    path = os.pathsep.join([*(str(REPOSITORY / root) for root in ROOTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
    begun = time.monotonic()
    with results.open("ab") as found, (args.out / "gpu_once.log").open("ab") as log:
        log.write(f"\n==== {phase.name} {' '.join(phase.words)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [sys.executable, *words], stdout=found, stderr=log, cwd=REPOSITORY, env=environment, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            status = "ok" if code == 0 else f"failed with status {code}"
        except subprocess.TimeoutExpired:
            status = f"failed: stopped after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # it and what it started: compilers, workers
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return status, time.monotonic() - begun


def tell(results: Path, **record: Any) -> None:
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def about(words: list[str]) -> dict[str, Any]:
    """What a figure must name: date, commit, command, machine, versions."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": output("git", "rev-parse", "--short", "HEAD"),
        "command": f"python benchmarks/gpu_once.py {' '.join(words)}",
        "gpu": output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=REPOSITORY, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


if __name__ == "__main__":
    main()
