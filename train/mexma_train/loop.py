"""The loop of a stage: draw, forward, backward, clip, step, log, evaluate, save. The stages are in run.py."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mexma_rt.errors import InputError
from mexma_train.batch import MicroBatch, prefetch
from mexma_train.logs import RunLog
from mexma_train.parallel import World, all_sum, clip_gradient, synchronised
from mexma_train.state import State, load_optimizer, save_state


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training: its micro-batches, their loss terms, the learning-rate schedule, the number of updates."""

    name: str
    module: nn.Module  # its backward passes exchange gradients
    optimizer: torch.optim.Optimizer  # its groups hold the peak learning rates
    scaler: torch.amp.GradScaler
    batches: Callable[[int], list[Any]]  # update number -> micro-batches with `pairs` and `tokens`
    terms: Callable[[Any], dict[str, Tensor]]  # micro-batch -> loss terms: its shares of the update's, which are their sums
    rate: Callable[[int], float]  # update number -> share of the peak rate
    steps: int
    pairs: int  # per update, all processes together
    seed: int
    clip: float | None = None  # largest global L2 norm of the gradient
    evaluate: Callable[[], dict[str, dict[str, float]]] | None = None  # returns the measures of each test set


def run_stage(stage: Stage, model: nn.Module, state: State, out: Path, deadline: float, world: World) -> bool:
    """Run a stage from its saved update on: train, log, evaluate, save states. Returns False if the deadline came first."""
    config = state.recipe.run
    if state.path:
        load_optimizer(state.path, model, stage.optimizer, stage.scaler)
    pending, saved = dict(state.pending), time.monotonic()  # sums of the terms since the last line of the log
    with RunLog(
        out,
        name=stage.name,
        total=stage.steps,
        first=state.update,
        pairs_per_update=stage.pairs,
        every=config.log_every,
        tensorboard=config.tensorboard,
        main=world.main,
    ) as log:
        for done, terms, update_tokens in updates(stage, state.update, out, world):
            added = terms | {"tokens": update_tokens, "updates": 1}
            pending = {name: pending.get(name, 0.0) + value for name, value in added.items()}
            log.advance(done, loss=f"{terms['loss']:.3f}")
            if log.due(done):
                log.add(done, {name: pending[name] / pending["updates"] for name in terms}, int(pending["tokens"]))
                pending = {}
            if stage.evaluate and (done == stage.steps or (config.eval_every and done % config.eval_every == 0)):
                with log.pause():
                    log.add_evaluation(done, stage.evaluate())
            now = time.monotonic()
            late, due = (bool(x) for x in _agree([now > deadline, now - saved > 60 * config.save_minutes], world))
            stop = late and done < stage.steps
            if stop or due or done == stage.steps:
                with log.pause():
                    now_at = replace(state, update=done, pending=pending)
                    save_state(now_at, out, model, stage.optimizer, stage.scaler, world)
                saved = time.monotonic()
            if stop:
                return False
    return True


def updates(stage: Stage, first: int, out: Path, world: World) -> Iterator[tuple[int, dict[str, float], int]]:
    """Run updates first, first + 1, ... and yield (updates done, loss terms, clean tokens of all processes).

    If the loss or its gradient is not finite, the batch is saved in `out`, and InputError is raised before any weight changes.
    """
    groups = stage.optimizer.param_groups
    peaks = [group["lr"] for group in groups]
    parameters = [p for group in groups for p in group["params"]]
    for update, batches in enumerate(prefetch(stage.batches, first, stage.steps), start=first):
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * stage.rate(update)
        stage.optimizer.zero_grad(set_to_none=True)
        kept: list[dict[str, Tensor]] = []
        for micro, batch in enumerate(batches):
            batch = batch.to(world.device)
            torch.manual_seed(_dropout_seed(stage.seed, update, micro, world.rank))
            with synchronised(stage.module, last=micro == len(batches) - 1):
                terms = stage.terms(batch)
                # Gradients are averaged over processes, but the terms are shares of a sum.
                stage.scaler.scale(terms["loss"] * world.size).backward()
            kept.append({name: value.detach() for name, value in terms.items()})
        sums = torch.stack([torch.stack([value.double() for value in terms.values()]) for terms in kept]).sum(dim=0)
        tokens = sums.new_tensor([float(sum(batch.tokens for batch in batches))])
        *summed, all_tokens = all_sum(torch.cat([sums, tokens]), world).tolist()
        values = dict(zip(kept[0], summed, strict=True))
        stage.scaler.unscale_(stage.optimizer)
        norm = clip_gradient(parameters, stage.clip).item()
        if not math.isfinite(values["loss"]) or (not math.isfinite(norm) and not stage.scaler.is_enabled()):
            raise InputError(_not_finite(update, values | {"grad_norm": norm}, batches, kept, out, world))
        stage.scaler.step(stage.optimizer)
        stage.scaler.update()
        yield update + 1, values | {"grad_norm": norm, "lr": groups[0]["lr"]}, int(all_tokens)


def _dropout_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _not_finite(
    update: int, values: dict[str, float], batches: list[Any], kept: list[dict[str, Tensor]], out: Path, world: World
) -> str:
    """Save the micro-batch that broke the update, and return a message that says what to do."""
    broken = [i for i, terms in enumerate(kept) if not torch.isfinite(terms["loss"])]
    batch, where = batches[broken[0] if broken else -1], "if the loss broke in another process, that one saved its batch."
    if isinstance(batch, MicroBatch) and (broken or world.size == 1):
        path = out / f"broken-batch-{batch.number}-{world.rank}.safetensors"
        tensors = {"ids": batch.ids, "lengths": torch.from_numpy(batch.lengths), "chosen": batch.chosen, "labels": batch.labels}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"terms": json.dumps(str(values))})
        where = f"its batch is in {path} (ids of the packed row, lengths, masked positions, labels)."
    shown = {name: float(f"{value:.4g}") for name, value in values.items()}
    return (
        f"update {update}: the loss or its gradient is not a number; terms {shown}. No weight was changed; {where}\n"
        "Usual causes, and what to add to `mexma-train run` in a new folder: too high a learning rate (--mexma.lr, a third "
        "of it), duplicates that make KoLeo explode (--mexma.koleo-weight 0), fp16 (--mexma.precision bf16)."
    )


def _agree(flags: list[bool], world: World) -> list[float]:
    """The main process's flags, in all processes: clocks differ, and all must save and stop at the same update."""
    own = [float(flag and world.main) for flag in flags]
    return own if world.size == 1 else all_sum(torch.tensor(own, device=world.device), world).tolist()
