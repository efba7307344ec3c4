"""`mexma align`: align the sentences of two documents, or the words of a line-aligned bitext."""

from __future__ import annotations

import time
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from mexma_rt.cli.common import LoadedEncoder, describe, echo_json, model_options, prompt_option, read_both, report_dict

if TYPE_CHECKING:
    from mexma_rt.align.documents import Bead
    from mexma_rt.align.words import WordAlignment

# Repeated here so that --help loads nothing; tests compare them with the library's.
METHODS, UNITS, SEGMENTS, DELETION = ("inter", "itermax", "match", "ot"), ("piece", "word"), ("text", "mean"), 0.002
DOCUMENT_COLUMNS = {"score": float, "source_lines": str, "target_lines": str, "source": str, "target": str}
WORD_COLUMNS = {"links": str, "scores": str, "source_words": str, "target_words": str}


@click.command(
    short_help="Align the sentences of two documents.", epilog="Example: mexma align chapter.fr chapter.en -o beads.tsv"
)
@click.argument("source")
@click.argument("target")
@click.option("-o", "--output", metavar="FILE", help="Write to this .tsv, .jsonl or .parquet file.  [default: standard output]")
@click.option("--words", is_flag=True, help="Align the words of line i of SOURCE and line i of TARGET.")
@click.option(
    "--max-size",
    type=click.IntRange(2, 12),
    default=4,
    show_default=True,
    help="Maximum number of sentences in a bead, both sides together.",
)
@click.option(
    "--segments",
    type=click.Choice(SEGMENTS),
    default="text",
    show_default=True,
    help="How to get the vector of joined sentences: embed the joined text, or take the mean.",
)
@click.option(
    "--deletion",
    type=click.FloatRange(0, 1),
    default=DELETION,
    show_default=True,
    help="Cost of leaving a sentence unaligned, as a quantile.",
)
@click.option("--pairs", is_flag=True, help="Omit sentences without a partner.")
@click.option(
    "--method", type=click.Choice(METHODS), default="itermax", show_default=True, help="With --words: linking method."
)
@click.option("--unit", type=click.Choice(UNITS), default="word", show_default=True, help="With --words: unit to link.")
@click.option("--threshold", type=float, default=-1.0, help="With --words: lowest cosine of a link.")
@prompt_option
@model_options
@click.pass_context
def align(
    context: click.Context, /, source: str, target: str, output: str | None, words: bool, as_json: bool, **options: Any
) -> None:
    """Align the sentences of two documents, SOURCE and TARGET, one sentence per line, in the same order.

    Writes one row per bead: score, source_lines and target_lines (from 1, as "4,5"; empty for a sentence without a partner),
    source and target (joined by a space). Blank lines are omitted.

    With --words, SOURCE and TARGET are a bitext, and each row has the links of a line as "0-0 1-2" (Pharaoh's format, words
    from 0). Standard output gets only these; a file has the columns links, scores, source_words and target_words (JSON lists).
    """
    for_documents = {name: options.pop(name) for name in ("max_size", "segments", "deletion", "pairs")}
    for_words = {name: options.pop(name) for name in ("method", "unit", "threshold")}
    for name in for_documents if words else for_words:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            other = "is for documents: leave out --words" if words else "is for words: add --words"
            raise click.UsageError(f"--{name.replace('_', '-')} {other}, or leave it out.")
    if words and options["prompt"] is not None:
        raise click.UsageError("--prompt is for sentence vectors: words are aligned by their own. Leave one of the two out.")
    lines = read_both(source, target, output)
    if words:
        del options["prompt"]
        _words(*lines, (source, target), output, as_json, options, **for_words)
    else:
        _documents(*lines, (source, target), output, as_json, options, **for_documents)


