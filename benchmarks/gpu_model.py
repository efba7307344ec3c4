"""Train the bundled model on for nine minutes on a machine with a GPU and without network, and bring it back in small files.

For a machine that takes commands of ten minutes, 64 MiB with each (the tree included), and gives back 64 MiB. Here:

    python benchmarks/gpu_model.py pack pairs.tsv .carry    # as many pairs as fit beside the tracked files of this tree

A pair takes 161 bytes (measured: 20,000 random ones of 5.6 million in 3.22 MB, in the pieces of mexma-small), so the 17.3 MB
beside a tree of 49.9 MB hold some 105,000.

There, with .carry beside the tree (git ignores it, and runs/):

    python benchmarks/gpu_model.py train train/recipes/small.py .carry OUT      # nine minutes; OUT gets up to four parts
    python benchmarks/gpu_model.py send OUT --first 4                           # only if the command before says so

Here again, with all that came back in one folder:

    python benchmarks/gpu_model.py join PARTS CHECKPOINT && mexma-export CHECKPOINT BUNDLE

The recipe's stages are timed over a few updates first; then they run in its proportions with as many updates as there is time
for, so that the learning rate ends at 0. What comes back are the weights that changed, in fp16, and log.jsonl; in float32 with
--float32, and of a recipe with round_bits, whose numbers fp16 cannot hold.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / part) for part in ("", "train")]

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from mexma_rt.bundle.manifest import TOKENIZER  # noqa: E402
from mexma_rt.bundle.opening import open_bundle  # noqa: E402
from mexma_rt.bundle.safetensors_folder import write_checkpoint  # noqa: E402
from mexma_rt.embedding import DEFAULT_MODEL  # noqa: E402
from mexma_train.config import Recipe, load_recipe  # noqa: E402
from mexma_train.data.prepare import prepare  # noqa: E402
from mexma_train.run import train  # noqa: E402

WORK = REPOSITORY / "runs" / "gpu_model"
CHANGED, WEIGHTS = "changed.safetensors", "model.safetensors"
PART_BYTES, PARTS = 15_000_000, 4
SENT_BYTES = 64 << 20  # with one command, the tree included
SAMPLE, CAREFUL = 20_000, 0.98  # pairs that say how many bytes a pair takes; the part of the room that they are trusted for
PROBE = 30  # updates of a stage that are timed; the first third warms up
SHARE = 0.92  # of the time left that is planned for: evaluation, saving and slower updates take the rest


def main(words: list[str] | None = None) -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="what stays on the machine between two commands")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a bundled name or a bundle's folder")
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("train")
    step.add_argument("recipe", type=Path)
    step.add_argument("carry", type=Path, help="folder with shards.tar.xz.00 and so on")
    step.add_argument("out", type=Path)
    step.add_argument("--minutes", type=float, default=9.0, help="from the start of this command to the last part")
    step.add_argument("--device", default="cuda")
    step.add_argument("--float32", action="store_true")
    step = steps.add_parser("send")
    step.add_argument("out", type=Path)
    step.add_argument("--first", type=int, default=0)
    step = steps.add_parser("join")
    step.add_argument("parts", type=Path)
    step.add_argument("checkpoint", type=Path)
    step = steps.add_parser("pack")
    step.add_argument("pairs", type=Path, help="lines of language, source, English text and text, with tabs between")
    step.add_argument("carry", type=Path)
    step.add_argument("--room", type=int, help="bytes for the pairs; default: 64 MiB less the tree's tracked files")
    args = parser.parse_args(words)
    if args.step == "pack":
        pack(args.pairs, args.carry, args.model, tree_room() if args.room is None else args.room)
    elif args.step == "train":
        train_on(args, started + 60 * args.minutes)
        send(args.work, args.out, 0)
    elif args.step == "send":
        send(args.work, args.out, args.first)
    else:
        join(args.parts, args.model, args.checkpoint)


def tree_room() -> int:
    """Bytes that may go beside the tracked files of this tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout.decode()
    files = [REPOSITORY / name for name in listed.split("\0") if name]
    return SENT_BYTES - sum(file.stat().st_size for file in files if file.is_file())


def pack(pairs: Path, carry: Path, model: str, room: int) -> None:
    """Write `shards.tar.xz.NN` of random pairs into the new folder `carry`: as many as fit into `room` bytes."""
    tokenizer, rng = open_bundle(model).folder / TOKENIZER, random.Random(0)
    lines = [line for line in pairs.read_bytes().splitlines(keepends=True) if line.strip()]
    rng.shuffle(lines)
    sample = lines[:SAMPLE]
    each = len(packed_shards(sample, tokenizer)) / len(sample)
    count = min(int(CAREFUL * room / each), len(lines))
    while count and len(packed := packed_shards(lines[:count], tokenizer)) > room:
        count = int(CAREFUL * count * room / len(packed))
    if not count:
        sys.exit(f"No pairs fit into {room:,} bytes, at {each:.0f} bytes a pair. Name more --room, or send a smaller tree.")
    carry.mkdir(parents=True)
    for number, start in enumerate(range(0, len(packed), PART_BYTES)):
        (carry / f"shards.tar.xz.{number:02}").write_bytes(packed[start : start + PART_BYTES])
    print(
        f"{carry}: {count:,} of {len(lines):,} pairs in {len(packed):,} bytes, {len(packed) / count:.1f} a pair; room {room:,}"
    )


