"""The writer of ONNX files against the onnx library's own serialisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="graphs are written with onnx (pip: mexma-rt[export])")

import onnx

from mexma_export import onnx_writing
from mexma_export.onnx_writing import write_model

ARRAYS = {
    "empty": np.zeros((0, 3), np.float32),
    "one": np.array(7),
    "switch": np.array(True),
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "turned": np.arange(300, dtype=np.float32).reshape(2, 150).T,  # not in the order of its rows
    "large": np.arange(70_000, dtype=np.int32),
}


def model_of(tensors: list[onnx.TensorProto]) -> onnx.ModelProto:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("MatMul", ["x", "turned"], ["y"], name="product")
    x, y = helper.make_tensor_value_info("x", kind, ["n", 150]), helper.make_tensor_value_info("y", kind, ["n", 2])
    graph = helper.make_graph([node], "graph", [x], [y], tensors, doc_string="words")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="test")
    model.metadata_props.add(key="a", value="b")
    return model


def headers() -> list[onnx.TensorProto]:
    kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in ARRAYS.items()}
    return [onnx.TensorProto(name=name, data_type=kinds[name], dims=array.shape) for name, array in ARRAYS.items()]


def test_the_bytes_are_those_that_onnx_writes(tmp_path: Path) -> None:
    whole = model_of([onnx.numpy_helper.from_array(np.asarray(a, order="C"), name) for name, a in ARRAYS.items()])
    write_model(model_of(headers()), ARRAYS, tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == whole.SerializeToString()


def test_large_arrays_go_to_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_writing, "ONE_FILE_BYTES", 1000)
    write_model(model_of(headers()), ARRAYS, tmp_path / "a.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    assert (tmp_path / "a.onnx.data").stat().st_size == ARRAYS["turned"].nbytes + ARRAYS["large"].nbytes
    for tensor in onnx.load(tmp_path / "a.onnx").graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor, str(tmp_path)), ARRAYS[tensor.name])