def _documents(
    source: list[str],
    target: list[str],
    names: tuple[str, str],
    output: str | None,
    as_json: bool,
    options: dict[str, Any],
    pairs: bool,
    **settings: Any,
) -> None:
    from mexma_rt.align.documents import align_documents
    from mexma_rt.files.tables import table

    started, encoder = time.perf_counter(), LoadedEncoder(options)
    beads = align_documents(source, target, encoder=encoder, **settings)
    kept = [bead for bead in beads if not pairs or (bead.source and bead.target)]
    with table(output, DOCUMENT_COLUMNS) if output or not as_json else nullcontext() as write:
        if write is not None:
            for bead in kept:
                write(_bead_row(bead, source, target))
    seconds = time.perf_counter() - started
    kinds: dict[str, int] = {}
    for bead in beads:
        kind = f"{len(bead.source)}-{len(bead.target)}"
        kinds[kind] = kinds.get(kind, 0) + 1
    kinds = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    reports = [encoder.reports[0], encoder.reports[len(encoder.reports) // 2]]  # the others are of joined lines
    if as_json:
        listed = [] if output else [dict(zip(DOCUMENT_COLUMNS, _bead_row(bead, source, target), strict=True)) for bead in kept]
        sides = {
            side: report_dict(report, name) for side, report, name in zip(("source", "target"), reports, names, strict=True)
        }
        echo_json(
            {"beads": len(beads), "kinds": kinds, **settings, "output": output, "rows": listed, **sides, "seconds": seconds}
        )
        return
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "none"
    click.echo(
        f"{len(beads):,} beads of {len(source):,} x {len(target):,} lines ({counts}) in {seconds:.1f} s"
        + (f": {output}" if output else ""),
        err=not output,
    )
    for report, name in zip(reports, names, strict=True):
        click.echo(describe(report, name), err=True)


def _bead_row(bead: Bead, source: list[str], target: list[str]) -> tuple[object, ...]:
    numbers = (",".join(str(row + 1) for row in side) for side in (bead.source, bead.target))
    texts = (" ".join(lines[row] for row in rows) for lines, rows in ((source, bead.source), (target, bead.target)))
    return (bead.score, *numbers, *texts)


def _words(
    source: list[str],
    target: list[str],
    names: tuple[str, str],
    output: str | None,
    as_json: bool,
    options: dict[str, Any],
    **settings: Any,
) -> None:
    import mexma_rt
    from mexma_rt.align.words import align_words
    from mexma_rt.errors import InputError, TruncationWarning
    from mexma_rt.files.tables import table

    if len(source) != len(target):
        raise InputError(
            f"{names[0]} has {len(source):,} lines and {names[1]} {len(target):,}, but with --words line i belongs to "
            "line i. To pair the sentences of two documents first, leave out --words."
        )
    started, batch_tokens = time.perf_counter(), options.pop("batch_tokens")
    encoder = mexma_rt.load(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # reported below, in command-line terms
        found = align_words(source, target, encoder=encoder, batch_tokens=batch_tokens, **settings)
    if output:
        with table(output, WORD_COLUMNS) as write:
            for result in found:
                write(_word_row(result))
    elif not as_json:
        for result in found:
            click.echo(result.pharaoh)
    seconds, links = time.perf_counter() - started, sum(len(result.links) for result in found)
    cut = [number for number, result in enumerate(found, 1) if result.truncated]
    if as_json:
        listed = [] if output else [_word_dict(result) for result in found]
        echo_json(
            {"pairs": len(found), "links": links, **settings, "output": output, "truncated_lines": cut, "rows": listed}
            | {"model": encoder.bundle.name, "device": encoder.backend.device, "precision": encoder.backend.precision}
            | {"reason": encoder.backend.reason, "seconds": seconds}
        )
        return
    click.echo(
        f"{links:,} links of {len(found):,} pairs ({settings['method']}) in {seconds:.1f} s"
        + (f": {output}" if output else ""),
        err=not output,
    )
    if cut:
        click.echo(
            f"{len(cut):,} lines had a side with more than {encoder.max_length} tokens, whose last words have no links; the "
            f"first is line {cut[0]}. To keep more, type --max-length N, up to {encoder.bundle.max_length_limit}",
            err=True,
        )


def _word_dict(result: WordAlignment) -> dict[str, Any]:
    return {
        "links": result.pharaoh,
        "scores": result.scores,
        "source_words": result.source_words,
        "target_words": result.target_words,
    }


def _word_row(result: WordAlignment) -> tuple[str, ...]:
    import json

    links, *lists = _word_dict(result).values()
    return (links, *(json.dumps(part, ensure_ascii=False) for part in lists))
