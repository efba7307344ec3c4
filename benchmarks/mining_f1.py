"""Precision, recall and F1 of `mexma mine` at the default threshold on shuffled parallel files with noise.

    python benchmarks/mining_f1.py --tatoeba DIR --languages deu jpn tur [--model BUNDLE] -o benchmarks/results/mining_f1.md

Both sides of a Tatoeba test file are shuffled apart (seed 0). With --noise SHARE, that share of the lines of each side loses
its partner. A pair is right if its two texts stand together in the file (equal lines are interchangeable).
"""

from __future__ import annotations

import argparse
import datetime
import random
import subprocess
from pathlib import Path

import mexma_rt as mexma


def corpora(pairs: list[tuple[str, str]], noise: float) -> tuple[list[str], list[str], set[tuple[str, str]]]:
    """Shuffled source and target lines and the true (text, english) pairs; the first and last `noise` share are unpaired."""
    rng = random.Random(0)
    pairs = rng.sample(pairs, len(pairs))
    cut = int(noise * len(pairs) / 2)
    source, target = [text for _, text in pairs[cut:]], [english for english, _ in pairs[: len(pairs) - cut]]
    rng.shuffle(source)
    rng.shuffle(target)
    return source, target, {(text, english) for english, text in pairs[cut : len(pairs) - cut]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mexma-mini")
    parser.add_argument("--tatoeba", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", required=True)
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.3])
    parser.add_argument("--threshold", nargs="+", type=float, help="other thresholds to try (default: the default one)")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()

    encoder = mexma.load(args.model)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows = [
        f"# Mining with `{encoder.bundle.name}` ({encoder.backend.precision}): ratio margin, k = 4, one-to-one (`max`)",
        "",
        f"{datetime.date.today()}, commit {commit}; made by `python benchmarks/mining_f1.py`. Tatoeba test files, shuffled.",
        "",
        "| language | lines without partner | threshold | pairs | precision % | recall % | F1 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for lang in args.languages:
        text = (args.tatoeba / f"{lang}.tsv").read_text(encoding="utf-8").rstrip("\n")
        pairs = [tuple(line.split("\t")) for line in text.split("\n")]
        for noise in args.noise:
            source, target, truth = corpora(pairs, noise)  # type: ignore[arg-type]
            for threshold in args.threshold or [None]:
                found = mexma.mine(source, target, encoder=encoder, threshold=threshold)
                right = len({(pair.source, pair.target) for pair in found} & truth)
                precision, recall = right / max(1, len(found)), right / len(truth)
                f1 = 2 * precision * recall / max(1e-9, precision + recall)
                shown = "default" if threshold is None else f"{threshold:g}"
                figures = " | ".join(f"{100 * value:.1f}" for value in (precision, recall, f1))
                rows.append(f"| {lang} | {noise:.0%} | {shown} | {len(found)} | {figures} |")
    print("\n".join(rows[4:]))
    if args.output:
        args.output.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
