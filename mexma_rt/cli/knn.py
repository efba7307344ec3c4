"""`mexma knn`: find the nearest neighbours between two sets of vectors of any size, in both directions."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import click

from mexma_rt.cli.common import Memory, clean_stdout, echo_json
from mexma_rt.cli.edges import interrupted, resumes


@click.command(
    short_help="Find the exact nearest rows of two files of vectors.",
    epilog="Example: mexma knn a.npy b.npy -o neighbours --memory 2GB",
)
@click.argument("source")
@click.argument("target")
@click.option("-o", "--output", metavar="FOLDER", required=True, help="New folder for the four arrays.")
@click.option("-k", "--k", type=click.IntRange(min=1), default=4, show_default=True, help="Number of neighbours of each row.")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "ip"]),
    default="cosine",
    show_default=True,
    help="Similarity: cosine, or ip (the inner product of the unnormalised rows).",
)
@click.option("--memory", type=Memory(), default="2GB", show_default=True, help="Bound on the memory of the process.")
@click.option(
    "--checkpoint",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds between two checkpoints.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Device that searches: cpu, cuda (all GPUs; needs torch or cupy) or auto.",
)
@click.option("--ray", metavar="ADDRESS", help="Work on a Ray cluster: local (processes of this machine), auto or HOST:PORT.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def knn(
    source: str,
    target: str,
    output: str,
    k: int,
    metric: str,
    memory: int,
    checkpoint: float,
    device: str,
    ray: str | None,
    as_json: bool,
) -> None:
    """Find the exact K nearest rows of TARGET for each row of SOURCE, and vice versa.

    SOURCE and TARGET are .npy files or folders of shards from `mexma embed`; they may be larger than memory. FOLDER gets
    source_scores.npy, source_index.npy, target_scores.npy and target_index.npy. After an interruption the same command
    resumes. With --ray the bytes are the same; the vectors must have the same path on every machine, and each
    worker may use --memory.
    """
    from mexma_rt.knn.on_disk import SearchSettings, write_neighbours

    settings = SearchSettings(k=k, metric=metric, memory_bytes=memory, checkpoint_seconds=checkpoint, device=device)
    search = write_neighbours
    if ray is not None:
        from mexma_rt.cluster.knn import write_neighbours_on

        search = partial(write_neighbours_on, ray)
    with clean_stdout(ray), interrupted(resumes(output)):
        report = search(source, target, output, settings, announce=partial(click.echo, err=True))
    if as_json:
        echo_json(asdict(report))
    else:
        click.echo(
            f"{output}: {report.k} neighbours of {report.source_rows:,} and {report.target_rows:,} rows on {report.device} in "
            f"{report.seconds:,.1f} s; {report.computed_anew:,} rows were recomputed to be exact"
        )
