"""`mexma models`: list the models in this installation, and published checkpoints that one command converts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mexma_rt.bundle.known import INSTALL, KNOWN, bundle_name, export_command
from mexma_rt.cli.common import echo_json


@click.command(
    short_help="List the installed models, and known ones to convert.",
    epilog="Example: mexma models --checkpoint mexma-checkpoint",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the folder that sentence-transformers, text-embeddings-inference and mexma-train load, with fp32 weights.",
)
@click.option(
    "--model", "wanted", help="Model for --checkpoint to write: a bundled name, folder or hub name. [default: mexma-small]"
)
def models(as_json: bool, checkpoint: Path | None, wanted: str | None) -> None:
    """List the models that come with this installation, and known ones that one command downloads and converts.

    With --checkpoint, write the PyTorch form of a model instead: mexma models --checkpoint FOLDER"""
    from mexma_rt.bundle.opening import DEFAULT_MODEL, bundled_models, open_bundle, read_manifest

    if wanted is not None and checkpoint is None:
        raise click.UsageError("--model belongs to --checkpoint: mexma models --checkpoint FOLDER --model NAME")
    if checkpoint is not None:
        from mexma_rt.bundle.safetensors_folder import write_checkpoint

        bundle = open_bundle(DEFAULT_MODEL if wanted is None else wanted)
        folder = write_checkpoint(bundle, checkpoint)
        if as_json:
            echo_json({"model": bundle.name, "checkpoint": str(folder)})
        else:
            click.echo(f"{folder}: {bundle.name} in fp32. In Python: SentenceTransformer({str(folder)!r}).encode(texts)")
        return
    bundles = [read_manifest(folder) for folder in bundled_models().values()]
    rows: list[dict[str, Any]] = [
        {
            "name": bundle.name,
            "dimensions": bundle.dimensions,
            "max_length": bundle.max_length,
            "precisions": list(bundle.graphs),
            "languages": list(bundle.languages),
            "megabytes": sum(entry.bytes for entry in bundle.files.values()) / 1e6,
            "folder": str(bundle.folder),
        }
        for bundle in bundles
    ]
    if as_json:
        known = [asdict(model) | {"command": export_command(model.name), "bundle": bundle_name(model.name)} for model in KNOWN]
        echo_json({"models": rows, "known": known})
        return
    for row in rows:
        click.echo(
            f"{row['name']}: {row['dimensions']} dimensions, {row['max_length']} tokens, {', '.join(row['precisions'])}, "
            f"{row['megabytes']:.1f} MB"
        )
        if row["languages"]:
            click.echo(f"  {_how_many(row['languages'])}: {' '.join(row['languages'])}")
    if not rows:
        click.echo("No model comes with this installation. Any command takes --model FOLDER (made by mexma-export).")
    click.echo(f"\nKnown models; the last line of each downloads and converts it, which needs: {INSTALL}")
    for model in KNOWN:
        click.echo(
            f"{model.name}: {model.dimensions} dimensions, {model.backbone} of {model.layers} layers, "
            f"{model.parameters / 1e6:.0f} M parameters, {model.bytes / 1e9:.1f} GB in fp32\n"
            f"  {_how_many(model.languages)}; licence {model.licence}; {model.paper}\n"
            f"  {model.figures} (the authors' figures, not measured here)\n"
            f"  {export_command(model.name)}    # then: --model {bundle_name(model.name)}"
        )


def _how_many(languages: Collection[str]) -> str:
    others = len(set(languages) - {"eng"})
    return f"{others} languages and English" if "eng" in languages else f"{others} languages"
