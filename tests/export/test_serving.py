"""The graph that engines are built from: the same vectors as the bundle's graph gives, and what it no longer computes.

Compared in fp32 graphs, where 1e-5 is rounding; in fp16 graphs onnxruntime's own casts move, so that 1e-3 is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="part of mexma-rt[export]")
torch = pytest.importorskip("torch", reason="part of mexma-rt[export]")
onnxruntime = pytest.importorskip("onnxruntime")

from mexma_export.checkpoint import load_checkpoint  # noqa: E402
from mexma_export.graphs import export_standard  # noqa: E402
from mexma_export.half import export_half  # noqa: E402
from mexma_export.head import Dense, Head  # noqa: E402
from mexma_export.serving import serving_graph  # noqa: E402
from mexma_rt.errors import BundleError  # noqa: E402

PLAIN = Head()
DENSE = Head(
    dense=(
        Dense(
            name="2_Dense",
            weight=np.random.default_rng(3).normal(size=(8, 32)).astype(np.float32),
            bias=np.ones(8, np.float32),
            activation="Tanh",
        ),
    )
)
MEAN = Head(pooling="mean", dense=DENSE.dense)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    return load_checkpoint(tiny_checkpoint).model


@pytest.fixture(scope="module")
def graph(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Graphs of the tiny model by kind, each made once."""
    folder, made = tmp_path_factory.mktemp("graphs"), {}

    def get(kind: str, opset: int = 18, head: Head = PLAIN) -> Path:
        key = f"{kind}-{opset}-{head.pooling}-{len(head.dense)}"
        if key not in made:
            made[key] = folder / key / "model.onnx"
            made[key].parent.mkdir()
            if kind == "fp16":
                export_half(model, made[key], head, opset=opset)
            else:
                export_standard(model, made[key], head, opset=opset)
        return made[key]

    return get


def feed(rows: int, length: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(rows).integers(4, 322, (rows, length))
    ids[:, 0], ids[-1, length // 2 + 1 :] = 0, 1
    return {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64)}


def run(content: bytes | str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return np.asarray(onnxruntime.InferenceSession(content, options).run(["sentence_embedding"], inputs)[0])


def rows_of_products(content: bytes, folder: Path | None = None) -> list[int]:
    """How many rows of a sentence (or head) each matrix product gives, by running it on sentences of 5 tokens: 5, or 1."""
    model = onnx.load_from_string(content)
    names = [node.output[0] for node in model.graph.node if node.op_type == "MatMul"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if folder is not None:  # where the weights lie
        (folder / "products.onnx").write_bytes(model.SerializeToString())
    where = model.SerializeToString() if folder is None else str(folder / "products.onnx")
    return [product.shape[-2] for product in onnxruntime.InferenceSession(where, options).run(names, feed(3, 5))]


@pytest.mark.parametrize(
    ("kind", "opset", "head"),
    [
        ("fp16", 18, PLAIN),
        ("fp16", 23, PLAIN),
        ("fp32", 18, DENSE),
        ("fp32", 18, MEAN),
    ],
)
def test_it_gives_the_vectors_of_the_whole_graph(graph: Any, kind: str, opset: int, head: Head) -> None:
    path = graph(kind, opset, head)
    raw, unit = (serving_graph(path, normalize=normalize) for normalize in (False, True))
    tolerance = 1e-5 if kind == "fp32" else 1e-3
    for content in (raw, unit):
        onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    for rows, length in ((1, 2), (3, 7), (5, 512)):
        inputs = feed(rows, length)
        wanted = run(str(path), inputs)
        np.testing.assert_allclose(run(raw, inputs), wanted, atol=tolerance)
        divided = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(run(unit, inputs), divided, atol=tolerance)


FIRST_LAYERS, LAST_LAYER = [5] * 8 * 2, [1, 1, 1, 1, 1, 1, 5, 5]  # keys and values are needed of all tokens


@pytest.mark.parametrize(("kind", "opset", "head"), [("fp32", 18, DENSE), ("fp16", 18, PLAIN), ("fp16", 23, PLAIN)])
def test_the_last_layer_is_computed_for_the_first_token_alone(graph: Any, kind: str, opset: int, head: Head) -> None:
    found = rows_of_products(serving_graph(graph(kind, opset, head), normalize=True))
    assert sorted(found) == sorted(FIRST_LAYERS + LAST_LAYER)


def test_all_rows_are_kept_where_the_mean_needs_them(graph: Any) -> None:
    found = rows_of_products(serving_graph(graph("fp32", 18, MEAN), normalize=False))
    assert found == [5] * 24


def test_a_structure_with_its_weights_in_another_file(model: Any, tmp_path: Path) -> None:
    """The fp16 graph that the runtime builds has no shapes inside, and other names."""
    from mexma_export.structure import export_structure

    (tmp_path / "structure").mkdir()
    export_structure(model, tmp_path / "structure" / "fp32.onnx", half=False)
    path = tmp_path / "structure" / "fp32.onnx"
    before = onnx.load(str(path), load_external_data=False)
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    with (tmp_path / "structure" / "weights.data").open("wb") as file:
        for tensor in before.graph.initializer:
            place = {each.key: each.value for each in tensor.external_data}
            if place:
                file.seek(int(place["offset"]))
                file.write(weights[tensor.name].tobytes())
    served = tmp_path / "structure" / "served.onnx"
    served.write_bytes(serving_graph(path, normalize=False))
    assert sorted(rows_of_products(served.read_bytes(), served.parent)) == sorted(FIRST_LAYERS + LAST_LAYER)
    inputs = feed(3, 9)
    np.testing.assert_allclose(run(str(served), inputs), run(str(path), inputs), atol=1e-5)


def test_a_zero_vector_stays_zero(tmp_path: Path) -> None:
    """A graph whose sentence vector is the mask: of rows of padding alone it is zero."""
    helper, kinds = onnx.helper, [onnx.TensorProto.INT64] * 2 + [onnx.TensorProto.FLOAT] * 2
    names = ["input_ids", "attention_mask", "sentence_embedding", "last_hidden_state"]
    tensors = [helper.make_tensor_value_info(name, kind, ["b", "l"]) for name, kind in zip(names, kinds, strict=True)]
    nodes = [helper.make_node("Cast", [names[i]], [names[3 - i]], to=onnx.TensorProto.FLOAT) for i in (0, 1)]
    made = helper.make_graph(nodes, "mask", tensors[:2], tensors[2:])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "mask.onnx")
    inputs = feed(2, 4) | {"attention_mask": np.array([[0, 0, 0, 0], [1, 1, 1, 1]])}
    found = run(serving_graph(tmp_path / "mask.onnx", normalize=True), inputs)
    np.testing.assert_array_equal(found, [[0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]])


def test_what_is_no_graph_of_ours_is_refused(graph: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(graph("fp16").read_bytes()[:-1000])
    with pytest.raises(
        BundleError, match=r"cut\.onnx: not an ONNX graph \(.+\): truncated or damaged\. Export the bundle again"
    ):
        serving_graph(tmp_path / "cut.onnx", normalize=True)
    other = onnx.load(str(graph("fp16")))
    other.graph.output.pop()
    onnx.save(other, str(tmp_path / "other.onnx"))
    with pytest.raises(
        BundleError, match=r"are input_ids, attention_mask, sentence_embedding, but .* last_hidden_state\. Give"
    ):
        serving_graph(tmp_path / "other.onnx", normalize=True)
