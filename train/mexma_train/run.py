"""The whole training run: recipe + shards -> warm start and ranking (if the recipe has them) -> MEXMA -> checkpoint.

    mexma-train run train/recipes/mini.py shards runs/mini                                            # CPU
    mexma-train run train/recipes/mexma_large.py shards runs/large --device cuda                      # one GPU
    torchrun --nproc-per-node 8 -m mexma_train run train/recipes/mexma_large.py shards runs/large --device cuda    # one node
    mexma-train resume runs/mini                                                # after a stop or a kill

The output folder holds checkpoint/ (Hugging Face form), state-*.safetensors (to resume) and log.jsonl.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import XLMRobertaConfig

from mexma_rt.backends.packed_encoder import Encoder
from mexma_rt.errors import FileError, InputError, typed
from mexma_train import probe
from mexma_train.attention import choose_attention
from mexma_train.batch import MicroBatch, update_batches
from mexma_train.checkpoint import save_checkpoint
from mexma_train.config import MexmaConfig, RankingConfig, Recipe, RunConfig, WarmupConfig
from mexma_train.data.shards import Shards, open_shards
from mexma_train.data.tokenizer import load_tokenizer
from mexma_train.encoder import load_encoder, new_encoder
from mexma_train.estimate import steps_of
from mexma_train.evaluate import TestSet, evaluate, read_test_sets
from mexma_train.logs import truncate
from mexma_train.loop import Stage, run_stage
from mexma_train.model import Mexma
from mexma_train.parallel import World, distribute, whole, whole_weights
from mexma_train.ranking import PairBatch, ranking_batch, ranking_parameters, ranking_rate, whole_terms
from mexma_train.rounding import keep_rounded, product_weights
from mexma_train.sampling import PairSampler
from mexma_train.state import STAGES, State, load_weights, newest_state, states
from mexma_train.suite.data import ENGLISH
from mexma_train.warmup import make_transparent, prepare_for_masking, warmup_batch, warmup_parameters, warmup_rate, warmup_terms

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    recipe: Recipe,
    shards_folder: str | Path,
    out: str | Path,
    *,
    device: str | World = "cpu",
    minutes: float | None = None,
) -> bool:
    """Start a run that writes `out`/checkpoint. Returns True when it is finished, False if `minutes` ran out (then `resume`).

    `device` is a name, or in a torchrun process the World of parallel.start_world. Raises FileError if `out` already holds a
    run, and InputError for settings that do not fit the shards or each other, and for a loss that is not finite.
    """
    out = Path(out)
    if states(out):
        raise FileError(
            f"{out} already holds a run. Continue it with: mexma-train resume {typed(out)}\nor name another folder."
        )
    first = "warmup" if recipe.warmup else "ranking" if recipe.ranking else "mexma"
    state = State(stage=first, update=0, recipe=recipe, shards=str(Path(shards_folder).resolve()))
    return _continue(state, out, device, minutes)


def resume(
    out: str | Path,
    *,
    shards_folder: str | Path | None = None,
    run: RunConfig | None = None,
    device: str | World = "cpu",
    minutes: float | None = None,
) -> bool:
    """Continue the run in `out` from its newest state, bit for bit as if it had never stopped (in one CPU process).

    The recipe is the state's; `run` may change how it is executed, and `shards_folder` says where the shards are now. Returns
    and raises what `train` does, and FileError if there is no readable state.
    """
    state = newest_state(Path(out))
    recipe = replace(state.recipe, run=run or state.recipe.run)
    shards = str(Path(shards_folder).resolve()) if shards_folder is not None else state.shards
    return _continue(replace(state, recipe=recipe, shards=shards), Path(out), device, minutes)


def _continue(state: State, out: Path, device: str | World, minutes: float | None) -> bool:
    deadline = time.monotonic() + minutes * 60 if minutes is not None else math.inf
    world = World(device=torch.device(device)) if isinstance(device, str) else device
    recipe, shards = state.recipe, open_shards(state.shards)
    sampler, tests = PairSampler(shards, recipe.sampling), read_test_sets(recipe.run.eval_pairs)
    if world.main:
        out.mkdir(parents=True, exist_ok=True)
        truncate(out, list(STAGES), state.stage, state.update)  # drops what a killed run logged after its last state
    if world.size > 1 and state.stage != "mexma" and getattr(recipe, state.stage):
        raise InputError(
            f"the {state.stage} stage of recipe {recipe.name!r} runs in one process only. Type the same command without "
            "torchrun, with --minutes to stop after it, and then: torchrun ... -m mexma_train resume " + str(out)
        )
    torch.manual_seed(recipe.mexma.seed)
    if state.path and state.encoder:  # the initial checkpoint may be gone by now
        encoder = Encoder(XLMRobertaConfig.from_dict(state.encoder))
    else:
        encoder = first_encoder(recipe, shards)
    encoder.config.languages = languages_of(encoder, sampler)  # written to config.json, and by an export to mexma.json
    model = Mexma(encoder, recipe.model).to(world.device)
    state = replace(state, encoder=encoder.config.to_dict())
    if state.path:
        load_weights(state.path, model)

    if state.stage == "warmup" and recipe.warmup:
        stage = warmup_stage(recipe.warmup, model, sampler, recipe.mexma.seed)
        if not run_stage(stage, model, state, out, deadline, world):
            return False
        prepare_for_masking(model.encoder)
        save_checkpoint(model.encoder.config, _weights(model.encoder), shards.tokenizer_path, out / "warmup")
        state = replace(state, stage="ranking", update=0, path=None, pending={})
    model.train()
    if state.stage != "mexma" and recipe.ranking:
        stage = ranking_stage(recipe.ranking, recipe, model, sampler)
        if not run_stage(stage, model, replace(state, stage="ranking"), out, deadline, world):
            return False
        save_checkpoint(model.encoder.config, _weights(model.encoder), shards.tokenizer_path, out / "ranking")
        state = replace(state, update=0, path=None, pending={})
    state = replace(state, stage="mexma")
    stage = mexma_stage(recipe, model, sampler, world, tests)
    finished = run_stage(stage, model, state, out, deadline, world)
    weights = _weights(model.encoder)
    if world.main:
        save_checkpoint(model.encoder.config, weights, shards.tokenizer_path, out / "checkpoint")
    return finished


def _evaluate(
    model: Mexma, module: nn.Module, tests: list[TestSet], tokenizer: Any, config: MexmaConfig, attention: str
) -> dict[str, dict[str, float]]:
    """Every process embeds all test sets: sharded layers need all processes, and the sets are small."""

    def embed(texts: list[str]) -> Any:
        return probe.embed_texts(model.encoder, tokenizer, texts, max_tokens=config.max_tokens, attention=attention)

    def mlm_accuracy(test: TestSet) -> float:
        pairs = list(zip(test.text, test.english, strict=True))
        how: Any = {"max_tokens": config.max_tokens, "ratio": config.mask_ratio, "attention": attention}
        return probe.masked_accuracy(model, tokenizer, pairs, **how)

    with whole_weights(module), _autocast(config.precision, model.head.bias.device):
        return evaluate(tests, embed, mlm_accuracy)


def _autocast(precision: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=AUTOCAST.get(precision), enabled=precision != "fp32")


def _weights(encoder: Encoder) -> dict[str, Tensor]:
    return {name: whole(tensor) for name, tensor in encoder.state_dict().items()}


def first_encoder(recipe: Recipe, shards: Shards) -> Encoder:
    """Return the encoder before any training: the initial checkpoint's, or one of the recipe's shape with random weights."""
    if recipe.initial_checkpoint is None:
        encoder = new_encoder(recipe.model, shards.vocab_size)
    else:
        pieces = Path(shards.tokenizer_path)
        encoder = load_encoder(recipe.initial_checkpoint, dropout=recipe.model.dropout, pieces=pieces)
    if recipe.warmup:
        make_transparent(encoder)
    return encoder


def languages_of(encoder: Encoder, sampler: PairSampler) -> list[str]:
    """Return the languages this run trains on: those its initial checkpoint names, English, and every language drawn."""
    drawn = (lang for lang, share in zip(sampler.shards.languages, sampler.language_share, strict=True) if share > 0)
    return sorted({*getattr(encoder.config, "languages", ()), ENGLISH, *drawn})


def warmup_stage(config: WarmupConfig, model: Mexma, sampler: PairSampler, seed: int) -> Stage:
    """Return the warm start as a stage of the loop."""
    device = model.head.bias.device
    return Stage(
        name="warmup",
        module=model,
        optimizer=torch.optim.Adam(warmup_parameters(model.encoder, config), fused=True),
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        batches=lambda update: [warmup_batch(update, sampler, config)],
        terms=lambda batch: warmup_terms(model.encoder, batch, config),
        rate=lambda update: warmup_rate(update, config),
        steps=config.steps,
        pairs=config.batch_pairs,
        seed=seed,
    )


def ranking_stage(config: RankingConfig, recipe: Recipe, model: Mexma, sampler: PairSampler) -> Stage:
    """Return translation ranking as a stage of the loop."""
    device = model.head.bias.device
    attention, _ = choose_attention(recipe.run.attention, device, config.precision)

    def terms(batch: PairBatch) -> dict[str, Tensor]:
        with _autocast(config.precision, device):
            return whole_terms(model.encoder, batch, config, attention)

    optimizer = torch.optim.Adam(ranking_parameters(model.encoder, config), fused=True)
    if config.round_bits:
        keep_rounded(optimizer, product_weights(model.encoder), config.round_bits)
    return Stage(
        name="ranking",
        module=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        batches=lambda update: [ranking_batch(update, sampler, config)],
        terms=terms,
        rate=lambda update: ranking_rate(update, config),
        steps=config.steps,
        pairs=config.batch_pairs,
        seed=recipe.mexma.seed,
        clip=config.clip,
    )


def mexma_stage(recipe: Recipe, model: Mexma, sampler: PairSampler, world: World, tests: list[TestSet]) -> Stage:
    """Return MEXMA itself as a stage of the loop, evaluated on `tests`. Raises InputError as `steps_of` and `keep_rounded`."""
    config, run = recipe.mexma, recipe.run
    attention, _ = choose_attention(run.attention, world.device, config.precision)
    batch_pairs = config.batch_pairs
    if config.batch_tokens is not None:
        batch_pairs = sampler.pairs_for_tokens(config.batch_tokens, config.max_tokens)
    fixed = replace(config, batch_pairs=batch_pairs, batch_tokens=None)
    steps = steps_of(fixed, pairs=len(sampler.shards), mean_pair_tokens=math.nan, world=world.size)  # unused: pairs are fixed
    model.encoder.embeddings.word_embeddings.weight.requires_grad_(not config.freeze_words)
    layers = [*model.encoder.encoder.layer, *model.head.layers]
    if run.compile:
        for layer in layers:
            layer.compile(dynamic=True)
    module = distribute(model, layers, world, run.parallel)

    def terms(batch: MicroBatch) -> dict[str, Tensor]:
        with _autocast(config.precision, world.device):
            losses: dict[str, Tensor] = module(batch, config, attention=attention, chunk=run.vocabulary_chunk, world=world)
            return losses

    measure = None
    if tests:
        tokenizer = load_tokenizer(sampler.shards.tokenizer_path)
        measure = functools.partial(_evaluate, model, module, tests, tokenizer, config, attention)
    optimizer = torch.optim.AdamW(parameter_groups(model, config), fused=True)
    if config.round_bits:
        if world.size > 1:
            raise InputError(f"mexma.round_bits is {config.round_bits}, which works in one process only. Leave out torchrun.")
        keep_rounded(optimizer, product_weights(model.encoder), config.round_bits)
    return Stage(
        name="mexma",
        module=module,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16"),
        batches=functools.partial(
            update_batches, sampler=sampler, config=config, batch_pairs=batch_pairs, rank=world.rank, world=world.size
        ),
        terms=terms,
        rate=lambda update: mexma_rate(update, config, steps),
        steps=steps,
        pairs=batch_pairs * config.accumulation * world.size,
        seed=config.seed,
        clip=config.clip,
        evaluate=measure,
    )


def parameter_groups(model: nn.Module, config: MexmaConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups: weight decay on matrices only, as in nanoGPT and the original; the tied matrix occurs once."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "lr": config.lr, "weight_decay": 0.0},
    ]


def mexma_rate(update: int, config: MexmaConfig, steps: int) -> float:
    """Share of the peak learning rate at an update: linear from warmup_start over warmup_share, then cosine to 0.

    With schedule "micro-batch", the original's, it moves at every micro-batch, and an update takes the rate of its last one.
    """
    accumulation = config.accumulation if config.schedule == "micro-batch" else 1
    total, at = steps * accumulation, update * accumulation + accumulation - 1
    warm = max(1, int(config.warmup_share * total))
    if at < warm:
        return config.warmup_start + (1 - config.warmup_start) * at / warm
    return 0.5 * (1 + math.cos(math.pi * (at - warm) / max(1, total - warm)))
