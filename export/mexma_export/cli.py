"""`mexma-export CHECKPOINT BUNDLE`: a checkpoint becomes a bundle, or the command fails and leaves nothing.

`mexma-export doctor` says what can be built and run here.
Exit codes: 0 written; 1 the parity gate or the checkpoint failed; 2 the command cannot run (arguments, missing extra).
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click
from tqdm import tqdm

from mexma_export.bundle import ExportReport, export_bundle
from mexma_export.doctor import examine
from mexma_export.graph_format import OPSET
from mexma_export.parity import load_sentences
from mexma_export.trim import Vocabulary
from mexma_export.usage import parse_languages
from mexma_rt.backends import ENGINES
from mexma_rt.cli.common import json_text
from mexma_rt.cli.edges import EdgesCommand
from mexma_rt.errors import InputError, MexmaError, MissingExtraError


@click.command(
    "mexma-export",
    cls=EdgesCommand,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: mexma-export checkpoint bundle --precision fp32,mixed",
)
@click.argument("checkpoint")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--precision",
    help="Graphs to write, of fp32,fused,int8,mixed,w8,w4,fp16. [default: fp32,int8, or mixed for an int8 that fails its gate]",
)
@click.option(
    "--max-length",
    type=int,
    help="Default length limit in tokens, <s> and </s> included. [default: what the folder says, or 128]",
)
@click.option("--name", help="Name of the bundle. [default: that of the checkpoint]")
@click.option("--no-weights", is_flag=True, help="Leave model.safetensors out (sentence-transformers then cannot load it).")
@click.option("--default-precision", help="What `mexma` loads on CPU. [default: the first of int8, w8, w4, mixed, fused, fp32]")
@click.option(
    "--verify",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Sentences for the parity gate, lines of language<TAB>text. [default: 562 shipped ones in 57 languages]",
)
@click.option(
    "--trim-vocab",
    multiple=True,
    metavar="CORPUS",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Keep only the pieces that this text file (plain, .gz, .xz) uses, single characters and special tokens. Repeatable.",
)
@click.option(
    "--languages",
    metavar="fra,deu,...",
    help="Keep only the pieces that these languages use (ISO 639-3; tables for XLM-R's tokenizer and the bundled model's), "
    "beside those of --trim-vocab.",
)
@click.option(
    "--pieces",
    type=click.IntRange(min=5),
    help="Keep this many pieces, the most useful by the shares of each --trim-vocab file (one a language) and the tokenizer's "
    "own scores.",
)
@click.option("--opset", type=int, default=OPSET, show_default=True, help="Of the fp32 and fp16 graphs, 18 to 23.")
@click.option("--revision", help="Branch, tag or commit of a hub name.")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="Build the TensorRT engine of a bundle, given alone and with an fp16 graph: tensorrt (for the GPU of this machine) or "
    "rtx (RTX and data centre GPUs except H100/H200; builds without a GPU).",
)
@click.option("--sm", help="GPU architectures of an rtx engine. [default: 80,86,89,120]")
@click.option(
    "--profiles",
    help="Shapes of the engine, largest ROWSxTOKENS each. [default: 1x32,512x32,128x128,32xLIMIT of the position table]",
)
@click.option(
    "--layout",
    type=click.Choice(["triton"]),
    help="Write a model repository of Triton Inference Server from a bundle: its graphs, and its tensorrt engine if any.",
)
@click.option("--timing-cache", type=click.Path(dir_okay=False, path_type=Path), help="Kernel timings to keep (tensorrt).")
@click.option("--force", is_flag=True, help="Replace an existing bundle; it survives any failure.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(
    checkpoint: str,
    bundle: Path | None,
    precision: str | None,
    max_length: int | None,
    name: str | None,
    no_weights: bool,
    default_precision: str | None,
    verify: Path | None,
    trim_vocab: tuple[Path, ...],
    languages: str | None,
    pieces: int | None,
    opset: int,
    revision: str | None,
    engine: str | None,
    sm: str | None,
    profiles: str | None,
    layout: str | None,
    timing_cache: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export CHECKPOINT (a folder with config.json, model.safetensors and tokenizer.json, or a hub name such as
    facebook/MEXMA) to the folder BUNDLE, after comparing every graph with the checkpoint on real sentences.

    With --engine, build the TensorRT engine of a bundle instead: mexma-export BUNDLE --engine rtx

    With --layout, write what a server reads from a bundle instead: mexma-export BUNDLE REPOSITORY --layout triton

    mexma-export doctor: what is installed, what can be built and run here, and what to type for what cannot. (A folder of
    that name is ./doctor.)"""
    if checkpoint == "doctor" and bundle is None and engine is None:
        examination = examine()
        click.echo(json_text(examination.as_data()) if as_json else examination.as_text())
        return
    if engine is not None:
        if bundle is not None:
            raise click.UsageError(f"--engine takes one bundle: mexma-export {bundle} --engine {engine}")
        _engine(Path(checkpoint), engine, sm, profiles, timing_cache, as_json)
        return
    names = None if precision is None else [p.strip() for p in precision.split(",") if p.strip()]
    if layout is not None:
        if bundle is None or force:
            raise click.UsageError("--layout takes a bundle and a new folder: mexma-export BUNDLE REPOSITORY --layout triton")
        _triton(Path(checkpoint), bundle, names, as_json)
        return
    if bundle is None:
        raise click.UsageError("Missing argument 'BUNDLE': the folder to write. (Only --engine goes without.)")
    if sm or profiles or timing_cache:
        raise click.UsageError("--sm, --profiles and --timing-cache belong to --engine: mexma-export BUNDLE --engine rtx")
    bar = tqdm(desc="load checkpoint", unit="step", disable=None if not as_json else True, leave=False)

    def show(stage: str, done: int, total: int) -> None:
        bar.set_description(stage, refresh=False)
        bar.total, bar.n = total, done
        bar.refresh()

    try:
        report = export_bundle(
            checkpoint,
            bundle,
            precisions=names,
            max_length=max_length,
            name=name,
            weights=not no_weights,
            default_precision=default_precision,
            sentences=load_sentences(verify) if verify else None,
            trim_vocab=trim_vocab,
            pieces=pieces,
            languages=() if languages is None else parse_languages(languages),
            opset=opset,
            force=force,
            revision=revision,
            progress=show,
        )
    except MexmaError as error:
        bar.close()
        _fail(error, as_json)
    finally:
        bar.close()
    click.echo(json_text(_as_data(report)) if as_json else _as_text(report))


