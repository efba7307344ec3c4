"""F1 of `mexma_rt.mine` against truth, with lines that have no partner: thresholds swept, language by language.

    python benchmarks/mining_f1.py FLORES_DIR TATOEBA_DIR -o benchmarks/results/mining_f1.md

FLORES_DIR has LANG.txt (and eng.txt), line-aligned; TATOEBA_DIR has LANG.tsv, "english<TAB>text". Of n pairs, each side loses
the partners of so many lines that 30 % of what is left has none; both sides are shuffled. A found pair is right if its two
texts stand together in the file. The picture has the suffix .png beside the page.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mexma_rt as mexma
from mexma_rt.mining import DEFAULT_THRESHOLD

LANGUAGES = ("deu", "fra", "fin", "rus", "tur", "heb", "hin", "jpn", "kor", "swh", "khm")
NOISE = 0.3  # of the lines of each side have no partner
SWEEPS = {
    "ratio": np.round(np.arange(0.90, 1.5001, 0.01), 2),
    "distance": np.round(np.arange(-0.10, 0.3001, 0.005), 3),
    "absolute": np.round(np.arange(0.20, 0.9001, 0.01), 2),
}
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Precision, recall and F1, in percent, at each threshold of a sweep."""

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def at(self, threshold: float) -> tuple[float, float, float]:
        place = int(np.abs(self.thresholds - threshold).argmin())
        return self.precision[place], self.recall[place], self.f1[place]

    @property
    def best(self) -> tuple[float, float]:
        """(threshold, F1), the lowest threshold of equals."""
        place = int(self.f1.argmax())
        return float(self.thresholds[place]), float(self.f1[place])


def curve(pairs: Sequence[tuple[str, str]], encoder: mexma.Encoder, margins: Sequence[str]) -> dict[str, Curve]:
    """Mine the shuffled sides of a file of pairs (text, english), without a threshold, and count for each one afterwards.

    One-to-one matching goes through pairs by falling score, so those above a threshold are those that `mine` gives with it.
    """
    rng, n = random.Random(SEED), len(pairs)
    alone = round(n * NOISE / (1 + NOISE))  # alone / (n - alone) = NOISE
    rows = rng.sample(range(n), n)
    source, target = rows[alone:], rows[: n - alone]
    truth = {pairs[i] for i in rows[alone : n - alone]}
    rng.shuffle(source)
    rng.shuffle(target)
    src, tgt = [pairs[i][0] for i in source], [pairs[i][1] for i in target]
    x, y = encoder.embed_report(src).vectors, encoder.embed_report(tgt).vectors
    curves = {}
    for margin in margins:
        found = mexma.mine(src, tgt, source_vectors=x, target_vectors=y, margin=margin, threshold=-np.inf, progress=False)
        right = np.array([(pair.source, pair.target) in truth for pair in found], bool)
        scores = np.array([pair.score for pair in found])
        kept = scores >= SWEEPS[margin][:, None]
        hits, given = (right & kept).sum(axis=1), kept.sum(axis=1)
        precision, recall = 100 * hits / np.maximum(1, given), 100 * hits / len(truth)
        f1 = 2 * precision * recall / np.maximum(1e-9, precision + recall)
        curves[margin] = Curve(thresholds=SWEEPS[margin], precision=precision, recall=recall, f1=f1)
    return curves


def flores(folder: Path, language: str) -> list[tuple[str, str]]:
    text, english = ((folder / f"{name}.txt").read_text(encoding="utf-8").splitlines() for name in (language, "eng"))
    return list(dict.fromkeys(zip(text, english, strict=True)))


def tatoeba(folder: Path, language: str) -> list[tuple[str, str]]:
    rows = (line.split("\t") for line in (folder / f"{language}.tsv").read_text(encoding="utf-8").splitlines())
    return list(dict.fromkeys((text, english) for english, text, *_ in rows))


