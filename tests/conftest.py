"""Shared fixtures: the tiny model of tests/tiny.py, as a checkpoint (made once per session) and as the kept bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from . import tiny


@pytest.fixture(scope="session")
def sentences() -> list[tuple[str, str]]:
    """Twenty (language, text) pairs in ten scripts, no two alike."""
    return tiny.SENTENCES


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random XLM-R checkpoint folder: 3 layers of 32, 4 heads, 514 positions, 322 pieces. Do not modify it."""
    for name in ("torch", "transformers", "safetensors"):
        pytest.importorskip(name, reason=f"the tiny checkpoint is made with {name} (pip: mexma-rt[export])")
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny.make_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kept bundle (fp32 and int8, with weights), as a copy. Do not modify it: copy it.

    The tests of mexma_export have a fixture of the same name that exports it instead.
    """
    target = tmp_path_factory.mktemp("bundle") / "tiny"
    shutil.copytree(tiny.BUNDLE, target)
    return target
