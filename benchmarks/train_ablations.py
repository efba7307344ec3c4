"""The paper's ablations at small scale: the same start, data and updates, one flag changed; xsim on test sets afterwards.

    python benchmarks/train_ablations.py START SHARDS WORK TEST.tsv ... --out benchmarks/results/train_ablations.md

START is a checkpoint folder that already knows something of both masked tokens and translation, as XLM-R does for the paper:
at this scale nothing can be said from fresh weights. The paper (second-hand: its table of components) reports for XLM-R large,
xsim error in percent: neither token gradients nor KoLeo 0.15, with token gradients 0.10, with KoLeo too 0.06.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import multiprocessing
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from mexma_train.config import MexmaConfig, ModelConfig, Recipe, RunConfig, SamplingConfig
from mexma_train.logs import read_log
from mexma_train.run import train

ARMS: dict[str, dict[str, object]] = {
    "MEXMA": {},
    "no token gradients": {"token_gradients": False},
    "no KoLeo": {"koleo_weight": 0.0},
    "InfoNCE instead of MSE": {"alignment": "contrastive"},
    "InfoNCE, no token gradients": {"alignment": "contrastive", "token_gradients": False},
}
MEASURES = ("xsim", "accuracy", "mlm_accuracy", "alignment", "uniformity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("work", type=Path, help="folder for the runs")
    parser.add_argument("tests", nargs="+", help="english<TAB>text")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=192)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--head-layers", type=int, default=2)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):  # seeds outermost: a run cut short still has every arm of the first
        for arm in options.arms:
            folder = options.work / f"{arm.replace(' ', '-')}-{seed}"
            if not (folder / "checkpoint").exists():
                run_alone(recipe(options, arm, seed), options.shards, folder, options.device)
            last = [line for line in read_log(folder) if "evaluation" in line][-1]
            rows.setdefault(arm, []).append(last["evaluation"]["mean"])
            print(arm, seed, last["evaluation"]["mean"], flush=True)
    table = describe(options, rows)
    print(table)
    if options.out:
        options.out.write_text(table, encoding="utf-8")


def run_alone(arm: Recipe, shards: Path, folder: Path, device: str) -> None:
    """A process for each arm, so that all begin alike; a failed one ends the benchmark."""
    process = multiprocessing.get_context("spawn").Process(target=train, args=(arm, shards, folder), kwargs={"device": device})
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"the arm in {folder} failed with status {process.exitcode}; its error stands above")


def recipe(options: argparse.Namespace, arm: str, seed: int) -> Recipe:
    base = MexmaConfig(
        steps=options.updates,
        batch_pairs=options.pairs,
        accumulation=1,
        lr=options.lr,
        warmup_share=0.1,
        max_tokens=96,
        precision=options.precision,
        seed=42 + seed,
    )
    return Recipe(
        name=arm,
        initial_checkpoint=str(options.start),
        model=ModelConfig(dropout=0.0, head_layers=options.head_layers, head_heads=4, head_intermediate_size=1024),
        sampling=SamplingConfig(seed=42 + seed),
        mexma=dataclasses.replace(base, **ARMS[arm]),  # type: ignore[arg-type]
        run=RunConfig(eval_pairs=tuple(options.tests), eval_every=options.updates // 2),
    )


def describe(options: argparse.Namespace, rows: dict[str, list[dict[str, float]]]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    lines = [
        "# MEXMA's ablations at small scale",
        "",
        f"{datetime.date.today()}, commit {commit}, torch {torch.__version__}, {platform.machine()}, {options.device};",
        f"`python {shlex.join(sys.argv)}`.",
        f"{options.updates} updates of {options.pairs} pairs from one start; means over {len(options.tests)} test sets "
        f"({', '.join(Path(test).stem for test in options.tests)}), text -> English; each number is one seed.",
        "",
        "| arm | " + " | ".join(("xsim error, %", "accuracy, %", "masked tokens right, %", "alignment", "uniformity")) + " |",
        "|---|" + "---|" * len(MEASURES),
    ]
    for arm, results in rows.items():
        cells = (", ".join(f"{result[measure]:.2f}" for result in results) for measure in MEASURES)
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
