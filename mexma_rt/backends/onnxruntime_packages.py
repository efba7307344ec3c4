"""onnxruntime and onnxruntime-gpu write the same files: finds both installed, or what removing one left; tells the repair."""

from __future__ import annotations

import contextlib
import importlib.metadata
from pathlib import Path
from types import ModuleType

from mexma_rt.backends.quiet import import_onnxruntime
from mexma_rt.errors import BackendError

NAMES = ("onnxruntime", "onnxruntime-gpu")

# Both are uninstalled first: they write the same files, so uninstalling one deletes the other's. From 1.28 on,
# onnxruntime-gpu needs Python 3.11 and CUDA 13; the last one for Python 3.10 is 1.23, for CUDA 12.
_KEEP_GPU = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
_KEEP_CPU = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime"


def keep_gpu() -> str:
    """Return the line that leaves onnxruntime-gpu alone installed."""
    return _typed(_KEEP_GPU)


def keep_cpu() -> str:
    """Return the line that leaves onnxruntime alone installed."""
    return _typed(_KEEP_CPU)


def whole_onnxruntime() -> ModuleType:
    """Import onnxruntime. Raises BackendError if its files are missing, as after uninstalling one of the two packages."""
    try:
        module = import_onnxruntime()
        module.InferenceSession, module.SessionOptions  # noqa: B018  (a folder without files imports as an empty module)
    except (ImportError, AttributeError) as error:
        raise BackendError(
            f"onnxruntime does not load: {error}. Its files are missing or damaged: onnxruntime and onnxruntime-gpu write the "
            f"same ones, and uninstalling one of them deletes the other's. Type:\n    {keep_cpu()}\nor, for a GPU:\n"
            f"    {keep_gpu()}"
        ) from error
    return module


def clash_of_packages() -> str:
    """Explain what is wrong if both onnxruntime and onnxruntime-gpu are installed, with commands to repair it; else "".

    They share a folder and overwrite each other; the sizes in each one's RECORD tell whose files are on the disk.
    """
    installed = _installed()
    if len(installed) < 2:
        return ""
    whole = [name for name, distribution in installed.items() if _files_are_those_of(distribution)]
    found = f"the files on the disk are those of {' and '.join(whole)}" if whole else "the files on the disk are a mixture"
    both = " and ".join(f"{name} {distribution.version}" for name, distribution in installed.items())
    return (
        f"{both} are both installed and overwrite each other: {found}. Keep one. Type, for a GPU:\n    {keep_gpu()}\n"
        f"or, for the CPU:\n    {keep_cpu()}"
    )


def _installed() -> dict[str, importlib.metadata.Distribution]:
    found: dict[str, importlib.metadata.Distribution] = {}
    for name in NAMES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.distribution(name)
    return found


def _typed(line: str) -> str:
    """Return a line of pip for whoever installed onnxruntime: in an environment of uv, `pip` is another Python's."""
    by_uv = any((one.read_text("INSTALLER") or "").strip() == "uv" for one in _installed().values())
    return line.replace(" -y", "").replace("pip ", "uv pip ") if by_uv else line


def _files_are_those_of(distribution: importlib.metadata.Distribution) -> bool:
    """Whether the libraries and build notes listed in a RECORD are on the disk with the same sizes."""
    listed = [file for file in distribution.files or () if file.parts[:2] == ("onnxruntime", "capi")]
    sized = [(Path(str(distribution.locate_file(file))), file.size) for file in listed if file.size is not None]
    return bool(sized) and all(path.is_file() and path.stat().st_size == size for path, size in sized)
