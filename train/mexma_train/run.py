"""The training run, top to bottom: recipe + shards -> warm start -> MEXMA -> checkpoint folder.

    mexma-train tokenizer pairs.tsv.xz tokenizer.json --recipe train/recipes/mini.py
    mexma-train prepare pairs.tsv.xz shards/ --tokenizer tokenizer.json
    mexma-train run train/recipes/mini.py shards/ runs/mini            # again with --resume after a stop

The output folder holds checkpoint/ (Hugging Face form), state.pt (to resume) and log.jsonl (a line per LOG_EVERY updates).
Every batch, mask and dropout draw depends on (seed, step) alone, so a resumed run repeats what the killed one would have done.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import XLMRobertaModel

from mexma_rt.errors import FileError, InputError
from mexma_train.checkpoint import load_state, save_checkpoint, save_state
from mexma_train.config import MexmaConfig, Recipe, WarmupConfig
from mexma_train.mexma import mexma_batch_loss
from mexma_train.model import Mexma, new_encoder
from mexma_train.sampling import PairSampler
from mexma_train.shards import Shards, open_shards
from mexma_train.warmup import make_transparent, settle, warmup_loss, warmup_parameters, warmup_rate

LOG_EVERY = 20  # updates per log line
SAVE_SECONDS = 300  # at most this much work is lost to a kill


def mexma_rate(step: int, config: MexmaConfig) -> float:
    """Share of the peak learning rate at an update: linear from warmup_start over warmup_share, then cosine to 0."""
    warm = max(1, int(config.warmup_share * config.steps))
    if step < warm:
        return config.warmup_start + (1 - config.warmup_start) * step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm)))


def parameter_groups(model: nn.Module, config: MexmaConfig) -> list[dict]:
    """Decay on matrices only, as nanoGPT and the original; the tied matrix counts once."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "lr": config.lr, "weight_decay": 0.0},
    ]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage optimises: a loss per micro-batch, a learning-rate schedule, a number of updates."""

    name: str
    optimizer: torch.optim.Optimizer  # its groups hold the peak learning rates
    batch_loss: Callable[[int], dict[str, Tensor]]  # micro-batch number -> terms, `loss` among them
    rate: Callable[[int], float]  # update number -> share of the peak rate
    steps: int
    pairs: int  # per update
    accumulation: int = 1
    clip: float | None = None  # global L2 norm


def updates(stage: Stage, first: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Run updates first, first + 1, ... and yield (updates done, mean loss terms). A NaN loss raises and touches no weight."""
    groups = stage.optimizer.param_groups
    peaks = [group.setdefault("peak", group["lr"]) for group in groups]  # kept in the saved state for a resumed run
    parameters = [p for group in groups for p in group["params"]]
    for step in range(first, stage.steps):
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * stage.rate(step)
        stage.optimizer.zero_grad(set_to_none=True)
        means: dict[str, float] = {}
        for micro in range(stage.accumulation):
            terms = stage.batch_loss(step * stage.accumulation + micro)
            if not torch.isfinite(terms["loss"]):
                raise InputError(
                    f"update {step}, micro-batch {micro}: loss is {terms['loss'].item()}; terms {_values(terms)}. No weight "
                    "was changed. Lower lr or koleo_weight in the recipe, then start again."
                )
            (terms["loss"] / stage.accumulation).backward()
            for name, value in _values(terms).items():
                means[name] = means.get(name, 0.0) + value / stage.accumulation
        if stage.clip is not None:
            means["grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, stage.clip).item()
        stage.optimizer.step()
        yield step + 1, means | {"lr": groups[0]["lr"]}


def _values(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}


class _Log:
    """Means over LOG_EVERY updates as JSON lines, and the progress bar's text."""

    def __init__(self, path: Path, stage: Stage, first: int) -> None:
        self.path, self.stage = path, stage
        self.bar = tqdm(total=stage.steps, initial=first, desc=stage.name, unit="updates", disable=None)
        self.sums: dict[str, float] = {}
        self.count, self.since = 0, time.perf_counter()

    def add(self, step: int, means: dict[str, float]) -> None:
        self.bar.update(1)
        self.count += 1
        for name, value in means.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if step % LOG_EVERY == 0:
            now = time.perf_counter()
            speed = self.count * self.stage.pairs / (now - self.since)
            line: dict = {"stage": self.stage.name, "update": step, "pairs_per_second": speed}
            line |= {name: value / self.count for name, value in self.sums.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in line.items()}) + "\n")
            self.bar.set_postfix(loss=f"{line['loss']:.3f}", pairs_s=f"{line['pairs_per_second']:.0f}")
            self.sums, self.count, self.since = {}, 0, now


