"""A model folder: where it is (bundled name, path or hub name), what its manifest says, and whether every byte is intact.

The manifest `mexma.json` is the contract with mexma-export. Nothing here loads a model; the backends do.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mexma_rt.bundle.golden import Golden, read_golden
from mexma_rt.bundle.known import CONFIG, MODEL_TYPE, find_known, how_to_convert, model_type
from mexma_rt.errors import BundleError, InputError
from mexma_rt.files.atomic import sha256_of
from mexma_rt.files.storage import Ranges, read_ranges

FORMAT = "mexma-bundle"
FORMAT_VERSION = 1
MANIFEST = "mexma.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"  # for training and sentence-transformers; the runtime never reads it
MODELS = Path(__file__).parents[1] / "models"

_COMMIT = re.compile("[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What the manifest says of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model folder whose manifest has been read; `open_bundle` gives one whose files are verified too."""

    folder: Path
    name: str
    dimensions: int
    max_length: int  # default, in tokens, <s> and </s> included
    max_length_limit: int  # what the position table allows
    default_precision: str
    graphs: Mapping[str, str]  # precision -> relative path
    files: Mapping[str, FileEntry]  # relative path -> hash and size
    parity: Mapping[str, Any]  # precision -> summary of the export's parity gate
    source: Mapping[str, Any]
    languages: tuple[str, ...] = ()  # trained on, ISO 639-3, English included; () if the checkpoint does not say
    ranges: Ranges | None = None  # of int8 and uint8 vectors; bundles of earlier versions have none
    golden: Golden | None = None  # sentences and their vectors, which `mexma doctor` compares
    revision: str | None = None  # of a hub model: the commit that its branch or tag stood for, to pin it by


def bundled_models() -> dict[str, Path]:
    """The models inside this installation: {name: folder}."""
    return {manifest.parent.name: manifest.parent for manifest in sorted(MODELS.glob(f"*/{MANIFEST}"))}


def open_bundle(model: str | os.PathLike[str], *, revision: str | None = None, offline: bool = False) -> Bundle:
    """Find a model, read its manifest and verify the size and SHA-256 of every file that it lists.

    `model` is a bundled name, the path of a folder, or a hub name "org/name" (looked up in that order). Only a hub name
    may use the network, and not with `offline=True`; `revision` (branch, tag or commit) is for hub names only.
    The source weights of a hub model are not fetched. Raises BundleError; that of a checkpoint (facebook/MEXMA, or any XLM-R)
    says how to make a bundle of it, and no weights were fetched to find that out.
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
    """The folder of a bundled name or path; None for what looks like a hub name."""
    if not isinstance(model, (str, os.PathLike)):
        raise InputError(f"model must be a name or a path, not {type(model).__name__}. {_accepted_forms()}")
    bundled = bundled_models()
    if isinstance(model, str) and model in bundled:
        return bundled[model]
    path = Path(model).expanduser()
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
    """Fetch the manifest, then the files it lists except the source weights; verify those. Cached by huggingface_hub."""
    if known := find_known(name):
        raise BundleError(
            f"{known.name} is not a bundle but a checkpoint ({known.backbone}, {known.bytes / 1e9:.1f} GB), whose PyTorch "
            f"weights this runtime does not read. Nothing was fetched. Fetch and convert it once. Type:\n"
            f"{how_to_convert(known.name, revision)}"
        )
    folder = _fetch(name, [MANIFEST, CONFIG], revision, offline)  # not the weights of what may be no bundle
    if not (folder / MANIFEST).exists():
        raise _no_bundle(folder, name, revision)
    bundle = read_manifest(folder)
    needed = [file for file in bundle.files if file != WEIGHTS]
    commit = folder.name if _COMMIT.fullmatch(folder.name) else None  # how the client names the folder of a snapshot
    folder = _fetch(name, [MANIFEST, *map(glob.escape, needed)], commit or revision, offline)
    bundle = read_manifest(folder)  # again, where there is no commit: a branch may have moved between the two calls
    verify_files(bundle, [file for file in bundle.files if file != WEIGHTS])
    return replace(bundle, revision=commit)


def _fetch(name: str, patterns: list[str], revision: str | None, offline: bool) -> Path:
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline)
    except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
        state = "is not in the local hub cache (offline=True)" if offline else "could not be fetched from the hub"
        raise BundleError(
            f"There is no folder {name!r} on this machine, and the model of that name {state}: "
            f"{type(error).__name__}: {error}\n"
            f"Check the name. Without network, fetch it once where there is one, with\n    hf download {name}\n"
            f"or copy the bundle folder here and give its path. {_accepted_forms()}"
        ) from error
    return Path(folder)


def _no_bundle(folder: Path, source: str, revision: str | None = None) -> BundleError:
    """What a folder without manifest is, and what to type; `source` is its path or the hub name that it was fetched from."""
    kind = model_type(folder)
    start = f"{source} is not a bundle: it has no {MANIFEST}."
    if kind == MODEL_TYPE:
        return BundleError(
            f"{start} It is an XLM-R checkpoint, whose PyTorch weights this runtime does not read. Convert it once. "
            f"Type:\n{how_to_convert(source, revision)}"
        )
    if kind is not None:
        return BundleError(
            f"{start} Its {CONFIG} says model_type {kind!r}, and mexma-export makes bundles of {MODEL_TYPE!r} checkpoints only "
            f"(MEXMA, XLM-R and models trained from them). {_accepted_forms()}"
        )
    return BundleError(
        f"{start} Nor is it a checkpoint to make one of: it has no readable {CONFIG}. "
        f"From a checkpoint, a bundle is made with:\n    mexma-export CHECKPOINT NEW_FOLDER\n{_accepted_forms()}"
    )


def read_manifest(folder: Path) -> Bundle:
    """Parse and check `mexma.json` of a folder; the other files are not touched. Raises BundleError."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _no_bundle(folder, str(folder)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON ({error}). {_REMEDY}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleError(f"{path}: the format is {found!r}, not {FORMAT!r}: this is no mexma-rt bundle.")
    version = _field(manifest, "format_version", int, path)
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path}: the bundle has format version {version}, but this mexma-rt reads up to {FORMAT_VERSION}. "
            "Type:\n    pip install --upgrade mexma-rt"
        )
    files = {_safe(name, path): _file_entry(name, entry, path) for name, entry in _field(manifest, "files", dict, path).items()}
    graphs = {name: _safe(file, path) for name, file in _field(manifest, "graphs", dict, path).items()}
    bundle = Bundle(
        folder=folder,
        name=_field(manifest, "name", str, path),
        dimensions=_field(manifest, "dimensions", int, path),
        max_length=_field(manifest, "max_length", int, path),
        max_length_limit=_field(manifest, "max_length_limit", int, path),
        default_precision=_field(manifest, "default_precision", str, path),
        graphs=graphs,
        files=files,
        parity=_field(manifest, "parity", dict, path),
        source=_field(manifest, "source", dict, path),
        languages=_languages(manifest.get("languages", []), path),
    )
    _check(version >= 1, path, f"format_version is {version}, not 1 or more")
    _check(bundle.dimensions >= 1, path, f"dimensions is {bundle.dimensions}, not 1 or more")
    _check(
        3 <= bundle.max_length <= bundle.max_length_limit,
        path,
        f"max_length {bundle.max_length} is not between 3 and max_length_limit {bundle.max_length_limit}",
    )
    pooling = _field(manifest, "pooling", str, path)
    _check(pooling == "cls", path, f"pooling is {pooling!r}, and only 'cls' is known")
    _check(
        bundle.default_precision in graphs,
        path,
        f"default_precision {bundle.default_precision!r} has no graph (graphs: {', '.join(graphs) or 'none'})",
    )
    try:
        ranges = read_ranges(manifest["ranges"], bundle.dimensions) if "ranges" in manifest else None
        golden = read_golden(manifest["golden"], bundle.dimensions) if "golden" in manifest else None
    except ValueError as error:
        raise BundleError(f"{path}: {error}. {_REMEDY}") from None
    for file in [TOKENIZER, *graphs.values()]:
        _check(file in files, path, f"{file} is needed but not listed under files")
    return replace(bundle, ranges=ranges, golden=golden)


