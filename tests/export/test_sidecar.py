"""The JSON beside an engine, written in one piece and read back by the runtime. (tests/runtime has the reading.)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mexma_export.sidecar import write_sidecar
from mexma_rt.backends.sidecar import Profile, Sidecar, TensorInfo, read_sidecar, sidecar_path


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "rtx.engine"
    path.write_bytes(b"an engine")
    write_sidecar(path, made())
    return path


def made(**changes: Any) -> Sidecar:
    fields: dict[str, Any] = {
        "library": "tensorrt_rtx",
        "version": "1.7.1.116",
        "sm": (86, 89),
        "precision": "fp16",
        "matmuls": 24,
        "half_matmuls": 23,
        "counted_in": "network",
        "profiles": (Profile(batch=1, length=16), Profile(batch=32, length=64)),
        "inputs": (TensorInfo(name="input_ids", dtype="int64", shape=(-1, -1)),),
        "outputs": (TensorInfo(name="sentence_embedding", dtype="float32", shape=(-1, 32)),),
        "normalized": False,
        "graph_sha256": "ab" * 32,
        "engine_sha256": "cd" * 32,
        "engine_bytes": 9,
        "build_seconds": 1.5,
        "built": "2026-11-22T18:00:00+00:00",
    }
    return Sidecar(**(fields | changes))


def test_what_is_written_is_read_back(engine: Path) -> None:
    assert read_sidecar(engine) == made()
    assert json.loads(sidecar_path(engine).read_text())["profiles"] == [{"batch": 1, "length": 16}, {"batch": 32, "length": 64}]
    assert sorted(path.name for path in engine.parent.iterdir()) == ["rtx.engine", "rtx.engine.json"]


def test_a_failed_write_leaves_the_old_sidecar(engine: Path) -> None:
    before = sidecar_path(engine).read_bytes()
    with pytest.raises(ValueError, match="Out of range float"):
        write_sidecar(engine, made(build_seconds=float("nan")))
    assert sidecar_path(engine).read_bytes() == before
    assert len(list(engine.parent.iterdir())) == 2
