"""`mexma mine`: the translations between two corpora."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import click

from mexma_rt.candidates import RETRIEVALS
from mexma_rt.cli.common import (
    LoadedEncoder,
    describe_sides,
    echo_json,
    margin_options,
    model_options,
    read_both,
    report_sides,
)
from mexma_rt.mining import DEFAULT_THRESHOLD, INDEXES, MiningReport, Pair

PAIR_COLUMNS = {
    "score": float,
    "cosine": float,
    "source_line": int,
    "target_line": int,
    "forward_rank": int,
    "backward_rank": int,
    "source_mean": float,
    "target_mean": float,
    "source": str,
    "target": str,
}
_DEFAULTS = ", ".join(f"{value} for {margin}" for margin, value in DEFAULT_THRESHOLD.items())


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("-o", "--output", metavar="FILE", help="The .tsv, .jsonl or .parquet file.  [default: TSV to standard output]")
@margin_options
@click.option(
    "--retrieval",
    type=click.Choice(RETRIEVALS),
    default="max",
    show_default=True,
    help="max: every sentence at most once; knn: all k candidates of every sentence.",
)
@click.option("--threshold", type=float, help=f"Least score of a pair.  [default: {_DEFAULTS}; none for knn]")
@click.option(
    "--index",
    type=click.Choice(INDEXES),
    default="exact",
    show_default=True,
    help="ivfpq: approximate candidates, exact scores; says what share of the neighbours it found.",
)
@click.option("--show", type=click.IntRange(min=0), help="Print the best N pairs for reading instead of TSV.")
@model_options
def mine(
    source: str,
    target: str,
    output: str | None,
    show: int | None,
    as_json: bool,
    margin: str,
    k: int,
    retrieval: str,
    threshold: float | None,
    index: str,
    **options: Any,
) -> None:
    """Find the translations between the lines of SOURCE and TARGET.

    Writes one row per pair, the best first: score, cosine, source_line, target_line (from 1), forward_rank (the place of the
    target among the k nearest of the source, empty if it is not among them), backward_rank (the reverse), source_mean,
    target_mean (mean cosine to the k nearest, which the margin compares with), source, target. Equal lines count once, blank
    lines never. With --json, the pairs are in the object unless -o takes them.
    """
    from mexma_rt.mining import prepare
    from mexma_rt.table import table

    started = time.perf_counter()
    encoder = LoadedEncoder(options)
    lines = read_both(source, target, output)
    settings: dict[str, Any] = {"margin": margin, "k": k, "retrieval": retrieval, "threshold": threshold, "index": index}
    search = prepare(*lines, encoder, None, None, unify=True, progress=None, warn=True, **settings)
    listed: list[tuple[object, ...]] = []
    longest = show if show is not None else 0 if output or not as_json else float("inf")
    found = 0
    with table(output, PAIR_COLUMNS) if output or not (as_json or show is not None) else nullcontext() as write:
        for pair in search.pairs():
            found += 1
            row = _row(pair)
            if write is not None:
                write(row)
            if len(listed) < longest:
                listed.append(row)
    report = search.report(found, time.perf_counter() - started)
    if as_json:
        counts = asdict(report) | {"threshold": report.threshold if abs(report.threshold) < float("inf") else None}
        sides = report_sides(encoder, source, target)
        both = {side: counts[side] | sides[side] for side in sides}
        pairs = [dict(zip(PAIR_COLUMNS, row, strict=True)) for row in listed]
        echo_json({**counts, **both, "found": found, "output": output, "pairs": pairs})
        return
    for row in listed:
        _show(dict(zip(PAIR_COLUMNS, row, strict=True)))
    # Standard output stays pure TSV where it carries the table.
    click.echo(_summary(report) + (f": {output}" if output else ""), err=not output and show is None)
    if report.recall is not None:
        click.echo(
            f"{report.index}: found {report.recall.forward:.1%} of the {k} nearest targets and {report.recall.backward:.1%} "
            f"of the {k} nearest sources, for {report.recall.rows:,} sampled lines of each side",
            err=True,
        )
    for warning in report.warnings:
        click.echo(f"warning: {warning.message}", err=True)
    describe_sides(encoder, source, target)


def _row(pair: Pair) -> tuple[object, ...]:
    return (
        pair.score,
        pair.cosine,
        pair.source_index + 1,
        pair.target_index + 1,
        pair.forward_rank,
        pair.backward_rank,
        pair.source_mean,
        pair.target_mean,
        pair.source,
        pair.target,
    )


def _summary(report: MiningReport) -> str:
    return (
        f"{report.pairs:,} pairs of {report.source.lines:,} x {report.target.lines:,} lines with {report.margin} >= "
        f"{report.threshold:g} ({report.retrieval}, k={report.k}) in {report.seconds:.1f} s"
    )


def _show(pair: dict[str, Any]) -> None:
    click.echo(
        f"{pair['score']:8.4f}  cosine {pair['cosine']:.4f}\n{pair['source_line']:>8}  {pair['source']}\n"
        f"{pair['target_line']:>8}  {pair['target']}"
    )
