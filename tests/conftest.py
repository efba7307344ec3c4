"""Shared fixtures: the tiny model of tests/tiny.py, as a checkpoint (made once per session) and as the kept bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import tiny

# Three times what the longest test of the default suite needs with the fixtures that it makes (some 60 s), as hosts differ.
CPU_SECONDS = 180
STARTED = pytest.StashKey[float]()
UNLIMITED = ("engines", "cluster", "kill", "slow", "gpu")


def cpu_seconds() -> float:
    """What this process and the children that it has waited for have used."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[STARTED] = cpu_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """The budget: processor time, which a busy machine stretches less than the clock's."""
    yield
    used = cpu_seconds() - item.stash[STARTED]
    if used > CPU_SECONDS and not any(item.get_closest_marker(mark) for mark in UNLIMITED):
        pytest.fail(
            f"This test and the fixtures that it made used {used:.0f} CPU seconds; a test of the default suite may use "
            f"{CPU_SECONDS}. Give it less to do, or mark it {', '.join(UNLIMITED[:-1])} if it is that.",
            pytrace=False,
        )


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
