"""`mexma mine` and `mexma score`: the pairs of two corpora, and the scores of a ready bitext."""

from __future__ import annotations

import time
from typing import Any

import click

from mexma_rt.cli.common import (
    LoadedEncoder,
    describe,
    echo_json,
    margin_options,
    model_options,
    report_dict,
    write_tsv,
)
from mexma_rt.mining import DEFAULT_THRESHOLD, RETRIEVALS

PAIR_HEADER = ("score", "cosine", "source_line", "target_line", "source", "target")
SCORE_HEADER = ("score", "source", "target")
_DEFAULTS = ", ".join(f"{value} for {margin}" for margin, value in DEFAULT_THRESHOLD.items())


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("-o", "--output", metavar="FILE", help="The .tsv file to write.  [default: standard output]")
@margin_options
@click.option(
    "--retrieval", type=click.Choice(RETRIEVALS), default="max", show_default=True, help="max: every sentence at most once."
)
@click.option("--threshold", type=float, help=f"Least score of a pair.  [default: {_DEFAULTS}]")
@click.option("--show", type=click.IntRange(min=0), help="Print the best N pairs for reading instead of TSV.")
@model_options
def mine(
    source: str,
    target: str,
    output: str | None,
    margin: str,
    k: int,
    retrieval: str,
    threshold: float | None,
    show: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the translations between the lines of SOURCE and TARGET.

    Writes tab-separated columns under a header: score, cosine, source_line, target_line (from 1), source, target; the best
    first. Equal lines count once, blank lines never. With --json, the pairs are in the object unless -o takes them.
    """
    import mexma_rt

    started = time.perf_counter()
    encoder = LoadedEncoder(options)
    threshold = DEFAULT_THRESHOLD[margin] if threshold is None else threshold
    lines = _read_both(source, target, output)
    pairs = mexma_rt.mine(*lines, margin=margin, k=k, retrieval=retrieval, threshold=threshold, encoder=encoder)
    rows = [(p.score, p.cosine, p.source_index + 1, p.target_index + 1, p.source or "", p.target or "") for p in pairs]
    if output or not (as_json or show is not None):
        write_tsv(output, PAIR_HEADER, rows)
    seconds = time.perf_counter() - started
    if as_json:
        least = threshold if abs(threshold) < float("inf") else None  # JSON has no infinity
        listed = rows[: show if show is not None else 0 if output else None]
        settings = {"margin": margin, "k": k, "retrieval": retrieval, "threshold": least}
        sides = _sides(encoder, source, target)
        found = {"found": len(pairs), "output": output, "pairs": [dict(zip(PAIR_HEADER, row, strict=True)) for row in listed]}
        echo_json({**found, **settings, **sides, "seconds": seconds})
        return
    for row in rows[: show or 0]:
        _show(*row)
    # Standard output stays pure TSV where it carries the table.
    click.echo(
        f"{len(pairs):,} pairs of {len(lines[0]):,} x {len(lines[1]):,} lines with {margin} >= {threshold:g} ({retrieval}, "
        f"k={k}) in {seconds:.1f} s" + (f": {output}" if output else ""),
        err=not output and show is None,
    )
    _describe_sides(encoder, source, target)


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("-o", "--output", metavar="FILE", help="The .tsv file to write.  [default: standard output]")
@margin_options
@model_options
def score(source: str, target: str, output: str | None, margin: str, k: int, as_json: bool, **options: Any) -> None:
    """Score every line of SOURCE with the same line of TARGET.

    Writes tab-separated columns under a header: score, source, target; row i is line i. A pair with a blank side has
    the score -inf. With --json, a summary is printed, and the scores too unless -o takes them.
    """
    import numpy as np

    import mexma_rt

    encoder = LoadedEncoder(options)
    lines = _read_both(source, target, output)
    scores = mexma_rt.score_pairs(*lines, margin=margin, k=k, encoder=encoder)
    if output or not as_json:
        write_tsv(output, SCORE_HEADER, zip(scores.tolist(), *lines, strict=True))
    finite = scores[np.isfinite(scores)]
    blank = len(scores) - len(finite)
    mean = float(finite.mean()) if len(finite) else None
    if as_json:
        summary: dict[str, Any] = {
            "pairs": len(scores),
            "blank": blank,
            "mean": mean,
            "margin": margin,
            "k": k,
            "output": output,
        }
        if not output:
            summary["scores"] = [value if np.isfinite(value) else None for value in scores.tolist()]
        echo_json(summary | _sides(encoder, source, target))
        return
    text = "none with text on both sides" if mean is None else f"mean {margin} {mean:.4f}"
    click.echo(
        f"{len(scores):,} pairs, {blank:,} with a blank side, {text}" + (f": {output}" if output else ""), err=not output
    )
    _describe_sides(encoder, source, target)


def _read_both(source: str, target: str, output: str | None) -> tuple[list[str], list[str]]:
    from mexma_rt.files import STDIN, check_output, read_lines

    if source == target == STDIN:
        raise click.UsageError("Only one of SOURCE and TARGET can be standard input.")
    if output:
        check_output(output, [source, target])
    return read_lines(source), read_lines(target)


def _show(score: float, cosine: float, source_line: int, target_line: int, source: str, target: str) -> None:
    click.echo(f"{score:8.4f}  cosine {cosine:.4f}\n{source_line:>8}  {source}\n{target_line:>8}  {target}")


def _sides(encoder: LoadedEncoder, *names: str) -> dict[str, Any]:
    sides = zip(("source", "target"), encoder.reports, names, strict=True)
    return {side: report_dict(report, name) for side, report, name in sides}


def _describe_sides(encoder: LoadedEncoder, *names: str) -> None:
    for report, name in zip(encoder.reports, names, strict=True):
        click.echo(describe(report, name), err=True)
