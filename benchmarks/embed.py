"""Speed of `mexma embed` beside its peers on the same weights and sentences: one table and one plot.

    python benchmarks/embed.py BUNDLE TEXTS.txt ... --keep runs.jsonl -o benchmarks/results/embed.md

BUNDLE has its weights and a fp32 graph (mexma-export without --no-weights). TEXTS.txt have one text per line. Each route runs
in a process of its own; rounds are interleaved (mexma_rt/bench/run.py). A run is one bundle; --keep collects the runs of
several calls, and the table and the plot are made of all of them. A peer of another environment: --python PEER=/path/to/python.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from embed_peers import PEERS

from mexma_rt.bench.plot import ratio_bars
from mexma_rt.bench.run import Route, Row, as_data, as_table, measure, our_routes
from mexma_rt.bundle.opening import open_bundle
from mexma_rt.files.pictures import save

BASE = PEERS["st-fp32"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--name", help="of the model, in the table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--singles", type=int, default=100, help="texts of the first file that are timed alone")
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (of ours and of sentence-transformers)")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--hold", help="command that keeps the machine quiet while its standard input is open")
    parser.add_argument("--keep", type=Path, required=True, help="runs, one JSON line each; this one is added")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the table; the plot has the same name and .png")
    args = parser.parse_args()

    pythons = dict(item.split("=", 1) for item in args.python)
    script = str(Path(__file__).with_name("embed_peers.py"))
    routes = [
        Route(
            name=PEERS[peer],
            command=(pythons.get(peer, sys.executable), script, peer, args.bundle, args.device),
            comparable=peer != "use",
        )
        for peer in args.peers.split(",")
    ] + our_routes(open_bundle(args.bundle), args.bundle, args.device)
    rows, facts = measure(
        routes,
        args.texts,
        model=args.bundle,
        rounds=args.rounds,
        singles=args.singles,
        base=BASE,
        tell=lambda text: print(text, flush=True),
        around=partial(held, args.hold) if args.hold else nullcontext,
    )
    run = {"model": args.name or Path(args.bundle).name, "machine": machine(), "rounds": args.rounds, **as_data(rows, facts)}
    with args.keep.open("a", encoding="utf-8") as file:
        file.write(json.dumps(run) + "\n")
    runs = [json.loads(line) for line in args.keep.read_text(encoding="utf-8").splitlines()]
    args.output.write_text("\n\n".join(section(run) for run in runs) + "\n", encoding="utf-8")
    save(ratio_bars(runs), args.output.with_suffix(".png"))
    print(section(run))


@contextmanager
def held(command: str) -> Iterator[None]:
    """Inside, the machine is kept quiet. Raises RuntimeError where the command ended before the work did."""
    with subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        if process.poll() is not None:
            raise RuntimeError(f"{command} ended with status {process.returncode} before the timed rounds did: time less")


def machine() -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    instructions = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if f" {name}" in flags]
    cores = len(os.sched_getaffinity(0))
    return f"{datetime.date.today()}, commit {commit}, {cores} cores {platform.machine()} with {', '.join(instructions)}"


def section(run: dict[str, Any]) -> str:
    rows = [Row(**row) for row in run["rows"]]
    head = f"## {run['model']}\n\n{run['machine']}; {run['rounds']} interleaved rounds; ratios to {run['base']}.\n\n"
    return head + as_table(rows, run)


if __name__ == "__main__":
    main()
