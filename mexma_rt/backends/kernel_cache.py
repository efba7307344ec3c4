"""Caches the kernels that TensorRT-RTX compiles on a machine beside the engine; otherwise every load would compile them again.

The library validates a cache itself, and rejects one written by another version of it or for another GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mexma_rt.files.atomic import atomic_write


def cache_path(engine: Path, sm: int) -> Path:
    """Return the path of an engine's kernels for GPUs of this SM: rtx.engine -> rtx.engine.sm89.kernels."""
    return engine.with_name(f"{engine.name}.sm{sm}.kernels")


def read_cache(cache: Any, path: Path) -> bool:
    """Fill an IRuntimeCache from a file; return False if there is none or the library rejects it."""
    try:
        return bool(cache.deserialize(path.read_bytes()))
    except OSError:
        return False


def write_cache(cache: Any, path: Path) -> str:
    """Save an IRuntimeCache; return why that failed, or ""."""
    try:
        with atomic_write(path) as stream:
            stream.write(memoryview(cache.serialize()))
    except OSError as error:  # for example, a bundle that only another user may write to
        return f"its kernels are compiled on every load, because they cannot be saved: {error}"
    return ""