def page(results: dict[str, dict[str, dict[str, Curve]]], sizes: dict[str, dict[str, int]], model: str, command: str) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    date = datetime.datetime.now(datetime.timezone.utc).date()
    lines = [
        "# Mining: F1 against truth, 30 % of the lines without a partner",
        "",
        f"{date}, commit {commit}, {platform.machine()}, model {model}; made by `{command}`.",
        "",
        "`mexma_rt.mine`, k=4, one-to-one; of the lines of each side 30 % have no partner on the other, shuffled. P, R",
        f"and F1 in percent at the default threshold of the ratio margin, {DEFAULT_THRESHOLD['ratio']}. The best threshold is",
        "chosen on these very lines: its F1 is what a threshold made for the file could give at most; the other margins too.",
        "",
        "![F1 by threshold](mining_f1.png)",
    ]
    for name, languages in results.items():
        lines += [
            "",
            f"## {name}",
            "",
            "| language | pairs in the file | P | R | F1 | best F1, ratio | at | best F1, distance | best F1, absolute |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        table = []
        for language, curves in languages.items():
            at, (threshold, best) = curves["ratio"].at(DEFAULT_THRESHOLD["ratio"]), curves["ratio"].best
            table.append((*at, best, threshold, curves["distance"].best[1], curves["absolute"].best[1]))
            p, r, f1, best, threshold, distance, absolute = table[-1]
            lines.append(
                f"| {language} | {sizes[name][language]} | {p:.1f} | {r:.1f} | **{f1:.1f}** | {best:.1f} | {threshold:.2f} | "
                f"{distance:.1f} | {absolute:.1f} |"
            )
        p, r, f1, best, threshold, distance, absolute = np.mean(table, axis=0)
        lines.append(
            f"| mean | | {p:.1f} | {r:.1f} | **{f1:.1f}** | {best:.1f} | {threshold:.2f} | {distance:.1f} | {absolute:.1f} |"
        )
        mean = np.mean([curves["ratio"].f1 for curves in languages.values()], axis=0)
        place = int(mean.argmax())
        lines += [
            "",
            f"One threshold for all: mean F1 is highest at {SWEEPS['ratio'][place]:.2f}, with {mean[place]:.1f} %.",
        ]
    return "\n".join(lines) + "\n"


def picture(results: dict[str, dict[str, dict[str, Curve]]], target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    styles = [
        (colour, dash) for dash in ("-", "--") for colour in ("#1a1a40", "#e07b39", "#6fb1a0", "#8064a2", "#b03a48", "#7f7f3f")
    ]
    for place, (name, languages) in enumerate(results.items(), start=1):
        axes = figure.add_subplot(1, len(results), place)
        for (language, curves), (colour, dash) in zip(languages.items(), styles, strict=False):
            ratio = curves["ratio"]
            axes.plot(ratio.thresholds, ratio.f1, color=colour, linestyle=dash, linewidth=1.4, label=language)
        mean = np.mean([curves["ratio"].f1 for curves in languages.values()], axis=0)
        axes.plot(SWEEPS["ratio"], mean, color="black", linewidth=2.8, label="mean")
        axes.axvline(DEFAULT_THRESHOLD["ratio"], color="0.5", linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set(xlabel="threshold of the ratio margin (dashed: the default)", ylabel="F1, %", ylim=(0, 100), xlim=(0.9, 1.5))
        axes.set_title(name, loc="left", fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(target, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flores", type=Path)
    parser.add_argument("tatoeba", type=Path)
    parser.add_argument("--model", default="mexma-small")
    parser.add_argument("--languages", default=",".join(LANGUAGES))
    parser.add_argument("--pairs", type=int, help="Take the first so many pairs of a file only.")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    encoder = mexma.load(args.model)
    results: dict[str, dict[str, dict[str, Curve]]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for name, read, folder in (("FLORES-200 devtest", flores, args.flores), ("Tatoeba", tatoeba, args.tatoeba)):
        for language in args.languages.split(","):
            pairs = read(folder, language)[: args.pairs]
            sizes.setdefault(name, {})[language] = len(pairs)
            results.setdefault(name, {})[language] = curve(pairs, encoder, list(SWEEPS))
            best = results[name][language]["ratio"].best
            print(f"{name} {language}: {len(pairs)} pairs, best F1 {best[1]:.1f} at {best[0]}", flush=True)
    command = f"python benchmarks/mining_f1.py FLORES_DIR TATOEBA_DIR -o {args.output}"
    args.output.write_text(page(results, sizes, encoder.bundle.name, command), encoding="utf-8")
    picture(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
