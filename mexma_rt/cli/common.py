"""What the commands share: the options of the model and the margin, the loaded encoder, and the ways to print."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mexma_rt.knn.margin import MARGINS

if TYPE_CHECKING:
    import numpy as np

    from mexma_rt import EmbedReport, Encoder

Command = TypeVar("Command", bound=Callable[..., Any])

_MODEL = [
    click.option("--model", default="mexma-mini", show_default=True, help="Bundled name, bundle folder or hub name."),
    click.option("--revision", help="Of a hub model: branch, tag or commit.  [default: its main branch]"),
    click.option("--offline", is_flag=True, help="Of a hub model: use the local cache only."),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto."),
    click.option(
        "--backend", default="auto", show_default=True, help="onnxruntime, an engine (tensorrt, rtx), torch, or auto."
    ),
    click.option(
        "--precision", default="auto", show_default=True, help="Of the computation: fp32, fp16, fused, int8, mixed or auto."
    ),
    click.option("--max-length", type=int, help="Tokens per sentence; longer ones are cut.  [default: the model's]"),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: the physical cores]"),
    click.option(
        "--deterministic", is_flag=True, help="Every sentence alone: equal text, equal bits, whatever its batch-mates."
    ),
    click.option("--batch-tokens", type=click.IntRange(min=1), help="Tokens per batch: memory against speed."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
]
_MARGIN = [
    click.option("--margin", type=click.Choice(MARGINS), default="ratio", show_default=True, help="How to score a pair."),
    click.option("-k", "--k", type=click.IntRange(min=1), default=4, show_default=True, help="Neighbours per sentence."),
]


UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Memory(click.ParamType):
    """A number of bytes: 2GB, 500M, 1.5G."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?", str(value).strip().upper())
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is no amount of memory. Type for example 2GB or 500MB.", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


def model_options(command: Command) -> Command:
    """Add the options that every command with a model has; they reach it as **options and --json as as_json."""
    return _decorate(command, _MODEL)


def margin_options(command: Command) -> Command:
    """Add --margin and --k."""
    return _decorate(command, _MARGIN)


def _decorate(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    return reduce(lambda decorated, option: option(decorated), reversed(options), command)


class LoadedEncoder:
    """The encoder that the options name, loaded when first needed, so that bad input is reported at once."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._batch_tokens = options.pop("batch_tokens")
        self._options = options
        self._encoder: Encoder | None = None
        self.reports: list[EmbedReport] = []
        self.names: list[str] = []  # of what was embedded

    def embed(self, texts: Iterable[str], *, progress: bool | None = None, name: str = "", **keywords: Any) -> np.ndarray:
        """Embed, and keep the report in `reports`."""
        result = self.loaded().embed_report(texts, batch_tokens=self._batch_tokens, progress=progress, **keywords)
        self.reports.append(result.report)
        self.names.append(name)
        return result.vectors

    def loaded(self) -> Encoder:
        """The encoder itself."""
        import mexma_rt

        if self._encoder is None:
            self._encoder = mexma_rt.load(**self._options)
        return self._encoder


def describe(report: EmbedReport, name: str) -> str:
    """One embedding in words: counts, speed, place, reason, cuts."""
    text = (
        f"{name}: {report.sentences:,} sentences ({report.distinct:,} distinct) in {report.seconds:.1f} s, "
        f"{report.sentences_per_second:,.0f} per second; {ran(report)}"
    )
    if report.truncated:
        text += (
            f"\n{name}: {len(report.truncated):,} sentences had more than {report.max_length} tokens and were cut, the first "
            f"in line {report.truncated[0] + 1}. To keep more, type --max-length {max(report.truncated_lengths)} "
            "(the model's limit allowing)"
        )
    return text


def ran(report: EmbedReport) -> str:
    """Which model ran where, and why there."""
    return f"{report.model}, {report.precision} on {report.device} by {report.backend} ({report.reason})"


def report_dict(report: EmbedReport, name: str) -> dict[str, Any]:
    """The same for JSON; truncated holds indices from 0."""
    return {"file": name, **asdict(report), "sentences_per_second": report.sentences_per_second}


def clean_stdout(ray: str | None) -> AbstractContextManager[object]:
    """Ray prints news, such as that a worker was killed, to standard output, which is that of results: they go to stderr."""
    return nullcontext() if ray is None else redirect_stdout(sys.stderr)


def echo_json(result: dict[str, Any]) -> None:
    """Print one JSON object; NaN and infinity, which JSON has not, are refused."""
    click.echo(json.dumps(result, ensure_ascii=False, indent=1, allow_nan=False))


def read_both(source: str, target: str, output: str | None) -> tuple[list[str], list[str]]:
    """The lines of two files, once it is clear that the table can be written."""
    from mexma_rt.files.atomic import read_lines

    check_both(source, target, output)
    return read_lines(source), read_lines(target)


def check_both(source: str, target: str, output: str | None) -> None:
    """Raise if both files are standard input, or the table cannot be written."""
    from mexma_rt.files.atomic import STDIN, check_output
    from mexma_rt.files.tables import check_table

    if source == target == STDIN:
        raise click.UsageError("Only one of SOURCE and TARGET can be standard input.")
    if output:
        check_table(output)
        check_output(output, [source, target])


def report_sides(encoder: LoadedEncoder, *names: str) -> dict[str, Any]:
    """The reports of the two sides, for JSON."""
    sides = zip(("source", "target"), encoder.reports, names, strict=True)
    return {side: report_dict(report, name) for side, report, name in sides}


def describe_sides(encoder: LoadedEncoder, *names: str) -> None:
    """The reports of the two sides, in words, on stderr."""
    for report, name in zip(encoder.reports, names, strict=True):
        click.echo(describe(report, name), err=True)
