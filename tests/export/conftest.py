"""The tests of mexma_export see the bundle that it writes today, not the kept one."""

from __future__ import annotations

from pathlib import Path

import pytest

from .. import tiny


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny_checkpoint` (fp32 and int8, with weights), exported once. Do not modify it: copy it."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"the tiny bundle is exported with {name} (pip: mexma-rt[export])")
    target = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny.make_bundle(tiny_checkpoint, target)
    return target
