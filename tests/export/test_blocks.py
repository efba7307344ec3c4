"""Blocks of 4 and 8 bits: grids found again bit for bit, the least error elsewhere, and the byte order of MatMulNBits."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="mexma_export imports it (pip: mexma-rt[export])")

from mexma_export.blocks import on_grid, quantise_blocks
from mexma_rt import BundleError


def q4_0(matrix: np.ndarray) -> np.ndarray:
    """What ggml's Q4_0 makes of float32 rows: blocks of 32, an fp16 scale, value (nibble - 8) * scale."""
    out = np.empty_like(matrix)
    for place in np.ndindex(len(matrix), matrix.shape[1] // 32):
        cut = slice(32 * place[1], 32 * place[1] + 32)
        block = matrix[place[0], cut].astype(np.float64)
        scale = np.float64(np.float16(block[np.abs(block).argmax()] / -8))
        nibbles = np.clip(np.floor(block / scale + 8.5), 0, 15) if scale else np.full(32, 8)
        out[place[0], cut] = (nibbles - 8) * scale
    return out


def some_matrix(rows: int = 60, width: int = 96) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((rows, width)) * np.logspace(-3, 1, rows)[:, None]).astype(np.float32)


def test_a_table_of_ggml_comes_back_bit_for_bit_with_fp16_scales() -> None:
    table = q4_0(some_matrix())
    table[3] = 0  # <pad>
    blocks = quantise_blocks(table, bits=4, size=32)
    np.testing.assert_array_equal(blocks.numbers, table)
    assert blocks.scales.dtype == np.float16 and blocks.steps.min() == -8 and on_grid(table, size=32)


@pytest.mark.parametrize("peak", [7, 5, 1])
def test_grids_that_leave_steps_unused_or_have_float32_scales_are_found_too(peak: int) -> None:
    rng = np.random.default_rng(peak)
    steps = rng.integers(-peak, peak + 1, (40, 3, 32))
    steps[..., 0] = peak
    scales = rng.uniform(1e-3, 1, (40, 3, 1)).astype(np.float32)  # no numbers of fp16
    table = (steps.astype(np.float32) * scales).reshape(40, 96)
    assert on_grid(table, size=32)
    blocks = quantise_blocks(table, bits=4, size=32)
    assert blocks.scales.dtype == np.float32
    np.testing.assert_allclose(blocks.numbers, table, rtol=5e-7)


def test_off_the_grid_no_number_is_farther_than_a_plain_rounding_on_the_whole() -> None:
    matrix = some_matrix()
    assert not on_grid(matrix, size=32)
    plain = ((q4_0(matrix) - matrix).astype(np.float64) ** 2).sum()
    blocks = quantise_blocks(matrix, bits=4, size=32)
    found = ((blocks.numbers - matrix).astype(np.float64) ** 2).sum()
    assert found < 0.92 * plain
    assert blocks.scales.dtype == np.float16


def test_eight_bits_round_by_half_a_step_of_the_farthest_number() -> None:
    matrix = some_matrix()
    blocks = quantise_blocks(matrix, bits=8, size=32)
    bound = np.abs(matrix).reshape(60, 3, 32).max(axis=2, keepdims=True) / 128
    error = np.abs(blocks.numbers - matrix).reshape(60, 3, 32)
    assert (error <= bound * 1.01).all() and (
        error <= bound * 0.51
    ).mean() > 0.95  # beyond: +128 is no step, and scales are fp16


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_packed_as_onnxruntime_reads_them(bits: int) -> None:
    onnx = pytest.importorskip("onnx", reason="writes the one-node graph (pip: mexma-rt[export])")
    import onnxruntime

    matrix = some_matrix(24, 64)
    blocks = quantise_blocks(matrix, bits=bits, size=32)
    attributes = {"K": 64, "N": 24, "bits": bits, "block_size": 32, "accuracy_level": 0}
    node = onnx.helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)
    held = {"w": blocks.packed, "s": blocks.scales.astype(np.float32)}
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [64, 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [64, 24])],
        [onnx.numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": np.eye(64, dtype=np.float32)})
    np.testing.assert_allclose(got, blocks.numbers.T, rtol=1e-6, atol=1e-9)


def test_a_width_without_whole_blocks_is_refused() -> None:
    with pytest.raises(BundleError, match=r"Rows of 48 numbers cannot be split into blocks of 32: .*that are multiples of 32"):
        quantise_blocks(some_matrix(4, 48), bits=4, size=32)
