"""Chooses the form of the words and of each product in a w4, w8 or int8 graph: the cheapest that preserves the vectors.

The rounding is simulated in torch: a linear layer gets its dequantised weights, and its input is rounded as the graph does.
All products start in their cheapest form. If that costs too much, each group of products (query, key and value of a layer
together) is rounded alone to measure its harm, and groups move up their ladders in the order of harm per weight until the
vectors are good enough. The parity gate then judges the written graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import gcd
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle

from mexma_export.blocks import Blocks, on_grid, quantise_blocks
from mexma_export.blockwise import WORDS_WEIGHT, Form, product_names
from mexma_export.parity import pad_rows
from mexma_export.reopen import Runner
from mexma_export.rows import FLOAT, ROWS, RowProduct, row_product
from mexma_export.sentences import Sentence
from mexma_export.verdict import Thresholds
from mexma_export.word_codes import stored_without_loss
from mexma_rt.bundle.graphs import PAD
from mexma_rt.bundle.rows import LOWEST_GELU

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


def ladder(name: str, weight: np.ndarray, precision: str) -> tuple[Form, ...]:
    """Return the possible forms of the words or of a product in w4, w8 or int8, from the cheapest to the most exact."""
    if name == WORDS_WEIGHT:
        if stored_without_loss(weight):
            return (EXACT,)
        return (EXACT, GROUPS) if precision == "w4" else (GROUPS,)
    if precision == "int8":
        return ROWS, FLOAT
    if precision == "w4":
        return (COARSE, EXACT) if on_grid(weight, size=32) else (COARSE, FINE, FINEST)
    return (WIDE, FINE, FINEST) if weight.shape[1] % WIDE.size == 0 else (FINE, FINEST)


def choose_forms(
    model: XLMRobertaModel,
    run: Runner,
    tokenizer: Tokenizer,
    sentences: Sequence[Sentence],
    limits: Thresholds,
    *,
    precision: str,
    pad: int = PAD,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Form], dict[str, RowProduct]]:
    """Choose the forms of the words and of every product for w4, w8 or int8: {name of the weight: form}.

    Also returns the products of int8 by rows. If no choice passes, the forms are the most exact ones, and the gate will refuse
    the graph. `run` is the model's runner; `sentences` are for calibration; `limits` are the gate's. The model is unchanged
    afterwards. `progress(done, total)` counts measurements. Raises BundleError for widths that are not a multiple of 32.
    """
    names = [WORDS_WEIGHT, *product_names(model)]
    rungs = {name: ladder(name, _weight(model, name), precision) for name in names}
    batches = calibration(tokenizer, sentences, pad)
    rows = row_products(model, run, batches, pad) if precision == "int8" else {}
    wanted = _vectors(run, batches, pad)
    centres = [np.zeros(1)]  # subtracted from both vectors of a cosine
    if limits.centred and sum(map(len, batches)) > 1:
        centres.append(np.concatenate(wanted).mean(axis=0))
    held: dict[tuple[str, Form], Blocks | RowProduct | None] = {(name, ROWS): product for name, product in rows.items()}
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
        return forms, rows
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
    return after(high), rows


def row_products(model: XLMRobertaModel, run: Runner, batches: Sequence[np.ndarray], pad: int = PAD) -> dict[str, RowProduct]:
    """Round every product by rows; those that read a LayerNorm's output are smoothed by what it is on these batches."""
    largest: dict[str, np.ndarray] = {}

    def look(name: str, states: torch.Tensor) -> None:
        peaks = states.detach().abs().flatten(0, -2).amax(dim=0).numpy()
        largest[name] = np.maximum(largest.get(name, 0), peaks)

    names = product_names(model)
    hooks = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda _, inputs, name=name: look(name, inputs[0])
        )
        for name in names
        if ".self." in name or ".intermediate." in name
    ]
    try:
        _vectors(run, batches, pad)
    finally:
        for hook in hooks:
            hook.remove()
    products = {}
    for group in _groups(names):
        weights = [_weight(model, name) for name in group]
        behind_gelu = group[0].endswith(".output.dense.weight") and ".attention." not in group[0]
        shift = LOWEST_GELU if behind_gelu else 0.0
        for name, weight in zip(group, weights, strict=True):
            products[name] = row_product(weight, largest=largest.get(name), weights=weights, shift=shift)
    return products


def calibration(tokenizer: Tokenizer, sentences: Sequence[Sentence], pad: int = PAD) -> list[np.ndarray]:
    """Return batches of ids, int64 [B, L], padded on the right: sentences spread over the list, and the shortest ones."""
    rows = [encoding.ids[:TOKENS] for encoding in tokenizer.encode_batch([s.text for s in sentences])]
    spread = range(0, len(rows), max(1, len(rows) // SPREAD))[:SPREAD]
    shortest = sorted(range(len(rows)), key=lambda i: len(rows[i]))[:SHORTEST]
    rows = sorted((rows[i] for i in sorted({*spread, *shortest})), key=len)
    return [pad_rows(rows[start : start + BATCH], pad) for start in range(0, len(rows), BATCH)]


@contextmanager
def rounded(
    model: XLMRobertaModel, forms: Mapping[str, Form], held: dict[tuple[str, Form], Blocks | RowProduct | None] | None = None
) -> Iterator[None]:
    """Inside the block, the model's products compute as the graph does with these forms.

    `held` caches blocks between calls; None stands for words that the graph stores without loss. It must have the products by
    rows.
    """
    held = {} if held is None else held
    before: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    hooks: list[RemovableHandle] = []
    try:
        for name, form in forms.items():
            if form == FLOAT:
                continue
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
                act = blocks.round_input if isinstance(blocks, RowProduct) else partial(round_input, size=form.size)
                hooks.append(layer.register_forward_pre_hook(lambda _, inputs, act=act: (act(inputs[0]),)))
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
