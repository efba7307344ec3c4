"""Texts of three lengths for the benchmark of embedding, from two public test sets.

    python benchmarks/embed_texts.py BUNDLE FLORES_DIR TATOEBA_DIR OUT [--prefix 'query: ']

FLORES_DIR has LANG.txt (FLORES-200 devtest, a sentence a line), TATOEBA_DIR LANG.tsv (English, tab, text). Languages take
turns, so that every file has many of them: OUT/short.txt (sentences of Tatoeba of 6 to 10 tokens by BUNDLE's tokenizer),
OUT/middle.txt (sentences of FLORES of 26 to 38), OUT/long.txt (neighbouring sentences of FLORES joined to 110 to 128) and
OUT/mixed.txt (a third of all three, shuffled). --prefix is put before every text, and counts.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from mexma_rt.bundle.manifest import TOKENIZER
from mexma_rt.bundle.opening import open_bundle
from mexma_rt.embedding.tokenizer import Tokenizer

LENGTHS = {"short": (6, 10), "middle": (26, 38), "long": (110, 128)}
COUNTS = {"short": 240, "middle": 96, "long": 32}


def in_turns(lists: list[list[str]]) -> Iterator[str]:
    """The first of every list, then the second of every list, and so on."""
    return (text for row in zip_longest(*lists) for text in row if text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("flores", type=Path)
    parser.add_argument("tatoeba", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prefix", default="")
    args = parser.parse_args()

    bundle = open_bundle(args.bundle)
    tokenizer = Tokenizer(bundle.folder / TOKENIZER, bundle.special_ids)
    flores = [path.read_text(encoding="utf-8").splitlines()[:40] for path in sorted(args.flores.glob("*.txt"))]
    tatoeba = [
        [line.split("\t")[1] for line in path.read_text(encoding="utf-8").splitlines()[:40]]
        for path in sorted(args.tatoeba.glob("*.tsv"))
    ]
    joined = [[" ".join(lines[i : i + n]) for n in (2, 3, 4) for i in range(0, 32, n)] for lines in flores]
    args.out.mkdir(parents=True, exist_ok=True)
    everything = []
    for name, lists in (("short", tatoeba), ("middle", flores), ("long", joined)):
        texts = [args.prefix + text for text in in_turns(lists)]
        low, high = LENGTHS[name]
        lengths = tokenizer.encode(texts, bundle.max_length_limit).full_lengths
        fit = [text for text, length in zip(texts, lengths, strict=True) if low <= length <= high][: COUNTS[name]]
        everything += fit
        (args.out / f"{name}.txt").write_text("\n".join(fit) + "\n", encoding="utf-8")
    random.Random(1).shuffle(everything)
    (args.out / "mixed.txt").write_text("\n".join(everything[::3]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
