"""The kernels that TensorRT-RTX compiles on a machine, kept beside the engine: without them every load compiles them anew.

The library checks a cache itself, and takes none that another version of it or another GPU has written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mexma_rt.files.atomic import atomic_write


def cache_path(engine: Path, sm: int) -> Path:
    """Where the kernels of an engine file for a GPU of this SM lie: rtx.engine -> rtx.engine.sm89.kernels."""
    return engine.with_name(f"{engine.name}.sm{sm}.kernels")


def read_cache(cache: Any, path: Path) -> bool:
    """Fill an IRuntimeCache from a file; False if there is none, or none that the library takes here."""
    try:
        return bool(cache.deserialize(path.read_bytes()))
    except OSError:
        return False


def write_cache(cache: Any, path: Path) -> str:
    """Keep an IRuntimeCache; returns why that could not be done, or ""."""
    try:
        with atomic_write(path) as stream:
            stream.write(memoryview(cache.serialize()))
    except OSError as error:  # a bundle that only another user may write
        return f"its kernels are compiled at every load, because they cannot be kept: {error}"
    return ""
