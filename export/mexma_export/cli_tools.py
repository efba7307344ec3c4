"""The commands of `mexma-export` other than `export`: engine, triton, rebuild, trim and doctor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import click

from mexma_rt.backends import ENGINES
from mexma_rt.cli.common import json_text
from mexma_rt.errors import InputError, MexmaError, MissingExtraError

Command = TypeVar("Command", bound=Callable[..., object])

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")

_VOCABULARY = [
    click.option(
        "--trim-vocab",
        multiple=True,
        metavar="CORPUS",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Keep only the pieces that this text file (plain, .gz, .xz) uses, plus single characters and special tokens. "
        "Repeatable.",
    ),
    click.option(
        "--languages",
        metavar="fra,deu,...",
        help="Keep only the pieces that these languages use (ISO 639-3 codes; only for XLM-R's tokenizer) and those of "
        "--trim-vocab.",
    ),
    click.option(
        "--pieces",
        type=click.IntRange(min=5),
        help="Keep this many pieces, the most useful ones by their shares of the --trim-vocab files (give one per language) "
        "and by the tokenizer's own scores.",
    ),
]


def vocabulary_options(command: Command) -> Command:
    """Decorate a command with the options of export and trim that choose which pieces are kept."""
    for option in reversed(_VOCABULARY):
        command = option(command)
    return command


@click.command(short_help="Build the TensorRT engine of a bundle.", epilog="Example: mexma-export engine bundle rtx --sm 89")
@click.argument("bundle")
@click.argument("library", type=click.Choice(ENGINES))
@click.option("--sm", help="GPU architectures to build an rtx engine for. [default: 80,86,89,120]")
@click.option(
    "--profiles",
    help="Batch shapes of the engine, each given as its largest ROWSxTOKENS. "
    "[default: 1x32,1x128,8x64,512x32,128x128 and 32xLIMIT, the position table's limit]",
)
@click.option(
    "--timing-cache",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File that keeps kernel timings from one build to the next (tensorrt only).",
)
@as_json_option
def engine(bundle: str, library: str, sm: str | None, profiles: str | None, timing_cache: Path | None, as_json: bool) -> None:
    """Build the TensorRT engine of BUNDLE.

    tensorrt builds for this machine's GPU; rtx builds for RTX and data centre GPUs except H100 and H200, and needs no GPU. The
    bundle must have an fp16 graph or, like mexma-small, the parts to make one.
    """
    from mexma_export.engines import build_bundle_engine, parse_profiles, parse_sm

    with errors_explained(as_json):
        path, sidecar = build_bundle_engine(
            bundle,
            engine=library,
            sm=None if sm is None else parse_sm(sm),
            profiles=None if profiles is None else parse_profiles(profiles),
            timing_cache=timing_cache,
        )
    if as_json:
        click.echo(json_text({"engine": str(path)} | asdict(sidecar)))
        return
    click.echo(
        f"{path}: {sidecar.engine_bytes / 1e6:.1f} MB in {sidecar.build_seconds:.0f} s\n"
        f"  {sidecar.library} {sidecar.version}, SM {', '.join(map(str, sidecar.sm))}; {sidecar.half_matmuls} of "
        f"{sidecar.matmuls} matrix products in fp16 (counted in the {sidecar.counted_in})\n"
        f"  profiles: {', '.join(map(str, sidecar.profiles))} (largest rows x tokens)"
    )


@click.command(
    short_help="Write a model repository of Triton Inference Server.", epilog="Example: mexma-export triton bundle repository"
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--precision", help="Graphs to serve, such as fp32,fp16. [default: all, and the tensorrt engine if there is one]")
@as_json_option
def triton(bundle: Path, repository: Path, precision: str | None, as_json: bool) -> None:
    """Write a new model repository for Triton Inference Server to REPOSITORY, from the graphs of BUNDLE."""
    from mexma_export.triton import write_triton

    with errors_explained(as_json):
        report = write_triton(bundle, repository, precisions=parse_precisions(precision))
    if as_json:
        click.echo(json_text(asdict(report) | {"path": str(report.path)}))
        return
    for phrase in report.left_out:
        click.echo(f"left out: {phrase}", err=True)
    click.echo(
        f"{report.path}: {', '.join(report.models)}\nServe it: tritonserver --model-repository={report.path}\n"
        "The models take token ids and masks: tokenise in the client, with the bundle's tokenizer.json."
    )


@click.command(
    short_help="Write a checkpoint from the graph of a bundle.", epilog="Example: mexma-export rebuild mexma-small checkpoint"
)
@click.argument("bundle")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@as_json_option
def rebuild(bundle: str, checkpoint: Path, as_json: bool) -> None:
    """Write the new folder CHECKPOINT from a graph of BUNDLE, to fine-tune it or to export it again.

    BUNDLE is a folder or bundled name. It must have a graph that holds the weights: fused, mixed, w8 or w4.
    """
    from mexma_export.rebuild import rebuild_checkpoint

    with errors_explained(as_json):
        folder = rebuild_checkpoint(bundle, checkpoint)
    click.echo(json_text({"checkpoint": str(folder)}) if as_json else f"{folder}: complete")


@click.command(
    short_help="Write a checkpoint with fewer word pieces.",
    epilog="Example: mexma-export trim checkpoint smaller --languages eng,fra",
)
@click.argument("checkpoint")
@click.argument("target", type=click.Path(path_type=Path))
@vocabulary_options
@click.option(
    "--code-beyond",
    type=click.IntRange(min=0),
    metavar="ROW",
    help="Replace the word rows from this one on (a multiple of 1024) with their product-quantised values, which take 96 "
    "instead of 216 bytes per row of 384 numbers in w4 and w8. Train the model afterwards.",
)
@as_json_option
def trim(
    checkpoint: str,
    target: Path,
    trim_vocab: tuple[Path, ...],
    languages: str | None,
    pieces: int | None,
    code_beyond: int | None,
    as_json: bool,
) -> None:
    """Write a copy of CHECKPOINT with fewer word pieces to the new folder TARGET, to train or to export."""
    from mexma_export.trim_checkpoint import trim_checkpoint
    from mexma_export.usage import parse_languages

    with errors_explained(as_json):
        kept = trim_checkpoint(
            checkpoint,
            target,
            corpus=trim_vocab,
            languages=parse_languages(languages) if languages else (),
            pieces=pieces,
            code_beyond=code_beyond,
        )
    click.echo(json_text({"checkpoint": str(target), "pieces": len(kept)}) if as_json else f"{target}: {len(kept):,} pieces")


@click.command(short_help="Report what can be built and run here.", epilog="Example: mexma-export doctor --json")
@as_json_option
def doctor(as_json: bool) -> None:
    """Report what is installed, what can be built and run here, and how to install the rest."""
    from mexma_export.doctor import examine

    examination = examine()
    click.echo(json_text(asdict(examination)) if as_json else examination.as_text())


TOOLS = (engine, triton, rebuild, trim, doctor)


def parse_precisions(text: str | None) -> list[str] | None:
    """Parse "fp32, int8" into names; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


@contextmanager
def errors_explained(as_json: bool) -> Iterator[None]:
    """Print a MexmaError of the block (with --json also on standard output); exit with status 2 for unusable input, else 1."""
    try:
        yield
    except MexmaError as error:
        if as_json:
            click.echo(json_text({"error": type(error).__name__, "message": str(error)}))
        click.echo(f"Error: {error}", err=True)
        sys.exit(2 if isinstance(error, InputError | MissingExtraError) else 1)
