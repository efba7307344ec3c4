"""The graphs' form: names, types, free dimensions, operators; and the same vectors for any batch and length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="compares with the torch checkpoint (pip: mexma-rt[export])")
onnx = pytest.importorskip("onnx", reason="reads the graphs with onnx (pip: mexma-rt[export])")

from mexma_export import graphs, onnx_writing  # noqa: E402
from mexma_export.checkpoint import load_checkpoint  # noqa: E402

GRAPHS = ["onnx/model.onnx", "onnx/model_int8.onnx"]


@pytest.mark.parametrize("name", GRAPHS)
def test_inputs_and_outputs_are_those_of_the_contract(tiny_bundle: Path, name: str) -> None:
    session = onnxruntime.InferenceSession(tiny_bundle / name, providers=["CPUExecutionProvider"])
    inputs = [(i.name, i.type, [isinstance(d, str) for d in i.shape]) for i in session.get_inputs()]
    assert inputs == [("input_ids", "tensor(int64)", [True, True]), ("attention_mask", "tensor(int64)", [True, True])]
    outputs = [(o.name, o.type, o.shape[-1]) for o in session.get_outputs()]
    assert outputs == [("sentence_embedding", "tensor(float)", 32), ("last_hidden_state", "tensor(float)", 32)]


def test_fp32_has_standard_operators_only(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "onnx/model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""} and not model.functions


def test_another_opset_is_that_of_the_file(tiny_checkpoint: Path, tmp_path: Path, sentences: list[tuple[str, str]]) -> None:
    from mexma_export import Sentence, export_bundle

    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    report = export_bundle(tiny_checkpoint, tmp_path / "b", precisions=["fp32"], opset=21, sentences=rows, weights=False)
    assert [(o.domain, o.version) for o in onnx.load(tmp_path / "b/onnx/model.onnx").opset_import] == [("", 21)]
    assert report.parity["fp32"].passed


@pytest.mark.parametrize("name", GRAPHS)
def test_no_folder_of_the_exporting_machine_is_in_the_file(tiny_bundle: Path, name: str) -> None:
    content = (tiny_bundle / name).read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert b"site-packages" not in content and b"mexma_export" not in content


@pytest.mark.parametrize("half", [False, True])
def test_weights_beyond_the_limit_of_one_file_go_to_a_second_one(
    half: bool, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_writing, "ONE_FILE_BYTES", 1000)
    graphs.export_standard(load_checkpoint(tiny_checkpoint).model, tmp_path / "model.onnx", half=half)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    ids = np.array([[0, 7, 9, 30, 2]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    one_file = onnxruntime.InferenceSession(tiny_bundle / GRAPHS[0], providers=["CPUExecutionProvider"])
    for found, wanted in zip(session.run(None, feed), one_file.run(None, feed), strict=True):
        np.testing.assert_allclose(found, wanted, atol=0.03 if half else 1e-6)


SHAPES = [(1, 1), (1, 2), (1, 7), (1, 512), (2, 3), (2, 511), (3, 20), (5, 64), (16, 5), (33, 2), (64, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_any_batch_and_length_gives_the_vectors_of_the_checkpoint(
    tiny_checkpoint: Path, tiny_bundle: Path, shape: tuple[int, int]
) -> None:
    """Right padding of random lengths, and in larger batches a last row of padding alone."""
    from transformers import XLMRobertaModel

    b, n = shape
    rng = np.random.default_rng(b * 1000 + n)
    ids = rng.integers(4, 300, shape)
    ids[:, 0] = 0
    for row in range(1, b):
        ids[row, rng.integers(1, n + 1) :] = 1
    if b > 2:
        ids[-1] = 1
    mask = (ids != 1).astype(np.int64)
    model = XLMRobertaModel.from_pretrained(tiny_checkpoint, add_pooling_layer=False, attn_implementation="eager").eval()
    with torch.inference_mode():
        states = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
    for name, tolerance in zip(GRAPHS, [1e-5, 1.0], strict=True):  # int8 errors are judged by the gate's cosines
        session = onnxruntime.InferenceSession(tiny_bundle / name, providers=["CPUExecutionProvider"])
        sentence, tokens = session.run(None, {"input_ids": ids, "attention_mask": mask})
        assert sentence.dtype == tokens.dtype == np.float32
        assert np.isfinite(tokens).all()
        np.testing.assert_array_equal(sentence, tokens[:, 0])
        real = mask.astype(bool)
        np.testing.assert_allclose(tokens[real], states[real], atol=tolerance)
