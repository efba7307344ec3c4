"""Training throughput of mexma_train beside a straightforward padded MEXMA: tokens/s, model FLOPs utilisation, peak memory.

    python benchmarks/train_throughput.py --shape large --device cuda --precision bf16 --pairs 64 \
        --out benchmarks/results/train_throughput.md
    python benchmarks/train_throughput.py --shape mini --device cpu --pairs 32

Both arms train in one process on the same masked batches from the same weights: forward, backward, clipping and a fused AdamW,
one micro-batch an update, gradients of everything. Rounds are interleaved, because a machine's speed drifts: quote the ratio.

The padded arm is padded_mexma.py: four passes, each side padded to its longest sentence, logits of every place.

Length of the made-up sentences, in XLM-R tokens with <s> and </s>: English log-normal of mean 25.5 and log-sd 0.6, the other
side that times a log-normal of mean 1.12 and log-sd 0.2, both cut at 200: 27 on average, and 24 % of the padded tables at 150
pairs are tokens. Measured for it: 12,000 pairs of eight languages in a mixed bitext have means 20 and 23, log-sd 0.72 and 22 %
of real tokens; its news means 31 and 34, log-sd 0.54; the sides' log-ratio has sd 0.2. `--shards` takes real text instead.

Tokens/s counts clean tokens of both sides; the encoder sees each twice, the head once. Model FLOPs are the same for both arms,
of real tokens alone; forward and backward are three forwards:
    layers      6 x (matrix parameters of the layers) x tokens through them
    attention   12 x hidden size x (length squared, summed over sentences) per layer
    vocabulary  6 x hidden size x pieces x masked tokens
(ours computes a little less: the last layers' feed-forward parts only where they are read)
MFU divides them by the time and by the peak: a large matrix product in the same precision, the best of all between the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from padded_mexma import PaddedMexma, padded_side
from torch import Tensor, nn
from train_work import SHAPES, Work, works

from mexma_train.attention import choose_attention
from mexma_train.batch import join_sides, whole_totals
from mexma_train.config import MexmaConfig
from mexma_train.encoder import new_encoder
from mexma_train.model import Mexma

DATA_SHEET = {"H100": 989e12, "H200": 989e12}  # dense bf16 and fp16 FLOP/s of the SXM modules, NVIDIA's data sheets
ARMS = ("padded", "ours")


# The two arms ---------------------------------------------------------------------------------------------------------


def our_loss(args: argparse.Namespace, config: MexmaConfig, device: torch.device) -> Callable[[Mexma, Work], Tensor]:
    """The whole of what the benchmark knows of mexma_train's training step."""
    attention, _ = choose_attention(args.attention, device, config.precision)

    def loss(model: Mexma, work: Work) -> Tensor:
        batch = join_sides(work.source, work.target, whole_totals(work.source, work.target)).to(device)
        return model(batch, config, attention=attention, chunk=args.vocabulary_chunk)["loss"]

    return loss


class Arm:
    """A model in training; both arms start from the same weights."""

    def __init__(self, name: str, args: argparse.Namespace, config: MexmaConfig) -> None:
        self.name, self.config, self.device = name, config, torch.device(args.device)
        self.others = torch.cuda.memory_allocated() if args.device == "cuda" else 0  # bytes that are not this arm's
        shape, pieces = SHAPES[args.shape]
        torch.manual_seed(0)
        with self.device:  # weights of this size take a GPU no time, and a CPU half a minute
            ours = Mexma(new_encoder(shape, pieces), shape)
        self.model: nn.Module = ours
        self.forward: Callable[[Any, Work], Tensor]
        if name == "ours":
            if args.compile:
                for layer in [*ours.encoder.encoder.layer, *ours.head.layers]:
                    layer.compile(dynamic=True)
            self.forward = our_loss(args, config, self.device)
        else:
            with self.device:
                self.model = PaddedMexma(shape, pieces)
            self.model.load_state_dict(ours.state_dict(), strict=False)
            assert {n: p.shape for n, p in self.model.named_parameters()} == {n: p.shape for n, p in ours.named_parameters()}
            self.forward = lambda model, work: model(*(padded_side(s, self.device) for s in (work.source, work.target)), config)
        self.model.to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=0.0, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")

    def gradients(self, work: Work) -> tuple[Tensor, Tensor]:
        """Loss, and norm of the gradient before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        with torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext():
            loss = self.forward(self.model, work)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        return loss.detach(), nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)

    def first_loss(self, work: Work) -> tuple[float, float]:
        """Loss and gradient norm without dropout; no weight is changed."""
        self.model.eval()
        loss, norm = self.gradients(work)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self.model.train()
        return loss.item(), norm.item()

    def train(self, works: list[Work]) -> float:
        """Seconds of one update per micro-batch."""
        wait(self.device)
        started = time.perf_counter()
        for work in works:
            self.gradients(work)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        wait(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measured_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of a large square matrix product in this precision: the best of ten."""
    size = 8_192 if device.type == "cuda" else 2_048
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(10):
        wait(device)
        started = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(
    args: argparse.Namespace, config: MexmaConfig, *, resident: dict[str, int], peak: Callable[[], float]
) -> dict[str, Any]:
    """First losses, memory and seconds of each arm. resident: bytes of each arm on a CPU, which cannot be told in here."""
    stream = works(args, config)
    check, warm = next(stream), [next(stream) for _ in range(args.warmup)]
    arms, first, memory = {}, {}, {}
    for name in args.arms:
        arms[name] = arm = Arm(name, args, config)
        first[name] = arm.first_loss(check)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        arm.train(warm)
        memory[name] = torch.cuda.max_memory_allocated() - arm.others if args.device == "cuda" else resident.get(name, 0)
        print(f"{name}: first loss {first[name][0]:.6f}, gradient norm {first[name][1]:.6f}", flush=True)

    rounds, peaks = [], [peak()]
    for number in range(args.rounds):
        batch = [next(stream) for _ in range(args.steps)]
        order = args.arms if number % 2 else args.arms[::-1]
        seconds = {name: arms[name].train(batch) for name in order}
        counts = {key: sum(getattr(work, key) for work in batch) for key in ("tokens", "places", "flops")}
        rounds.append({"seconds": seconds, **counts})
        peaks.append(peak())  # another load on the machine would lower one
        print(f"round {number + 1}: " + ", ".join(f"{n} {counts['tokens'] / s:.0f} tokens/s" for n, s in seconds.items()))
    return {"first": first, "memory": memory, "rounds": rounds, "peak": max(peaks)}


