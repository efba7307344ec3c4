"""`mexma embed`: embed a text file of any size."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from mexma_rt.cli.common import clean_stdout, describe, echo_json, model_options, prompt_option, report_dict
from mexma_rt.cli.edges import interrupted, resumes
from mexma_rt.files.storage import STORAGES


@click.command(
    short_help="Write the sentence vectors of a file as a numpy array.",
    epilog="Example: mexma embed sentences.txt -o vectors.npy",
)
@click.argument("file")
@click.option(
    "-o", "--output", metavar="FILE", required=True, help="File to write (.npy or .parquet), with one row per row of FILE."
)
@click.option("--field", metavar="NAME", help="Field (JSON Lines) or column (.parquet) that holds the text; nested: a.b")
@click.option(
    "--storage",
    type=click.Choice(list(STORAGES)),
    default="float32",
    show_default=True,
    help="Type of the stored numbers; int8 and uint8 quantise to the model's ranges, binary and ubinary keep signs.",
)
@click.option(
    "--normalize/--no-normalize", default=True, show_default=True, help="Scale vectors to length 1, or store them raw."
)
@click.option("--truncate-dim", type=click.IntRange(min=1), help="Keep only this many leading dimensions.  [default: all]")
@click.option(
    "--shard-rows",
    type=click.IntRange(min=1),
    help="Write a folder of .npy files with this many rows each.  [default: one file]",
)
@click.option("--ray", metavar="ADDRESS", help="Embed on a Ray cluster: local (processes of this machine), auto or HOST:PORT.")
@prompt_option
@model_options
def embed(
    file: str,
    output: str,
    field: str | None,
    storage: str,
    normalize: bool,
    truncate_dim: int | None,
    shard_rows: int | None,
    prompt: str | None,
    ray: str | None,
    as_json: bool,
    batch_tokens: int | None,
    **options: Any,
) -> None:
    """Write the sentence vectors of FILE, one sentence per line, as a numpy array.

    FILE may be .gz, .xz or .zst, JSON Lines or .parquet with --field, or - for standard input. It may be of any size: memory is
    bounded, and after an interruption the same command resumes. With --ray the bytes are the same; each worker has --threads
    processors (4 by default), and a GPU with --device cuda.
    """
    import mexma_rt
    from mexma_rt.embedding.files import write_vectors
    from mexma_rt.embedding.settings import EmbedSettings

    settings = EmbedSettings(
        normalize=normalize, precision=storage, truncate_dim=truncate_dim, batch_tokens=batch_tokens, prompt=prompt
    )
    if ray is None:
        write = partial(write_vectors, lambda: mexma_rt.load(**options))
    else:
        from mexma_rt.cluster.embed import write_vectors_on

        write = partial(write_vectors_on, ray, options)
    with clean_stdout(ray), interrupted(resumes(output)):
        result = write(file, output, settings, field=field, shard_rows=shard_rows, announce=partial(click.echo, err=True))
    if as_json:
        done = {"output": output, "shape": result.shape, "dtype": storage, "resumed": result.resumed, "cut": result.cut}
        echo_json(done | report_dict(result.report, file))
        return
    click.echo(describe(result.report, file))
    if result.cut > len(result.report.truncated):
        click.echo(f"{file}: {result.cut:,} sentences were cut in total; the line above covers only the first ones")
    click.echo(f"{output}: {storage} {list(result.shape)}")
