"""The fp16 graph: the checkpoint's vectors, standard operators, fp32 where numbers grow large, and nothing that overflows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with the torch checkpoint (pip: mexma-rt[export])")
onnx = pytest.importorskip("onnx", reason="reads the graph with onnx (pip: mexma-rt[export])")
pytest.importorskip("transformers", reason="compares with the torch checkpoint (pip: mexma-rt[export])")

from transformers import XLMRobertaModel  # noqa: E402

from mexma_export.checkpoint import load_checkpoint  # noqa: E402
from mexma_export.half import HalfEncoder, export_half, half_runner  # noqa: E402
from mexma_export.reopen import open_graph  # noqa: E402
from mexma_rt.errors import BundleError  # noqa: E402


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> XLMRobertaModel:
    return load_checkpoint(tiny_checkpoint).model


@pytest.fixture(scope="module")
def graph(model: XLMRobertaModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "model_fp16.onnx"
    export_half(model, path)
    return path


def batch(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Random ids with right padding; in larger batches the last row is padding alone."""
    rows, length = shape
    rng = np.random.default_rng(rows * 1000 + length)
    ids = rng.integers(4, 300, shape)
    ids[:, 0] = 0
    for row in range(1, rows):
        ids[row, rng.integers(1, length + 1) :] = 1
    if rows > 2:
        ids[-1] = 1
    return ids, (ids != 1).astype(np.int64)


def states_of(model: XLMRobertaModel, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 512), (2, 3), (5, 64), (33, 2)])
def test_any_batch_and_length_gives_the_vectors_of_the_checkpoint(
    model: XLMRobertaModel, graph: Path, shape: tuple[int, int]
) -> None:
    ids, mask = batch(shape)
    wanted = states_of(model, ids, mask)
    for run in (open_graph(graph), half_runner(model)):
        sentence, tokens = run(ids, mask)
        assert sentence.dtype == tokens.dtype == np.float32
        np.testing.assert_array_equal(sentence, tokens[:, 0])
        np.testing.assert_allclose(tokens, wanted, atol=0.03)  # states of size 1 to 4, fp16 has 11 bits: 2e-3 a step


def types_of(graph: Path) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(onnx.load(graph), strict_mode=True).graph
    types = {
        value.name: value.type.tensor_type.elem_type for value in [*inferred.value_info, *inferred.input, *inferred.output]
    }
    return types | {weight.name: weight.data_type for weight in inferred.initializer}


def test_products_are_fp16_and_what_may_grow_is_fp32(graph: Path) -> None:
    model, types = onnx.load(graph), types_of(graph)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    kinds = ("MatMul", "Softmax", "LayerNormalization")
    of = {kind: [node for node in model.graph.node if node.op_type == kind] for kind in kinds}
    # 3 layers: q, k, v, scores, context, output, two of the feed-forward; LayerNorms after embeddings, attention, feed-forward
    assert {kind: len(nodes) for kind, nodes in of.items()} == {"MatMul": 24, "Softmax": 3, "LayerNormalization": 7}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert {types[name] for node in of["MatMul"] for name in [*node.input, *node.output]} == {half}
    assert {types[name] for kind in kinds[1:] for n in of[kind] for name in n.input} == {full}
    tables = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"  # small, and added in fp32
    weights = [weight for weight in model.graph.initializer if len(weight.dims) == 2 and weight.name not in tables]
    assert weights and {weight.data_type for weight in weights} == {half}


def test_a_residual_sum_beyond_65504_does_not_overflow(model: XLMRobertaModel) -> None:
    """30,000 and 60,000 meet in one dimension: 90,000. `half()` turns it into NaN, which shows that the example bites."""
    large = copy.deepcopy(model)
    layer: Any = large.encoder.layer[0]
    with torch.no_grad():
        layer.attention.output.LayerNorm.bias[5] = 30000
        layer.intermediate.dense.weight[:, 5] = 0
        layer.output.dense.weight[5] = 0
        layer.output.dense.bias[5] = 60000
    ids, mask = batch((5, 33))
    naive = copy.deepcopy(large).half()
    assert not np.isfinite(states_of(naive, ids, mask)).all()
    _, tokens = half_runner(large)(ids, mask)
    np.testing.assert_allclose(tokens, states_of(large, ids, mask), atol=0.03)


def test_the_model_is_left_as_it_was(model: XLMRobertaModel) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    HalfEncoder(model)
    assert all(p.dtype == torch.float32 and bool((p == before[name]).all()) for name, p in model.named_parameters())


def test_a_weight_beyond_fp16_is_named(model: XLMRobertaModel) -> None:
    broken = copy.deepcopy(model)
    layer: Any = broken.encoder.layer[1]
    with torch.no_grad():
        layer.output.dense.weight[0, 0] = -70000
    with pytest.raises(BundleError, match=r"encoder\.layer\.1\.output\.dense\.weight holds 70000, but fp16 ends at 65504"):
        HalfEncoder(broken)


def test_another_activation_is_refused(model: XLMRobertaModel) -> None:
    other = copy.deepcopy(model)
    other.config.hidden_act = "relu"
    with pytest.raises(BundleError, match="hidden_act is 'relu', but the fp16 graph supports only XLM-R's 'gelu'"):
        HalfEncoder(other)
