"""`mexma-train tokenizer | prepare | teach | run | resume | eval | plot`: bitext -> checkpoint."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mexma_rt.cli.edges import RESUMES, STARTS_OVER, EdgesCommand, interrupted
from mexma_rt.errors import MexmaError, require_extra, typed
from mexma_rt.version import __version__
from mexma_train.cli_eval import evaluate
from mexma_train.config import Recipe, TokenizerConfig, as_original, load_recipe
from mexma_train.flags import Command, apply_flags, recipe_flags, run_flags

if TYPE_CHECKING:
    from mexma_train.parallel import World

PATH = click.Path(path_type=Path)


class _Group(EdgesCommand, click.Group):
    """Turns MexmaError into one message on stderr and exit status 1, without a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            require_extra("train", "torch", "transformers", "safetensors")
            return super().invoke(ctx)
        except MexmaError as error:
            click.echo(f"mexma-train: {error}", err=True)
            sys.exit(1)


@click.group(
    "mexma-train",
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Example: mexma-train run train/recipes/mini.py shards runs/mini",
)
@click.version_option(__version__, prog_name="mexma-train")
def main() -> None:
    """Train MEXMA sentence encoders. Needs: pip install 'mexma-rt[train]'."""


def execution(command: Command) -> Command:
    """Decorator: the options of run and resume that say where and how long to train, but do not change what is learnt."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads (default: torch's)."),
        click.option("--minutes", type=float, help="Stop after this many minutes; continue with: mexma-train resume OUT"),
        click.option(
            "--device", default="cpu", show_default=True, help="Device: cpu, cuda or cuda:N; with torchrun cpu or cuda."
        ),
    ):
        command = option(command)
    return command


@main.command(short_help="Train a tokenizer on pairs.", epilog="Example: mexma-train tokenizer pairs.tsv.xz tokenizer.json")
@click.argument("pairs", nargs=-1, required=True)
@click.argument("tokenizer", type=PATH)
@click.option("--recipe", type=PATH, help="Recipe whose tokenizer settings to use (default: 64,000 pieces).")
def tokenizer(pairs: tuple[str, ...], tokenizer: Path, recipe: Path | None) -> None:
    """Train TOKENIZER (a tokenizer.json) on PAIRS, which may be any source that `prepare` takes."""
    from mexma_rt.files import atomic_write, check_ending, check_output
    from mexma_train.data.bitext import read_pairs
    from mexma_train.data.tokenizer import sample_lines, train_tokenizer

    check_ending(tokenizer, "a tokenizer is written as .json", (".json",))
    check_output(tokenizer, pairs)
    config = load_recipe(recipe).tokenizer if recipe else TokenizerConfig()
    lines = sample_lines(read_pairs(pairs), config)
    trained = train_tokenizer(lines, config)
    with atomic_write(tokenizer) as stream:
        stream.write(trained.to_str(pretty=True).encode())
    click.echo(f"{tokenizer}: {trained.get_vocab_size()} pieces from {len(lines)} lines")


@main.command(epilog="Example: mexma-train prepare pairs.tsv.xz shards --tokenizer tokenizer.json")
@click.argument("pairs", nargs=-1, required=True)
@click.argument("shards", type=PATH)
@click.option("--tokenizer", required=True, type=PATH, help="Tokenizer to use, a tokenizer.json.")
@click.option("--lang", help="Language of every row, where the data has no such column.")
@click.option("--source", help="Source name of every row, where the data has no such column.")
@click.option("--english", help="Column of the English text in parquet and data sets.")
@click.option("--text", help="Column of the other text in parquet and data sets.")
@click.option("--allow-held-out", is_flag=True, help="Keep rows with a test sentence (FLORES-200 devtest, Tatoeba).")
def prepare(pairs: tuple[str, ...], shards: Path, tokenizer: Path, allow_held_out: bool, **options: Any) -> None:
    """Tokenise PAIRS into the folder SHARDS. Bad rows are counted and skipped; more than 1 % of them is an error.

    Rows with a sentence of a test set (FLORES-200 devtest, Tatoeba) on either side are counted and dropped.

    \b
    PAIRS, one or several:
      pairs.tsv[.gz|.xz|.zst], -       lang<TAB>source<TAB>english<TAB>text
      pairs.parquet, folder            parquet files, or a data set saved by Hugging Face datasets
      corpus.en:corpus.fr,lang=fra     Moses: two files aligned line by line, English first
    """
    from mexma_train.data.prepare import prepare as write_shards

    given = {name: value for name, value in options.items() if value is not None}
    meta = write_shards(list(pairs), shards, tokenizer, allow_held_out=allow_held_out, **given)
    del meta["groups"]  # a long table of pairs per language and source, which meta.json keeps
    click.echo(json.dumps(meta, indent=1, ensure_ascii=False))


@main.command(
    short_help="Store a teacher's vectors for training to learn from.",
    epilog="Example: mexma-train teach shards --teacher use.onnx",
)
@click.argument("shards", type=PATH)
@click.option("--teacher", "model", required=True, help="An .onnx file, strings in and vectors out, or a mexma-rt bundle.")
@click.option(
    "--dimensions", default=256, show_default=True, type=click.IntRange(min=1), help="Dimensions of the stored vectors."
)
@click.option(
    "--like", help="Rotate the vectors towards those of this model, if it learnt from this teacher and will be trained further."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the teacher (default: one per core).")
def teach(shards: Path, model: str, dimensions: int, like: str | None, threads: int | None) -> None:
    """Store a teacher's vector of every English segment in SHARDS as targets for training; print what was stored.

    Vectors with more dimensions are projected on their principal axes. After an interruption the same command resumes.
    """
    from mexma_train.teacher import begun
    from mexma_train.teacher import teach as store_vectors

    with interrupted(lambda: RESUMES if begun(shards) else STARTS_OVER):
        taught = store_vectors(shards, model, dimensions=dimensions, like=like, threads=threads)
    if not taught.made:
        click.echo(f"{shards} already has the vectors of this teacher; nothing to do.", err=True)
    click.echo(json.dumps(taught.about, indent=1, ensure_ascii=False))


@main.command(short_help="Train from a recipe.", epilog="Example: mexma-train run train/recipes/mini.py shards runs/mini")
@click.argument("recipe", type=PATH)
@click.argument("shards", type=PATH)
@click.argument("out", type=PATH)
@click.option("--original", is_flag=True, help="Train as facebookresearch/mexma does, without our deliberate deviations.")
@click.option("--dry-run", is_flag=True, help="Print parameters, tokens per update and a memory estimate; train nothing.")
@execution
@recipe_flags
def run(
    recipe: Path,
    shards: Path,
    out: Path,
    original: bool,
    dry_run: bool,
    device: str,
    minutes: float | None,
    threads: int | None,
    **flags: object,
) -> None:
    """Train RECIPE (a Python file) on SHARDS; OUT/checkpoint is the result, in Hugging Face form.

    Every field of the recipe is a flag. Several GPUs: torchrun --nproc-per-node 8 -m mexma_train run RECIPE ... --device cuda
    """
    from mexma_train.run import train

    loaded = load_recipe(recipe)
    loaded = apply_flags(as_original(loaded) if original else loaded, flags)
    if dry_run:
        click.echo(_dry_run(loaded, shards))
        return
    with interrupted(lambda: _kept(out)), _started(device, threads) as world:
        _say(loaded, world)
        _end(train(loaded, shards, out, device=world, minutes=minutes), out, world)


@main.command(short_help="Continue a run from its newest state.", epilog="Example: mexma-train resume runs/mini")
@click.argument("out", type=PATH)
@click.option("--shards", type=PATH, help="Folder of the shards now, if they were moved.")
@execution
@run_flags
def resume(out: Path, shards: Path | None, device: str, minutes: float | None, threads: int | None, **flags: object) -> None:
    """Continue the run in OUT from its newest state, as if it had not stopped; the state contains the recipe."""
    from mexma_train.run import resume as resume_run
    from mexma_train.state import newest_state

    recipe = apply_flags(newest_state(out).recipe, flags)
    with interrupted(lambda: _kept(out)), _started(device, threads) as world:
        _say(recipe, world)
        _end(resume_run(out, shards_folder=shards, run=recipe.run, device=world, minutes=minutes), out, world)


main.add_command(evaluate)


@main.command(short_help="Draw losses, rates, speed and evaluations of a run.", epilog="Example: mexma-train plot runs/mini")
@click.argument("out", type=PATH)
@click.argument("picture", type=PATH, required=False)
def plot(out: Path, picture: Path | None) -> None:
    """Draw the losses, rates, speed and evaluations of the run in OUT as PICTURE (.png, .svg or .pdf; default OUT/run.png)."""
    from mexma_train.plot import plot as draw

    picture = picture or out / "run.png"
    draw(out, picture)
    click.echo(picture)


@contextlib.contextmanager
def _started(device: str, threads: int | None) -> Iterator[World]:
    import torch

    from mexma_train.parallel import start_world

    if threads:
        torch.set_num_threads(threads)
    with start_world(device) as world:
        yield world


def _say(recipe: Recipe, world: World) -> None:
    """Print once to standard error what was chosen, and why."""
    from mexma_train.attention import choose_attention

    kind, reason = choose_attention(recipe.run.attention, world.device, recipe.mexma.precision)
    if world.main:
        processes = f"{world.size} processes, {recipe.run.parallel}" if world.size > 1 else "one process"
        click.echo(
            f"{recipe.name}: {world.device}, {processes}, {recipe.mexma.precision}; attention {kind} ({reason})", err=True
        )


def _end(finished: bool, out: Path, world: World) -> None:
    if world.main:
        stopped = f"stopped by --minutes; continue with: mexma-train resume {typed(out)}"
        click.echo(f"finished: {out / 'checkpoint'}" if finished else stopped)


def _kept(out: Path) -> str:
    """What an interrupted run has left, and how to continue it."""
    from mexma_train.state import newest_state, states

    if not states(out):
        return "no state was saved yet, so there is nothing to resume: the same command starts again"
    state = newest_state(out)
    done = f"{state.update:,} updates of stage {state.stage}"
    return f"kept: {state.path}, {done}. Continue with: mexma-train resume {typed(out)}"


def _dry_run(recipe: Recipe, shards_folder: Path) -> str:
    import os

    from mexma_train.data.shards import open_shards
    from mexma_train.estimate import describe, estimate
    from mexma_train.sampling import PairSampler

    shards = open_shards(shards_folder)
    mean = PairSampler(shards, recipe.sampling).mean_tokens(recipe.mexma.max_tokens)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return describe(estimate(recipe, vocab_size=shards.vocab_size, mean_pair_tokens=mean, pairs=len(shards), world=world))
