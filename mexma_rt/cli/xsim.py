"""`mexma xsim`: how well parallel files find each other, for one pair, a folder of languages, or all pairs of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click

from mexma_rt.cli.common import LoadedEncoder, describe, echo_json, margin_options, model_options, ran
from mexma_rt.embedding.report import how_to_keep

if TYPE_CHECKING:
    import numpy as np

ERROR_COLUMNS = {"source": str, "target": str, "sentences": int, "errors": int, "xsim": float}
Row = dict[str, Any]


@click.command(epilog="Example: mexma xsim folder --target eng --plot bars.png")
@click.argument("source")
@click.argument("target", required=False)
@click.option("--target", "language", default="eng", show_default=True, help="With a folder: compare with LANGUAGE.txt.")
@click.option("--languages", help="With a folder: only these, such as fra,deu.  [default: every .txt file]")
@click.option("--all-pairs", is_flag=True, help="With a folder: every language with every other, both ways.")
@click.option("--augmented", metavar="FILE", help="xsim++: the altered copies of the target's lines, one per line.")
@click.option("--errtypes", metavar="FILE", help="xsim++: the .json file that says how each of them was altered.")
@click.option("--index-comparison", is_flag=True, help="An equal line at another place is an error too.")
@click.option("-o", "--output", metavar="FILE", help="Write a row per comparison to this .tsv, .jsonl or .parquet file.")
@click.option("--plot", metavar="FILE", help="Draw the errors (.png, .svg or .pdf): bars, or all pairs as a map.")
@margin_options
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
    them. xsim is the error in percent by margin, SOURCE to TARGET, where an equal line counts as right (as LASER's
    eval.py); accuracy is that of the nearest cosine, in percent, there and back. The last rows are the average as LASER has
    it, all errors by all sentences, and the plain mean of the languages. With --augmented and --errtypes, in the form that
    LASER publishes, the error is that of xsim++, listed by what was found instead.
    """
    files, goal = _files(source, target, language, languages, all_pairs)
    if (augmented is None) != (errtypes is None):
        raise click.UsageError("--augmented and --errtypes go together.")
    if index_comparison and augmented:
        raise click.UsageError("--augmented compares texts, so it does not go with --index-comparison.")
    if all_pairs and augmented:
        raise click.UsageError("--augmented has altered lines of one target, so it does not go with --all-pairs.")
    _check_outputs(output, plot, [*files.values()])
    texts = _read(files, goal, k)
    encoder = LoadedEncoder(options)
    settings = {"margin": margin, "k": k}
    shared: Row = {**settings, "comparison": "index" if index_comparison else "text"}
    if goal is None:
        rows = list(_all_pairs(texts, encoder, index_comparison, settings))
        result: Row = {**shared, "results": rows, **_averages(rows)}
        if not as_json:
            _print_sums(rows, result)
    else:
        shared |= {"target": str(goal), "augmented": augmented}
        rows = []
        for row in _to_one(files, texts, goal, encoder, augmented, errtypes, index_comparison, settings):
            rows.append(row)
            if not as_json:
                _print_row(row, header=len(rows) == 1)
        result = {**shared, "results": rows, **_averages(rows)}
        if not as_json and len(rows) > 1:
            _print_row(result["average"])
            _print_row(result["mean"])
    if output:
        _write(output, rows, goal)
    if plot:
        _draw(plot, rows, result, goal, encoder)
    if as_json:
        echo_json(result)
        return
    _tell(encoder, None if goal is None else str(goal))


def _tell(encoder: LoadedEncoder, goal: str | None) -> None:
    """What ran, by the target's report (all pairs: the first language's), and in one line what was cut of how many files."""
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


