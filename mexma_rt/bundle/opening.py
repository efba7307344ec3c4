"""Finds a bundle (bundled name, path or hub name) and verifies its files against the manifest."""

from __future__ import annotations

import glob
import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

from mexma_rt.bundle.known import CONFIG, MODEL_TYPE, find_known, how_to_convert, model_type
from mexma_rt.bundle.manifest import MANIFEST, REMEDY, WEIGHTS, Bundle, Manifest
from mexma_rt.errors import BundleError, InputError
from mexma_rt.files.atomic import sha256_of
from mexma_rt.files.endings import check_unicode

MODELS = Path(__file__).parents[1] / "models"
DEFAULT_MODEL = "mexma-small"  # used when no model is named

_COMMIT = re.compile("[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)


def bundled_models() -> dict[str, Path]:
    """Return the models inside this installation: {name: folder}."""
    return {manifest.parent.name: manifest.parent for manifest in sorted(MODELS.glob(f"*/{MANIFEST}"))}


def open_bundle(model: str | os.PathLike[str], *, revision: str | None = None, offline: bool = False) -> Bundle:
    """Find a model, read its manifest and verify the size and SHA-256 of every file that it lists.

    `model` is a bundled name, the path of a folder, or a hub name "org/name" (looked up in that order). Only a hub name
    may use the network, and not with `offline=True`; `revision` (branch, tag or commit) is for hub names only.
    The source weights of a hub model are not downloaded. Raises BundleError; for a checkpoint (facebook/MEXMA, or any XLM-R)
    the error says how to convert it, and no weights were downloaded.
    """
    folder = _local_folder(model)
    if folder is None:
        return _open_from_hub(os.fspath(model), revision=revision, offline=offline)
    if revision is not None:
        raise InputError(f"revision={revision!r} is for hub names (org/name), but {model!s} is a folder on this machine.")
    bundle = read_manifest(folder)
    verify_files(bundle, bundle.files)
    return bundle


def _local_folder(model: str | os.PathLike[str]) -> Path | None:
    """Return the folder of a bundled name or path; None for what looks like a hub name."""
    if not isinstance(model, (str, os.PathLike)):
        raise InputError(f"model must be a name or a path, not {type(model).__name__}. {_accepted_forms()}")
    bundled = bundled_models()
    if isinstance(model, str) and model in bundled:
        return bundled[model]
    path = Path(model).expanduser()
    check_unicode(path)
    if path.is_dir():
        return path
    if isinstance(model, str) and _HUB_NAME.fullmatch(model):
        return None
    raise BundleError(f"There is no model {os.fspath(model)!r}. {_accepted_forms()}")


def _accepted_forms() -> str:
    names = ", ".join(bundled_models()) or "none in this installation"
    return (
        f"Accepted are a bundled name ({names}), the path of a bundle folder (made by mexma-export), "
        'or a hub name of the form "org/name".'
    )


def _open_from_hub(name: str, *, revision: str | None, offline: bool) -> Bundle:
    """Download the manifest, then the listed files except the source weights, and verify them. huggingface_hub caches them."""
    if known := find_known(name):
        raise BundleError(
            f"{known.name} is not a bundle but a checkpoint ({known.backbone}, {known.bytes / 1e9:.1f} GB), whose PyTorch "
            f"weights this runtime does not read. Nothing was downloaded. Download and convert it once. Type:\n"
            f"{how_to_convert(known.name, revision)}"
        )
    folder = _fetch(name, [MANIFEST, CONFIG], revision, offline)  # without weights: it may not be a bundle
    if not (folder / MANIFEST).exists():
        raise _no_bundle(folder, name, revision)
    bundle = read_manifest(folder)
    needed = [file for file in bundle.files if file != WEIGHTS]
    commit = folder.name if _COMMIT.fullmatch(folder.name) else None  # the client names a snapshot's folder after it
    folder = _fetch(name, [MANIFEST, *map(glob.escape, needed)], commit or revision, offline)
    bundle = read_manifest(folder)  # again: without a commit, the branch may have moved between the two calls
    verify_files(bundle, [file for file in bundle.files if file != WEIGHTS])
    return replace(bundle, revision=commit)


def _fetch(name: str, patterns: list[str], revision: str | None, offline: bool) -> Path:
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline)
    except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
        state = "is not in the local hub cache (offline=True)" if offline else "could not be downloaded from the hub"
        raise BundleError(
            f"There is no folder {name!r} on this machine, and the model of that name {state}: "
            f"{type(error).__name__}: {error}\n"
            f"Check the name. Without a network, download it on a machine that has one, with\n    hf download {name}\n"
            f"or copy the bundle folder here and pass its path. {_accepted_forms()}"
        ) from error
    return Path(folder)


def _no_bundle(folder: Path, source: str, revision: str | None = None) -> BundleError:
    """Say what a folder without a manifest is, and what to type; `source` is its path, or its hub name if downloaded."""
    kind = model_type(folder)
    start = f"{source} is not a bundle: it has no {MANIFEST}."
    if kind == MODEL_TYPE:
        return BundleError(
            f"{start} It is an XLM-R checkpoint, whose PyTorch weights this runtime does not read. Convert it once. "
            f"Type:\n{how_to_convert(source, revision)}"
        )
    if kind is not None:
        return BundleError(
            f"{start} Its {CONFIG} says model_type {kind!r}, but mexma-export converts only {MODEL_TYPE!r} checkpoints "
            f"(MEXMA, XLM-R and models trained from them). {_accepted_forms()}"
        )
    return BundleError(
        f"{start} Nor is it a checkpoint that could be converted: it has no readable {CONFIG}. "
        f"To convert a checkpoint, type:\n    mexma-export CHECKPOINT NEW_FOLDER\n{_accepted_forms()}"
    )


def read_manifest(folder: Path) -> Bundle:
    """Parse and check a folder's `mexma.json`; the other files are not touched. Raises BundleError."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _no_bundle(folder, str(folder)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON ({error}). {REMEDY}") from error
    manifest = Manifest.from_json(content, path)
    return Bundle(folder=folder, **{field.name: getattr(manifest, field.name) for field in fields(manifest)})


def verify_files(bundle: Bundle, names: Iterable[str]) -> None:
    """Compare size and SHA-256 of the named files with the manifest; BundleError names the file and both values."""
    for name in names:
        expected, path = bundle.files[name], bundle.folder / name
        try:
            status = path.stat()  # follows links: hub caches link their files, and only the hash counts
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path} is not a regular file, but {MANIFEST} lists it. {REMEDY}")
            size = status.st_size
            if size != expected.bytes:
                raise BundleError(f"{path} has {size} bytes, but {MANIFEST} says {expected.bytes}. {REMEDY}")
            digest = sha256_of(path)
        except FileNotFoundError:
            raise BundleError(f"{path} is missing, but {MANIFEST} lists it. {REMEDY}") from None
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}). {REMEDY}") from error
        if digest != expected.sha256:
            raise BundleError(f"{path} has SHA-256 {digest}, but {MANIFEST} says {expected.sha256}. {REMEDY}")
