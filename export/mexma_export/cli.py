"""`mexma-export CHECKPOINT BUNDLE`: exports a checkpoint to a bundle, or fails and leaves nothing behind.

The group also has the commands of cli_tools.py, which work on bundles and checkpoints or describe this machine; the word
`export` may be omitted. Exit codes: 0 success; 1 the parity gate, a checkpoint or a bundle failed; 2 the command cannot run
(arguments, missing extra); 130 Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click
from tqdm import tqdm

from mexma_export.bundle import ExportReport, export_bundle
from mexma_export.cli_tools import TOOLS, as_json_option, errors_explained, parse_precisions, vocabulary_options
from mexma_export.graph_format import OPSET
from mexma_export.sentences import load_sentences
from mexma_export.trim import Vocabulary
from mexma_export.usage import parse_languages
from mexma_rt.cli.common import json_text
from mexma_rt.cli.edges import EdgesCommand
from mexma_rt.version import __version__


class _Group(EdgesCommand, click.Group):
    """A group whose default command is `export`, so that `mexma-export CHECKPOINT BUNDLE` works."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the default command before click parses the group's own options, since options of `export` may come first."""
        return super().parse_args(ctx, self._named(args, ("--version", *ctx.help_option_names)))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Do the same for callers that resolve commands themselves, such as click's shell completion."""
        return super().resolve_command(ctx, self._named(args, ()))

    def _named(self, args: list[str], options: Iterable[str]) -> list[str]:
        return args if not args or args[0] in (*self.commands, *options) else ["export", *args]


@click.group(
    "mexma-export",
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Example: mexma-export checkpoint bundle",
)
@click.version_option(__version__, prog_name="mexma-export")
def main() -> None:
    """Make bundles, the model folders that `mexma` loads. Needs: pip install 'mexma-rt[export]'.

    mexma-export CHECKPOINT BUNDLE is short for mexma-export export CHECKPOINT BUNDLE. (If the checkpoint's folder has the name
    of a command, such as doctor, type ./doctor.)
    """


for tool in TOOLS:
    main.add_command(tool)


@main.command(
    "export",
    short_help="Export a checkpoint to a bundle, behind the parity gate.",
    epilog="Example: mexma-export export checkpoint bundle --precision fp32,mixed",
)
@click.argument("checkpoint")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    help="Graphs to write, out of fp32,fused,int8,mixed,w8,w4,fp16. [default: fp32,int8, or fp32,mixed if int8 fails its gate]",
)
@click.option(
    "--max-length",
    type=int,
    help="Default maximum length in tokens, including <s> and </s>. [default: the checkpoint's, or 128]",
)
@click.option("--name", help="Name of the bundle. [default: that of the checkpoint]")
@click.option(
    "--no-weights", is_flag=True, help="Leave out model.safetensors; sentence-transformers then cannot load the bundle."
)
@click.option(
    "--default-precision",
    help="Graph that `mexma` loads on CPU. [default: the first of int8, w8, w4, mixed, fused, fp32 that is written]",
)
@click.option(
    "--verify",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of sentences for the parity gate, lines of language<TAB>text. [default: 562 shipped ones in 57 languages]",
)
@vocabulary_options
@click.option("--opset", type=int, default=OPSET, show_default=True, help="ONNX opset of the fp32 and fp16 graphs, 18 to 23.")
@click.option("--revision", help="Branch, tag or commit to download if CHECKPOINT is a hub name.")
@click.option("--force", is_flag=True, help="Replace an existing bundle, which is kept if the export fails.")
@as_json_option
def export(
    checkpoint: str,
    bundle: Path,
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
    force: bool,
    as_json: bool,
) -> None:
    """Export CHECKPOINT to the folder BUNDLE, if every graph agrees with the checkpoint on real sentences.

    CHECKPOINT is a folder with config.json, model.safetensors and tokenizer.json, or a hub name such as facebook/MEXMA.
    """
    bar = tqdm(desc="load checkpoint", unit="step", disable=None if not as_json else True, leave=False)

    def show(stage: str, done: int, total: int) -> None:
        bar.set_description(stage, refresh=False)
        bar.total, bar.n = total, done
        bar.refresh()

    with errors_explained(as_json), bar:
        report = export_bundle(
            checkpoint,
            bundle,
            precisions=parse_precisions(precision),
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
    click.echo(json_text(_as_data(report)) if as_json else _as_text(report))


def _as_data(report: ExportReport) -> dict[str, object]:
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
            f"    {use.lang}: {use.lost_tokens:.1f} % of the tokens of {use.held_out} lost their piece and are cut into "
            f"shorter ones, in {use.changed_sentences:.0f} % of its sentences"
            + (". This is a lot: add your own text with --trim-vocab CORPUS" if use.poor else "")
        )
    return "\n".join(lines)
