"""`mexma mine`: find the translations between two corpora."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from mexma_rt.cli.common import (
    LoadedEncoder,
    Memory,
    clean_stdout,
    describe_sides,
    echo_json,
    margin_options,
    model_options,
    prompt_option,
    read_both,
    report_sides,
)
from mexma_rt.cli.edges import interrupted, resumes
from mexma_rt.embedding import named_prompt
from mexma_rt.files.atomic import check_output
from mexma_rt.files.endings import check_ending, visible
from mexma_rt.files.tables import check_table, table
from mexma_rt.files.unpacking import shown_name
from mexma_rt.knn.on_disk import SearchSettings
from mexma_rt.mining.candidates import RETRIEVALS, OneToOne
from mexma_rt.mining.found import MiningReport, Pair, Search
from mexma_rt.mining.on_disk import search_files
from mexma_rt.mining.page import EXAMPLES, Tally, render_page, write_page
from mexma_rt.mining.pairs import INDEXES, MineSettings, prepare
from mexma_rt.mining.thresholds import DEFAULT_THRESHOLD, resolved

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


@click.command(epilog="Example: mexma mine french.txt english.txt -o pairs.tsv --show 5")
@click.argument("source", required=False)
@click.argument("target", required=False)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write the pairs to this .tsv, .jsonl or .parquet file.  [default: TSV to standard output]",
)
@click.option("--report", "report_file", metavar="FILE", help="Write an .html page with charts, example pairs and what ran.")
@click.option("--source-vectors", metavar="PATH", help="Vectors of SOURCE: a .npy file or a folder of shards.")
@click.option("--target-vectors", metavar="PATH", help="Vectors of TARGET.")
@click.option(
    "--memory", type=Memory(), default="2GB", show_default=True, help="With vectors: bound on the memory of the process."
)
@margin_options
@click.option(
    "--retrieval",
    type=click.Choice(RETRIEVALS),
    default="max",
    show_default=True,
    help="max uses every sentence at most once; knn keeps all k candidates of every sentence.",
)
@click.option(
    "--threshold",
    type=float,
    help=f"Lowest score of a pair to keep.  [default: the model's, see calibrate; for mexma-small {_DEFAULTS}; none for knn]",
)
@click.option(
    "--index",
    type=click.Choice(INDEXES),
    default="exact",
    show_default=True,
    help="Search: exact, or ivfpq (approximate candidates, exact scores; its recall is reported).",
)
@click.option("--ray", metavar="ADDRESS", help="With vectors: search on a Ray cluster: local, auto or HOST:PORT.")
@click.option("--show", type=click.IntRange(min=0), help="Print the best N pairs in readable form instead of TSV.")
@prompt_option
@model_options
@click.pass_context
def mine(
    context: click.Context,
    /,
    source: str | None,
    target: str | None,
    output: str | None,
    report_file: str | None,
    source_vectors: str | None,
    target_vectors: str | None,
    memory: int,
    ray: str | None,
    show: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the translations between the lines of SOURCE and TARGET.

    Writes one row per pair, best first: score, cosine, source_line, target_line (from 1), forward_rank (the rank of the
    target among the k nearest of the source, empty if it is not among them), backward_rank (the reverse), source_mean,
    target_mean (mean cosine to the k nearest, which the margin compares with), source, target. Equal lines count once, blank
    lines never. With --json, the object contains the pairs unless -o writes them.

    With --source-vectors and --target-vectors no model runs (--model and --prompt say what made them, for the threshold), and
    the vectors may be larger than memory; the lines may be omitted (pairs then have line numbers only). After an interruption
    the same command resumes. With --ray the bytes are the same, and a killed worker costs only time; the vectors and the
    output's folder must have the same paths on every machine, and each worker may use --memory.
    """
    started = time.perf_counter()
    settings = MineSettings(**{name: options.pop(name) for name in ("margin", "k", "retrieval", "threshold", "index")})
    encoder = LoadedEncoder(options)
    if report_file:
        check_ending(report_file, "a page is written as .html", (".html", ".htm"))
        check_output(report_file, [name for name in (source, target, source_vectors, target_vectors) if name])
        if output and Path(report_file).resolve() == Path(output).resolve():
            raise click.UsageError(f"{report_file} cannot be both the table and the page. Choose another name for one of them.")
    if source_vectors is None and target_vectors is None:
        if source is None or target is None:
            raise click.UsageError("Missing argument 'TARGET'." if source else "Missing argument 'SOURCE'.")
        if ray is not None:
            raise click.UsageError(
                f"--ray searches in ready vectors. Make them first: mexma embed {source} -o source.npy --ray {ray}, and the "
                f"same for {target}; then add --source-vectors source.npy --target-vectors target.npy"
            )
        if context.get_parameter_source("memory") is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("--memory bounds the search in ready vectors; lines and their vectors are held in memory.")
        lines = read_both(source, target, output)
        found = prepare(*lines, encoder, None, None, settings, None, warn=True)
        opened: AbstractContextManager[Search] = nullcontext(found)
        names = source, target
    else:
        names = source or str(source_vectors), target or str(target_vectors)
        texts = _check_vectors(source, target, source_vectors, target_vectors, output, settings.index)
        made_by = context.get_parameter_source("model") is click.core.ParameterSource.COMMANDLINE  # --model and --prompt
        if encoder.prompt is not None:
            if not made_by:
                raise click.UsageError("With ready vectors, --prompt says what they were made with, and --model is needed too.")
            named_prompt(encoder.bundle.prompts, encoder.prompt)
        if made_by:
            settings, foreign = resolved(settings, encoder)
            if foreign is not None:
                click.echo(f"warning: {foreign.message}", err=True)
        opened = search_files(
            str(source_vectors),
            str(target_vectors),
            str(output),
            settings,
            SearchSettings(memory_bytes=memory, device=options["device"]),
            src=texts[0],
            tgt=texts[1],
            ray=ray,
            announce=partial(click.echo, err=True),
        )
    with interrupted(resumes(str(output), "mining")) if source_vectors else nullcontext(), clean_stdout(ray), opened as search:
        listed, report, tally, matching = _take(search, output, show, as_json, report_file is not None, started)
        if report_file and tally is not None:
            below = list(search.described(search.below(matching, EXAMPLES // 2)))
            lowest = list(search.described(search.lowest(EXAMPLES)))
            shown = visible(shown_name(names[0])), visible(shown_name(names[1]))
            html = render_page(tally, report, names=shown, below=below, lowest=lowest, embedded=encoder.reports)
            write_page(report_file, html)
    _tell(report, listed, encoder, names, output, report_file, show, as_json)


def _check_vectors(
    source: str | None, target: str | None, x: str | None, y: str | None, output: str | None, index: str
) -> tuple[list[str] | None, list[str] | None]:
    """Check the options for ready vectors, and read their lines, if any."""
    if x is None or y is None:
        raise click.UsageError("--source-vectors and --target-vectors go together.")
    if (source is None) != (target is None):
        raise click.UsageError("With ready vectors, give the lines of both sides or of none.")
    if output is None:
        raise click.UsageError("With ready vectors, -o is needed: an interrupted run keeps what it has found beside it.")
    if index != "exact":
        raise click.UsageError(f"--index {index} embeds the lines itself. Leave out --source-vectors and --target-vectors.")
    if source is None or target is None:
        check_table(output)
        check_output(output, [x, y])
        return None, None
    check_output(output, [x, y])
    return read_both(source, target, output)


def _take(
    search: Search, output: str | None, show: int | None, as_json: bool, counted: bool, started: float
) -> tuple[list[dict[str, Any]], MiningReport, Tally | None, OneToOne | None]:
    """Write the pairs as they come; return those to list, the report, and what the page needs."""
    listed: list[dict[str, Any]] = []
    longest = show if show is not None else 0 if output or not as_json else float("inf")
    tally, matching, count = Tally.of(search) if counted else None, search.matching(), 0
    chunks = search.chunks(matching)
    pairs = tally.watch(chunks) if tally else (pair for chunk in chunks for pair in search.described(chunk))
    with table(output, PAIR_COLUMNS) if output or not (as_json or show is not None) else nullcontext() as write:
        for count, pair in enumerate(pairs, start=1):  # noqa: B007  (the last number is how many there are)
            row = _row(pair)
            if write is not None:
                write(row)
            if len(listed) < longest:
                listed.append(dict(zip(PAIR_COLUMNS, row, strict=True)))
    return listed, search.report(count, time.perf_counter() - started), tally, matching


def _tell(
    report: MiningReport,
    listed: list[dict[str, Any]],
    encoder: LoadedEncoder,
    names: tuple[str, str],
    output: str | None,
    report_file: str | None,
    show: int | None,
    as_json: bool,
) -> None:
    if as_json:
        counts = asdict(report) | {"threshold": report.threshold if abs(report.threshold) < float("inf") else None}
        sides = report_sides(encoder, *names) if encoder.reports else {}
        both = {side: counts[side] | sides[side] for side in sides}
        files = {"output": output, "report": report_file}
        echo_json({**counts, **both, **files, "found": report.pairs, "pairs": listed})
        return
    for row in listed:
        _show(row)
    # Standard output stays pure TSV where it carries the table.
    click.echo(_summary(report) + (f": {output}" if output else ""), err=not output and show is None)
    if report_file:
        click.echo(f"report: {report_file}", err=True)
    if report.recall is not None:
        click.echo(
            f"{report.index}: found {report.recall.forward:.1%} of the {report.k} nearest targets and "
            f"{report.recall.backward:.1%} of the {report.k} nearest sources, for {report.recall.rows:,} lines of each side",
            err=True,
        )
    for warning in report.warnings:
        click.echo(f"warning: {warning.message}", err=True)
    if encoder.reports:
        describe_sides(encoder, *names)


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
