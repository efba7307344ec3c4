"""Chooses the form of the words and of each product in a w4 or w8 graph: the cheapest that preserves the vectors.

The rounding is simulated in torch: a linear layer gets its dequantised weights, and its input is rounded as MatMulNBits does.
All products start in their cheapest form. If that costs too much, each group of products (query, key and value of a layer
together) is rounded alone to measure its harm, and groups move up their ladders in the order of harm per weight until the
vectors are good enough. The parity gate then judges the written graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import gcd
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle

from mexma_export.blocks import Blocks, on_grid, quantise_blocks
from mexma_export.blockwise import WORDS_WEIGHT, Form, product_names
from mexma_export.parity import pad_rows
from mexma_export.reopen import Runner
from mexma_export.sentences import Sentence
from mexma_export.verdict import Thresholds
from mexma_export.word_codes import stored_without_loss
from mexma_rt.bundle.graphs import PAD

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import XLMRobertaModel

# Calibration sentences: SPREAD over the list, and the SHORTEST, which suffer most from rounding because they have few states
# (with the 64 spread ones alone, the gate then found a cosine of 0.993, of one Finnish word).
SPREAD, SHORTEST, TOKENS, BATCH = 64, 32, 48, 16
SOME = slice(None, None, 3)  # of the six calibration batches, those used to order the groups
MARGIN = 0.2  # part of the gate's tolerance, reserved for what the simulation and so few sentences do not show
COARSE = Form(bits=4, size=32, level=4)
EXACT = Form(bits=4, size=32, level=0)  # exact for weights on a grid
FINE = Form(bits=8, size=32, level=4)
FINEST = Form(bits=8, size=32, level=0)
GROUPS = Form(bits=8, size=64, level=0)  # words as in compact.py
WIDE = Form(bits=8, size=128, level=4)  # faster than blocks of 32, but coarser


def ladder(name: str, weight: np.ndarray, bits: int) -> tuple[Form, ...]:
    """Return the possible forms of the words or of a product in w4 or w8 (`bits`), from the cheapest to the most exact."""
    if name == WORDS_WEIGHT:
        if stored_without_loss(weight):
            return (EXACT,)
        return (EXACT, GROUPS) if bits == 4 else (GROUPS,)
    if bits == 4:
        return (COARSE, EXACT) if on_grid(weight, size=32) else (COARSE, FINE, FINEST)
    return (WIDE, FINE, FINEST) if weight.shape[1] % WIDE.size == 0 else (FINE, FINEST)


def choose_forms(
    model: XLMRobertaModel,
    run: Runner,
    tokenizer: Tokenizer,
    sentences: Sequence[Sentence],
    limits: Thresholds,
    *,
    bits: int,
    pad: int = PAD,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Form]:
    """Choose the forms of the words and of every product for w4 or w8 (`bits`): {name of the weight: form}.

    If no choice passes, these are the most exact ones, and the gate will refuse the graph. `run` is the model's runner;
    `sentences` are for calibration; `limits` are the gate's. The model is unchanged afterwards. `progress(done, total)` counts
    measurements. Raises BundleError for widths that are not a multiple of 32.
    """
    names = [WORDS_WEIGHT, *product_names(model)]
    rungs = {name: ladder(name, _weight(model, name), bits) for name in names}
    batches = calibration(tokenizer, sentences, pad)
    wanted = _vectors(run, batches, pad)
    centres = [np.zeros(1)]  # subtracted from both vectors of a cosine
    if limits.centred and sum(map(len, batches)) > 1:
        centres.append(np.concatenate(wanted).mean(axis=0))
    held: dict[tuple[str, Form], Blocks | None] = {}
    if rungs[WORDS_WEIGHT] == (EXACT,):  # `ladder` has found that they lose nothing; testing again would take seconds
        held[WORDS_WEIGHT, EXACT] = None

    def cosines(forms: Mapping[str, Form], rows: slice = slice(None)) -> np.ndarray:
        """Cosines of some batches' vectors with products rounded: plain, and centred if the gate uses them, [1 or 2, n]."""
        with rounded(model, forms, held):
            got = np.concatenate(_vectors(run, batches[rows], pad))
        expected = np.concatenate(wanted[rows])
        return np.stack([_cosines(got - centre, expected - centre) for centre in centres])

    def passes(forms: Mapping[str, Form]) -> bool:
        found = cosines(forms)
        least, mean = (1 - (1 - MARGIN) * (1 - limit) for limit in (limits.min_cosine, limits.mean_cosine))
        return bool((found.min(axis=1) >= least).all() and (found.mean(axis=1) >= mean).all())

    forms = {name: rungs[name][0] for name in names}
    groups = _groups(names)
    if passes(forms):
        return forms
    costs = []
    for done, group in enumerate(groups, start=1):
        weights = sum(_weight(model, name).size for name in group)
        costs.append(((1 - float(cosines({name: forms[name] for name in group}, SOME)[-1].mean())) / weights, group))
        if progress:
            progress(done, len(groups))
    order = [group for _, group in sorted(costs, key=lambda cost: -cost[0])]
    moves = [
        (name, r) for r in range(1, max(map(len, rungs.values()))) for group in order for name in group if r < len(rungs[name])
    ]

    def after(count: int) -> dict[str, Form]:
        return forms | {name: rungs[name][r] for name, r in moves[:count]}

    low, high = 0, len(moves)  # `low` moves are too few
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(after(middle)) else (middle, high)
    return after(high)


