"""Writes a graph of standard ONNX operators, fp32 or fp16, without its weights, which mexma_rt.bundle.structure adds.

Like fused.py, it is written by hand, so that every weight keeps its name and shape from the checkpoint. Inputs and outputs are
the same as in all graphs. Types in fp16 are those of half.py: products in fp16; softmax, residual sums and LayerNorm in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, TensorProto

from mexma_export.fused import Writer, save_graph
from mexma_export.head import PLAIN, Head
from mexma_rt.bundle.graphs import ATTENTION_MASK, INPUT_IDS, OUTPUTS
from mexma_rt.bundle.structure import DATA

if TYPE_CHECKING:
    from transformers import XLMRobertaModel

ALIGN = 64  # bytes: weights start at multiples of it


class StructureWriter(Writer):
    """Writes standard operators; weights are references (name, shape, offset) into a file that is written later."""

    opset, ir_version = 17, 8  # 17 introduced LayerNormalization

    def __init__(self, model: XLMRobertaModel, head: Head = PLAIN, *, half: bool) -> None:
        super().__init__(model, head)
        self.half, self.end = half, 0
        self.narrow = TensorProto.FLOAT16 if half else TensorProto.FLOAT

    def outside(self, name: str, kind: int = TensorProto.FLOAT) -> str:
        """Refer to a weight of the checkpoint in the other file; returns its name."""
        if name not in self.tensors:
            shape = tuple(self.weights[name].shape)
            length = math.prod(shape) * (2 if kind == TensorProto.FLOAT16 else 4)
            tensor = TensorProto(name=name, dims=shape, data_type=kind, data_location=TensorProto.EXTERNAL)
            for key, value in {"location": DATA, "offset": self.end, "length": length}.items():
                tensor.external_data.add(key=key, value=str(value))
            self.end += -(-length // ALIGN) * ALIGN
            self.tensors[name] = tensor
        return name

    def down(self, states: str) -> str:
        """Cast states to the type of the matrix products."""
        return self.node("Cast", [states], f"{states}/half", to=TensorProto.FLOAT16) if self.half else states

    def up(self, states: str) -> str:
        """Cast states to fp32."""
        return self.node("Cast", [states], f"{states}/float", to=TensorProto.FLOAT) if self.half else states

    def number(self, name: str, value: float, *, narrow: bool = True) -> str:
        """Store a constant in the type of the matrix products, or with `narrow=False` in fp32."""
        return self.store(name, np.array(value, np.float16 if self.half and narrow else np.float32))

    def linear(self, states: str, layer: str, output: str) -> str:
        """Apply a linear layer with bias to states in the type of matrix products: [B, L, in] -> [B, L, out]."""
        product = self.node("MatMul", [states, self.columns_of(f"{layer}.weight")], f"{output}/product")
        return self.node("Add", [product, self.outside(f"{layer}.bias", self.narrow)], output)

    def columns_of(self, weight: str) -> str:
        """Transpose a linear layer's weight [out, in] to [in, out], in the type of matrix products."""
        return self.node("Transpose", [self.outside(weight, self.narrow)], f"{weight}/columns", perm=[1, 0])

    def norm_of(self, states: str, name: str, output: str) -> str:
        """Apply the named LayerNorm to states."""
        inputs = [states, self.outside(f"{name}.weight"), self.outside(f"{name}.bias")]
        return self.node("LayerNormalization", inputs, output, axis=-1, epsilon=self.epsilon)

    def norm(self, states: str, skip: str, name: str, bias: str, output: str) -> str:
        """Add LayerNorm(states + skip + bias), for the embeddings."""
        total = self.node("Add", [states, skip], f"{output}/sum")
        return self.norm_of(self.node("Add", [total, bias], f"{output}/typed"), name, output)

    def keep(self, name: str) -> str:
        """Refer to a weight in the other file."""
        return self.outside(name)

    def words(self) -> str:
        """Add the word embeddings of `input_ids`, [B, L, W], in fp32."""
        rows = self.node("Gather", [self.outside("embeddings.word_embeddings.weight", self.narrow), INPUT_IDS], "words")
        return self.up(rows)

    def heads_of(self, states: str, layer: str, part: str, perm: Sequence[int]) -> str:
        """Add the queries, keys or values (`part`) of a layer, split into heads and transposed by `perm`."""
        name = f"{layer}.attention.self.{part}"
        shape = self.store("heads", np.array([0, 0, self.heads, self.width // self.heads]))
        split = self.node("Reshape", [self.linear(states, name, name), shape], f"{name}/heads")
        return self.node("Transpose", [split], f"{name}/turned", perm=list(perm))

    def layer(self, layer: str, states: str, padding: str) -> str:
        """Add an encoder layer: states [B, L, W] -> states [B, L, W], both in fp32."""
        narrow = self.down(states)
        queries = self.heads_of(narrow, layer, "query", [0, 2, 1, 3])
        keys = self.heads_of(narrow, layer, "key", [0, 2, 3, 1])
        values = self.heads_of(narrow, layer, "value", [0, 2, 1, 3])
        scale = self.number("query_scale", 1 / math.sqrt(self.width // self.heads))
        queries = self.node("Mul", [queries, scale], f"{layer}/queries")
        scores = self.up(self.node("MatMul", [queries, keys], f"{layer}/scores"))
        lowest = self.number("lowest", float(np.finfo(np.float32).min), narrow=False)  # -inf would give NaN if all is padding
        scores = self.node("Where", [padding, lowest, scores], f"{layer}/masked")
        shares = self.down(self.node("Softmax", [scores], f"{layer}/shares", axis=-1))
        mixed = self.node("MatMul", [shares, values], f"{layer}/mixed")
        mixed = self.node("Transpose", [mixed], f"{layer}/rows", perm=[0, 2, 1, 3])
        mixed = self.node("Reshape", [mixed, self.store("flat", np.array([0, 0, self.width]))], f"{layer}/flat")
        mixed = self.up(self.linear(mixed, f"{layer}.attention.output.dense", f"{layer}/projected"))
        states = self.node("Add", [states, mixed], f"{layer}/attention_sum")
        states = self.norm_of(states, f"{layer}.attention.output.LayerNorm", f"{layer}/attended")
        wide = self.gelu(self.linear(self.down(states), f"{layer}.intermediate.dense", f"{layer}/wide"))
        back = self.up(self.linear(wide, f"{layer}.output.dense", f"{layer}/back"))
        return self.norm_of(self.node("Add", [states, back], f"{layer}/sum"), f"{layer}.output.LayerNorm", layer)

    def gelu(self, states: str) -> str:
        """Add x / 2 * (1 + erf(x / sqrt 2)), in the type of matrix products."""
        inner = self.node("Mul", [states, self.number("root_half", math.sqrt(0.5))], f"{states}/inner")
        share = self.node("Add", [self.node("Erf", [inner], f"{states}/erf"), self.number("unit", 1)], f"{states}/share")
        half = self.node("Mul", [states, self.number("half_unit", 0.5)], f"{states}/halved")
        return self.node("Mul", [half, share], f"{states}/gelu")

    def model(self) -> ModelProto:
        """Build the whole graph."""
        padding = self.node("Equal", [ATTENTION_MASK, self.store("no", np.array(0))], "padding")
        padding = self.node("Unsqueeze", [padding, self.store("axes", np.array([1, 2]))], "padding_keys")
        states = self.embed()
        for index in range(self.layers):
            states = self.layer(f"encoder.layer.{index}", states, padding)
        self.node("Identity", [states], OUTPUTS[1])
        if self.head.pooling == "mean":
            vectors = self.head.mean(self, states, ATTENTION_MASK)
        else:
            vectors = self.node("Gather", [states, self.store("first", np.array(0))], "sentence", axis=1)
        self.node("Identity", [self.head.layers(self, vectors, "sentence")], OUTPUTS[0])
        return self.assembled()


def export_structure(model: XLMRobertaModel, path: Path, head: Head = PLAIN, *, half: bool) -> None:
    """Write an fp32 or fp16 graph without weights to `path`. Raises BundleError for an activation other than gelu."""
    path.parent.mkdir(exist_ok=True)
    save_graph(StructureWriter(model, head, half=half), path)
