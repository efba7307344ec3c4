"""A stand-in teacher: an ONNX graph of standard operators that reads strings and adds up word vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the stand-in teacher is made with onnx: pip install 'mexma-rt[export]'")

from onnx import TensorProto, checker, helper, numpy_helper, save


def save_string_model(path: Path, words: list[str], table: np.ndarray, *, neighbours: float = 0.0, unknown: int = 0) -> Path:
    """A text's vector is the sum of table[i] over its words[i]; a word that is not listed counts as table[unknown].

    neighbours: so much of the mean vector of the whole batch is added, as a stand-in for what quantisation does.
    """
    rows = np.concatenate([table, np.zeros((1, table.shape[1]))]).astype(np.float32)  # the last one pads short texts
    nodes = [
        helper.make_node("StringSplit", ["texts"], ["split", "counts"], delimiter=""),
        helper.make_node(
            "LabelEncoder",
            ["split"],
            ["places"],
            domain="ai.onnx.ml",
            keys_strings=[*words, ""],
            values_int64s=[*range(len(words)), len(table)],
            default_int64=unknown,
        ),
        helper.make_node("Gather", ["rows", "places"], ["vectors"]),
        helper.make_node("ReduceSum", ["vectors", "one"], ["sums"], keepdims=0),
        helper.make_node("ReduceMean", ["sums", "zero"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "share"], ["more"]),
        helper.make_node("Add", ["sums", "more"], ["out"]),
    ]
    constants = {
        "rows": rows,
        "one": np.array([1]),
        "zero": np.array([0]),
        "share": np.array(neighbours, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("texts", TensorProto.STRING, ["n"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", table.shape[1]])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 4)], ir_version=9
    )
    checker.check_model(model)
    save(model, path)
    return path