def packed_shards(lines: list[bytes], tokenizer: Path) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "pairs.tsv").write_bytes(b"".join(lines))
        prepare(folder / "pairs.tsv", folder / "shards", tokenizer, progress=False)
        with tarfile.open(folder / "shards.tar.xz", "w:xz") as archive:
            archive.add(folder / "shards", ".")
        return (folder / "shards.tar.xz").read_bytes()


def train_on(args: argparse.Namespace, end: float) -> None:
    """Train until `end` at the latest; the changed weights and the log are in `work` then."""
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    start = write_checkpoint(open_bundle(args.model), args.work / "start")
    shards = unpacked(args.carry, args.work / "shards")
    recipe = replace(load_recipe(args.recipe), warmup=None, initial_checkpoint=str(start))
    planned = fitting(recipe, shards, args.work / "probe", args.device, end)
    left = (end - time.monotonic()) / 60
    updates = {"ranking": planned.ranking and planned.ranking.steps, "mexma": planned.mexma.steps}
    print(f"{left:.1f} minutes left: {updates} updates", flush=True)
    finished = train(planned, shards, args.work / "run", device=args.device, minutes=left * (1 + SHARE) / 2)
    if not (args.work / "run" / "checkpoint").is_dir():
        sys.exit("The time ended before MEXMA's own stage. Take a recipe with fewer updates of ranking for each of MEXMA's.")
    changed = changed_weights(args.work / "run" / "checkpoint", start)
    rounded = any(stage and stage.round_bits for stage in (planned.ranking, planned.mexma))
    dtype = torch.float32 if args.float32 or rounded else torch.float16
    save_file({name: tensor.to(dtype) for name, tensor in changed.items()}, args.work / CHANGED)
    print(f"{'finished' if finished else 'stopped early'}; {len(changed)} tensors changed", flush=True)


def fitting(recipe: Recipe, shards: Path, folder: Path, device: str, end: float) -> Recipe:
    """The recipe with as many updates of its stages, in its proportions, as can be done until `end`."""
    stages = [name for name in ("ranking", "mexma") if getattr(recipe, name)]
    if recipe.mexma.steps is None:
        sys.exit(f"Recipe {recipe.name!r} counts epochs of MEXMA: give it steps, whose proportion to those of ranking is kept.")
    short = replace(recipe, run=replace(recipe.run, log_every=PROBE // 3, eval_pairs=()))
    short = replace(short, **{name: replace(getattr(recipe, name), steps=PROBE) for name in stages})
    train(short, shards, folder, device=device)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    cost = 0.0  # seconds of the whole recipe
    for name in stages:
        speed = [line["pairs_per_second"] for line in lines if line["stage"] == name and "loss" in line][1:]
        config = getattr(recipe, name)
        pairs = config.batch_pairs * getattr(config, "accumulation", 1)
        cost += config.steps * pairs / (sum(speed) / len(speed))
    factor = max(SHARE * (end - time.monotonic()), 0) / cost
    updates = {name: max(1, int(getattr(recipe, name).steps * factor)) for name in stages}
    return replace(recipe, **{name: replace(getattr(recipe, name), steps=steps) for name, steps in updates.items()})


def unpacked(carry: Path, target: Path) -> Path:
    parts = sorted(carry.glob("shards.tar.xz.*"))
    if not parts:
        sys.exit(f"{carry} has no shards.tar.xz.00: see the commands at the top of {Path(__file__).name}")
    whole = joined(parts, target.with_suffix(".tar.xz"))
    with tarfile.open(whole, "r:xz") as archive:
        archive.extractall(target, filter="data")
    whole.unlink()
    return target


def joined(parts: list[Path], target: Path) -> Path:
    with target.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    return target


def changed_weights(checkpoint: Path, start: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that are not those of the one it began with."""
    before, after = (load_file(folder / WEIGHTS) for folder in (start, checkpoint))
    return {name: tensor for name, tensor in after.items() if not torch.equal(tensor.float(), before[name].float())}


def send(work: Path, out: Path, first: int) -> None:
    """Parts first, first + 1, ... of the changed weights, as many as one command brings back, and the log."""
    out.mkdir(parents=True, exist_ok=True)
    content = (work / CHANGED).read_bytes()
    total = -(-len(content) // PART_BYTES)
    last = min(total, first + PARTS)
    for number in range(first, last):
        (out / f"{CHANGED}.{number:02}").write_bytes(content[number * PART_BYTES : (number + 1) * PART_BYTES])
    shutil.copyfile(work / "run" / "log.jsonl", out / "log.jsonl")
    print(f"parts {first} to {last - 1} of {total} are in {out}", flush=True)
    if last < total:
        print(f"then: python benchmarks/gpu_model.py send OUT --first {last}", flush=True)


def join(parts: Path, model: str, checkpoint: Path) -> None:
    """The bundled model's checkpoint with the changed weights in their places, in float32."""
    write_checkpoint(open_bundle(model), checkpoint)
    whole = joined(sorted(parts.glob(f"{CHANGED}.*")), checkpoint / CHANGED)
    weights, changed = load_file(checkpoint / WEIGHTS), load_file(whole)
    whole.unlink()
    weights |= {name: tensor.float() for name, tensor in changed.items()}
    save_file(weights, checkpoint / WEIGHTS, {"format": "pt"})
    print(f"{checkpoint}: {len(changed)} tensors of {len(weights)} are new")


if __name__ == "__main__":
    main()
