"""`mexma xsim`: how well parallel files find each other, for one pair or for a folder of languages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mexma_rt.cli.common import LoadedEncoder, describe, echo_json, margin_options, model_options

if TYPE_CHECKING:
    import numpy as np


@click.command()
@click.argument("source")
@click.argument("target", required=False)
@click.option("--target", "language", default="eng", show_default=True, help="With a folder: compare with LANGUAGE.txt.")
@click.option("--languages", help="With a folder: only these, such as fra,deu.  [default: every .txt file]")
@margin_options
@model_options
def xsim(
    source: str,
    target: str | None,
    language: str,
    languages: str | None,
    margin: str,
    k: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how often a sentence does not find its translation among all lines of the other file.

    SOURCE and TARGET are line-aligned files; or SOURCE is a folder of such files, one per language, compared with one of
    them. xsim is the error in percent by margin, SOURCE to TARGET, where an equal line counts as right (as LASER's
    eval.py); accuracy is that of the nearest cosine, in percent, there and back. Averages weigh every sentence alike.
    """
    from mexma_rt import xsim as measure
    from mexma_rt.errors import InputError
    from mexma_rt.evaluation import retrieval_accuracy
    from mexma_rt.files import read_lines
    from mexma_rt.knn import check_k

    sources, target_file = _files(source, target, language, languages)
    encoder = LoadedEncoder(options)
    target_lines = read_lines(target_file)
    y: np.ndarray | None = None
    rows: list[dict[str, Any]] = []
    for name, file in sources.items():
        lines = read_lines(file)
        if len(lines) != len(target_lines):
            raise InputError(
                f"{file} has {len(lines)} lines and {target_file} {len(target_lines)}, but they must be line-aligned."
            )
        check_k(k, {str(file): len(lines)}, "lines")
        y = encoder.embed(target_lines) if y is None else y
        x = encoder.embed(lines)
        result, (there, back) = measure(x, y, margin=margin, k=k, text=target_lines), retrieval_accuracy(x, y)
        rows.append({"language": name, "sentences": result.total, "errors": result.errors, "xsim": result.error_rate})
        rows[-1] |= {"accuracy_there": there, "accuracy_back": back}
        if not as_json:
            _print_row(rows[-1], header=len(rows) == 1)
    total = sum(row["sentences"] for row in rows)
    average = {"language": "average", "sentences": total, "errors": sum(row["errors"] for row in rows)}
    for column in ("xsim", "accuracy_there", "accuracy_back"):
        average[column] = sum(row[column] * row["sentences"] for row in rows) / total
    if as_json:
        echo_json({"target": str(target_file), "margin": margin, "k": k, "results": rows, "average": average})
        return
    if len(rows) > 1:
        _print_row(average)
    for report, file in zip(encoder.reports, (target_file, *sources.values()), strict=True):
        if report.truncated or file == target_file:
            click.echo(describe(report, str(file)), err=True)


def _files(source: str, target: str | None, language: str, languages: str | None) -> tuple[dict[str, Path], Path]:
    """The files to compare, by language, and the file to compare them with."""
    from mexma_rt.errors import FileError, InputError

    folder = Path(source)
    if target is not None:
        if languages is not None:
            raise click.UsageError("--languages is for a folder, but two files were given.")
        return {folder.stem: folder}, Path(target)
    if not folder.is_dir():
        raise click.UsageError(f"{source} is not a folder: give TARGET as well, the file of its translations.")
    goal = folder / f"{language}.txt"
    if not goal.is_file():
        raise FileError(
            f"{goal} does not exist, but --target {language} compares with it. Type --target with another language."
        )
    found = {file.stem: file for file in sorted(folder.glob("*.txt")) if file != goal}
    if not found:
        raise InputError(f"{folder} has no .txt file besides {goal.name}: there is nothing to compare with it.")
    wanted = list(found) if languages is None else [name.strip() for name in languages.split(",")]
    for name in wanted:
        if name not in found:
            raise InputError(f"{folder} has no {name}.txt to compare with {goal.name}. It has: {', '.join(found)}.")
    return {name: found[name] for name in wanted}, goal


def _print_row(row: dict[str, Any], header: bool = False) -> None:
    if header:
        click.echo("language  sentences   xsim %   accuracy % there   back")
    click.echo(
        f"{row['language']:<9} {row['sentences']:>9} {row['xsim']:>8.2f} {row['accuracy_there']:>18.2f} "
        f"{row['accuracy_back']:>6.2f}"
    )
