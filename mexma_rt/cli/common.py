"""What the commands share: model and margin options, the loaded encoder, and output helpers."""

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

from mexma_rt.bundle.opening import DEFAULT_MODEL
from mexma_rt.embedding.report import how_to_keep
from mexma_rt.knn.margin import MARGINS

if TYPE_CHECKING:
    import numpy as np

    from mexma_rt import EmbedReport, Encoder
    from mexma_rt.bundle import Bundle
    from mexma_rt.embedding import Prompted

Command = TypeVar("Command", bound=Callable[..., Any])

VERBOSE = "mexma_rt.verbose"  # key in the meta of a command's context


def is_verbose() -> bool:
    """Whether the running command was given --verbose."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(VERBOSE))


def _keep_verbose(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.meta[VERBOSE] = value


_MODEL = [
    click.option(
        "--model", default=DEFAULT_MODEL, show_default=True, help="Model: a bundled name, a bundle folder or a hub name."
    ),
    click.option("--revision", help="Branch, tag or commit of a hub model.  [default: its main branch]"),
    click.option("--offline", is_flag=True, help="Use only the local cache for a hub model; no network."),
    click.option("--device", default="auto", show_default=True, help="Device that computes: cpu, cuda, cuda:1 or auto."),
    click.option("--backend", default="auto", show_default=True, help="Back end: onnxruntime, tensorrt, rtx, torch or auto."),
    click.option(
        "--precision",
        default="auto",
        show_default=True,
        help="Precision of the computation: fp32, fp16, fused, int8, mixed, w8, w4 or auto.",
    ),
    click.option("--max-length", type=int, help="Cut sentences after this many tokens.  [default: the model's]"),
    click.option("--threads", type=click.IntRange(min=1), help="Number of CPU threads.  [default: the physical cores]"),
    click.option(
        "--deterministic", is_flag=True, help="Compute every sentence alone, so that equal texts give equal bits in any batch."
    ),
    click.option(
        "--batch-tokens", type=click.IntRange(min=1), help="Maximum tokens in a batch: more is faster, but takes more memory."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_keep_verbose, help="Report in full what ran, and why."
    ),
]
_PROMPT = [
    click.option(
        "--prompt", metavar="NAME", help="Put this prompt of the model (such as query) before each text.  [default: none]"
    )
]
_MARGIN = [
    click.option("--margin", type=click.Choice(MARGINS), default="ratio", show_default=True, help="Margin for scoring pairs."),
    click.option(
        "-k", "--k", type=click.IntRange(min=1), default=4, show_default=True, help="Number of neighbours of each sentence."
    ),
]


UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Memory(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """A number of bytes: 2GB, 500M, 1.5G."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click."""
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?", str(value).strip().upper())
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is not an amount of memory. Type for example 2GB or 500MB.", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


def model_options(command: Command) -> Command:
    """Add the options shared by commands that load a model; they arrive as **options, and --json as as_json."""
    return _decorate(command, _MODEL)


def prompt_option(command: Command) -> Command:
    """Add --prompt, for commands that embed sentences."""
    return _decorate(command, _PROMPT)


def margin_options(command: Command) -> Command:
    """Add --margin and --k."""
    return _decorate(command, _MARGIN)


