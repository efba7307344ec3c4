"""`mexma xsim`: measure how well parallel files find each other: one pair, a folder of languages, or all pairs of a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click

from mexma_rt.cli.common import LoadedEncoder, describe, echo_json, margin_options, model_options, prompt_option, ran
from mexma_rt.embedding.report import how_to_keep

if TYPE_CHECKING:
    from mexma_rt.evaluation import Comparison, FolderResult, ParallelFiles

ERROR_COLUMNS = {"source": str, "target": str, "sentences": int, "errors": int, "xsim": float}


@click.command(
    short_help="Measure how often a sentence misses its translation.",
    epilog="Example: mexma xsim folder --target eng --plot bars.png",
)
@click.argument("source")
@click.argument("target", required=False)
@click.option(
    "--target", "language", default="eng", show_default=True, help="With a folder: compare every language with LANGUAGE.txt."
)
@click.option("--languages", help="With a folder: compare only these languages, such as fra,deu.  [default: every .txt file]")
@click.option("--all-pairs", is_flag=True, help="With a folder: compare every language with every other, both ways.")
@click.option("--augmented", metavar="FILE", help="xsim++: file with the altered copies of the target's lines, one per line.")
@click.option("--errtypes", metavar="FILE", help="xsim++: .json file that says how each of these was altered.")
@click.option("--index-comparison", is_flag=True, help="Count an equal line at another position as an error.")
@click.option("-o", "--output", metavar="FILE", help="Write a row per comparison to this .tsv, .jsonl or .parquet file.")
@click.option("--plot", metavar="FILE", help="Draw the errors (.png, .svg or .pdf): bars, or all pairs as a map.")
@margin_options
@prompt_option
@model_options
def xsim(
    source: str,
    target: str | None,
    language: str,
    languages: str | None,
    all_pairs: bool,
    augmented: str | None,
    errtypes: str | None,
    index_comparison: bool,
    output: str | None,
    plot: str | None,
    margin: str,
    k: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how often a sentence does not find its translation among all lines of the other file.

    SOURCE and TARGET are line-aligned files; or SOURCE is a folder of such files, one per language, compared with one of
    them. xsim is the error rate by margin, SOURCE to TARGET, in percent, where an equal line counts as right (as in LASER's
    eval.py); accuracy is the share of nearest cosines that are right, in percent, there and back. The last rows are LASER's
    average (all errors / all sentences) and the mean over languages. With --augmented and --errtypes, in LASER's form, the
    error is xsim++'s, broken down by what was found instead.
    """
    from mexma_rt.evaluation import Altered, FolderResult, XsimSettings, compare

    files = _files(source, target, language, languages, all_pairs)
    if (augmented is None) != (errtypes is None):
        raise click.UsageError("--augmented and --errtypes go together.")
    if index_comparison and augmented:
        raise click.UsageError("--augmented compares texts, so it does not go with --index-comparison.")
    if all_pairs and augmented:
        raise click.UsageError("--augmented has altered lines of one target, so it does not go with --all-pairs.")
    _check_outputs(output, plot, [*files.sources.values()])
    texts = files.read(k)
    altered = Altered.read(augmented, errtypes, texts) if augmented and errtypes else None
    if altered and altered.unknown:
        what = f"{altered.unknown:,} of {len(altered.lines):,} altered lines are not in {errtypes}"
        click.echo(f"warning: {what}: where one is found, it counts as Misaligned.", err=True)
    encoder = LoadedEncoder(options)
    settings = XsimSettings(margin=margin, k=k, index_comparison=index_comparison)
    rows: list[Comparison] = []
    for row in compare(files, texts, lambda lines, name: encoder.embed(lines, name=name), settings, altered):
        rows.append(row)
        if not as_json and files.target is not None:
            _print_row(row, header=len(rows) == 1)
    result = FolderResult.of(rows)
    if not as_json:
        if files.target is None:
            _print_sums(result)
        elif len(rows) > 1:
            _print_row(result.average)
            _print_row(result.mean)
    if output:
        _write(output, result, files.target)
    if plot:
        title = f"{'xsim++' if augmented else 'xsim'} of {encoder.reports[0].model}"
        _draw(plot, result, files.target, title, f"{margin}, k={k}")
    if as_json:
        one = {} if files.target is None else {"target": str(files.target), "augmented": augmented}
        shared = {"margin": margin, "k": k, "comparison": "index" if index_comparison else "text"} | one
        measured = {"results": [row.as_data() for row in rows]}
        echo_json(shared | measured | {"average": result.average.as_data(), "mean": result.mean.as_data()})
        return
    _tell(encoder, None if files.target is None else str(files.target))


