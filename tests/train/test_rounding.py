"""Rounded weights against Q4_0 written out in float64 numpy, and against what a run leaves behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from safetensors.torch import load_file  # noqa: E402

from mexma_rt.errors import InputError  # noqa: E402
from mexma_train.rounding import keep_rounded, round_to_blocks  # noqa: E402
from mexma_train.run import resume, train  # noqa: E402
from mexma_train.state import states  # noqa: E402

from .test_run import TOY  # noqa: E402


def by_hand(weight: np.ndarray, bits: int) -> np.ndarray:
    out = np.empty_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], 32):
            block = weight[row, start : start + 32]
            scale = float(np.float16(block[np.abs(block).argmax()] / -(2 ** (bits - 1))))
            codes = np.rint(block / scale) if scale else np.zeros(32)
            out[row, start : start + 32] = np.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
    return out


@pytest.mark.parametrize("bits", [4, 8])
def test_q4_0_and_its_like(bits: int) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 96)) * np.array([[1e-3], [1], [40], [1e-2], [0], [0.05]])
    got = round_to_blocks(torch.from_numpy(weight), bits)
    np.testing.assert_allclose(got.numpy(), by_hand(weight, bits), rtol=1e-6, atol=0)
    assert torch.equal(round_to_blocks(got, bits), got)  # what lies on the grid stays
    worst = (got - torch.from_numpy(weight)).abs().reshape(-1, 32).max(dim=1).values
    largest = torch.from_numpy(np.abs(weight).reshape(-1, 32).max(axis=1))
    assert (worst <= largest / 2 ** (bits - 1) * 1.1 + 1e-7).all()  # a step and the rounding of its fp16


def test_a_step_moves_the_exact_weights() -> None:
    """Ten steps of 0.004 on a grid of 1/8: rounding after every step alone would never leave the first value."""
    weight = torch.nn.Parameter(torch.linspace(-1, 0.9, 32).reshape(1, 32))
    exact = weight.detach().clone()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    keep_rounded(optimizer, [weight], 4)
    for _ in range(20):
        weight.grad = torch.full_like(weight, 0.004)
        optimizer.step()
    moved = optimizer.state[weight]["master"]
    torch.testing.assert_close(moved, exact - 0.08, atol=1e-5, rtol=0)
    np.testing.assert_allclose(weight.detach().numpy(), by_hand(moved.double().numpy(), 4), rtol=1e-6)
    assert not torch.equal(weight.detach(), round_to_blocks(exact, 4))


def test_a_rounded_run_stops_resumes_and_leaves_rounded_weights(toy_shards: Path, tmp_path: Path) -> None:
    assert TOY.ranking
    recipe = replace(
        TOY, warmup=None, ranking=replace(TOY.ranking, round_bits=4, steps=6), mexma=replace(TOY.mexma, round_bits=4, steps=5)
    )
    assert train(recipe, toy_shards, tmp_path / "whole")
    assert not train(recipe, toy_shards, tmp_path / "parts", minutes=0)  # stops after one update
    assert "master/encoder.encoder.layer.0.output.dense.weight" in load_file(states(tmp_path / "parts")[-1])
    while not resume(tmp_path / "parts", minutes=0):
        pass
    whole, parts = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "parts"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
        if name.startswith("encoder.layer") and tensor.ndim == 2:
            assert torch.equal(tensor, round_to_blocks(tensor, 4))


@pytest.mark.parametrize(("bits", "width", "message"), [(3, 32, "round_bits is 3"), (4, 40, r"a matrix is \[2, 40\]")])
def test_what_cannot_be_rounded(bits: int, width: int, message: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(2, width))
    with pytest.raises(InputError, match=message):
        keep_rounded(torch.optim.SGD([weight], lr=1.0), [weight], bits)
