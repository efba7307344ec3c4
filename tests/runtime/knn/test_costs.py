"""The cost model: products and bytes against sums by hand and against what a search really reads and writes; the command."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mexma_rt.cli import main
from mexma_rt.cluster.knn import runs
from mexma_rt.knn import costs, ivfpq, pair_search
from mexma_rt.knn import plan as knnplan
from mexma_rt.knn.costs import MEASURED, Rates
from mexma_rt.knn.ivfpq import IvfPq
from mexma_rt.knn.on_disk import knn_files
from mexma_rt.knn.vector_files import VectorFiles

ONE = Rates(exact_flops=1.0, faiss_flops=1.0, code_byte=0.0, component=0.0, sentences=1.0)


def test_the_bytes_of_an_exact_search_are_those_that_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, dimensions, memory = 60_000, 16, 320_000_000
    for name in "xy":
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(ord(name)).standard_normal((rows, dimensions), np.float32))
    read, real = [], VectorFiles._fill

    def counted(self: VectorFiles, block: np.ndarray, *rest: Any) -> None:
        read.append(block.nbytes)
        real(self, block, *rest)

    monkeypatch.setattr(VectorFiles, "_fill", counted)
    monkeypatch.setattr(pair_search, "absorb_blocks", lambda *blocks, **rest: 0)  # what is found does not matter here
    knn_files(tmp_path / "x.npy", tmp_path / "y.npy", tmp_path / "out", k=2, memory_bytes=memory)
    cost = costs.exact_cost(rows, rows, dimensions, 2, memory, ONE, apart=False)
    checked = 2 * rows * dimensions * 4
    assert cost.read_bytes == sum(read) + checked
    assert cost.cpu_seconds == 2.0 * rows * rows * dimensions
    arrays = sum(np.load(path, mmap_mode="r").nbytes for path in (tmp_path / "out").glob("*.npy"))
    assert cost.result_bytes == arrays


def test_on_a_cluster_every_task_reads_its_two_blocks() -> None:
    plan = knnplan.make_plan(10**6, 10**6, 64, 4, 400_000_000)
    tasks = list(runs(plan, plan.pairs, 1))
    inner = plan.inner_blocks
    rows = sum(plan.blocks[i][1] - plan.blocks[i][0] + sum(inner[j][1] - inner[j][0] for j in numbers) for i, numbers in tasks)
    cost = costs.exact_cost(10**6, 10**6, 64, 4, 400_000_000, ONE, apart=True)
    assert cost.tasks == len(tasks) and cost.read_bytes == 4 * 64 * (rows + 2 * 10**6)
    assert [(i, j) for i, numbers in tasks for j in numbers] == plan.pairs and len(plan.blocks) > 2
    assert len(list(runs(plan, plan.pairs, 10))) >= 20  # enough for all workers


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed: pip install 'mexma-rt[faiss]'")
def test_the_bytes_of_an_index_are_those_on_the_disk(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((10_000, 8), np.float32)
    index = ivfpq.build(tmp_path, vectors, IvfPq(nlist=32, m=2), name="x", memory_bytes=1 << 30, advance=lambda rows: None)
    assert costs.index_bytes(10_000, 8, 32, 2, 1) == pytest.approx(index.disk_bytes, rel=0.02)


def test_the_search_of_an_index_is_the_sum_of_its_three_works() -> None:
    settings = IvfPq(nlist=100, nprobe=10, candidates=7)
    rates = Rates(exact_flops=1.0, faiss_flops=2.0, code_byte=3.0, component=5.0, sentences=1.0)
    lists, codes, scores = 2 * 16 * 100 * 50 * 3 / 2, 50 * 4000 * 10 / 100 * 8 * 3, 50 * 3 * 7 * 16 * 5
    assert costs.search_seconds(4000, 50, 16, 100, 8, 3, settings, rates) == lists + codes + scores
    everywhere = replace(settings, nprobe=1000)
    assert costs.search_seconds(4000, 50, 16, 100, 8, 1, everywhere, replace(rates, faiss_flops=1e30)) == pytest.approx(
        50 * 4000 * 8 * 3 + scores / 3
    )


def test_the_command_plans_a_billion_and_divides_by_machines() -> None:
    arguments = ["plan", "1000000000", "1000000000", "--memory=64GB", "--cores=8"]
    one, ten = (
        json.loads(CliRunner().invoke(main, [*arguments, f"--machines={number}", "--json"]).stdout) for number in (1, 10)
    )
    assert one["exact"]["seconds"] == pytest.approx(10 * ten["exact"]["seconds"])
    assert one["exact"]["cpu_seconds"] == pytest.approx(2e18 * 256 / MEASURED.exact_flops)
    assert one["ivfpq"]["cpu_seconds"] < one["exact"]["cpu_seconds"] / 20
    assert one["embed"]["cpu_seconds"] == pytest.approx(2e9 / MEASURED.sentences)
    text = CliRunner().invoke(main, [*arguments, "--machines=10"]).stdout
    assert "1,000,000,000 x 1,000,000,000 rows of 256 dimensions, k=4, on 10 machines of 8 cores and 64 GB" in text
    double = json.loads(CliRunner().invoke(main, [*arguments, f"--gflops={MEASURED.exact_flops / 5e8}", "--json"]).stdout)
    for way in ("exact", "ivfpq"):
        assert double[way]["seconds"] == pytest.approx(one[way]["seconds"] / 2)


def test_sizes_that_cannot_be_planned() -> None:
    result = CliRunner().invoke(main, ["plan", "5000", "5000"])
    assert result.exit_code == 0 and "ivfpq search: not possible: x has 5,000 rows, too few to train" in result.stdout
    result = CliRunner().invoke(main, ["plan", "1000000", "1000000", "--m=3"])
    assert "m=3 bytes per vector do not divide its 256 dimensions" in result.stdout
    result = CliRunner().invoke(main, ["plan", "1000000", "1000000", "--memory=100MB"])
    assert result.exit_code == 1 and "0.10 GB of memory is too little for 256 dimensions" in result.stderr
    assert CliRunner().invoke(main, ["plan", "0", "5"]).exit_code == 2