def run_stage(stage: Stage, model: Mexma, state: dict, out: Path, deadline: float) -> bool:
    """Run a stage from its saved update; save the state every SAVE_SECONDS and at the end. False if the deadline came first."""
    if "optimizer" in state:
        stage.optimizer.load_state_dict(state["optimizer"])
    log = _Log(out / "log.jsonl", stage, first=state["step"])

    def save(done: int) -> None:
        now = {"stage": stage.name, "step": done, "recipe": state["recipe"]}
        save_state(now | {"model": model.state_dict(), "optimizer": stage.optimizer.state_dict()}, out / "state.pt")

    saved = time.monotonic()
    for done, means in updates(stage, first=state["step"]):
        log.add(done, means)
        stop = time.monotonic() > deadline and done < stage.steps
        if stop or done == stage.steps or time.monotonic() - saved > SAVE_SECONDS:
            save(done)
            saved = time.monotonic()
        if stop:
            return False
    return True


def train(
    recipe: Recipe,
    shards_folder: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    minutes: float | None = None,
) -> bool:
    """Train a recipe; True when it is finished, False when `minutes` ran out first (then resume).

    Raises FileError if `out` holds a run and `resume` is not set, or holds none and it is; InputError if the recipe changed.
    """
    out = Path(out)
    if (out / "state.pt").exists() and not resume:
        raise FileError(f"{out} holds a run already. Continue it with --resume, or name another folder.")
    state = load_state(out / "state.pt") if resume else first_state(recipe)
    if state["recipe"] != repr(recipe):
        raise InputError(
            f"{out} was started with another recipe:\n  {state['recipe']}\nnow it is:\n  {recipe!r}\n"
            "Give the old recipe, or start again in a new folder."
        )
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + minutes * 60 if minutes is not None else math.inf
    shards = open_shards(shards_folder)
    sampler = PairSampler(shards, recipe.sampling)
    torch.manual_seed(recipe.mexma.seed)
    model = Mexma(first_encoder(recipe, shards), recipe.model).to(device)
    if "model" in state:
        model.load_state_dict(state.pop("model"))

    if state["stage"] == "warmup" and recipe.warmup is not None:
        if not run_stage(warmup_stage(recipe.warmup, model, sampler), model, state, out, deadline):
            return False
        settle(model.encoder)
        save_checkpoint(model.encoder, shards.tokenizer_path, out / "warmup")
        state = first_state(recipe) | {"stage": "mexma"}

    model.train()
    if not run_stage(mexma_stage(recipe.mexma, model, sampler), model, state, out, deadline):
        return False
    save_checkpoint(model.encoder, shards.tokenizer_path, out / "checkpoint")
    return True


def first_state(recipe: Recipe) -> dict:
    """Where a new run starts."""
    return {"stage": "warmup" if recipe.warmup else "mexma", "step": 0, "recipe": repr(recipe)}


def first_encoder(recipe: Recipe, shards: Shards) -> XLMRobertaModel:
    """The encoder before any training: a given checkpoint, or random weights of the recipe's shape."""
    if recipe.initial_checkpoint is None:
        encoder = new_encoder(recipe.model, shards.vocab_size)
    else:
        encoder = XLMRobertaModel.from_pretrained(
            recipe.initial_checkpoint, add_pooling_layer=False, use_safetensors=True, attention_probs_dropout_prob=0.0
        )
        if encoder.config.vocab_size != shards.vocab_size:
            raise InputError(
                f"{recipe.initial_checkpoint} has {encoder.config.vocab_size} pieces, the shards' tokenizer "
                f"{shards.vocab_size}. Prepare the shards again with the tokenizer.json of that checkpoint."
            )
    if recipe.warmup:
        make_transparent(encoder)
    return encoder


def warmup_stage(config: WarmupConfig, model: Mexma, sampler: PairSampler) -> Stage:
    return Stage(
        name="warmup",
        optimizer=torch.optim.Adam(warmup_parameters(model.encoder, config), fused=True),
        batch_loss=lambda step: warmup_loss(model.encoder, sampler, config, step),
        rate=lambda step: warmup_rate(step, config),
        steps=config.steps,
        pairs=config.batch_pairs,
    )


def mexma_stage(config: MexmaConfig, model: Mexma, sampler: PairSampler) -> Stage:
    model.head.vocabulary.weight.requires_grad_(not config.freeze_words)  # the tied matrix
    return Stage(
        name="mexma",
        optimizer=torch.optim.AdamW(parameter_groups(model, config), fused=True),
        batch_loss=lambda step: mexma_batch_loss(model, sampler, config, step),
        rate=lambda step: mexma_rate(step, config),
        steps=config.steps,
        pairs=config.batch_pairs * config.accumulation,
        accumulation=config.accumulation,
        clip=config.clip,
    )
