"""Where the thresholds of `mine` come from: F1 of the bundled model on training sentences that were held out.

    python benchmarks/thresholds.py SHARDS -o benchmarks/results/thresholds.md [--large 100000]

SHARDS as prepared for train/recipes/small.py, whose share of English segments (--sampling.dev-share) no update has drawn.
Small corpora: up to 700 held-out pairs of a language among 1,000 lines a side. The large one: the held-out pairs of all
languages together. The other lines have no partner: they are of the training corpus, but their partners are not on the other
side. A text may have a translation that is not its partner here, so precision is a lower bound.
One-to-one matching goes through pairs by falling score: those above a threshold are what `mine` gives with it.
"""

from __future__ import annotations

import argparse
import datetime
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from model_dev import NATURAL
from tokenizers import Tokenizer

import mexma_rt as mexma
from mexma_rt.mining import DEFAULT_THRESHOLD, f1_curves
from mexma_train.config import load_recipe
from mexma_train.data.dev_split import held_out_segments
from mexma_train.data.shards import Ragged, Shards, open_shards
from mexma_train.data.tokenizer import load_tokenizer

RECIPE = Path(__file__).parents[1] / "train" / "recipes" / "small.py"
SIDE, PAIRS, LARGE = 1_000, 700, 100_000
MIN_PAIRS = 450  # held-out pairs of a language; with fewer the figure would be of its other lines
TOKENS = 64  # texts are cut there, so that the large corpus is embedded in minutes
SWEEPS = {
    "ratio": np.round(np.arange(0.90, 1.8001, 0.01), 2),
    "distance": np.round(np.arange(-0.10, 0.5001, 0.01), 2),
    "absolute": np.round(np.arange(0.20, 0.9501, 0.01), 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="mexma-small")
    parser.add_argument("--large", type=int, default=LARGE)
    options = parser.parse_args()
    shards, encoder = open_shards(options.shards), mexma.load(options.model, max_length=TOKENS)
    held = held_out_segments(shards, load_recipe(RECIPE).sampling.dev_share)
    tokenizer, rng = load_tokenizer(shards.tokenizer_path), np.random.default_rng(0)
    natural = np.isin(shards.pair_source, [number for number, name in enumerate(shards.sources) if name in NATURAL])
    rows = []
    for number, language in enumerate(shards.languages):
        own = natural & (shards.pair_lang == number)
        pairs = distinct(shards, rng.permutation(np.flatnonzero(own & held[shards.pair_english])))[:PAIRS]
        if len(pairs) >= MIN_PAIRS:
            sides = with_others(shards, pairs, rng.permutation(np.flatnonzero(own & ~held[shards.pair_english])), SIDE)
            rows.append((language, SIDE, len(pairs), curves(shards, tokenizer, encoder, len(pairs), *sides)))
    pairs = distinct(shards, rng.permutation(np.flatnonzero(natural & held[shards.pair_english])))
    others = rng.permutation(np.flatnonzero(~held[shards.pair_english]))[: 4 * options.large]
    sides = with_others(shards, pairs, others, options.large)
    rows.append(("all", options.large, len(pairs), curves(shards, tokenizer, encoder, len(pairs), *sides)))
    text = page(rows, options.model)
    print(text)
    options.output.write_text(text, encoding="utf-8")


def distinct(shards: Shards, pairs: np.ndarray) -> np.ndarray:
    """The pairs less those whose English segment an earlier one has."""
    _, first = np.unique(shards.english_hash[shards.pair_english[pairs]], return_index=True)
    return pairs[np.sort(first)]


def with_others(shards: Shards, pairs: np.ndarray, others: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose texts are one side and pairs whose English is the other, `side` each: `pairs` on both, the rest on one."""
    others = distinct(shards, others)[: 2 * (side - len(pairs))]
    return np.concatenate([pairs, others[::2]]), np.concatenate([pairs, others[1::2]])


def curves(
    shards: Shards, tokenizer: Tokenizer, encoder: mexma.Encoder, pairs: int, texts: np.ndarray, english: np.ndarray
) -> dict[str, np.ndarray]:
    """Precision, recall and F1 in % [3, thresholds] of each margin: texts of these pairs against English of those, of which the
    first `pairs` are the same."""
    source, target = (decode(tokenizer, side) for side in (shards.text(texts, TOKENS), shards.english(english, TOKENS)))
    x, y = (encoder.embed_report(side).vectors for side in (source, target))
    return f1_curves(source, target, x, y, pairs, steps=SWEEPS)


def decode(tokenizer: Tokenizer, side: Ragged) -> list[str]:
    parts = np.split(side.ids, np.cumsum(side.lengths)[:-1])
    return tokenizer.decode_batch([part.tolist() for part in parts])


def page(rows: Sequence[tuple[str, int, int, dict[str, np.ndarray]]], model: str) -> str:
    lines = [
        "# Thresholds of `mine`, on training sentences that were held out",
        "",
        f"{datetime.datetime.now(datetime.timezone.utc).date()}, {platform.machine()}, model {model}; made by",
        "`python benchmarks/thresholds.py SHARDS`. k=4, one-to-one. P, R, F1 in % at today's default; best F1 and where.",
        "A text may have a translation here that is not its partner, so P is a lower bound.",
    ]
    for margin, sweep in SWEEPS.items():
        default = DEFAULT_THRESHOLD[margin]
        at = int(np.abs(sweep - default).argmin())
        lines += ["", f"## {margin}, default {default}", ""]
        lines += ["| language | lines a side | pairs | P | R | F1 | best F1 | at |", "|---|---|---|---|---|---|---|---|"]
        for language, side, pairs, found in rows:
            precision, recall, f1 = found[margin]
            best = int(f1.argmax())
            lines.append(
                f"| {language} | {side:,} | {pairs:,} | {precision[at]:.1f} | {recall[at]:.1f} | **{f1[at]:.1f}** | "
                f"{f1[best]:.1f} | {sweep[best]:.2f} |"
            )
        mean = np.mean([found[margin][2] for _, side, _, found in rows if side == SIDE] or [rows[-1][3][margin][2]], axis=0)
        best = int(mean.argmax())
        lines += [
            "",
            f"One threshold for all of {SIDE:,} lines: mean F1 is highest at {sweep[best]:.2f}, with {mean[best]:.1f} %.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