def _to_one(
    files: dict[str, Path],
    texts: dict[str, list[str]],
    goal: Path,
    encoder: LoadedEncoder,
    augmented: str | None,
    errtypes: str | None,
    index_comparison: bool,
    settings: dict[str, Any],
) -> Iterator[Row]:
    """A row per language, as it is measured; one language is held at a time, beside the target's lines."""
    from mexma_rt import xsim as measure
    from mexma_rt.evaluation.augmented import read_augmented
    from mexma_rt.evaluation.measures import retrieval_accuracy

    pool, types = texts[""], None
    size = len(pool)
    if augmented and errtypes:
        altered, types = read_augmented(augmented, errtypes, pool)
        pool = pool + altered
        if unknown := sum(line not in types for line in altered):
            what = f"{unknown:,} of {len(altered):,} altered lines are not in {errtypes}"
            click.echo(f"warning: {what}: where one is found, it counts as Misaligned.", err=True)
    y: np.ndarray | None = None
    for name, file in files.items():
        y = encoder.embed(pool, name=str(goal)) if y is None else y
        x = encoder.embed(texts[name], name=str(file))
        lines = None if index_comparison else pool
        found = measure(x, y, text=lines, error_types=types, **settings)
        there, back = retrieval_accuracy(x, y[:size])
        row = {"language": name, "sentences": found.total, "errors": found.errors, "xsim": found.error_rate}
        row |= {"accuracy_there": there, "accuracy_back": back}
        yield row | ({} if found.by_type is None else {"by_type": found.by_type})


