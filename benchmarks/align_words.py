"""Word alignment: equality with simalign's matching, agreement with a statistical aligner, and a check on joined sentences.

    pip install --no-deps simalign eflomal      # peers; simalign's own models need a hub, so its matching gets our matrices
    python benchmarks/align_words.py FLORES_FOLDER PAIRS.tsv LINKS_FOLDER -o benchmarks/results/align_words.md

There is no hand-made gold here. eflomal (trained on 100,000 pairs of PAIRS.tsv, rows `lang source english text`, and on FLORES
itself) stands in: the links of both of its directions are "sure", those of either "possible", and the error rate is that of Och
and Ney. It makes errors of its own, so only differences between arms mean something. Its links are kept in LINKS_FOLDER.
Joined sentences: two pairs are joined in opposite order; a link is right if it stays within its pair.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import random
import subprocess
import time
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

import mexma_rt as mexma
from mexma_rt.align.links import METHODS, find_links
from mexma_rt.align.words import UNITS

SEEN = 150  # sentences on which the constants of "ot" were chosen; they are left out
PEER = {"inter": "inter", "itermax": "itermax", "match": "mwmf"}


def tokens(text: str) -> list[str]:
    """Letters, digits and their marks together, punctuation alone."""
    kinds = [(char, unicodedata.category(char)[0]) for char in text]
    groups = itertools.groupby(kinds, lambda pair: pair[1] if pair[1] in "PSZC" else "L")
    words: list[str] = []
    for kind, group in groups:
        chars = "".join(char for char, _ in group)
        words += list(chars) if kind in "PS" else [chars] if kind == "L" else []
    return words


def eflomal_links(language: str, flores: Path, pairs: Path, folder: Path) -> list[list[set[tuple[int, int]]]]:
    """The links (word of the language, English word) of each FLORES sentence, in both directions."""
    paths = [folder / f"{language}.{direction}" for direction in ("fwd", "rev")]
    if not all(path.exists() for path in paths):
        import eflomal

        rows = [line.split("\t") for line in pairs.open(encoding="utf-8") if line.startswith(f"{language}\t")]
        chosen = [(row[3].rstrip("\n"), row[2]) for row in rows if row[1] not in ("ui", "bible", "scratch", "udhr")]
        random.Random(0).shuffle(chosen)
        sides = list(zip(*zip(*read(flores, language), strict=True), strict=True)) + chosen[:100_000]
        both = [[" ".join(tokens(text)).lower() + "\n" for text in side] for side in zip(*sides, strict=True)]
        folder.mkdir(parents=True, exist_ok=True)
        eflomal.Aligner().align(*both, links_filename_fwd=str(paths[0]), links_filename_rev=str(paths[1]))
    count = len(read(flores, language)[0])
    return [
        [{tuple(map(int, link.split("-"))) for link in line.split()} for line in itertools.islice(path.open(), count)]  # type: ignore[misc]
        for path in paths
    ]


def read(flores: Path, language: str) -> tuple[list[str], list[str]]:
    return tuple((flores / f"{name}.txt").read_text(encoding="utf-8").splitlines() for name in (language, "eng"))  # type: ignore[return-value]


def agreement(found: list, forward: list, backward: list) -> tuple[float, float, float]:
    """Precision against possible links, recall of sure ones, alignment error rate; percent."""
    links = sure = hits = possible = 0
    for result, one, two in zip(found, forward, backward, strict=True):
        links, sure = links + len(result), sure + len(one & two)
        hits, possible = hits + len(result & one & two), possible + len(result & (one | two))
    return 100 * possible / links, 100 * hits / sure, 100 * (1 - (hits + possible) / (links + sure))


def simalign_equality(matrices: int) -> list[str]:
    from simalign import SentenceAligner

    rng = np.random.default_rng(0)
    everything = [rng.random(rng.integers(1, 40, 2)) for _ in range(matrices)]
    peers = {
        "inter": lambda table: np.multiply(*SentenceAligner.get_alignment_matrix(table)),
        "itermax": SentenceAligner.iter_max,
        "match": SentenceAligner.get_max_weight_match,
    }
    lines = ["| method | equal matrices | ours, ms a matrix | simalign, ms a matrix |", "|---|---|---|---|"]
    for method, peer in peers.items():
        tables = everything[: matrices // 10] if method == "match" else everything  # the peer's takes some 100 ms each
        ours = [find_links(table, method) for table in tables]  # warm
        equal = sum(np.array_equal(a, peer(table) > 0) for a, table in zip(ours, tables, strict=True))
        seconds = [np.inf, np.inf]
        for _ in range(3):
            for k, run in enumerate((lambda table, method=method: find_links(table, method), peer)):
                started = time.perf_counter()
                for table in tables:
                    run(table)
                seconds[k] = min(seconds[k], time.perf_counter() - started)
        ms = [f"{1000 * value / len(tables):.3f}" for value in seconds]
        lines.append(f"| {method} | {equal} of {len(tables)} | {ms[0]} | {ms[1]} |")
        print(lines[-1], flush=True)
    return lines


def statistical(args: argparse.Namespace, encoder: mexma.Encoder, languages: list[str]) -> list[str]:
    lines = [f"| method | unit | {' | '.join(languages)} | mean | precision | recall |", "|---" * (len(languages) + 5) + "|"]
    gold = {name: eflomal_links(name, args.flores, args.pairs, args.links) for name in languages}
    part = slice(SEEN, SEEN + args.sentences)
    for unit, method in itertools.product(UNITS, METHODS):
        rows = []
        for name in languages:
            sides = [[tokens(text) for text in side[part]] for side in read(args.flores, name)]
            results = mexma.align_words(*sides, method=method, unit=unit, encoder=encoder)
            rows.append(agreement([set(r.links) for r in results], *(side[part] for side in gold[name])))
        means = np.mean(rows, axis=0)
        cells = [*(f"{row[2]:.1f}" for row in rows), *(f"{means[k]:.1f}" for k in (2, 0, 1))]
        lines.append(f"| {method} | {unit} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    diagonal = []
    for name in languages:
        found = []
        for a, b in zip(*(side[part] for side in read(args.flores, name)), strict=True):
            n, m = len(tokens(a)), len(tokens(b))
            found.append({(i, round(i * (m - 1) / max(1, n - 1))) for i in range(n)})
        diagonal.append(agreement(found, *(side[part] for side in gold[name])))
    means = np.mean(diagonal, axis=0)
    cells = [*(f"{row[2]:.1f}" for row in diagonal), *(f"{means[k]:.1f}" for k in (2, 0, 1))]
    return [*lines, f"| the diagonal | | {' | '.join(cells)} |"]


class Layer:
    """The onnxruntime back end of an encoder, whose token states are those of another layer."""

    def __init__(self, encoder: mexma.Encoder, layer: int) -> None:
        import onnx
        import onnxruntime

        self.lanes = 1  # batches at a time
        graph = onnx.load(encoder.bundle.folder / encoder.bundle.graphs[encoder.backend.precision])
        norms = [node.output[0] for node in graph.graph.node if node.op_type.endswith("LayerNormalization")]
        self.output = norms[2 * layer]  # 0 is the embeddings'; each layer has two, the second at its end
        if self.output not in [output.name for output in graph.graph.output]:
            graph.graph.output.append(onnx.helper.make_tensor_value_info(self.output, onnx.TensorProto.FLOAT, None))
        self.session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        self.layers = len(norms) // 2  # without the last, where that is in branches of the graph

    def run_tokens(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self.session.run([self.output], {"input_ids": input_ids, "attention_mask": attention_mask})[0]


def layers(args: argparse.Namespace, encoder: mexma.Encoder, languages: list[str]) -> list[str]:
    import dataclasses

    lines = ["| layer | inter: error rate, precision, recall | itermax | ot |", "|---|---|---|---|"]
    part = slice(SEEN, SEEN + args.sentences)
    arms = {
        str(layer) if layer else "0 (embeddings)": dataclasses.replace(encoder, backend=Layer(encoder, layer))  # type: ignore[arg-type]
        for layer in range(Layer(encoder, 0).layers + 1)
    }
    for layer, at in {**arms, "the last: what the graph gives": encoder}.items():
        cells = []
        for method in ("inter", "itermax", "ot"):
            rows = []
            for name in languages:
                gold = eflomal_links(name, args.flores, args.pairs, args.links)
                sides = [[tokens(text) for text in side[part]] for side in read(args.flores, name)]
                results = mexma.align_words(*sides, method=method, encoder=at)
                rows.append(agreement([set(r.links) for r in results], *(side[part] for side in gold)))
            precision, recall, error = np.mean(rows, axis=0)
            cells.append(f"{error:.1f}, {precision:.1f}, {recall:.1f}")
        lines.append(f"| {layer} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def joined_pairs(args: argparse.Namespace, name: str) -> tuple[list[str], list[str], list[tuple[int, int]]]:
    """Two sentences in one, the translations in opposite order, and the number of words before each seam."""
    other, english = (side[SEEN : SEEN + args.sentences] for side in read(args.flores, name))
    starts = range(0, len(other) - 1, 2)
    src, tgt = [f"{other[k]} {other[k + 1]}" for k in starts], [f"{english[k + 1]} {english[k]}" for k in starts]
    return src, tgt, [(len(mexma_words(other[k])), len(mexma_words(english[k + 1]))) for k in starts]


def within(links: list, limits: list[tuple[int, int]]) -> list[bool]:
    return [(i < a) == (j >= b) for found, (a, b) in zip(links, limits, strict=True) for i, j in found]


def joined(args: argparse.Namespace, encoder: mexma.Encoder, languages: list[str]) -> list[str]:
    """Links that stay within their pair, in percent; chance is about 50."""
    lines = [f"| method | {' | '.join(languages)} | links a pair |", "|---" * (len(languages) + 2) + "|"]
    for method in METHODS:
        cells, links, pairs = [], 0, 0
        for name in languages:
            src, tgt, limits = joined_pairs(args, name)
            results = mexma.align_words(src, tgt, method=method, encoder=encoder)
            inside = within([r.links for r in results], limits)
            links, pairs = links + len(inside), pairs + len(results)
            cells.append(f"{100 * np.mean(inside):.1f}")
        lines.append(f"| {method} | {' | '.join(cells)} | {links / pairs:.1f} |")
        print(lines[-1], flush=True)
    return lines


def beside_simalign(args: argparse.Namespace, encoder: mexma.Encoder) -> list[str]:
    """The whole of simalign on the checkpoint of the bundle (--checkpoint), beside ours: the last layer of the same weights."""
    from simalign import SentenceAligner

    lines = ["| method | unit | F1 of both's links | within their pair, ours | simalign | pairs a second, ours | simalign |"]
    lines += ["|---" * 7 + "|"]
    last = json.loads((args.checkpoint / "config.json").read_text())["num_hidden_layers"]
    pairs = [joined_pairs(args, name) for name in ("deu", "hin", "tur", "ces")]
    src, tgt, limits = (list(itertools.chain(*part)) for part in zip(*pairs, strict=True))
    for unit, (method, letter) in itertools.product(UNITS, {"inter": "a", "itermax": "i", "match": "m"}.items()):
        token_type = {"piece": "bpe", "word": "word"}[unit]
        peer = SentenceAligner(str(args.checkpoint), token_type=token_type, matching_methods=letter, layer=last)
        count = len(src) if method != "match" else 16  # the peer's takes a second each
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(2):
            started = time.perf_counter()
            ours = mexma.align_words(src[:count], tgt[:count], method=method, unit=unit, encoder=encoder)
            seconds[0].append(time.perf_counter() - started)
            started = time.perf_counter()
            theirs = [peer.get_word_aligns(a, b)[PEER[method]] for a, b in zip(src[:count], tgt[:count], strict=True)]
            seconds[1].append(time.perf_counter() - started)
        both = sum(len(set(r.links) & set(found)) for r, found in zip(ours, theirs, strict=True))
        f1 = 2 * both / (sum(len(r.links) for r in ours) + sum(map(len, theirs)))
        shares = [100 * np.mean(within(found, limits[:count])) for found in ([r.links for r in ours], theirs)]
        rates = [count / min(one) for one in seconds]
        lines.append(f"| {method} | {unit} | {f1:.3f} | {shares[0]:.1f} | {shares[1]:.1f} | {rates[0]:.0f} | {rates[1]:.1f} |")
        print(lines[-1], flush=True)
    return lines


def mexma_words(text: str) -> list:
    from mexma_rt.align.wordsplit import split_words

    return split_words(text)


def speed(args: argparse.Namespace, encoder: mexma.Encoder) -> list[str]:
    other, english = (side[: args.sentences] for side in read(args.flores, "deu"))
    runs: dict[str, Callable[[], object]] = {"embed_tokens alone": lambda: encoder.embed_tokens([*other, *english])}
    for method in METHODS:
        runs[f"align_words, {method}"] = partial(mexma.align_words, other, english, method=method, encoder=encoder)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(3):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    base = seconds["embed_tokens alone"]
    lines = ["| what | pairs a second (median) | time, as a multiple of embedding |", "|---|---|---|"]
    for name, values in seconds.items():
        ratio = np.median([value / first for value, first in zip(values, base, strict=True)])
        lines.append(f"| {name} | {len(other) / np.median(values):.0f} | {ratio:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flores", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("links", type=Path)
    parser.add_argument("--languages", default="deu,tur,ces,hin")
    parser.add_argument("--joined", default="deu,hin,jpn,tha")
    parser.add_argument("--checkpoint", type=Path, help="what the bundle was exported from, for the part simalign")
    parser.add_argument("--sentences", type=int, default=150)
    parser.add_argument("--matrices", type=int, default=1000)
    parser.add_argument("--model", default="mexma-small")
    parser.add_argument("--parts", help="matching, error, layers, joined, simalign, time; all if left out")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    encoder, languages = mexma.load(args.model, max_length=512), args.languages.split(",")
    parts = {
        "matching": (
            "Matching on random matrices of 1 to 39 rows and columns, beside simalign 0.4",
            partial(simalign_equality, args.matrices),
        ),
        "error": (
            "Alignment error rate against eflomal, percent (lower is better)",
            partial(statistical, args, encoder, languages),
        ),
        "layers": ("Which layer (unit word, mean of the languages)", partial(layers, args, encoder, languages)),
        "joined": (
            "Links within their pair in joined sentences, percent (unit word)",
            partial(joined, args, encoder, args.joined.split(",")),
        ),
        "simalign": (
            "Beside simalign 0.4 on the same weights, joined sentences of German, Hindi, Turkish and Czech",
            partial(beside_simalign, args, encoder),
        ),
        "time": ("Time", partial(speed, args, encoder)),
    }
    if args.checkpoint is None:
        del parts["simalign"]
    chosen = list(parts) if args.parts is None else args.parts.split(",")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    text = f"""# Word alignment with `{encoder.bundle.name}`

{datetime.date.today()}, commit {commit}, {platform.machine()}, {len(os.sched_getaffinity(0))} CPU threads, shared with other
work; made by `python benchmarks/align_words.py`, whose docstring says what stands for gold and what that proves.
{args.sentences} sentences of FLORES-200 devtest with English, after the first {SEEN}, on which the constants of "ot" were
chosen (German, Turkish, Czech).
"""
    for name in chosen:
        title, measure = parts[name]
        text += f"\n## {title}\n\n" + "\n".join(measure()) + "\n"
    args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
