"""`mexma-train tokenizer | prepare | run`: bitext -> tokenizer -> shards -> checkpoint folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from mexma_rt.errors import MexmaError, require_extra


class _Group(click.Group):
    """Turns our errors into one message on stderr and exit status 1; no traceback for a user's mistake."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            require_extra("train", "torch", "transformers", "safetensors")
            return super().invoke(ctx)
        except MexmaError as error:
            click.echo(f"mexma-train: {error}", err=True)
            sys.exit(1)


@click.group(cls=_Group)
@click.version_option(package_name="mexma-rt")
def main() -> None:
    """Train MEXMA sentence encoders. Needs: pip install 'mexma-rt[train]'."""


@main.command()
@click.argument("pairs")
@click.argument("tokenizer", type=click.Path(path_type=Path))
@click.option("--recipe", type=click.Path(path_type=Path), help="Take the sizes from this recipe (default: TokenizerConfig's).")
def tokenizer(pairs: str, tokenizer: Path, recipe: Path | None) -> None:
    """Train TOKENIZER (a tokenizer.json) on PAIRS: TSV `lang source english text`, plain, .xz, .zst or -."""
    from mexma_train.bitext import read_pairs
    from mexma_train.config import TokenizerConfig, load_recipe
    from mexma_train.tokenizer import sample_lines, train_tokenizer

    config = load_recipe(recipe).tokenizer if recipe else TokenizerConfig()
    lines = sample_lines(read_pairs(pairs), config)
    trained = train_tokenizer(lines, config)
    trained.save(str(tokenizer))
    click.echo(f"{tokenizer}: {trained.get_vocab_size()} pieces from {len(lines)} lines")


@main.command()
@click.argument("pairs")
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--tokenizer", required=True, type=click.Path(path_type=Path), help="tokenizer.json to use.")
def prepare(pairs: str, shards: Path, tokenizer: Path) -> None:
    """Tokenise PAIRS into the folder SHARDS; bad rows are counted and skipped, above 1 % it stops."""
    from mexma_train.shards import prepare as write_shards

    click.echo(json.dumps(write_shards(pairs, shards, tokenizer), indent=1))


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("shards", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Continue the run in OUT.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--minutes", type=float, help="Stop after so many minutes; continue with --resume.")
@click.option("--threads", type=int, help="CPU threads (default: torch's).")
def run(recipe: Path, shards: Path, out: Path, resume: bool, device: str, minutes: float | None, threads: int | None) -> None:
    """Train RECIPE (a Python file) on SHARDS; OUT/checkpoint is the result, in Hugging Face form."""
    import torch

    from mexma_train.config import load_recipe
    from mexma_train.run import train

    if threads:
        torch.set_num_threads(threads)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.UsageError(f"--device {device}: this torch ({torch.__version__}) sees no CUDA GPU. Type --device cpu.")
    finished = train(load_recipe(recipe), shards, out, resume=resume, device=device, minutes=minutes)
    click.echo(f"finished: {out / 'checkpoint'}" if finished else f"stopped by --minutes; continue with --resume: {out}")
