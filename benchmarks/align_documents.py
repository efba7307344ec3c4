"""Document alignment against gold made by a seeded script: precision, recall, time, beside length-based and greedy alignment.

    python benchmarks/align_documents.py FLORES_FOLDER -o benchmarks/results/align_documents.md

FLORES_FOLDER has LANG.txt with the same sentences in the order of the articles. Each document
is a language against English, both edited: of ten sentences about one is dropped on one side, 1.6 are joined to a neighbour on
one side and 1.6 are cut in two. A bead counts if it is right as a whole ("strict"); links are the sentence pairs that beads
imply. vecalign is not on PyPI; its deletion quantile is an arm of ours.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import random
import re
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import mexma_rt as mexma
from mexma_rt.align.wordsplit import join_words

Beads = list[tuple[tuple[int, ...], tuple[int, ...]]]
DROP, JOIN, CUT = 0.05, 0.08, 0.08  # of each side


def edited(pairs: list[tuple[str, str]], seed: int) -> tuple[list[str], list[str], Beads]:
    """Two documents and their gold beads."""
    rng = random.Random(seed)
    documents: tuple[list[str], list[str]] = ([], [])
    gold: Beads = []
    position = 0
    while position < len(pairs):
        sides = [[text] for text in pairs[position]]
        position += 1
        kind, side = rng.random(), rng.randrange(2)
        if kind < 2 * DROP:
            sides[side] = []
        elif kind < 2 * (DROP + JOIN) and position < len(pairs):
            sides = [[*lines, text] for lines, text in zip(sides, pairs[position], strict=True)]
            position += 1
            sides[side] = [join_words(sides[side])[0]]
        elif kind < 2 * (DROP + JOIN + CUT):
            sides[side] = in_two(sides[side][0])
        starts = [len(document) for document in documents]
        gold.append(tuple(tuple(range(s, s + len(lines))) for s, lines in zip(starts, sides, strict=True)))  # type: ignore[arg-type]
        for document, lines in zip(documents, sides, strict=True):
            document += lines
    return *documents, gold


def in_two(text: str) -> list[str]:
    """Cut at the punctuation nearest to the middle, or at a space, or between two characters."""
    for pattern in (r"[,;:،，、；：।。](?=.)", r"\s", r"."):
        ends = [match.end() for match in re.finditer(pattern, text) if 0.25 < match.end() / len(text) < 0.75]
        if ends:
            middle = min(ends, key=lambda end: abs(end - len(text) / 2))
            return [part for part in (text[:middle].strip(), text[middle:].strip()) if part]
    return [text]


def scores(found: Beads, gold: Beads) -> tuple[float, float, float, float]:
    """Strict precision, recall and F1 of beads with two sides, and F1 of links, all in percent."""
    right, all_found, all_gold = ({bead for bead in beads if all(bead)} for beads in (set(found) & set(gold), found, gold))
    links = [{(i, j) for a, b in beads for i in a for j in b} for beads in (all_found, all_gold)]
    f1 = 2 * len(right) / (len(all_found) + len(all_gold))
    link_f1 = 2 * len(links[0] & links[1]) / (len(links[0]) + len(links[1]))
    return tuple(100 * x for x in (len(right) / max(1, len(all_found)), len(right) / len(all_gold), f1, link_f1))  # type: ignore[return-value]


def gale_church(a: Sequence[str], b: Sequence[str]) -> Beads:
    """Gale and Church, "A program for aligning sentences in bilingual corpora" (CL 1993): lengths alone, quadratic."""
    priors = {(1, 1): 0.89, (1, 0): 0.00495, (0, 1): 0.00495, (2, 1): 0.0445, (1, 2): 0.0445, (2, 2): 0.011}
    x, y = (np.cumsum([0, *map(len, side)]).tolist() for side in (a, b))
    ratio, variance = y[-1] / x[-1], 6.8
    best: dict[tuple[int, int], tuple[float, tuple[int, int]]] = {(0, 0): (0.0, (0, 0))}
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            options = []
            for (p, q), prior in priors.items():
                if p <= i and q <= j and (i - p, j - q) in best:
                    one, two = x[i] - x[i - p], y[j] - y[j - q]
                    delta = (two - one * ratio) / math.sqrt(max(one, two / ratio) * variance)
                    tail = max(math.erfc(abs(delta) / math.sqrt(2)), 1e-300)
                    options.append((best[i - p, j - q][0] - math.log(prior) - math.log(tail), (p, q)))
            if options:
                best[i, j] = min(options)
    beads, i, j = [], len(a), len(b)
    while i or j:
        p, q = best[i, j][1]
        beads.append((tuple(range(i - p, i)), tuple(range(j - q, j))))
        i, j = i - p, j - q
    return beads[::-1]


class Cached:
    """An encoder that embeds each text once for all arms, and knows how many texts were asked for, and the seconds it took."""

    def __init__(self, encoder: mexma.Encoder) -> None:
        self.encoder, self.asked, self.seconds = encoder, 0, 0.0
        self.vectors: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str], *, progress: bool | None = None) -> np.ndarray:
        started = time.perf_counter()
        self.asked += len(set(texts))
        new = [text for text in dict.fromkeys(texts) if text not in self.vectors]
        self.vectors.update(zip(new, self.encoder.embed(new), strict=True))
        rows = np.stack([self.vectors[text] for text in texts])
        self.seconds += time.perf_counter() - started
        return rows


def ours(encoder: Cached, **settings: object) -> Callable[[list[str], list[str]], Beads]:
    return lambda a, b: [(x.source, x.target) for x in mexma.align_documents(a, b, encoder=encoder, **settings)]  # type: ignore[arg-type]


def greedy(encoder: Cached) -> Callable[[list[str], list[str]], Beads]:
    return lambda a, b: [((p.source_index,), (p.target_index,)) for p in mexma.mine(a, b, encoder=encoder)]


def quality(folder: Path, languages: list[str], sentences: int, encoder: Cached) -> list[str]:
    arms = {
        "align_documents (joined sentences embedded)": ours(encoder),
        'align_documents, segments="mean"': ours(encoder, segments="mean"),
        "align_documents, deletion=0.2 (vecalign's)": ours(encoder, deletion=0.2),
        "Gale-Church (lengths)": gale_church,
        "greedy 1-1 by margin (mexma mine)": greedy(encoder),
    }
    english = (folder / "eng.txt").read_text(encoding="utf-8").splitlines()[:sentences]
    table: dict[str, list[tuple[float, ...]]] = {arm: [] for arm in arms}
    for number, language in enumerate(languages):
        other = (folder / f"{language}.txt").read_text(encoding="utf-8").splitlines()[:sentences]
        a, b, gold = edited(list(zip(other, english, strict=True)), seed=number)
        for arm, align in arms.items():
            encoder.asked, encoder.seconds, started = 0, 0.0, time.perf_counter()
            found = align(a, b)
            seconds = time.perf_counter() - started - encoder.seconds
            table[arm].append((*scores(found, gold), encoder.asked, seconds))
            print(language, arm, [f"{x:.1f}" for x in table[arm][-1]], flush=True)
    header = f"| arm | {' | '.join(languages)} | mean F1 | precision | recall | link F1 | texts embedded | other seconds |"
    lines = [header, "|---" * (len(languages) + 7) + "|"]
    for arm, rows in table.items():
        means = np.mean(rows, axis=0)
        cells = [
            *(f"{row[2]:.1f}" for row in rows),
            *(f"{means[k]:.1f}" for k in (2, 0, 1, 3)),
            f"{means[4]:.0f}",
            f"{means[5]:.2f}",
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def growth(sizes: list[int]) -> list[str]:
    """CPU time with ready vectors, and the peak of this process's memory so far."""
    lines = [
        "| sentences | CPU seconds | microseconds a sentence | right of the pairs, % | peak memory, MB |",
        "|---" * 5 + "|",
    ]
    for size in sizes:
        rng = np.random.default_rng(size)
        common, kept, sides = rng.normal(size=(size, 256)).astype(np.float32), rng.random((2, size)) >= DROP, []
        for keep in kept:
            sides.append((common + 0.7 * rng.normal(size=common.shape).astype(np.float32))[keep])
        started = time.process_time()
        beads = mexma.align_documents(source_vectors=sides[0], target_vectors=sides[1])
        seconds = time.process_time() - started
        places = np.cumsum(kept, axis=1) - 1
        truth = set(zip(*places[:, kept.all(axis=0)].tolist(), strict=True))
        right = len({(*b.source, *b.target) for b in beads if len(b.source) == len(b.target) == 1} & truth)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        shape = f"{len(sides[0]):,} x {len(sides[1]):,}"
        lines.append(f"| {shape} | {seconds:.2f} | {1e6 * seconds / size:.0f} | {100 * right / len(truth):.1f} | {peak:.0f} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flores", type=Path)
    parser.add_argument("--languages", default="deu,rus,hin,jpn")
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--sizes", default="1000,2000,4000,10000")
    parser.add_argument("--model", default="mexma-small")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    encoder = mexma.load(args.model, max_length=512)  # joined sentences are long
    table = quality(args.flores, args.languages.split(","), args.sentences, Cached(encoder))
    sizes = growth([int(size) for size in args.sizes.split(",")])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    text = f"""# Document alignment with `{encoder.bundle.name}`

{datetime.date.today()}, commit {commit}, {platform.machine()}, {len(os.sched_getaffinity(0))} CPU threads, shared with other
work; made by `python benchmarks/align_documents.py`. The first {args.sentences} sentences of FLORES-200 devtest against
English, edited on both sides (its docstring). Languages: F1 of whole beads, in percent. The deletion price was chosen on other
documents (WMT news in German, Finnish and Chinese, shuffled, with the same edits). Texts embedded: distinct ones of a document
pair, both sides; other seconds: all but embedding, on a busy machine. max_length 512.

{chr(10).join(table)}

## Growth

Made vectors of 256 dimensions (a common part and noise; one in twenty dropped on each side), max_size 4, larger beads by means.

{chr(10).join(sizes)}
"""
    args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
