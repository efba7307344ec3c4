"""Train a recipe on a machine that takes commands of ten minutes, 64 MiB in and 64 MiB out with each: one step a command.

    python benchmarks/gpu_mini.py receive shards                      # .carry/shards -> runs/gpu/shards, while pieces arrive
    python benchmarks/gpu_mini.py train train/recipes/mini.py         # eight minutes: starts the run, or resumes it
    python benchmarks/gpu_mini.py evaluate --out "$OUT"               # the checkpoint on runs/gpu/tests/*.tsv
    python benchmarks/gpu_mini.py send checkpoint --out "$OUT"        # its pieces, as many as fit; then the next: --first 4

Every step is a fresh process. What has to outlive a command lies in runs/gpu, which git ignores; what has to outlive the
machine goes out with `send`. GPU_TODO.md, entry 6, has the whole sequence, for both machines.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / part) for part in ("", "train", "export")]

from mexma_train.cli import main as mexma_train  # noqa: E402
from mexma_train.pieces import MANIFEST, pack  # noqa: E402

# What comes back with a command: 8 files (pieces.json, log.jsonl, evaluation.json, 5 pieces) of 16 MiB, 64 MiB together.
PIECES, PIECE_MEGABYTES, OUT_BYTES = 5, 15, 66_000_000


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=REPOSITORY / "runs" / "gpu", help="what outlives a command")
    parser.add_argument("--carry", type=Path, default=REPOSITORY / ".carry", help="where pieces arrive")
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("receive", help="unpack what has arrived; exit status 1 while pieces are missing")
    step.add_argument("what", choices=("shards", "tests", "run"))
    step = steps.add_parser("train", help="start the run, or resume it; further flags go to mexma-train")
    step.add_argument("recipe", type=Path)
    step.add_argument("--minutes", type=float, default=8.0)
    step.add_argument("--device", default="cuda")
    step = steps.add_parser("evaluate", help="mexma-train eval on every test set")
    step.add_argument("--out", type=Path, required=True)
    step.add_argument("--device", default="cuda")
    step = steps.add_parser("send", help="pieces of a checkpoint, or of the newest state with the log, which resumes the run")
    step.add_argument("what", choices=("checkpoint", "ranking", "warmup", "state"))
    step.add_argument("--out", type=Path, required=True)
    step.add_argument("--first", type=int, default=0, help="number of the first piece to send; 0 packs anew")
    options, flags = parser.parse_known_args(words)
    if flags and options.step != "train":
        parser.error(f"{options.step} takes no {' '.join(flags)}")

    root, run = options.root, options.root / "run"
    if options.step == "receive":
        call("unpack", options.carry / options.what, root / options.what)
    elif options.step == "train":
        how = ("--device", options.device, "--minutes", options.minutes, "--run.save-minutes", 3, *flags)
        if list(run.glob("state-*.safetensors")):
            call("resume", run, "--shards", root / "shards", *how)
        else:
            call("run", options.recipe, root / "shards", run, *how)
    elif options.step == "evaluate":
        with contextlib.redirect_stdout(io.StringIO()) as results:
            call("eval", run / "checkpoint", *sorted((root / "tests").glob("*.tsv")), "--device", options.device)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "evaluation.json").write_text(results.getvalue(), encoding="utf-8")
        print(results.getvalue())
    else:
        send(options.what, options.first, root, options.out)


def call(*words: object) -> None:
    """A command of mexma-train, in this process; ends it with the command's exit status if that is not 0."""
    mexma_train([str(word) for word in words], standalone_mode=False)


def send(what: str, first: int, root: Path, out: Path) -> None:
    """Pieces `first`, `first` + 1, ... of a checkpoint or the state into `out`, as many as come back with one command."""
    pieces = root / f"{what}-pieces"
    if first == 0:
        shutil.rmtree(pieces, ignore_errors=True)
        pack(newest_state(root) if what == "state" else root / "run" / what, pieces, megabytes=PIECE_MEGABYTES)
    names = sorted(path.name for path in pieces.glob("piece-*.bin"))
    out.mkdir(parents=True, exist_ok=True)
    for extra in (pieces / MANIFEST, root / "run" / "log.jsonl"):
        shutil.copyfile(extra, out / extra.name)
    room = OUT_BYTES - sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    last = first
    while last < min(len(names), first + PIECES) and (size := (pieces / names[last]).stat().st_size) <= room:
        shutil.copyfile(pieces / names[last], out / names[last])
        last, room = last + 1, room - size
    print(f"{what}: pieces {first} to {last - 1} of {len(names)} sent")
    if last < len(names):
        print(f"then: python benchmarks/gpu_mini.py send {what} --first {last} --out OUT")


def newest_state(root: Path) -> Path:
    """A folder with the newest state and the log: unpacked as runs/gpu/run it is a run that `train` resumes."""
    from mexma_train.state import states

    folder, found = root / "state", states(root / "run")
    if not found:
        sys.exit(f"{root / 'run'} holds no state yet")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.link(found[-1], folder / found[-1].name)
    shutil.copyfile(root / "run" / "log.jsonl", folder / "log.jsonl")
    return folder


if __name__ == "__main__":
    main()
