"""`mexma filter`: keep the good pairs of a bitext of any size."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from mexma_rt.cli.common import echo_json, load_encoder, margin_options, model_options, prompt_option
from mexma_rt.cli.edges import interrupted, resumes
from mexma_rt.mining.filter import BACKGROUND


@click.command(
    "filter",
    short_help="Keep the good pairs of two line-aligned files.",
    epilog="Example: mexma filter bitext.fr bitext.en -o kept.tsv --dropped dropped.tsv",
)
@click.argument("source")
@click.argument("target")
@click.option(
    "-o", "--output", metavar="FILE", required=True, help="Write the kept pairs to this .tsv, .jsonl or .parquet file."
)
@click.option("--dropped", metavar="FILE", help="Write the dropped pairs, each with its reason.")
@margin_options
@click.option("--threshold", type=float, help="Lowest score of a pair to keep.  [default: as for mine, see calibrate]")
@click.option(
    "--top", type=float, metavar="SHARE", help="Keep the best share of all pairs, such as 0.8, instead of a threshold."
)
@click.option(
    "--max-ratio",
    type=float,
    default=3.0,
    show_default=True,
    help="Largest factor by which a pair's length ratio may differ from the median.",
)
@click.option("--background", metavar="FILE", help="Score against this background, written by: mexma score --save-background.")
@click.option(
    "--background-lines",
    type=click.IntRange(min=1),
    default=BACKGROUND,
    show_default=True,
    help="Without --background: number of pairs sampled as one.",
)
@prompt_option
@model_options
def filter_command(source: str, target: str, output: str, batch_tokens: int | None, as_json: bool, **options: Any) -> None:
    """Keep the good pairs of SOURCE and TARGET, two line-aligned files of any size.

    Drops blank lines, identical sides, repeated pairs, mismatched lengths and low scores. Scores are margins against a
    background of both sides (by default a sample of the bitext itself), so memory is bounded; after an interruption the same
    command resumes where it stopped.
    """
    from mexma_rt.mining.filter import filter_bitext

    names = ("dropped", "margin", "k", "threshold", "top", "max_ratio", "background", "background_lines")
    settings = {name: options.pop(name) for name in names}
    with interrupted(resumes(output)):
        report = filter_bitext(lambda: load_encoder(options), source, target, output, **settings)
    if as_json:
        least = report.threshold if abs(report.threshold) < float("inf") else None  # JSON has no infinity
        echo_json(asdict(report) | {"threshold": least})
        return
    click.echo(
        f"{output}: {report.kept:,} of {report.pairs:,} pairs kept ({report.kept / report.pairs:.1%}), {report.margin} >= "
        f"{report.threshold:.4g} (k={report.k}, background of {report.background:,} lines, {report.model})"
    )
    for reason, count in report.dropped.items():
        click.echo(f"  dropped, {reason + ':':<14} {count:>12,}")
    for warning in report.warnings:
        click.echo(f"warning: {warning.message}", err=True)
