"""`mexma calibrate`: find a model's thresholds on a small parallel sample, and write them into its bundle."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from mexma_rt.bundle.change import check_writable, write_thresholds
from mexma_rt.cli.common import LoadedEncoder, describe_sides, echo_json, model_options, prompt_option, read_both
from mexma_rt.errors import InputError
from mexma_rt.files.atomic import read_lines
from mexma_rt.files.unpacking import shown_name
from mexma_rt.mining.calibration import ALONE, DRAWS, STEADY, Calibration, calibrate


@click.command(
    "calibrate",
    short_help="Find a model's thresholds for mine and filter.",
    epilog="Example: mexma calibrate sample.fr sample.en --model MEXMA-bundle",
)
@click.argument("source")
@click.argument("target", required=False)
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    help="Write a copy of the bundle with the thresholds.  [default: into the bundle itself; not for a bundled model]",
)
@click.option(
    "-k", "--k", type=click.IntRange(min=1), default=4, show_default=True, help="Number of neighbours of each sentence."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for drawing lines to leave without a partner.")
@prompt_option
@model_options
def calibrate_command(
    source: str, target: str | None, output: str | None, k: int, seed: int, as_json: bool, **options: Any
) -> None:
    """Find the thresholds of mine and filter for a model, and write them into its bundle.

    SOURCE and TARGET are line-aligned translations, or SOURCE alone is a TSV file of two columns. A thousand pairs of text
    similar to what you will mine give a stable result; at least a hundred are needed. Repeatedly, some lines of each side are
    left without their partner, and the threshold of each margin is chosen where the mean F1 of mining is best.
    """
    encoder = LoadedEncoder(options)
    lines = read_both(source, target, None) if target is not None else read_columns(source)
    check_writable(encoder.loaded().bundle, output)
    found = calibrate(*lines, encoder=encoder, k=k, seed=seed)
    folder = write_thresholds(encoder.bundle, found.thresholds, output)
    if as_json:
        echo_json({**asdict(found), "alone": ALONE, "draws": DRAWS, "bundle": str(folder)})
        return
    click.echo(_table(found))
    click.echo(f"{folder}: thresholds written; mine and filter use them with --model {folder}")
    if found.pairs < STEADY:
        click.echo(
            f"warning: {found.pairs:,} pairs are few: with other pairs the thresholds could differ by some hundredths. With "
            f"{STEADY:,} or more they are stable.",
            err=True,
        )
    describe_sides(encoder, source, source if target is None else target)


def read_columns(path: str) -> tuple[list[str], list[str]]:
    """Read the two columns of a TSV file. Raises InputError for a line with another number of columns."""
    rows = [line.split("\t") for line in read_lines(path)]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise InputError(
                f"{shown_name(path)}, line {number}: {len(row)} columns, not two (source<TAB>target). For two files, type: "
                "mexma calibrate SOURCE TARGET"
            )
    return [row[0] for row in rows], [row[1] for row in rows]


def _table(found: Calibration) -> str:
    left = f" ({found.left_out:,} lines left out: blank, repeated or equal on both sides)" if found.left_out else ""
    rows = [
        f"{found.model}: {found.pairs:,} pairs{left}; {DRAWS} draws of {found.lines:,} lines a side, {ALONE:.0%} of them "
        f"without a partner; k={found.k}, seed {found.seed}",
        "margin     threshold  precision  recall     F1   F1 within a point    until now     F1",
    ]
    for margin, one in found.margins.items():
        near = f"{one.near[0]:.3f} to {one.near[1]:.3f}"
        rows.append(
            f"{margin:<10}{one.threshold:>10.3f}{one.precision:>11.1f}{one.recall:>8.1f}{one.f1:>7.1f}   {near:<20}"
            f"{one.before:>10g}{one.f1_before:>7.1f}"
        )
    return "\n".join(rows)