def _tell(encoder: LoadedEncoder, goal: str | None) -> None:
    """Print what ran, from the target's report (all pairs: the first language's), and one line on truncated sentences."""
    runs = list(zip(encoder.names, encoder.reports, strict=True))
    if len(runs) <= 2:
        for name, report in runs:
            if report.truncated or name == goal:
                click.echo(describe(report, name), err=True)
        return
    first = next((report for name, report in runs if name == goal), runs[0][1])
    sentences, seconds = sum(report.sentences for _, report in runs), sum(report.seconds for _, report in runs)
    click.echo(
        f"{len(runs)} files: {sentences:,} sentences in {seconds:.1f} s, {sentences / max(seconds, 1e-9):,.0f} per second; "
        f"{ran(first)}",
        err=True,
    )
    cut = [(name, report) for name, report in runs if report.truncated]
    if cut:
        most, worst = max(cut, key=lambda run: len(run[1].truncated))
        lengths = tuple(length for _, report in cut for length in report.truncated_lengths)
        click.echo(
            f"{sum(len(report.truncated) for _, report in cut):,} sentences of {len(cut)} files had more than "
            f"{worst.max_length} tokens and were cut, most of them, {len(worst.truncated):,}, in {most}. "
            f"{how_to_keep(replace(worst, truncated_lengths=lengths), '--max-length {}')}",
            err=True,
        )


def _files(source: str, target: str | None, language: str, languages: str | None, all_pairs: bool) -> ParallelFiles:
    from mexma_rt.evaluation import ParallelFiles
    from mexma_rt.files.unpacking import is_stdin

    if target is not None:
        if languages is not None or all_pairs:
            raise click.UsageError(f"--{'languages' if languages else 'all-pairs'} is for a folder, but two files were given.")
        if is_stdin(source) and is_stdin(target):
            raise click.UsageError("Only one of SOURCE and TARGET can be standard input.")
        return ParallelFiles.of_pair(source, target)
    if not Path(source).is_dir():
        raise click.UsageError(f"{source} is not a folder: type TARGET as well, the file with its translations.")
    wanted = None if languages is None else [name.strip() for name in languages.split(",")]
    return ParallelFiles.of_folder(source, target=language, languages=wanted, all_pairs=all_pairs)


def _check_outputs(output: str | None, plot: str | None, inputs: list[Path]) -> None:
    from mexma_rt.files.atomic import check_output
    from mexma_rt.files.pictures import check_plot
    from mexma_rt.files.tables import check_table

    if output:
        check_table(output)
        check_output(output, inputs)
    if plot:
        check_plot(plot)
        check_output(plot, inputs)


def _write(output: str, result: FolderResult, target: Path | None) -> None:
    from mexma_rt.files.tables import table

    kinds = list(result.rows[0].by_type or ())
    with table(output, ERROR_COLUMNS | dict.fromkeys(kinds, int)) as write:
        for row in result.rows:
            counts = [] if row.by_type is None else [row.by_type[kind] for kind in kinds]
            name = row.target if target is None else target.stem
            write([row.language, name, row.sentences, row.errors, row.xsim, *counts])


def _draw(plot: str, result: FolderResult, target: Path | None, title: str, settings: str) -> None:
    import numpy as np

    from mexma_rt.evaluation import bars, heat_map
    from mexma_rt.files.pictures import save

    if target is not None:
        save(bars(result.rows, f"{title}, X → {target.stem} ({settings})", result.mean.xsim), plot)
        return
    names = list(dict.fromkeys(row.language for row in result.rows))
    errors = np.full((len(names), len(names)), np.nan)
    for row in result.rows:
        errors[names.index(row.language), names.index(row.target or "")] = row.xsim
    save(heat_map(errors, names, f"{title}, all pairs ({settings})"), plot)


def _print_row(row: Comparison, header: bool = False) -> None:
    kinds = row.by_type or {}
    if header:
        click.echo("language  sentences   xsim %   accuracy % there   back" + "".join(f"   {kind}" for kind in kinds))
    click.echo(
        f"{row.language:<9} {row.sentences:>9} {row.xsim:>8.2f} {row.accuracy_there:>18.2f} "
        f"{row.accuracy_back:>6.2f}" + "".join(f"   {count:>{len(kind)}}" for kind, count in kinds.items())
    )


def _print_sums(result: FolderResult) -> None:
    """Print each language's mean error as the source and as the target: all pairs would be too many."""
    click.echo("language   xsim % from it   into it")
    for name in dict.fromkeys(row.language for row in result.rows):
        there = fmean(row.xsim for row in result.rows if row.language == name)
        back = fmean(row.xsim for row in result.rows if row.target == name)
        click.echo(f"{name:<9} {there:>16.2f} {back:>9.2f}")
    for row in (result.average, result.mean):
        click.echo(f"{row.language:<9} {row.xsim:>16.2f}   over {len(result.rows):,} ordered pairs")
