"""Writes the thresholds found by `mexma calibrate` into a bundle's manifest, and changes no other file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from mexma_rt.bundle.manifest import MANIFEST, Bundle, manifest_text
from mexma_rt.bundle.opening import MODELS
from mexma_rt.bundle.thresholds import Thresholds
from mexma_rt.errors import FileError, InputError
from mexma_rt.files.atomic import atomic_write
from mexma_rt.files.folders import new_folder


def check_writable(bundle: Bundle, output: str | os.PathLike[str] | None) -> None:
    """Raise InputError or FileError, before any work, if thresholds could not be written to the bundle or the new folder."""
    if output is not None:
        if Path(output).exists():
            raise InputError(f"{output} already exists. Name another folder for the copy, or delete it first.")
        return
    if bundle.revision is not None:
        raise InputError(
            f"{bundle.name} is in the hub cache, which must not be changed. Download it to a folder, and calibrate that: "
            "hf download ORG/NAME --local-dir FOLDER, then --model FOLDER"
        )
    folder = bundle.folder.resolve()
    inside = folder.is_relative_to(MODELS.resolve())
    if inside or not (os.access(folder, os.W_OK) and os.access(folder / MANIFEST, os.W_OK)):
        what = "belongs to the installed package" if inside else "is read-only here"
        raise FileError(f"{bundle.folder} {what}. Name a new folder for a copy with the thresholds: --output FOLDER")


def write_thresholds(bundle: Bundle, thresholds: Thresholds, output: str | os.PathLike[str] | None = None) -> Path:
    """Write the thresholds into the manifest of a bundle, or of a copy of it in the new folder `output`; return the folder.

    Nothing else changes. Even after a crash, the manifest is either the old or the new one. Raises InputError and FileError.
    """
    check_writable(bundle, output)
    if output is None:
        _write(bundle.folder / MANIFEST, bundle.folder / MANIFEST, thresholds)
        return bundle.folder
    target = Path(output)
    with new_folder(target) as work:
        shutil.copytree(bundle.folder, work, dirs_exist_ok=True)
        _write(bundle.folder / MANIFEST, work / MANIFEST, thresholds)
    return target


def _write(source: Path, target: Path, thresholds: Thresholds) -> None:
    """Replace the thresholds, keeping entries that this version does not know."""
    content = json.loads(source.read_bytes()) | {"thresholds": thresholds.to_json()}
    with atomic_write(target) as stream:
        stream.write(manifest_text(content).encode())
