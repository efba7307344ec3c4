"""`mexma-train pack | unpack`: a folder on its way to another machine, in files of bounded size (pieces.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

PATH: Any = click.Path(path_type=Path)


@click.command()
@click.argument("folder", type=PATH)
@click.argument("pieces", type=PATH)
@click.option("--megabytes", default=60.0, show_default=True, type=click.FloatRange(min=0.01), help="Of a piece, at most.")
@click.option("--teacher-bits", type=click.IntRange(2, 8), help="Round teacher.npy to so many bits a number: NOT lossless.")
def pack(folder: Path, pieces: Path, megabytes: float, teacher_bits: int | None) -> None:
    """Compress FOLDER (shards, a checkpoint, a run) into the new folder PIECES, in files of bounded size.

    `run` takes such a folder as SHARDS; `unpack` gives back the very same bytes.
    """
    say_packed(pieces, folder, megabytes=megabytes, teacher_bits=teacher_bits)


def say_packed(pieces: Path, folder: Path, **options: Any) -> None:
    """Pack, and say on standard error what came of it."""
    from mexma_train.pieces import pack as write

    manifest = write(folder, pieces, **options)
    before, after = (sum(part["size"] for part in manifest[kind]) for kind in ("files", "pieces"))
    click.echo(f"{pieces}: {len(manifest['pieces'])} pieces, {after / 1e6:.1f} MB of {before / 1e6:.1f} MB", err=True)
    if manifest["lossy"]:
        click.echo(f"NOT lossless: {manifest['lossy']}", err=True)


@click.command()
@click.argument("pieces", nargs=-1, required=True, type=PATH)
@click.argument("folder", type=PATH)
def unpack(pieces: tuple[Path, ...], folder: Path) -> None:
    """Write FOLDER as it was packed from PIECES (files, or folders of them), verified.

    Pieces may come one after the other: what is missing is named, the exit status is 1, and the same command goes on.
    """
    from mexma_train.pieces import unpack as write

    write(pieces, folder)
    click.echo(f"{folder}: complete", err=True)
