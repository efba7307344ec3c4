"""`mexma embed`: a text file to an array of sentence vectors."""

from __future__ import annotations

from typing import Any

import click

from mexma_rt.cli.common import LoadedEncoder, describe, echo_json, model_options, report_dict


@click.command()
@click.argument("file")
@click.option("-o", "--output", metavar="FILE", required=True, help="The .npy file to write: one row per line of FILE.")
@click.option("--storage", type=click.Choice(["float32", "float16"]), default="float32", show_default=True)
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="Vectors of length 1, or raw.")
@model_options
def embed(file: str, output: str, storage: str, normalize: bool, as_json: bool, **options: Any) -> None:
    """Write the sentence vectors of FILE, one sentence per line, as a numpy array."""
    import numpy as np

    from mexma_rt.files import atomic_write, check_output, read_lines

    check_output(output, [file])
    encoder = LoadedEncoder(options)
    vectors = encoder.embed(read_lines(file), normalize=normalize, precision=storage)
    with atomic_write(output) as stream:
        np.save(stream, vectors, allow_pickle=False)
    (report,) = encoder.reports
    if as_json:
        echo_json({"output": output, "shape": vectors.shape, "dtype": storage} | report_dict(report, file))
    else:
        click.echo(describe(report, file))
        click.echo(f"{output}: {storage} {list(vectors.shape)}")
