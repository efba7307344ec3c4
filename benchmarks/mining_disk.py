"""`mexma knn` on vectors larger than memory, for a part of the job: rate, memory, and a kill in the middle.

    python benchmarks/mining_disk.py --memory 2GB --seconds 300 --out benchmarks/results/mining_speed.md

Starts the command, kills it (SIGKILL) after half of the seconds, starts it again, and kills that at the end, if it is not done.
The rate comes from the checkpoints, the peak memory (VmHWM) from /proc while the command runs, and the time of the whole job is
extrapolated from the part that was done.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def make(path: Path, rows: int, dimensions: int, seed: int) -> None:
    """float16 unit vectors, written in slices."""
    random = np.random.default_rng(seed)
    array = np.lib.format.open_memmap(path, "w+", np.float16, (rows, dimensions))
    for start in range(0, rows, 50_000):
        part = random.standard_normal((min(50_000, rows - start), dimensions), np.float32)
        array[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    array.flush()


def run(command: list[str], folder: Path, seconds: float) -> tuple[int, float, list[str]]:
    """Exit status (-9 if killed), peak memory in MB and the lines on stderr."""
    log = folder / "stderr.txt"
    peak, until = 0, time.monotonic() + seconds
    with log.open("w") as stream, subprocess.Popen(command, cwd=folder, stderr=stream) as process:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                break
            peak = max([peak, *map(int, re.findall(r"VmHWM:\s+(\d+) kB", status))])
            if time.monotonic() > until:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.5)
    return process.returncode, peak / 1000, log.read_text().splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--checkpoint", default="10")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--folder", type=Path, help="keeps the vectors here, or takes them if they are there")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for name, seed in (("x.npy", 1), ("y.npy", 2)):
            if not (folder / name).exists():
                make(folder / name, arguments.rows, arguments.dimensions, seed)
        code = "from mexma_rt.cli import main; main()"
        command = [sys.executable, "-c", code, "knn", "x.npy", "y.npy", "-o", "out", "--memory", arguments.memory]
        command += ["--checkpoint", arguments.checkpoint]
        lines = [f"## `mexma knn` out of core, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, numpy {np.__version__}", ""]
        lines += [f"`python benchmarks/mining_disk.py {' '.join(sys.argv[1:])}`", ""]
        done = before = 0.0
        for number in (1, 2):
            started = time.monotonic()
            status, peak, said = run(command, folder, arguments.seconds / 2)
            took = time.monotonic() - started
            state = folder / ".out.part" / "state.json"
            if status == 0:
                done = 1.0
            elif state.exists():
                found = json.loads(state.read_text())
                plan = found["job"]["plan"]
                pairs = -(-plan["outer_rows"] // plan["outer_block"]) * -(-plan["inner_rows"] // plan["inner_block"])
                done, spent = found["done"] / pairs, found["seconds"]
            lines += [f"- run {number}, {took:.0f} s, exit status {status}, peak memory {peak:,.0f} MB; it said:"]
            lines += [f"  - {line}" for line in (said[0], *said[-1:])] if said else []
            lines += [f"- after it {done:.2%} of the job are in the checkpoint ({done - before:.2%} of this run)"]
            before = done
            if status == 0:
                break
        if 0 < done < 1:
            lines += [f"- extrapolated from {done:.2%}: {spent / done / 3600:.2f} h for the whole job"]
        text = "\n".join(lines) + "\n\n"
        print(text)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as stream:
                stream.write(text)


if __name__ == "__main__":
    main()
