"""The int8 graph: row-wise embeddings against a float64 reference, and what the file holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exports need torch (pip: mexma-rt[export])")
onnx = pytest.importorskip("onnx", reason="reads the graphs with onnx (pip: mexma-rt[export])")

from mexma_export.int8 import RowInt8Embedding  # noqa: E402


def quantise_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 per row, in float64, by the formula."""
    steps, scales = np.zeros(table.shape, np.int8), np.zeros((len(table), 1))
    for i, row in enumerate(table.astype(np.float64)):
        if (top := np.abs(row).max()) > 0:
            scales[i] = top / 127
            steps[i] = np.round(row / scales[i])
    return steps, scales


def test_rows_equal_the_float64_reference_and_keep_small_rows_exact() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((200, 32)).astype(np.float32) * np.logspace(-4, 3, 200, dtype=np.float32)[:, None]
    table[1] = 0
    embedding = RowInt8Embedding(torch.from_numpy(table))
    steps, scales = quantise_rows(table)
    assert np.abs(embedding.steps.numpy().astype(int) - steps).max() <= 1  # a tie may round either way in float32
    assert (embedding.steps.numpy() == steps).mean() > 0.999
    ids = torch.from_numpy(rng.integers(0, 200, (3, 7)))
    got = embedding(ids).numpy()
    assert np.isfinite(got).all()
    assert (np.abs(got - table[ids.numpy()]) <= 0.5001 * scales[ids.numpy()]).all()  # half a step of its own row
    assert (got[ids.numpy() == 1] == 0).all()


def test_the_file_holds_int8_rows_with_float_scales(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    from safetensors.numpy import load_file

    table = load_file(tiny_checkpoint / "model.safetensors")["embeddings.word_embeddings.weight"]
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tiny_bundle / "onnx/model_int8.onnx").graph.initializer}
    steps = next(a for a in held.values() if a.dtype == np.int8 and a.shape == table.shape)
    scale = next(a for a in held.values() if a.dtype == np.float32 and a.shape == (len(table), 1))
    wanted_steps, wanted_scale = quantise_rows(table)
    np.testing.assert_allclose(scale, wanted_scale, rtol=1e-6)
    np.testing.assert_allclose(steps * scale.astype(np.float64), wanted_steps * wanted_scale, atol=wanted_scale.max() * 1.001)
    assert (steps == wanted_steps).mean() > 0.999
    assert not any(a.dtype == np.float32 and a.shape == table.shape for a in held.values())


def test_attention_is_fused_and_every_product_is_int8(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "onnx/model_int8.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QAttention") == 3  # the layers of the tiny checkpoint
    assert kinds.count("MatMulInteger") == 9
    assert "MatMul" not in kinds and "Attention" not in kinds
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2 and t.dims[1] > 1]
    assert sorted(t.name.removeprefix("model.embeddings.") for t in floats) == [
        "position_embeddings.weight",
        "token_type_embeddings.weight",
    ]