def verify_files(bundle: Bundle, names: Iterable[str]) -> None:
    """Compare size and SHA-256 of the named files with the manifest; BundleError names the file and both values."""
    for name in names:
        expected, path = bundle.files[name], bundle.folder / name
        try:
            status = path.stat()  # of the target of a link: hub caches link their files, and what counts is the hash
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path} is no regular file, but {MANIFEST} lists it. {_REMEDY}")
            size = status.st_size
            if size != expected.bytes:
                raise BundleError(f"{path} has {size} bytes, but {MANIFEST} says {expected.bytes}. {_REMEDY}")
            digest = sha256_of(path)
        except FileNotFoundError:
            raise BundleError(f"{path} is missing, but {MANIFEST} lists it. {_REMEDY}") from None
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}). {_REMEDY}") from error
        if digest != expected.sha256:
            raise BundleError(f"{path} has SHA-256 {digest}, but {MANIFEST} says {expected.sha256}. {_REMEDY}")


_REMEDY = (
    "The bundle is incomplete or damaged: copy or download it again, or export it again with mexma-export. "
    "For the model that comes with mexma-rt, type:\n    pip install --force-reinstall --no-deps mexma-rt"
)


def hash_of_files(files: Mapping[str, FileEntry]) -> str:
    """16 hex digits that are equal if, and only if, all files of two bundles are: they give the same vectors then."""
    hashes = {path: entry.sha256 for path, entry in sorted(files.items())}
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]


def _check(condition: bool, path: Path, problem: str) -> None:
    if not condition:
        raise BundleError(f"{path}: {problem}. {_REMEDY}")


def _field(manifest: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    value = manifest.get(key)
    _check(type(value) is kind, path, f"{key} is {value!r}, not of type {kind.__name__}")
    return value


def _languages(value: Any, path: Path) -> tuple[str, ...]:
    valid = isinstance(value, list) and all(isinstance(lang, str) and lang for lang in value)
    _check(valid, path, f"languages is {value!r}, not a list of language codes")
    return tuple(value)


def _file_entry(name: str, entry: Any, path: Path) -> FileEntry:
    sha256, size = (entry.get("sha256"), entry.get("bytes")) if isinstance(entry, dict) else (None, None)
    valid = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) and type(size) is int
    _check(bool(valid), path, f"the entry of {name} under files is {entry!r}, not a sha256 and a number of bytes")
    return FileEntry(sha256=str(sha256), bytes=int(size or 0))


def _safe(file: Any, path: Path) -> str:
    """A relative posix path that stays inside the folder. (Hub caches link their files, so only the text is judged.)"""
    valid = isinstance(file, str) and file and not set(file) & set("\\:\0")
    valid = valid and not any(part in ("", ".", "..") for part in file.split("/"))
    _check(bool(valid), path, f"the path {file!r} does not stay inside the bundle folder")
    return str(file)