def calibration(tokenizer: Tokenizer, sentences: Sequence[Sentence], pad: int = PAD) -> list[np.ndarray]:
    """Return batches of ids, int64 [B, L], padded on the right: sentences spread over the list, and the shortest ones."""
    rows = [encoding.ids[:TOKENS] for encoding in tokenizer.encode_batch([s.text for s in sentences])]
    spread = range(0, len(rows), max(1, len(rows) // SPREAD))[:SPREAD]
    shortest = sorted(range(len(rows)), key=lambda i: len(rows[i]))[:SHORTEST]
    rows = sorted((rows[i] for i in sorted({*spread, *shortest})), key=len)
    return [pad_rows(rows[start : start + BATCH], pad) for start in range(0, len(rows), BATCH)]


@contextmanager
def rounded(
    model: XLMRobertaModel, forms: Mapping[str, Form], held: dict[tuple[str, Form], Blocks | None] | None = None
) -> Iterator[None]:
    """Inside the block, the model's products compute as MatMulNBits does with these forms.

    `held` caches blocks between calls; None stands for words that the graph stores without loss.
    """
    held = {} if held is None else held
    before: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    hooks: list[RemovableHandle] = []
    try:
        for name, form in forms.items():
            if (name, form) not in held:
                weight = _weight(model, name)
                exact = name == WORDS_WEIGHT and form == EXACT and stored_without_loss(weight)
                size = gcd(form.size, weight.shape[1])
                held[name, form] = None if exact else quantise_blocks(weight, bits=form.bits, size=size)
            if (blocks := held[name, form]) is not None:
                parameter = model.get_parameter(name)
                before.append((parameter, parameter.data))
                parameter.data = torch.from_numpy(blocks.numbers)
            if form.level == 4:
                layer = model.get_submodule(name.removesuffix(".weight"))
                hooks.append(layer.register_forward_pre_hook(lambda _, inputs, size=form.size: (round_input(inputs[0], size),)))
        yield
    finally:
        for parameter, data in before:
            parameter.data = data
        for hook in hooks:
            hook.remove()


def round_input(states: torch.Tensor, size: int) -> torch.Tensor:
    """Round states [..., K] to 8 bits with a scale per block of `size` numbers of a row, as accuracy_level 4 does."""
    blocks: torch.Tensor = states.unflatten(-1, (-1, size))
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    return ((blocks / scale.clamp_min(1e-30)).round() * scale).flatten(-2)


def _groups(names: Sequence[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".self.")[0] if ".self." in name else name, []).append(name)
    return list(groups.values())


def _weight(model: XLMRobertaModel, name: str) -> np.ndarray:
    array: np.ndarray = model.get_parameter(name).detach().float().numpy()
    return array


def _vectors(run: Runner, batches: Sequence[np.ndarray], pad: int) -> list[np.ndarray]:
    """Return the sentence vectors of each batch, float64 [B, D]."""
    return [run(ids, (ids != pad).astype(np.int64))[0].astype(np.float64) for ids in batches]


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
