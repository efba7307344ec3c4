"""The compact graphs: group-wise int8 embeddings against a float64 reference, and what the files hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exports need torch (pip: mexma-rt[export])")
onnx = pytest.importorskip("onnx", reason="reads the graphs with onnx (pip: mexma-rt[export])")

from mexma_export import Sentence, export_bundle  # noqa: E402
from mexma_export.compact import group_quantise  # noqa: E402


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
def test_groups_equal_the_float64_reference_and_keep_small_rows_exact(
    width: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((200, width)).astype(np.float32) * np.logspace(-4, 3, 200, dtype=np.float32)[:, None]
    table[1] = 0
    wanted, scales = quantise(table, group)
    monkeypatch.setattr("mexma_export.compact.TABLE_ROWS", 77)  # the table in three blocks
    steps, scale = group_quantise(table)
    assert steps.shape == wanted.shape and scale.dtype == np.float32
    assert np.abs(steps.astype(int) - wanted).max() <= 1  # a tie may round either way in float32
    assert (steps == wanted).mean() > 0.999
    error = np.abs((steps * scale).reshape(table.shape) - table)
    assert (error <= 0.5001 * np.repeat(scales, group, axis=2).reshape(200, width)).all()
    assert (steps[1] == 0).all() and (scale[1] == 0).all()


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
    # qkv of two layers, of the last one apart; out, up, down of three
    assert sorted(halves) == sorted([(32, 96)] * 2 + [(32, 32)] * 3 + [(32, 32), (32, 64), (64, 32)] * 3)
    kinds = kinds_of(path)
    assert kinds["Attention"] == 2 and kinds["MultiHeadAttention"] == 2 and kinds["MatMul"] == 6 + 2 + 2 * 4
    assert not kinds.keys() & {"MatMulInteger", "QAttention"}


def kinds_of(path: Path) -> Counter[str]:
    """How often each operator occurs, in the branches of If too."""

    def nodes(graph: Any) -> Iterator[Any]:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                yield from nodes(attribute.g) if attribute.HasField("g") else ()

    return Counter(node.op_type for node in nodes(onnx.load(path).graph))


@pytest.mark.parametrize("name", ["fused", "mixed"])
def test_both_branches_give_the_models_vectors_and_share_every_weight(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    import onnxruntime
    from transformers import XLMRobertaModel

    from mexma_export import compact

    model = XLMRobertaModel.from_pretrained(tiny_checkpoint, add_pooling_layer=False).eval()
    getattr(compact, f"export_{name}")(model, tmp_path / "model.onnx")
    bytes_of_weights = sum(array.nbytes for array in initializers(tmp_path / "model.onnx").values())
    parameters = sum(p.numel() for n, p in model.named_parameters() if "word_embeddings" not in n)
    words, per_weight = model.embeddings.word_embeddings.weight.numel(), {"fused": 4, "mixed": 2}[name]
    tables = 514 * 32 * (4 - per_weight)
    scales = {"fused": 3 * words, "mixed": words // 8}[name]
    assert bytes_of_weights < per_weight * parameters + tables + words + scales + 8000  # once each; 8000: biases, scales
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask"]  # what peers see
    ids = np.array([[0, 9, 30, 7, 41, 2], [0, 5, 2, 1, 1, 1], [1] * 6])
    feed = {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64)}
    with torch.inference_mode():
        wanted = model(**{key: torch.from_numpy(array) for key, array in feed.items()}).last_hidden_state.numpy()
    sentence, states = session.run(None, feed)
    short, row = session.run(None, feed | {"token_states": np.array(False)})
    np.testing.assert_array_equal(sentence, states[:, 0])
    np.testing.assert_array_equal(short, row[:, 0])
    assert states.shape == wanted.shape and row.shape == (3, 1, 32)
    assert np.isfinite(states).all() and np.isfinite(short).all()  # the row of padding alone too
    real = ids != 1
    tolerance = {"fused": 2e-5, "mixed": 0.05}[name]
    np.testing.assert_allclose(states[real], wanted[real], atol=tolerance)
    np.testing.assert_allclose(short[:2], wanted[:2, 0], atol=tolerance)