def memory_of(name: str) -> int:
    """Peak resident bytes of a process that trains one arm alone on the warm-up's batches, with interpreter and libraries."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    return int(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def train_for_memory(args: argparse.Namespace, config: MexmaConfig) -> None:
    stream = works(args, config)
    next(stream)
    arm = Arm(args.memory_of, args, config)
    arm.train([next(stream) for _ in range(args.warmup)])
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage: kilobytes on Linux, bytes on macOS
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))


# The report -----------------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace, result: dict[str, Any]) -> str:
    rounds, names = result["rounds"], args.arms
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    nominal = next((peak for key, peak in DATA_SHEET.items() if key in name and args.precision != "fp32"), None)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", "--", "train"], capture_output=True, text=True).stdout.strip()
    places, tokens = sum(r["places"] for r in rounds), sum(r["tokens"] for r in rounds)
    lines = [
        f"## {args.shape}, {args.precision}, {args.pairs} pairs, {name}",
        "",
        f"{datetime.date.today()}, commit {commit or 'unknown'}{' with changes in train/' if changed else ''}, "
        f"torch {torch.__version__};",
        f"`python benchmarks/train_throughput.py {' '.join(sys.argv[1:])}`.",
        f"{len(rounds)} interleaved rounds of {args.steps} updates; {tokens / len(rounds) / args.steps:.0f} clean tokens an "
        f"update, {tokens / places:.0%} of the padded tables. Measured peak {result['peak'] / 1e12:.2f} TFLOP/s"
        + (f", data sheet {nominal / 1e12:.0f}." if nominal else "."),
        "",
        "| arm | median tokens/s | ratio to padded, median (min-max) | MFU of the measured peak |"
        + (" MFU of the data sheet |" if nominal else "")
        + f" peak {'GPU memory' if args.device == 'cuda' else 'resident memory of its own process'}, GiB"
        + " | first loss | first gradient norm |",
        "|---|---|---|---|" + ("---|" if nominal else "") + "---|---|---|",
    ]
    for arm in names:
        speed = statistics.median(r["tokens"] / r["seconds"][arm] for r in rounds)
        flops = statistics.median(r["flops"] / r["seconds"][arm] for r in rounds)
        ratio = "-"
        if "padded" in names:
            ratios = [r["seconds"]["padded"] / r["seconds"][arm] for r in rounds]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        loss, norm = result["first"][arm]
        lines.append(
            f"| {arm} | {speed:.0f} | {ratio} | {flops / result['peak']:.1%} |"
            + (f" {flops / nominal:.1%} |" if nominal else "")
            + f" {result['memory'][arm] / 2**30:.2f} | {loss:.6f} | {norm:.6f} |"
        )
    return "\n".join(lines)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--pairs", type=int, default=150, help="of a micro-batch; the padded arm's logits may need fewer")
    parser.add_argument(
        "--bucket", type=int, default=1, help="cut that many batches by length, for both arms; 1 as the original"
    )
    parser.add_argument("--steps", type=int, default=2, help="updates of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2, help="updates before the rounds; memory is measured here")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="one alone, where the other does not fit")
    parser.add_argument("--attention", default="auto", help="of ours: see mexma_rt/backends/packed_attention.py")
    parser.add_argument("--compile", action="store_true", help="ours: torch.compile the layers")
    parser.add_argument("--vocabulary-chunk", type=int, default=1024, help="ours: masked tokens whose logits exist at once")
    parser.add_argument("--shards", type=Path, help="a folder of mexma-train prepare, instead of made-up sentences")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args = parser().parse_args()
    config = replace(MexmaConfig(steps=1), precision=args.precision)
    if args.memory_of:
        return train_for_memory(args, config)
    # Before this process grows: on Linux a child's high-water mark starts at its parent's.
    resident = {name: memory_of(name) for name in args.arms} if args.device == "cpu" else {}
    try:
        peak = functools.partial(measured_peak, torch.device(args.device), args.precision)
        table = report(args, measure(args, config, resident=resident, peak=peak))
    except torch.OutOfMemoryError as error:
        sys.exit(f"{error}\nThis arm does not fit: take fewer --pairs (of both arms), or --arms ours to see ours alone.")
    print("\n" + table)
    if args.out:
        head = "" if args.out.exists() else "# Training throughput: mexma_train beside a padded implementation\n"
        with args.out.open("a", encoding="utf-8") as file:
            file.write(f"{head}\n{table}\n")


if __name__ == "__main__":
    main()