def _decorate(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    return reduce(lambda decorated, option: option(decorated), reversed(options), command)


def load_encoder(options: dict[str, Any]) -> Encoder | Prompted:
    """Load an encoder with the options of `mexma_rt.load`, plus the option prompt."""
    import mexma_rt

    encoder = mexma_rt.load(**{name: value for name, value in options.items() if name != "prompt"})
    return encoder if options.get("prompt") is None else encoder.with_prompt(options["prompt"])


class LoadedEncoder:
    """The encoder named by the options, loaded on first use, so that bad input is reported without waiting for it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._batch_tokens = options.pop("batch_tokens")
        self._options = options
        self._encoder: Encoder | Prompted | None = None
        self.prompt: str | None = options.get("prompt")
        self.reports: list[EmbedReport] = []
        self.names: list[str] = []  # of the inputs, one for each report

    def embed(self, texts: Iterable[str], *, progress: bool | None = None, name: str = "", **keywords: Any) -> np.ndarray:
        """Embed, and keep the report in `reports`."""
        result = self.loaded().embed_report(texts, batch_tokens=self._batch_tokens, progress=progress, **keywords)
        self.reports.append(result.report)
        self.names.append(name)
        return result.vectors

    @property
    def bundle(self) -> Bundle:
        """The encoder's bundle, which has the thresholds for mining; opened without loading the model."""
        from mexma_rt.bundle import open_bundle

        if self._encoder is not None:
            return self._encoder.bundle
        return open_bundle(self._options["model"], revision=self._options["revision"], offline=self._options["offline"])

    def loaded(self) -> Encoder | Prompted:
        """The encoder itself."""
        if self._encoder is None:
            self._encoder = load_encoder(self._options)
        return self._encoder


def describe(report: EmbedReport, name: str) -> str:
    """Format a report as text: counts, speed, where it ran, truncated sentences; with --verbose, why it ran there."""
    repeated = "" if report.distinct == report.sentences else f" ({report.distinct:,} distinct)"
    text = (
        f"{name}: {report.sentences:,} sentences{repeated} in {report.seconds:.1f} s, "
        f"{report.sentences_per_second:,.0f} per second; {ran(report)}"
    )
    if report.truncated:
        text += (
            f"\n{name}: {len(report.truncated):,} sentences had more than {report.max_length} tokens and were cut, the first "
            f"on line {report.truncated[0] + 1}. {how_to_keep(report, '--max-length {}')}"
        )
    return text


def ran(report: EmbedReport) -> str:
    """Say which model ran where; with --verbose, by which engine, and why there."""
    why = f" by {report.backend} ({report.reason})" if is_verbose() else ""
    return f"{report.model}, {report.precision} on {report.device}{why}"


def report_dict(report: EmbedReport, name: str) -> dict[str, Any]:
    """Convert a report for JSON; `truncated` holds indices from 0."""
    return {"file": name, **asdict(report), "sentences_per_second": report.sentences_per_second}


def clean_stdout(ray: str | None) -> AbstractContextManager[object]:
    """Send Ray's messages, such as a killed worker, to stderr: standard output carries the results."""
    return nullcontext() if ray is None else redirect_stdout(sys.stderr)


def echo_json(result: dict[str, Any]) -> None:
    """Print one JSON object. Raises ValueError for NaN and infinity, which JSON does not have."""
    click.echo(json_text(result, indent=1))


def json_text(value: object, indent: int | None = None) -> str:
    r"""Format valid JSON: bytes of a file's name that are not UTF-8 become \\xNN instead of lone surrogates."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    return re.sub("[\udc80-\udcff]", lambda half: f"\\\\x{ord(half[0]) - 0xDC00:02x}", text)


def read_both(source: str, target: str, output: str | None) -> tuple[list[str], list[str]]:
    """Read the lines of two files, after checking that the output can be written."""
    from mexma_rt.files.atomic import read_lines
    from mexma_rt.files.spool import side_by_side

    check_both(source, target, output)
    with side_by_side(source, target) as sides:
        first, second = map(read_lines, sides)
    return first, second


def check_both(source: str, target: str, output: str | None) -> None:
    """Raise UsageError if both files are standard input, or FileError or InputError if the table cannot be written."""
    from mexma_rt.files.atomic import check_output
    from mexma_rt.files.tables import check_table
    from mexma_rt.files.unpacking import is_stdin

    if is_stdin(source) and is_stdin(target):
        raise click.UsageError("Only one of SOURCE and TARGET can be standard input.")
    if output:
        check_table(output)
        check_output(output, [source, target])


def report_sides(encoder: LoadedEncoder, *names: str) -> dict[str, Any]:
    """Convert the reports of the two sides for JSON."""
    sides = zip(("source", "target"), encoder.reports, names, strict=True)
    return {side: report_dict(report, name) for side, report, name in sides}


def describe_sides(encoder: LoadedEncoder, *names: str) -> None:
    """Print the reports of the two sides to stderr."""
    for report, name in zip(encoder.reports, names, strict=True):
        click.echo(describe(report, name), err=True)
