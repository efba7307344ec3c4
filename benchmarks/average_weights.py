"""A checkpoint whose weights lie between those of two checkpoints of one run: (1 - share) * FIRST + share * SECOND.

    python benchmarks/average_weights.py runs/mini/warmup runs/mini/checkpoint runs/mini/average --share 0.3

Weights of a model before and after fine-tuning often lie in one basin, and a point between them keeps what the first knew and
most of what the second learnt (WiSE-FT, arXiv 2109.01903). Other files are copies of SECOND's.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--share", type=float, required=True, help="of SECOND, 0 to 1")
    args = parser.parse_args()
    first, second = (load_file(folder / "model.safetensors") for folder in (args.first, args.second))
    if {n: t.shape for n, t in first.items()} != {n: t.shape for n, t in second.items()}:
        raise SystemExit(f"{args.first} and {args.second} are of different shapes: average two checkpoints of one run.")
    shutil.copytree(args.second, args.out)
    mean = {name: (1 - args.share) * first[name] + args.share * second[name] for name in first}
    save_file(mean, args.out / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
