"""Two real processes (gloo, CPU) against one with the doubled batch: the same loss curve, replicated or sharded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

import torch
from safetensors.torch import load_file

from mexma_rt.errors import InputError
from mexma_train.parallel import World, clip_gradient, distribute, gather_rows, start_world, synchronised

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")

SCRIPT = """
import sys
import torch
from mexma_train.config import *
from mexma_train.parallel import start_world
from mexma_train.run import resume, train

shards, test_set = sys.argv[1:3]
model = ModelConfig(
    hidden_size=32, layers=2, heads=4, intermediate_size=64, max_positions=64, dropout=0.0,
    head_layers=2, head_heads=4, head_intermediate_size=64,
)
with start_world("cpu") as world:
    for job in sys.argv[3:]:
        out, how, precision = job.split(",")
        # In float32 Adam turns roundings of gradients near 0 into steps, and KoLeo's logarithm makes more of them.
        torch.set_default_dtype(torch.float64 if precision == "fp32" else torch.float32)
        mexma = MexmaConfig(
            steps=6, batch_pairs=16 // world.size, lr=1e-3, precision=precision, gather_vectors=True, contrastive_weight=0.3,
            koleo_weight=0.1,
        )
        run = RunConfig(log_every=1, parallel=how, eval_pairs=(test_set,))
        recipe = Recipe(name="toy", model=model, mexma=mexma, run=run)
        finished = train(recipe, shards, out, device=world, minutes=0)  # stops after the first update
        assert not finished
        assert resume(out, device=world)
"""


def launch(script: Path, processes: int, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(toy_shards: Path, pairs_tsv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "script.py").write_text(SCRIPT)
    rows = [line.split("\t") for line in pairs_tsv.read_text(encoding="utf-8").splitlines()[:20]]
    (folder / "test.tsv").write_text("".join(f"{row[2]}\t{row[3]}\n" for row in rows), encoding="utf-8")
    data = [str(toy_shards), str(folder / "test.tsv")]
    launch(folder / "script.py", 1, [*data, f"{folder}/one,ddp,fp32"])
    launch(
        folder / "script.py", 2, [*data, *(f"{folder}/{how},{how},fp32" for how in ("ddp", "fsdp")), f"{folder}/half,fsdp,bf16"]
    )
    return folder


@pytest.mark.cluster
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_have_the_loss_curve_of_one_with_the_doubled_batch(how: str, runs: Path) -> None:
    """Also over a stop and a resume; KoLeo and InfoNCE look at both processes' vectors."""
    one, two = log(runs / "one"), log(runs / how)
    assert [line["update"] for line in two] == [line["update"] for line in one] == [1, 2, 3, 4, 5, 6, 6]
    for expected, found in zip(one[:-1], two[:-1], strict=True):
        for term in ("loss", "mlm_source", "mlm_target", "align", "koleo", "contrastive"):
            assert found[term] == pytest.approx(expected[term], rel=1e-6), (term, expected["update"])
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-6)
    measures = [line["evaluation"]["mean"] for line in (one[-1], two[-1])]
    assert measures[1] == pytest.approx(measures[0], rel=1e-4, abs=1e-6)


@pytest.mark.cluster
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_checkpoint_is_whole_and_the_same(how: str, runs: Path) -> None:
    one, two = (load_file(runs / name / "checkpoint" / "model.safetensors") for name in ("one", how))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, atol=1e-7, rtol=1e-6, msg=partial("{}: {}".format, name))


@pytest.mark.cluster
def test_sharded_bf16_runs_and_learns(runs: Path) -> None:
    losses = [line["loss"] for line in log(runs / "half") if "loss" in line]
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_only_the_last_backward_pass_of_an_update_synchronises() -> None:
    calls: list[str] = []

    class Recorder(torch.nn.parallel.DistributedDataParallel):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def no_sync(self) -> Any:
            calls.append("no_sync")
            import contextlib

            return contextlib.nullcontext()

    for last in (False, False, True):
        with synchronised(Recorder(), last):
            calls.append("backward")
    assert calls == ["no_sync", "backward", "no_sync", "backward", "backward"]


def test_one_process_needs_no_group() -> None:
    with start_world("cpu") as world:
        assert world == World(device=torch.device("cpu")) and world.main
        model = torch.nn.Linear(2, 2)
        assert distribute(model, [], world, "fsdp") is model
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_named_device_that_is_missing_is_refused() -> None:
    with pytest.raises(InputError, match=r"sees no CUDA GPU\. Type --device cpu"), start_world("cuda"):
        pass
    with pytest.raises(InputError, match=r"device 'xpu' is unknown\. Type cpu, cuda or cuda:N"), start_world("xpu"):
        pass


def test_the_gradient_is_clipped_to_the_norm_and_its_own_norm_returned() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip_gradient([weight, torch.nn.Parameter(torch.zeros(1))], 1.0).item() == pytest.approx(5.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]), atol=1e-5, rtol=0)
    assert clip_gradient([weight], None).item() == pytest.approx(1.0, abs=1e-5)


def _gather(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = World(device=torch.device("cpu"), rank=rank, size=2)
    rows = (2, 1)
    mine = torch.arange(4.0).view(2, 2)[: rows[rank]] + 10 * rank
    mine.requires_grad_()
    pool = gather_rows(mine, rows, world)
    (pool * (rank + 1)).sum().backward()  # process 0 pulls with 1, process 1 with 2
    torch.save({"pool": pool.detach(), "grad": mine.grad}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.cluster
def test_gathered_rows_are_in_rank_order_and_every_process_gets_its_gradient(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_gather, args=(str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    expected = torch.tensor([[0.0, 1.0], [2.0, 3.0], [10.0, 11.0]])
    for rank, rows in ((0, 2), (1, 1)):
        assert torch.equal(results[rank]["pool"], expected)
        assert torch.equal(results[rank]["grad"], torch.full((rows, 2), 3.0))
