"""`mexma score`: the margin scores of a ready bitext."""

from __future__ import annotations

from typing import Any

import click

from mexma_rt.cli.common import (
    LoadedEncoder,
    describe_sides,
    echo_json,
    margin_options,
    model_options,
    read_both,
    report_sides,
)

SCORE_COLUMNS = {"score": float, "source": str, "target": str}


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("-o", "--output", metavar="FILE", help="The .tsv, .jsonl or .parquet file.  [default: TSV to standard output]")
@margin_options
@model_options
def score(source: str, target: str, output: str | None, margin: str, k: int, as_json: bool, **options: Any) -> None:
    """Score every line of SOURCE with the same line of TARGET.

    Writes the columns score, source, target; row i is line i. A pair with a blank side has the score -inf. With --json, a
    summary is printed, and the scores too unless -o takes them.
    """
    import numpy as np

    import mexma_rt
    from mexma_rt.table import table

    encoder = LoadedEncoder(options)
    lines = read_both(source, target, output)
    scores = mexma_rt.score_pairs(*lines, margin=margin, k=k, encoder=encoder)
    if output or not as_json:
        with table(output, SCORE_COLUMNS) as write:
            for row in zip(scores.tolist(), *lines, strict=True):
                write(row)
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
        echo_json(summary | report_sides(encoder, source, target))
        return
    text = "none with text on both sides" if mean is None else f"mean {margin} {mean:.4f}"
    click.echo(
        f"{len(scores):,} pairs, {blank:,} with a blank side, {text}" + (f": {output}" if output else ""), err=not output
    )
    describe_sides(encoder, source, target)
