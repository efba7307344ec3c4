"""The resumable state: what is in the file, and what a damaged or foreign one says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mexma_rt.errors import FileError, InputError
from mexma_train.config import MexmaConfig, Recipe, RunConfig
from mexma_train.parallel import World
from mexma_train.state import State, load_optimizer, load_weights, newest_state, save_state, states

WORLD = World(device=torch.device("cpu"))
STATE = State(stage="mexma", update=7, recipe=Recipe(name="r", mexma=MexmaConfig(steps=9)), shards="/shards")


def trained(width: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.amp.GradScaler]:
    torch.manual_seed(0)
    model = torch.nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, width)).square().sum().backward()
        optimizer.step()
    return model, optimizer, torch.amp.GradScaler("cpu", init_scale=4096.0)


def test_weights_moments_steps_and_scale_come_back(tmp_path: Path) -> None:
    model, optimizer, scaler = trained()
    save_state(STATE, tmp_path, model, optimizer, scaler, WORLD)
    read = newest_state(tmp_path)
    assert (read.stage, read.update, read.recipe, read.shards) == ("mexma", 7, STATE.recipe, "/shards")
    other = torch.nn.Linear(3, 2)
    other_optimizer, other_scaler = torch.optim.AdamW(other.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    assert read.path is not None
    load_weights(read.path, other)
    load_optimizer(read.path, other, other_optimizer, other_scaler)
    assert other_scaler.get_scale() == 4096.0
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert {k: v.tolist() for k, v in optimizer.state[one].items()} == {
            k: v.tolist() for k, v in other_optimizer.state[two].items()
        }
    for m, o in ((model, optimizer), (other, other_optimizer)):  # and the next step is the same
        o.zero_grad()
        m(torch.ones(1, 3)).square().sum().backward()
        o.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_stages_are_in_the_order_of_a_run_and_foreign_files_are_left(tmp_path: Path) -> None:
    model, optimizer, scaler = trained()
    recipe = replace(STATE.recipe, run=RunConfig(keep=2))
    (tmp_path / "state-of-the-art.safetensors").touch()
    for stage, update in (("warmup", 900), ("mexma", 5), ("mexma", 10)):
        save_state(replace(STATE, stage=stage, update=update, recipe=recipe), tmp_path, model, optimizer, scaler, WORLD)
    assert [p.name for p in states(tmp_path)] == ["state-mexma-000000005.safetensors", "state-mexma-000000010.safetensors"]
    assert newest_state(tmp_path).update == 10
    assert sorted(p.name for p in tmp_path.iterdir())[-1] == "state-of-the-art.safetensors"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_file_holds_tensors_and_text_only(tmp_path: Path) -> None:
    model, optimizer, scaler = trained()
    save_state(STATE, tmp_path, model, optimizer, scaler, WORLD)
    path = states(tmp_path)[0]
    assert path.read_bytes()[8:9] == b"{"  # safetensors: the length of the header, then JSON; no pickle to obey
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {
            *(f"{kind}/{name}" for kind in ("weight", "exp_avg", "exp_avg_sq", "step") for name in ("weight", "bias")),
            "scaler",
        }


@pytest.mark.parametrize("damage", ["cut", "pickle", "empty", "no header", "unknown recipe", "format"])
def test_a_damaged_or_foreign_state_is_explained(damage: str, tmp_path: Path) -> None:
    model, optimizer, scaler = trained()
    save_state(STATE, tmp_path, model, optimizer, scaler, WORLD)
    path = states(tmp_path)[0]
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["mexma"])
    expected = r"is damaged .*\. Delete it to resume from the state before it"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "pickle":
        torch.save({"weight": torch.ones(2)}, path)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no header":
        save_file({"x": torch.ones(1)}, path)
    elif damage == "unknown recipe":
        header["recipe"]["mexma"]["momentum"] = 1
        save_file({"x": torch.ones(1)}, path, {"mexma": json.dumps(header)})
        expected = "MexmaConfig has no momentum: the run was written by another version"
    else:
        save_file({"x": torch.ones(1)}, path, {"mexma": json.dumps(header | {"format": 99})})
        expected = "has format 99, but this version reads 1"
    with pytest.raises((FileError, InputError), match=expected):
        newest_state(tmp_path)


def test_another_models_state_is_refused(tmp_path: Path) -> None:
    save_state(STATE, tmp_path, *trained(), WORLD)
    with pytest.raises(InputError, match=r"weight is \[2, 3\], but the recipe's model needs \[2, 4\]"):
        load_weights(states(tmp_path)[0], torch.nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"0\.weight is not there"):
        load_weights(states(tmp_path)[0], torch.nn.Sequential(torch.nn.Linear(3, 2)))
