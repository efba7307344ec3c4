"""`mexma score`: compute margin scores for an existing bitext."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import numpy as np

from mexma_rt.cli.common import (
    LoadedEncoder,
    check_both,
    describe_sides,
    echo_json,
    margin_options,
    model_options,
    prompt_option,
    read_both,
    report_sides,
)
from mexma_rt.files.atomic import check_output
from mexma_rt.files.endings import check_ending
from mexma_rt.files.tables import table

SCORE_COLUMNS = {"score": float, "source": str, "target": str}
Slab = tuple[list[tuple[str, str]], np.ndarray]  # pairs and their scores


@click.command(epilog="Example: mexma score french.txt english.txt -o scores.tsv")
@click.argument("source")
@click.argument("target")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write the scores to this .tsv, .jsonl or .parquet file.  [default: TSV to standard output]",
)
@click.option(
    "--background", metavar="FILE", help="Score against this background, so that files of any size get comparable scores."
)
@click.option("--save-background", metavar="FILE", help="Save the lines of this bitext as a background for others (.npz).")
@margin_options
@prompt_option
@model_options
def score(
    source: str,
    target: str,
    output: str | None,
    background: str | None,
    save_background: str | None,
    margin: str,
    k: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Score every line of SOURCE with the same line of TARGET.

    Writes the columns score, source, target; row i is line i. A pair with a blank side has the score -inf. --json prints a
    summary, and the scores too unless -o writes them. Neighbourhoods come from the two files; with --background (a file written
    by --save-background) they come from another bitext, and the files are read in chunks.
    """
    encoder = LoadedEncoder(options)
    if background is not None:
        if save_background is not None:
            raise click.UsageError("--background is read and --save-background written: use one of them.")
        check_both(source, target, output)
        slabs: Iterable[Slab] = _against(background, source, target, encoder, margin, k)
    else:
        slabs = _among_themselves(source, target, output, save_background, encoder, margin, k)
    kept: list[float] = []
    pairs = finite = 0
    total = 0.0
    with table(output, SCORE_COLUMNS) if output or not as_json else nullcontext() as write:
        for lines, scores in slabs:
            good = scores[np.isfinite(scores)]
            pairs, finite, total = pairs + len(scores), finite + len(good), total + float(good.sum(dtype=np.float64))
            if write is None:
                kept += scores.tolist()
                continue
            for value, (a, b) in zip(scores.tolist(), lines, strict=True):
                write((value, a, b))
    mean = total / finite if finite else None
    if as_json:
        summary: dict[str, Any] = {"pairs": pairs, "blank": pairs - finite, "mean": mean, "margin": margin, "k": k}
        summary |= {"output": output, "background": background}
        if not output:
            summary["scores"] = [value if np.isfinite(value) else None for value in kept]
        echo_json(summary | (report_sides(encoder, source, target) if background is None else {}))
        return
    text = "none with text on both sides" if mean is None else f"mean {margin} {mean:.4f}"
    click.echo(
        f"{pairs:,} pairs, {pairs - finite:,} with a blank side, {text}" + (f": {output}" if output else ""), err=not output
    )
    if background is None:
        describe_sides(encoder, source, target)


def _among_themselves(
    source: str, target: str, output: str | None, save: str | None, encoder: LoadedEncoder, margin: str, k: int
) -> list[Slab]:
    """Score the whole files at once, each the neighbourhood of the other."""
    import mexma_rt
    from mexma_rt.mining.background import Background, model_identity
    from mexma_rt.mining.pairs import check_pools
    from mexma_rt.mining.sides import Side

    if save:
        check_output(save, [source, target])
        if output and Path(save).resolve() == Path(output).resolve():
            raise click.UsageError(f"{save} cannot have both the scores and the background. Choose another name for one.")
        check_ending(save, "a background is written as .npz", (".npz",))
    lines = read_both(source, target, output)
    vectors: dict[str, Any] = {}
    if save and len(lines[0]) == len(lines[1]):
        source_side, target_side = Side.of(lines[0], None, "source", unify=True), Side.of(lines[1], None, "target", unify=True)
        check_pools(k, source_side, target_side, "distinct sentences")
        x, y = (encoder.embed(texts) for texts in lines)
        vectors = {"source_vectors": x, "target_vectors": y}
        Background.of(*lines, x, y, k=k, model=model_identity(encoder.loaded())).save(save)
    scores = mexma_rt.score_pairs(*lines, margin=margin, k=k, encoder=encoder, **vectors)
    return [(list(zip(*lines, strict=True)), scores)]


def _against(background: str, source: str, target: str, encoder: LoadedEncoder, margin: str, k: int) -> Iterator[Slab]:
    """Score slab by slab against the background, which is read and checked immediately."""
    from mexma_rt.files.spool import side_by_side
    from mexma_rt.mining.background import model_identity, open_background
    from mexma_rt.mining.bitext import slabs

    around = open_background(background)
    around.check(k=k, model=model_identity(encoder.loaded()))

    def scored(slab: list[tuple[str, str]]) -> Slab:
        src, tgt = [a for a, _ in slab], [b for _, b in slab]
        x, y = (encoder.embed(lines, progress=False) for lines in (src, tgt))
        encoder.reports.clear()  # one for each slab would grow with the file
        encoder.names.clear()
        return slab, around.scores(src, tgt, x, y, margin=margin)

    def all_scored() -> Iterator[Slab]:
        with side_by_side(source, target) as sides:
            yield from map(scored, slabs(*sides))

    return all_scored()
