"""Writes the JSON file beside an engine; mexma_rt.backends.sidecar defines, reads and checks it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from mexma_rt.backends.sidecar import FORMAT, FORMAT_VERSION, Sidecar, sidecar_path
from mexma_rt.files.atomic import atomic_write


def write_sidecar(engine: Path, sidecar: Sidecar) -> Path:
    """Write the sidecar of `engine` atomically; returns its path. Raises FileError."""
    path = sidecar_path(engine)
    content = {"format": FORMAT, "format_version": FORMAT_VERSION} | asdict(sidecar)
    with atomic_write(path) as stream:
        stream.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return path
