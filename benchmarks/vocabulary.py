"""What a smaller vocabulary costs before any training: FLORES and Tatoeba at several sizes of the table, every language.

    python benchmarks/vocabulary.py ENCODER OUT.jsonl --flores DIR --tatoeba DIR --corpora DIR [--sizes 64000] [--lines 150]

ENCODER is a Hugging Face folder (train/e5_small_start.py); its vectors are the means of the token states, as its authors take
them. CORPORA holds one text file a language, which say with the tokenizer's own scores what is kept (mexma_export/trim.py). The
first --lines of each test file are measured. A text that loses no piece keeps its vector bit for bit, so only the others are
embedded again. OUT gets a line a size: means over the languages, and those of each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tokenizers import Tokenizer

from mexma_export.trim import Trim, lost_pieces, trim_vocabulary
from mexma_rt.backends.packed_attention import make_layout
from mexma_rt.backends.packed_encoder import Encoder, position_numbers
from mexma_rt.evaluation.measures import retrieval_accuracy, xsim
from mexma_train.data.tokenizer import load_tokenizer
from mexma_train.encoder import load_encoder

TOKENS, BATCH = 128, 4_096  # of a text at most; of a batch


@click.command()
@click.argument("encoder", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--flores", type=click.Path(path_type=Path), required=True)
@click.option("--tatoeba", type=click.Path(path_type=Path), required=True)
@click.option("--corpora", type=click.Path(path_type=Path), required=True)
@click.option("--sizes", type=int, multiple=True, default=(64_000, 120_000))
@click.option("--lines", type=int, default=150)
def main(encoder: Path, out: Path, flores: Path, tatoeba: Path, corpora: Path, sizes: tuple[int, ...], lines: int) -> None:
    """Measure ENCODER with all of its pieces and at each size."""
    model, tokenizer = load_encoder(encoder, dropout=0.0).eval(), load_tokenizer(encoder / "tokenizer.json")
    sides = read_sides(flores, tatoeba, lines)
    texts = sorted({text for pair in sides.values() for side in pair for text in side})
    place = {text: row for row, text in enumerate(texts)}
    full = embed(model, tokenizer, texts, None)
    for size in (None, *sizes):
        vectors, lost = full, []
        if size is not None:
            trim = trim_vocabulary(tokenizer, sorted(corpora.glob("*.txt")), pieces=size)
            lost = np.flatnonzero(lost_pieces(tokenizer, trim, texts)).tolist()
            vectors = full.copy()
            vectors[lost] = embed(model, trim.tokenizer, [texts[row] for row in lost], trim)
        with out.open("a", encoding="utf-8") as file:
            row = {"pieces": size or tokenizer.get_vocab_size(), "texts": len(texts), "texts_that_lost_pieces": len(lost)}
            file.write(json.dumps(row | measure(sides, vectors, place)) + "\n")


def read_sides(flores: Path, tatoeba: Path, lines: int) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
    """(texts, English) of each (set, language): the first `lines`."""
    english = read_lines(flores / "eng.txt")[:lines]
    sides = {}
    for path in sorted(flores.glob("*.txt")):
        if path.stem != "eng":
            sides["flores", path.stem] = (read_lines(path)[:lines], english)
    for path in sorted(tatoeba.glob("*.tsv")):
        rows = [line.split("\t") for line in read_lines(path)[:lines]]
        sides["tatoeba", path.stem] = ([row[1] for row in rows], [row[0] for row in rows])
    return sides


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


@torch.inference_mode()
def embed(model: Encoder, tokenizer: Tokenizer, texts: list[str], trim: Trim | None) -> np.ndarray:
    """Mean-pooled vectors float32 [n, D] of length 1; ids of a trimmed tokenizer are looked up where their rows were."""
    rows = [np.array(encoding.ids[: TOKENS - 1] + encoding.ids[-1:]) for encoding in tokenizer.encode_batch(texts)]
    rows = [row if trim is None else trim.kept[row] for row in rows]
    vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while by_length:
        count = max(1, BATCH // len(rows[by_length[-1]]))
        part, by_length = by_length[-count:], by_length[:-count]
        lengths = np.array([len(rows[i]) for i in part])
        ids = np.concatenate([rows[i] for i in part])
        positions = torch.from_numpy(position_numbers(ids, lengths))
        with torch.autocast("cpu", torch.bfloat16):
            states = model(torch.from_numpy(ids), positions, make_layout(lengths, "equal")).float().numpy()
        means = np.add.reduceat(states, np.cumsum(lengths) - lengths, axis=0) / lengths[:, None]
        vectors[part] = means / np.linalg.norm(means, axis=1, keepdims=True)
    return vectors


def measure(sides: Any, vectors: np.ndarray, place: dict[str, int]) -> dict[str, Any]:
    """FLORES xsim error and Tatoeba accuracy (both directions) in %, each language and the means."""
    found: dict[str, dict[str, float]] = {"flores": {}, "tatoeba": {}}
    for (name, language), (texts, english) in sides.items():
        x, y = (vectors[[place[text] for text in side]] for side in (texts, english))
        if name == "flores":
            found[name][language] = xsim(x, y).error_rate
        else:
            found[name][language] = float(np.mean(retrieval_accuracy(x, y)))
    return {f"{name}_mean": float(np.mean(list(rows.values()))) for name, rows in found.items()} | found


if __name__ == "__main__":
    main()
