"""A student of half the depth: every second layer of a trained encoder, taught its vectors and token states.

    python benchmarks/student.py train SHARDS TEACHER OUT [--updates 600] [--minutes 45]
    python benchmarks/student.py measure ENCODER... --flores DIR --tatoeba DIR [--lines 250]

TEACHER is a Hugging Face folder (`mexma models --checkpoint`); the student starts from its layers 2, 4, ..., 12 and keeps its
word rows, which do not move. Each update reads pairs drawn as train/recipes/small.py draws them, both sides through both
models, without masks. The loss has three parts: 1 - cosine of every token state with the teacher's, the same of the sentence
vectors (SENTENCE times), and a ranking of the student's text vectors against the teacher's English vectors of the batch. OUT
is written every CHECKPOINT updates and at the end; its weights lie on the 4-bit grid of a w4 graph (mexma_train/rounding.py),
as the teacher's do.

`measure` prints a line an encoder: FLORES xsim error and Tatoeba accuracy (both directions) in %, means over all languages,
of the first --lines of every test file. These have fewer wrong candidates than the whole files: compare the lines with each
other only.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from vocabulary import measure as measure_sides
from vocabulary import read_sides

from mexma_rt.backends.packed_attention import make_layout
from mexma_rt.backends.packed_encoder import Encoder, position_numbers
from mexma_train.checkpoint import save_checkpoint
from mexma_train.config import load_recipe
from mexma_train.data.shards import open_shards
from mexma_train.data.tokenizer import load_tokenizer
from mexma_train.encoder import load_encoder
from mexma_train.probe import embed_texts
from mexma_train.rounding import keep_rounded, product_weights
from mexma_train.sampling import PairSampler

RECIPE = Path(__file__).parents[1] / "train" / "recipes" / "small.py"
MAX_TOKENS = 96
TEMPERATURE = 0.03  # the recipe's ranking
SENTENCE = 3.0  # weight of the sentence vectors beside the mean over tokens: they are what is used
CHECKPOINT = 100  # updates


def half_of(teacher: Encoder) -> Encoder:
    """Layers 2, 4, 6, ... of the teacher, all else alike."""
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers //= 2
    student = Encoder(config)
    student.embeddings.load_state_dict(teacher.embeddings.state_dict())
    for own, theirs in zip(student.encoder.layer, list(teacher.encoder.layer)[1::2], strict=True):
        own.load_state_dict(theirs.state_dict())
    student.embeddings.word_embeddings.weight.requires_grad_(False)
    return student


def losses(own_TD: Tensor, theirs_TD: Tensor, starts_S: Tensor, pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of tokens, of sentences, and of the ranking; texts come first, then their English sides in the same order."""
    own_TD, theirs_TD = F.normalize(own_TD.float()), F.normalize(theirs_TD.float())
    tokens = 1 - (own_TD * theirs_TD).sum(1).mean()
    own_SD, theirs_SD = own_TD[starts_S], theirs_TD[starts_S]
    sentences = 1 - (own_SD * theirs_SD).sum(1).mean()
    logits = own_SD[:pairs] @ theirs_SD[pairs:].T / TEMPERATURE
    return tokens, sentences, F.cross_entropy(logits, torch.arange(pairs))


@click.group()
def main() -> None:
    """A student of half the depth."""
    torch.set_num_threads(1)


@main.command()
@click.argument("shards_folder", type=click.Path(path_type=Path))
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--updates", default=600, show_default=True)
@click.option("--pairs", default=192, show_default=True, help="Pairs of an update.")
@click.option("--lr", default=3e-4, show_default=True)
@click.option(
    "--minutes", default=45.0, show_default=True, help="Stop after so many CPU minutes, with the rate down to 0 by then."
)
def train(shards_folder: Path, source: Path, out: Path, updates: int, pairs: int, lr: float, minutes: float) -> None:
    """Teach OUT, half of SOURCE, on the pairs of SHARDS_FOLDER."""
    torch.manual_seed(42)
    shards = open_shards(shards_folder)
    sampler = PairSampler(shards, load_recipe(RECIPE).sampling)
    teacher = load_encoder(source, dropout=0.0).eval().requires_grad_(False)
    student = half_of(teacher)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    keep_rounded(optimizer, product_weights(student), bits=4)
    started, seen = time.process_time(), 0
    for update in range(updates):
        done = max(update / updates, (time.process_time() - started) / (60 * minutes))
        if done >= 1:
            break
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (update + 1) / 20) * (1 - done)
        rows = sampler.batch(update, pairs)
        sides = [shards.text(rows, MAX_TOKENS), shards.english(rows, MAX_TOKENS)]
        ids, lengths = (np.concatenate([getattr(side, name) for side in sides]) for name in ("ids", "lengths"))
        positions, layout = torch.from_numpy(position_numbers(ids, lengths)), make_layout(lengths, "padded")
        ids_T = torch.from_numpy(ids)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                theirs_TD = teacher(ids_T, positions, layout)
            own_TD = student(ids_T, positions, layout)
        tokens, sentences, ranking = losses(own_TD, theirs_TD, torch.as_tensor(layout.starts_S), len(rows))
        optimizer.zero_grad(set_to_none=True)
        (tokens + SENTENCE * sentences + ranking).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        seen += len(ids)
        if update % 10 == 0:
            terms = {"tokens": tokens, "sentences": sentences, "ranking": ranking}
            line = {name: round(float(value.detach()), 4) for name, value in terms.items()}
            used = round(time.process_time() - started)
            click.echo(json.dumps({"update": update, **line, "tokens_seen": seen, "cpu_s": used}))
        if update % CHECKPOINT == CHECKPOINT - 1:
            save_checkpoint(student.config, student.state_dict(), shards.tokenizer_path, out)
    save_checkpoint(student.config, student.state_dict(), shards.tokenizer_path, out)


@main.command()
@click.argument("encoders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--flores", type=click.Path(path_type=Path), required=True, help="xxx.txt, one line a sentence.")
@click.option("--tatoeba", type=click.Path(path_type=Path), required=True, help="xxx.tsv: english<TAB>text.")
@click.option("--lines", default=250, show_default=True, help="Of each test file.")
def measure(encoders: tuple[Path, ...], flores: Path, tatoeba: Path, lines: int) -> None:
    """Print a line of JSON for each of ENCODERS."""
    sides = read_sides(flores, tatoeba, lines)
    texts = sorted({text for pair in sides.values() for side in pair for text in side})
    place = {text: row for row, text in enumerate(texts)}
    for folder in encoders:
        encoder, started = load_encoder(folder, dropout=0.0), time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            vectors = embed_texts(
                encoder, load_tokenizer(folder / "tokenizer.json"), texts, max_tokens=MAX_TOKENS, attention="padded"
            )
        seconds = round(time.process_time() - started)
        click.echo(json.dumps({"encoder": folder.name, "cpu_s": seconds, **measure_sides(sides, vectors, place)}))


if __name__ == "__main__":
    main()
