"""benchmarks/gpu_once.py, every phase tiny on the CPU: on a GPU that is had for minutes no line may run for the first time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="part of mexma-rt[train]")
for name in ("transformers", "safetensors", "sentencepiece"):
    pytest.importorskip(name, reason=f"{name} is part of mexma-rt[train]")

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "benchmarks" / "gpu_once.py"
PHASES = [
    "gemm",
    "bindings",
    "attention",
    "embedding",
    "training",
    "mining",
    "run",
    "gpu_tests",
    "training",
]  # the last: compiled


def started(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The lines of a smoke run of all phases."""
    out = tmp_path_factory.mktemp("out")
    run = started(out, "--smoke", "--seconds", 1500)  # on a busy machine; 46 on one that is idle
    assert run.returncode == 0, run.stdout + run.stderr + (out / "gpu_once.log").read_text(errors="replace")[-3000:]
    return [json.loads(line) for line in (out / "gpu_once.jsonl").read_text().splitlines()]


def of(told: list[dict[str, Any]], phase: str, what: str) -> list[dict[str, Any]]:
    return [line for line in told if line["phase"] == phase and line.get("what", "").startswith(what)]


def test_every_phase_ends_well_and_the_first_line_says_what_was_measured(told: list[dict[str, Any]]) -> None:
    assert told[0]["phase"] == "about" and "--smoke" in told[0]["command"] and told[0]["versions"]["torch"]
    assert [(line["phase"], line["status"]) for line in told if "status" in line] == [(name, "ok") for name in PHASES]


def test_copies_and_captured_copies_arrive(told: list[dict[str, Any]]) -> None:
    equal = [line["equal"] for line in (*of(told, "bindings", "copies"), *of(told, "bindings", "captured"))]
    assert equal == [True] * 3
    assert "out of memory" in of(told, "bindings", "too much memory")[0]["error"]


def test_ways_to_attend_agree(told: list[dict[str, Any]]) -> None:
    (padded,) = of(told, "attention", "padded")
    assert padded["result_apart"] < 1e-5 and padded["gradients_apart"] < 1e-5 and padded["forward_and_backward_ms"] > 0


def test_the_torch_back_end_and_its_peer_compute_the_same(told: list[dict[str, Any]]) -> None:
    lines = [*of(told, "embedding", "embed,"), *of(told, "embedding", "sentence-transformers,")]
    assert len(lines) >= 3 and all(line["least_cosine_to_first"] > 0.99999 for line in lines)
    assert all(line["share_of_peak"] > 0 for line in lines)


def test_both_arms_of_training_start_from_one_loss(told: list[dict[str, Any]]) -> None:
    (padded,), (ours, compiled) = (of(told, "training", arm) for arm in ("padded", "ours"))
    assert "--compile" in compiled["settings"]
    for other in (padded, compiled):
        assert other["first_loss"] == pytest.approx(ours["first_loss"], rel=1e-4)
        assert other["first_gradient_norm"] == pytest.approx(ours["first_gradient_norm"], rel=1e-3)


def test_the_search_is_exact_and_says_where_its_time_went(told: list[dict[str, Any]]) -> None:
    (whole,) = of(told, "mining", "whole call")
    assert whole["as_in_float64"] == 1.0 and whole["checked"] == 50
    assert "aten::mm" in {line["operation"] for line in of(told, "mining", "profile")}


def test_a_run_that_was_stopped_in_every_stage_is_the_whole_one(told: list[dict[str, Any]]) -> None:
    (stopped,) = of(told, "run", "run, stopped")
    assert stopped["calls"] >= 4 and set(stopped["losses"]) == {"warmup", "ranking", "mexma"}
    (beside,) = of(told, "run", "stopped beside whole")
    assert beside["updates"] == 6 and beside["largest_relative_difference"] < 1e-6


def test_a_process_group_of_one_gives_the_bare_models_gradient(told: list[dict[str, Any]]) -> None:
    (group,) = of(told, "run", "process group")
    assert group["sum"] == [1, 1, 1] and set(group["gradients_apart"]) == {"ddp", "fsdp"}
    assert max(group["gradients_apart"].values()) < 1e-5


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the phases would not fail")
def test_a_phase_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    run = started(tmp_path, "--only", "gemm,bindings")
    lines = [json.loads(line) for line in (tmp_path / "gpu_once.jsonl").read_text().splitlines()]
    ended = {line["phase"]: line["status"] for line in lines if "status" in line}
    assert run.returncode == 1 and ended == {"gemm": "failed with status 1", "bindings": "failed with status 1"}
    assert "gemm: failed" in run.stdout and "Traceback" in (tmp_path / "gpu_once.log").read_text()


def test_what_cannot_end_in_time_is_stopped_or_left_out(tmp_path: Path) -> None:
    started(tmp_path / "none", "--smoke", "--only", "gemm", "--seconds", 1)
    assert json.loads((tmp_path / "none" / "gpu_once.jsonl").read_text().splitlines()[-1])["status"] == "left out: no time"
    assert started(tmp_path, "--only", "dinner").returncode == 2
