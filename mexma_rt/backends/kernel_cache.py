"""The kernels that TensorRT-RTX compiles on a machine, kept beside the engine: otherwise every load compiles them again.

The library checks a cache itself, and takes none that another version of it or another GPU has written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mexma_rt.files.atomic import atomic_write


def cache_path(engine: Path, sm: int) -> Path:
    """Path of an engine's kernels for GPUs of this SM: rtx.engine -> rtx.engine.sm89.kernels."""
    return engine.with_name(f"{engine.name}.sm{sm}.kernels")


def read_cache(cache: Any, path: Path) -> bool:
    """Fill an IRuntimeCache from a file; False if there is none, or the library does not accept it here."""
    try:
        return bool(cache.deserialize(path.read_bytes()))
    except OSError:
        return False


def write_cache(cache: Any, path: Path) -> str:
    """Save an IRuntimeCache; returns why that failed, or ""."""
    try:
        with atomic_write(path) as stream:
            stream.write(memoryview(cache.serialize()))
    except OSError as error:  # a bundle that only another user may write
        return f"its kernels are compiled at every load, because they cannot be kept: {error}"
    return ""
