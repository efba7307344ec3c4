"""A short run of mexma-train on the device: stopped and resumed, beside one that was not, and beside the CPU's first updates.

--shards: a folder of `mexma-train prepare`; without it the pairs are made up, and its tokenizer trained on them. A small model
goes through all three stages: what counts is that each of them holds on the device. A process group of one tells whether NCCL
starts there, and whether gradients through DDP and FSDP2 are those of the bare model.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from telling import flags, say
from torch import nn

from mexma_train.cli import main as mexma_train
from mexma_train.parallel import World, all_sum, distribute, whole

RECIPE = """
from mexma_train.config import *
RECIPE = Recipe(
    name="short",
    tokenizer=TokenizerConfig(vocab_size={pieces}),
    model=ModelConfig(hidden_size={width}, layers=3, heads={heads}, intermediate_size={inner}, dropout=0.0, head_layers=1,
                      head_heads={heads}, head_intermediate_size={inner}),
    warmup=WarmupConfig(steps={updates}, batch_pairs={pairs}, lr=1e-2),
    ranking=RankingConfig(steps={updates}, batch_pairs={pairs}, precision="{precision}"),
    mexma=MexmaConfig(steps={updates}, batch_pairs={pairs}, accumulation=1, lr=1e-4, precision="{precision}"),
)
"""
LOSSES = ("stage", "update", "loss")


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--shards", type=Path)
    args = parser.parse_args()
    device = "cpu" if args.smoke else "cuda"
    sizes: dict[str, Any] = {
        "pieces": 150,
        "width": 32,
        "heads": 4,
        "inner": 64,
        "updates": 2,
        "pairs": 16,
        "precision": "fp32",
    }
    if not args.smoke:
        sizes |= {"pieces": 2000, "width": 256, "inner": 1024, "updates": 40, "pairs": 128, "precision": "bf16"}
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        recipe, sets = root / "recipe.py", root / "toy.tsv"
        recipe.write_text(RECIPE.format(**sizes), encoding="utf-8")
        shards = args.shards or made_up(root, recipe, sets, 200 if args.smoke else 5000)
        how = ("--run.log-every", 1, *(("--run.eval-pairs", sets) if sets.exists() else ()))
        for name in ("whole", "stopped"):
            started, minutes = time.perf_counter(), ("--minutes", 0) if name == "stopped" else ()
            call("run", recipe, shards, root / name, "--device", device, *minutes, *how)
            calls = 1
            while name == "stopped" and not is_finished(root / name, sizes["updates"]):
                # one update a call, as often as it may take to stop in every stage; then to the end
                call("resume", root / name, "--device", device, *(("--minutes", 0) if calls < 3 else ()), *how)
                calls += 1
            seconds = time.perf_counter() - started
            say(what=f"run, {name}", device=device, calls=calls, seconds=seconds, **last(root / name))
        whole, stopped = (losses(root / name) for name in ("whole", "stopped"))
        apart = max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(whole, stopped, strict=True))
        say(what="stopped beside whole", updates=len(whole), largest_relative_difference=apart)
        if not args.smoke:
            call("run", recipe, shards, root / "cpu", "--device", "cpu", "--minutes", 0.2, "--threads", 8, *how)
            both = list(zip(whole, losses(root / "cpu"), strict=False))
            say(what="the CPU's first updates", compared=[{**a, "on_cpu": b["loss"]} for a, b in both[:10]])
        group_of_one(torch.device(device, 0) if device == "cuda" else torch.device(device), root / "store")


def group_of_one(device: torch.device, store: Path) -> None:
    """NCCL (gloo on the CPU) in this process alone: a sum, and a gradient of a small network through DDP and through FSDP2."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    bound = device if device.type == "cuda" else None
    dist.init_process_group(backend, init_method=store.as_uri(), rank=0, world_size=1, device_id=bound)
    try:
        world = World(device=device, size=2)  # so that parallel.py does its part; the group has one process all the same
        summed = all_sum(torch.ones(3, device=device), world).tolist()
        gradients = {how: gradient(world, how) for how in ("", "ddp", "fsdp")}
        apart = {how: float((gradients[how] - gradients[""]).abs().max()) for how in ("ddp", "fsdp")}
        say(what="process group of one", backend=backend, sum=summed, gradients_apart=apart)
    finally:
        dist.destroy_process_group()


def gradient(world: World, how: str) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).to(world.device)
    module = distribute(model, list(model), world, how) if how else model
    module(torch.ones(4, 16, device=world.device)).square().sum().backward()
    return torch.cat([whole(parameter.grad).flatten() for parameter in model.parameters() if parameter.grad is not None]).cpu()


def made_up(root: Path, recipe: Path, sets: Path, rows: int) -> Path:
    """Shards of pairs of two toy languages, word for word translations of each other, and a test set."""
    rng, pairs = random.Random(0), root / "pairs.tsv"
    lines = []
    for _ in range(rows):
        words = [rng.randrange(300) for _ in range(rng.randint(4, 30))]
        lines.append(tuple(" ".join(f"{lang}{word}" for word in words) for lang in ("en", "xx")))
    pairs.write_text("".join(f"xxx\ttoy\t{english}\t{text}\n" for english, text in lines), encoding="utf-8")
    sets.write_text("".join(f"{english}\t{text}\n" for english, text in lines[: rows // 10]), encoding="utf-8")
    call("tokenizer", pairs, root / "tokenizer.json", "--recipe", recipe)
    call("prepare", pairs, root / "shards", "--tokenizer", root / "tokenizer.json")
    return root / "shards"


def call(*words: object) -> None:
    mexma_train([str(word) for word in words], standalone_mode=False)


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[dict]:
    return [{key: line[key] for key in LOSSES} for line in log(run) if "loss" in line]


def last(run: Path) -> dict:
    """The last loss of each stage, and the evaluation at the end."""
    ends = {line["stage"]: line["loss"] for line in losses(run)}
    return {"losses": ends, "evaluation": [line for line in log(run) if "loss" not in line][-1:]}


def is_finished(run: Path, updates: int) -> bool:
    return any((line["stage"], line["update"]) == ("mexma", updates) for line in losses(run))


if __name__ == "__main__":
    main()
