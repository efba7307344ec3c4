"""The compact graphs: group-wise int8 embeddings against a float64 reference, and what the files hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exports need torch (pip: mexma-rt[export])")
onnx = pytest.importorskip("onnx", reason="reads the graphs with onnx (pip: mexma-rt[export])")

from mexma_export import Sentence, export_bundle  # noqa: E402
from mexma_export.compact import Int8Embedding  # noqa: E402


def quantise(table: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 for every `group` numbers of a row, in float64, by the formula: steps [V, G, group], scales [V, G, 1]."""
    parts = table.astype(np.float64).reshape(len(table), -1, group)
    steps, scales = np.zeros(parts.shape, np.int8), np.zeros((*parts.shape[:2], 1))
    for place in np.ndindex(parts.shape[:2]):
        if (top := np.abs(parts[place]).max()) > 0:
            scales[place] = top / 127
            steps[place] = np.round(parts[place] / scales[place])
    return steps, scales


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(("width", "group"), [(32, 32), (128, 64), (96, 32), (7, 1)])
def test_groups_equal_the_float64_reference_and_keep_small_rows_exact(width: int, group: int) -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((200, width)).astype(np.float32) * np.logspace(-4, 3, 200, dtype=np.float32)[:, None]
    table[1] = 0
    embedding = Int8Embedding(torch.from_numpy(table))
    steps, scales = quantise(table, group)
    assert embedding.steps.shape == steps.shape
    assert np.abs(embedding.steps.numpy().astype(int) - steps).max() <= 1  # a tie may round either way in float32
    assert (embedding.steps.numpy() == steps).mean() > 0.999
    ids = torch.from_numpy(rng.integers(0, 200, (3, 5)))
    got = embedding(ids).numpy()
    assert got.shape == (3, 5, width)
    half_a_step = 0.5001 * np.repeat(scales, group, axis=2).reshape(200, width)
    assert (np.abs(got - table[ids.numpy()]) <= half_a_step[ids.numpy()]).all()
    assert (got[ids.numpy() == 1] == 0).all()


def test_the_file_holds_int8_groups_with_float_scales(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    from safetensors.numpy import load_file

    table = load_file(tiny_checkpoint / "model.safetensors")["embeddings.word_embeddings.weight"]
    wanted_steps, wanted_scale = quantise(table, 32)
    held = initializers(tiny_bundle / "onnx/model_int8.onnx")
    steps = next(a for a in held.values() if a.dtype == np.int8 and a.shape == wanted_steps.shape)
    scale = next(a for a in held.values() if a.dtype == np.float32 and a.shape == wanted_scale.shape)
    np.testing.assert_allclose(scale, wanted_scale, rtol=1e-6)
    np.testing.assert_allclose(steps * scale.astype(np.float64), wanted_steps * wanted_scale, atol=wanted_scale.max() * 1.001)
    assert (steps == wanted_steps).mean() > 0.999
    assert not any(a.dtype == np.float32 and a.shape == table.shape for a in held.values())


def test_mixed_stores_halves_computes_in_fp32_and_passes_its_gate(
    tiny_checkpoint: Path, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    report = export_bundle(tiny_checkpoint, tmp_path / "mixed", precisions=["mixed"], weights=False, sentences=rows)
    assert report.default_precision == "mixed"
    assert report.parity["mixed"].passed and report.parity["mixed"].min_cosine >= 0.999
    path = tmp_path / "mixed" / "onnx" / "model_mixed.onnx"
    halves = [a.shape for a in initializers(path).values() if a.dtype == np.float16]
    assert sorted(halves) == sorted([(32, 96), (32, 32), (32, 64), (64, 32)] * 3)  # qkv, out, up, down of three layers
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Attention") == 3 and kinds.count("MatMul") == 9
    assert "MatMulInteger" not in kinds and "QAttention" not in kinds


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


def test_no_cpu_can_saturate_a_sum_of_the_int8_graph(tiny_bundle: Path) -> None:
    """Signed weights (255 * 127 * 2 > 32767) do on x86 without VNNI, in sums of 16 bits; unsigned ones have sums of 32 bits."""
    path = tiny_bundle / "onnx/model_int8.onnx"
    graph, held = onnx.load(path).graph, initializers(path)
    products = [node for node in graph.node if node.op_type in ("MatMulInteger", "QAttention")]
    assert len(products) == 12
    for node in products:
        weight, zero = held[node.input[1]], held[node.input[3] if node.op_type == "MatMulInteger" else node.input[7]]
        assert weight.dtype == np.uint8 and zero.dtype == np.uint8
        assert zero.size == weight.shape[1]  # per output channel
        assert 255 * 255 * weight.shape[0] < 2**31


def test_int8_products_at_their_limits_are_exact_here() -> None:
    """The kernel that this machine's CPU gets, on the largest numbers, against integers of 64 bits."""
    import onnxruntime

    rng = np.random.default_rng(0)
    factor, weights = np.full((5, 256), 255, np.uint8), rng.choice(np.array([0, 254, 255], np.uint8), (256, 48))
    zeros = rng.integers(100, 156, 48).astype(np.uint8)
    node = onnx.helper.make_node("MatMulInteger", ["x", "w", "zx", "zw"], ["y"])
    constants = {"w": weights, "zx": np.array(7, np.uint8), "zw": zeros}
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [5, 256])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [5, 48])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (got,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": factor})
    np.testing.assert_array_equal(got, (factor.astype(np.int64) - 7) @ (weights.astype(np.int64) - zeros))