def _engine(bundle: Path, engine: str, sm: str | None, profiles: str | None, timing_cache: Path | None, as_json: bool) -> None:
    from mexma_export.engines import build_bundle_engine, parse_profiles, parse_sm

    try:
        path, sidecar = build_bundle_engine(
            bundle,
            engine=engine,
            sm=None if sm is None else parse_sm(sm),
            profiles=None if profiles is None else parse_profiles(profiles),
            timing_cache=timing_cache,
        )
    except MexmaError as error:
        _fail(error, as_json)
    if as_json:
        click.echo(json_text({"engine": str(path)} | asdict(sidecar)))
        return
    click.echo(
        f"{path}: {sidecar.engine_bytes / 1e6:.1f} MB in {sidecar.build_seconds:.0f} s\n"
        f"  {sidecar.library} {sidecar.version}, SM {', '.join(map(str, sidecar.sm))}; {sidecar.half_matmuls} of "
        f"{sidecar.matmuls} matrix products in fp16 (counted in the {sidecar.counted_in})\n"
        f"  profiles: {', '.join(map(str, sidecar.profiles))} (largest rows x tokens)"
    )


def _triton(bundle: Path, target: Path, precisions: list[str] | None, as_json: bool) -> None:
    from mexma_export.triton import write_triton

    try:
        report = write_triton(bundle, target, precisions=precisions)
    except MexmaError as error:
        _fail(error, as_json)
    if as_json:
        click.echo(json_text(asdict(report) | {"path": str(report.path)}))
        return
    for phrase in report.left_out:
        click.echo(f"left out: {phrase}", err=True)
    click.echo(
        f"{report.path}: {', '.join(report.models)}\nServe it: tritonserver --model-repository={report.path}\n"
        "Their inputs are token ids and mask: tokenise in the client, with the bundle's tokenizer.json."
    )


def _fail(error: MexmaError, as_json: bool) -> NoReturn:
    if as_json:
        click.echo(json_text({"error": type(error).__name__, "message": str(error)}))
    click.echo(f"Error: {error}", err=True)
    sys.exit(2 if isinstance(error, InputError | MissingExtraError) else 1)


def _as_data(report: ExportReport) -> dict[str, Any]:
    return {
        "bundle": str(report.path),
        "name": report.name,
        "default_precision": report.default_precision,
        "reason": report.reason,
        "parity": {precision: parity.summary() for precision, parity in report.parity.items()},
        "vocabulary": asdict(report.vocabulary) if report.vocabulary else None,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 1),
    }


def _as_text(report: ExportReport) -> str:
    lines = [f"{report.path}: {sum(report.bytes.values()) / 1e6:.1f} MB in {report.seconds:.0f} s"]
    for precision, parity in report.parity.items():
        worst = parity.worst
        lines.append(
            f"  {precision}: {parity.sentences} sentences in {parity.languages} languages, cosine to the checkpoint: mean "
            f"{parity.mean_cosine:.6f}, lowest {parity.min_cosine:.6f} ({worst['lang']} {worst['text'][:40]!r}); "
            f"centred: mean {parity.mean_centred_cosine:.6f}, lowest {parity.min_centred_cosine:.6f}"
        )
    if report.vocabulary:
        lines.append(_vocabulary_text(report.vocabulary))
    lines.append(f"  default on CPU: {report.default_precision} ({report.reason})")
    lines.append(f"In Python: mexma_rt.load({str(report.path)!r}).embed(texts)")
    return "\n".join(lines)


def _vocabulary_text(vocabulary: Vocabulary) -> str:
    sources = [f"after {sum(file.lines for file in vocabulary.corpus):,} lines"] if vocabulary.corpus else []
    sources += [f"of {len(vocabulary.languages)} languages"] if vocabulary.languages else []
    lines = [
        f"  vocabulary: {vocabulary.pieces:,} of {vocabulary.source_pieces:,} pieces kept, {' and '.join(sources)}; "
        f"word embeddings {vocabulary.source_embedding_bytes / 1e6:.1f} -> {vocabulary.embedding_bytes / 1e6:.1f} MB "
        f"(float32); {vocabulary.gate_sentences_that_lost_pieces} of {vocabulary.gate_sentences} gate sentences lost pieces"
    ]
    for use in vocabulary.languages:
        lines.append(
            f"    {use.lang}: {use.lost_tokens:.1f} % of the tokens of {use.held_out} have no piece any more and are cut into "
            f"shorter ones, in {use.changed_sentences:.0f} % of its sentences"
            + (". Much: add text of yours, --trim-vocab CORPUS" if use.poor else "")
        )
    return "\n".join(lines)