def _all_pairs(
    texts: dict[str, list[str]], encoder: LoadedEncoder, index_comparison: bool, settings: dict[str, Any]
) -> Iterator[Row]:
    """Both ways of each pair from one product; the vectors of all languages are held, the lines too."""
    from mexma_rt.evaluation.measures import xsim_both
    from mexma_rt.progress import progress_bar

    vectors = {name: encoder.embed(lines, name=name) for name, lines in texts.items()}
    names = list(texts)
    with progress_bar(None, total=len(names) * (len(names) - 1) // 2, desc="xsim", unit="pair") as advance:
        for place, a in enumerate(names):
            for b in names[place + 1 :]:
                lines = (None, None) if index_comparison else (texts[a], texts[b])
                found_both = xsim_both(vectors[a], vectors[b], x_text=lines[0], y_text=lines[1], **settings)
                for (one, other), found in zip(((a, b), (b, a)), found_both, strict=True):
                    row = {"language": one, "target": other, "sentences": found.total, "errors": found.errors}
                    yield row | {"xsim": found.error_rate}
                advance(1)


def _averages(rows: list[Row]) -> dict[str, Row]:
    """average: all errors by all sentences, as LASER; mean: every comparison counts alike."""
    total = sum(row["sentences"] for row in rows)
    average: Row = {"language": "average", "sentences": total, "errors": sum(row["errors"] for row in rows)}
    mean: Row = {"language": "mean", "sentences": total, "errors": average["errors"]}
    for column in [name for name in ("xsim", "accuracy_there", "accuracy_back") if name in rows[0]]:
        average[column] = sum(row[column] * row["sentences"] for row in rows) / total
        mean[column] = fmean(row[column] for row in rows)
    if "by_type" in rows[0]:
        average["by_type"] = {kind: sum(row["by_type"][kind] for row in rows) for kind in rows[0]["by_type"]}
        mean["by_type"] = average["by_type"]
    return {"average": average, "mean": mean}


def _read(files: dict[str, Path], goal: Path | None, k: int) -> dict[str, list[str]]:
    """The lines by language, the target's under "", all of one length: checked before a model is loaded."""
    from mexma_rt.checks import check_k
    from mexma_rt.errors import InputError
    from mexma_rt.files.atomic import read_lines
    from mexma_rt.files.spool import side_by_side
    from mexma_rt.files.unpacking import is_stdin

    first = goal if goal is not None else next(iter(files.values()))
    named = ({"": goal} if goal is not None else {}) | files
    if sum(map(is_stdin, named.values())) > 1:
        raise click.UsageError("Only one of SOURCE and TARGET can be standard input.")
    texts: dict[str, list[str]] = {}
    with side_by_side(*named.values()) as readable:
        for (name, file), copy in zip(named.items(), readable, strict=True):
            texts[name] = read_lines(copy)
            size = len(next(iter(texts.values())))
            if len(texts[name]) != size:
                raise InputError(f"{file} has {len(texts[name])} lines and {first} {size}, but they must be line-aligned.")
            if name:
                check_k(k, {str(file): size}, "lines")
    for name, lines in texts.items():
        if not any(map(str.strip, lines)):
            raise InputError(f"{files.get(name, goal)} has {size:,} lines and no text in them, so there is nothing to find.")
    return texts


def _files(
    source: str, target: str | None, language: str, languages: str | None, all_pairs: bool
) -> tuple[dict[str, Path], Path | None]:
    """The files to compare, by language, and the file to compare them with (None: with each other)."""
    from mexma_rt.errors import FileError, InputError
    from mexma_rt.files.endings import visible

    folder = Path(source)
    if target is not None:
        if languages is not None or all_pairs:
            raise click.UsageError(f"--{'languages' if languages else 'all-pairs'} is for a folder, but two files were given.")
        return {visible(folder.stem): folder}, Path(target)
    if not folder.is_dir():
        raise click.UsageError(f"{source} is not a folder: give TARGET as well, the file of its translations.")
    goal = folder / f"{language}.txt"
    if not all_pairs and not goal.is_file():
        raise FileError(
            f"{goal} does not exist, but --target {language} compares with it. Type --target with another language."
        )
    found = {visible(file.stem): file for file in sorted(folder.glob("*.txt")) if all_pairs or file != goal}
    if not found:
        beside = "" if all_pairs else f" besides {goal.name}: there is nothing to compare with it"
        raise InputError(f"{folder} has no .txt file{beside}.")
    wanted = list(found) if languages is None else list(dict.fromkeys(name.strip() for name in languages.split(",")))
    for name in wanted:
        if name not in found:
            raise InputError(f"{folder} has no {name}.txt to compare with {goal.name}. It has: {', '.join(found)}.")
    if all_pairs and len(wanted) < 2:
        raise InputError(f"--all-pairs compares languages with each other, but there is only {wanted[0]}.")
    return {name: found[name] for name in wanted}, None if all_pairs else goal


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


def _write(output: str, rows: list[Row], goal: Path | None) -> None:
    from mexma_rt.files.tables import table

    kinds = list(rows[0].get("by_type", ()))
    with table(output, ERROR_COLUMNS | dict.fromkeys(kinds, int)) as write:
        for row in rows:
            target = row["target"] if goal is None else goal.stem
            counts = [row["by_type"][kind] for kind in kinds]
            write([row["language"], target, row["sentences"], row["errors"], row["xsim"], *counts])


def _draw(plot: str, rows: list[Row], result: Row, goal: Path | None, encoder: LoadedEncoder) -> None:
    import numpy as np

    from mexma_rt.evaluation.plot import bars, heat_map
    from mexma_rt.files.pictures import save

    measure = f"{'xsim++' if result.get('augmented') else 'xsim'} of {encoder.reports[0].model}"
    settings = f"{result['margin']}, k={result['k']}"
    if goal is not None:
        save(bars(rows, f"{measure}, X → {goal.stem} ({settings})", result["mean"]["xsim"]), plot)
        return
    names = list(dict.fromkeys(row["language"] for row in rows))
    place, errors = {name: i for i, name in enumerate(names)}, np.full((len(names), len(names)), np.nan)
    for row in rows:
        errors[place[row["language"]], place[row["target"]]] = row["xsim"]
    save(heat_map(errors, names, f"{measure}, all pairs ({settings})"), plot)


def _print_row(row: Row, header: bool = False) -> None:
    kinds = row.get("by_type", {})
    if header:
        click.echo("language  sentences   xsim %   accuracy % there   back" + "".join(f"   {kind}" for kind in kinds))
    click.echo(
        f"{row['language']:<9} {row['sentences']:>9} {row['xsim']:>8.2f} {row['accuracy_there']:>18.2f} "
        f"{row['accuracy_back']:>6.2f}" + "".join(f"   {count:>{len(kind)}}" for kind, count in kinds.items())
    )


def _print_sums(rows: list[Row], result: Row) -> None:
    """All pairs are too many to print: each language's mean as the one searched with, and as the one found."""
    click.echo("language   xsim % from it   into it")
    for name in dict.fromkeys(row["language"] for row in rows):
        there = fmean(row["xsim"] for row in rows if row["language"] == name)
        back = fmean(row["xsim"] for row in rows if row["target"] == name)
        click.echo(f"{name:<9} {there:>16.2f} {back:>9.2f}")
    for name in ("average", "mean"):
        click.echo(f"{name:<9} {result[name]['xsim']:>16.2f}   over {len(rows):,} ordered pairs")
