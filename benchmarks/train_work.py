"""What train_throughput.py trains on, and what it counts: shapes, micro-batches of made-up or real text, model FLOPs.

The lengths and the arithmetic are described at the top of train_throughput.py.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mexma_train.batch import MaskedSide, mask_side
from mexma_train.config import MexmaConfig, ModelConfig, SamplingConfig
from mexma_train.data.shards import Ragged, open_shards
from mexma_train.sampling import PairSampler

XLMR_PIECES = 250_002
SHAPES = {
    "toy": (ModelConfig(hidden_size=32, layers=2, heads=2, intermediate_size=64, head_layers=1, head_heads=2), 500),
    # As the bundled model, but with six layers and the original's six head layers, so that layers and vocabulary both weigh.
    "mini": (ModelConfig(hidden_size=256, layers=6, heads=4, intermediate_size=1_024, head_intermediate_size=1_024), 64_000),
    "base": (ModelConfig(hidden_size=768, layers=12, heads=12, intermediate_size=3_072), XLMR_PIECES),
    "large": (ModelConfig(), XLMR_PIECES),
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One micro-batch for both arms, and what it counts."""

    source: MaskedSide
    target: MaskedSide
    tokens: int  # clean, both sides
    places: int  # of the clean padded tables of both sides
    flops: float


def made_up_pairs(rng: np.random.Generator, pairs: int, pieces: int, max_tokens: int) -> tuple[Ragged, Ragged]:
    """Sentences of the lengths described above; pieces by Zipf's law. Returns (source, English)."""
    english = rng.lognormal(math.log(25.5) - 0.6**2 / 2, 0.6, pairs)
    text = english * rng.lognormal(math.log(1.12) - 0.2**2 / 2, 0.2, pairs)

    def side(drawn: np.ndarray) -> Ragged:
        lengths = np.clip(np.rint(drawn), 3, max_tokens).astype(np.int64)
        ids = 3 + np.floor((pieces - 4) ** rng.random(lengths.sum())).astype(np.int64)  # 4 ... pieces - 2
        ends = np.cumsum(lengths)
        ids[ends - lengths], ids[ends - 1] = 0, 2
        return Ragged(ids=ids, lengths=lengths)

    return side(text), side(english)


def micro_batches(args: argparse.Namespace, config: MexmaConfig) -> Iterator[tuple[Ragged, Ragged]]:
    """Endless (source, English); with --bucket, so many batches are drawn at once and cut by length."""
    _, pieces = SHAPES[args.shape]
    if args.shards:
        shards = open_shards(args.shards)
        if shards.vocab_size > pieces:
            sys.exit(
                f"{args.shards} has {shards.vocab_size} pieces, but shape {args.shape} {pieces}: type --shape base or large."
            )
        sampler, number = PairSampler(shards, SamplingConfig(bucket=args.bucket)), 0
        while True:
            chosen = sampler.micro_batch(number, args.pairs)
            yield shards.text(chosen, config.max_tokens), shards.english(chosen, config.max_tokens)
            number += 1
    rng = np.random.default_rng(0)
    while True:
        source, english = made_up_pairs(rng, args.pairs * args.bucket, pieces, config.max_tokens)
        order = np.argsort(source.lengths + english.lengths, kind="stable") if args.bucket > 1 else np.arange(args.pairs)
        for part in rng.permutation(args.bucket):
            chosen = order[part * args.pairs : (part + 1) * args.pairs]
            yield rows(source, chosen), rows(english, chosen)


def rows(side: Ragged, chosen: np.ndarray) -> Ragged:
    ends = np.cumsum(side.lengths)
    parts = [side.ids[ends[i] - side.lengths[i] : ends[i]] for i in chosen]
    return Ragged(ids=np.concatenate(parts), lengths=side.lengths[chosen])


def works(args: argparse.Namespace, config: MexmaConfig) -> Iterator[Work]:
    shape, pieces = SHAPES[args.shape]
    rngs = [np.random.default_rng((config.seed, stream)) for stream in (0, 1)]
    for pair in micro_batches(args, config):
        source, target = (mask_side(side, config, pieces, rng) for side, rng in zip(pair, rngs, strict=True))
        yield Work(
            source=source,
            target=target,
            tokens=len(source.clean) + len(target.clean),
            places=sum(len(side.lengths) * int(side.lengths.max()) for side in pair),
            flops=model_flops(source, target, shape, pieces),
        )


def model_flops(source: MaskedSide, target: MaskedSide, shape: ModelConfig, pieces: int) -> float:
    """Forward and backward of one micro-batch, counted as the text at the top says."""
    width, lengths = shape.hidden_size, np.concatenate([source.lengths, target.lengths]).astype(np.float64)
    chosen = source.chosen.sum() + target.chosen.sum()

    def stack(layers: int, intermediate: int) -> float:
        return layers * (6 * (4 * width**2 + 2 * width * intermediate) * lengths.sum() + 12 * width * (lengths**2).sum())

    encoder, head = stack(shape.layers, shape.intermediate_size), stack(shape.head_layers, shape.head_intermediate_size)
    return float(2 * encoder + head + 6 * width * pieces * chosen)
