"""The resumable state of a run: one safetensors file, which is complete or absent and is never unpickled.

It holds the weights, the optimiser's moments and the loss scale as tensors, and in the header the stage, the number of
updates done and the recipe. The learning rate is a function of the update, and every batch, mask and dropout draw a function
of (seed, number): the update number therefore *is* the state of scheduler, sampler and random streams; there is no other.
Whole tensors are written, so a run may resume with a different number of processes, replicated or sharded.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mexma_rt.errors import FileError, InputError
from mexma_rt.files.atomic import move_file
from mexma_train.config import Recipe, recipe_from_dict, recipe_to_dict
from mexma_train.parallel import World, shard_like, wait_for_main, whole

FORMAT = 1
STAGES = ("warmup", "ranking", "mexma")  # in the order of a run
_NAME = re.compile(r"state-(warmup|ranking|mexma)-(\d{9})\.safetensors")


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands: `update` updates of `stage` are done."""

    stage: str
    update: int
    recipe: Recipe
    shards: str
    encoder: dict[str, Any] | None = None  # its transformers configuration; None before a run has begun
    path: Path | None = None  # None before a run has begun
    pending: dict[str, float] = field(default_factory=dict)  # sums of the terms since the last line of the log


def states(folder: Path) -> list[Path]:
    """Return the state files of a run, oldest first."""
    found = [(m, path) for path in folder.glob("state-*.safetensors") if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: (STAGES.index(pair[0][1]), int(pair[0][2])))]


def newest_state(folder: Path) -> State:
    """Return a run's newest state, of which only the header is read. Raises FileError if there is none or it is damaged."""
    paths = states(folder)
    if not paths:
        raise FileError(f"{folder} holds no state-*.safetensors, so there is nothing to resume. Start it with: mexma-train run")
    try:
        with safe_open(paths[-1], framework="pt") as file:
            header = json.loads((file.metadata() or {})["mexma"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise FileError(f"{paths[-1]} is damaged ({error}). Delete it to resume from the state before it.") from None
    if header["format"] != FORMAT:
        raise FileError(
            f"{paths[-1]} has format {header['format']}, but this version reads {FORMAT}. Resume with the one that wrote it."
        )
    return State(
        stage=header["stage"],
        update=header["update"],
        recipe=recipe_from_dict(header["recipe"]),
        shards=header["shards"],
        encoder=header["encoder"],
        path=paths[-1],
        pending=header["pending"],
    )


def save_state(
    state: State, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, world: World
) -> None:
    """Write a state and delete the oldest beyond `run.keep`. Every process must call it; the main one writes."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight/{name}"] = whole(parameter)
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = whole(value)
    if scaler.is_enabled():
        values = scaler.state_dict()
        tensors["scaler"] = torch.tensor([values["scale"], values["_growth_tracker"]], dtype=torch.float64)
    if world.main:
        header = {
            "format": FORMAT,
            "stage": state.stage,
            "update": state.update,
            "recipe": recipe_to_dict(state.recipe),
            "shards": state.shards,
            "encoder": state.encoder,
            "pending": state.pending,
        }
        work = folder / ".state.new"  # `states` does not find this name, so a kill while writing leaves the older states
        save_file(tensors, work, {"mexma": json.dumps(header)})
        move_file(work, folder / f"state-{state.stage}-{state.update:09}.safetensors")
        for path in states(folder)[: -state.recipe.run.keep]:
            path.unlink()
    wait_for_main(world)


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the model's weights from a state. Raises InputError if they belong to another model."""
    with safe_open(path, framework="pt") as file, torch.no_grad():
        known = set(file.keys())
        for name, parameter in model.named_parameters():
            shape = file.get_slice(f"weight/{name}").get_shape() if f"weight/{name}" in known else "not there"
            if shape != list(parameter.shape):
                raise InputError(
                    f"{path}: {name} is {shape}, but the recipe's model needs {list(parameter.shape)}. "
                    "Resume with the recipe and shards that the run was started with."
                )
            parameter.copy_(shard_like(file.get_tensor(f"weight/{name}"), parameter))


def load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Load the optimiser's moments and the loss scale from a state; the moments are sharded as the weights are."""
    with safe_open(path, framework="pt") as file:
        known = set(file.keys())
        kinds = {key.split("/", 1)[0] for key in known} - {"weight", "scaler"}
        for name, parameter in model.named_parameters():
            for kind in kinds:
                if (key := f"{kind}/{name}") in known:
                    value = file.get_tensor(key)
                    same = value.shape == parameter.shape  # all but the step count
                    optimizer.state[parameter][kind] = shard_like(value, parameter) if same else value.to(parameter.device)
        if scaler.is_enabled() and "scaler" in known:
            scale, growth = file.get_tensor("scaler").tolist()
            scaler.load_state_dict(scaler.state_dict() | {"scale": scale, "_growth_tracker": int(growth)})
