"""`mexma bench embed`: how fast this machine embeds a file's sentences, in each precision of the model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from mexma_rt.bundle.opening import DEFAULT_MODEL
from mexma_rt.cli.common import echo_json


@click.group(epilog="Example: mexma bench embed texts.txt")
def bench() -> None:
    """Measure this machine."""


@bench.command(epilog="Example: mexma bench embed texts.txt --plot bars.png")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Model: a bundled name, a bundle folder or a hub name.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of interleaved rounds; medians are reported.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME=COMMAND",
    help="Add a route: a command that speaks the protocol of mexma_rt/bench/worker.py, such as "
    "'fastembed=python benchmarks/embed_peers.py fastembed BUNDLE cpu'. Repeatable.",
)
@click.option("--plot", metavar="FILE", help="Draw the ratios (.png, .svg or .pdf).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def embed(files: tuple[Path, ...], model: str, rounds: int, peers: tuple[str, ...], plot: str | None, as_json: bool) -> None:
    """Embed each of FILES (one sentence per line) by every route in turn, and print a table.

    Routes are this runtime in every precision of the model, each in its own process, and those named by --peer.
    """
    import shlex

    from mexma_rt.bench.plot import ratio_bars
    from mexma_rt.bench.run import Route, as_data, as_table, measure, our_routes
    from mexma_rt.bundle.opening import open_bundle
    from mexma_rt.files.atomic import check_output
    from mexma_rt.files.pictures import check_plot, save

    for file in files:
        _check_plain(file)
    if plot:
        check_plot(plot)
        check_output(plot, files)
    routes = our_routes(open_bundle(model), model)
    for peer in peers:
        name, equals, command = peer.partition("=")
        if not equals or not shlex.split(command):
            raise click.UsageError(f"--peer {peer!r} is not NAME=COMMAND.")
        routes.append(Route(name=name, command=tuple(shlex.split(command))))
    tell = partial(click.echo, err=True)
    rows, facts = measure(routes, files, model=model, rounds=rounds, tell=tell)
    if plot:
        save(ratio_bars([as_data(rows, facts) | {"model": model}]), plot)
    if as_json:
        echo_json(as_data(rows, facts))
    else:
        click.echo(as_table(rows, facts))


def _check_plain(file: Path) -> None:
    """Raise InputError unless the file is plain text, which every route reads for itself."""
    from mexma_rt.errors import InputError, typed
    from mexma_rt.files.atomic import read_lines
    from mexma_rt.files.first_bytes import HEAD, packing

    if file.is_fifo():
        raise InputError(
            f"{file} is a pipe, but every route reads the file again. Write it to a file first: cat {typed(file)} > NEW"
        )
    with file.open("rb") as stream:
        if packed := packing(stream.read(HEAD)):
            raise InputError(f"{file} is packed ({packed[1:]}), but routes read plain text. Unpack it first.")
    read_lines(file)
