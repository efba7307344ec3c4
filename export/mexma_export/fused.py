"""Writes XLM-R as an ONNX graph of onnxruntime's fused operators (Attention, SkipLayerNormalization, BiasGelu).

The graph is written by hand, not traced: every tensor keeps its name from the checkpoint, weights are stored once however often
they are read, and the last layer has two branches. `sentence_embedding` needs only one row of that layer, so one branch
computes queries, output projection and feed-forward part for `<s>` alone, from the keys and values of all rows, which both
branches share. The third input, `token_states` (bool), chooses the branch. It is optional: by default it is True, for all rows.
With False the graph returns the sentence vectors, and last_hidden_state is that one row; on the bundled model (three layers)
this takes 0.71 of the CPU time. (Requesting one output is not enough: onnxruntime computes all of them, and its run option
only_execute_path_to_fetches did not change that.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mexma_export.head import PLAIN, Head
from mexma_export.onnx_writing import write_model
from mexma_rt.backends.onnxruntime import SWITCH
from mexma_rt.bundle.graphs import INPUTS, OUTPUTS
from mexma_rt.errors import BundleError

if TYPE_CHECKING:
    from transformers import XLMRobertaModel

OPSET, IR_VERSION = 17, 8  # onnxruntime 1.22, the oldest that the runtime supports, has long known these
CONTRIB = "com.microsoft"


class Writer:
    """Collects the nodes and stored tensors of a graph; subclasses choose how word embeddings and products are stored.

    Methods that add nodes return the name of their result. B sentences, L tokens, D numbers of a state.
    """

    opset, ir_version = OPSET, IR_VERSION

    def __init__(self, model: XLMRobertaModel, head: Head = PLAIN) -> None:
        config, self.head = model.config, head
        if config.hidden_act != "gelu":
            raise BundleError(f"hidden_act is {config.hidden_act!r}, but the fused graphs support only XLM-R's 'gelu'.")
        self.weights = dict(model.named_parameters())
        self.layers, self.heads = config.num_hidden_layers, config.num_attention_heads
        self.width, self.epsilon = config.hidden_size, config.layer_norm_eps
        self.pad = config.pad_token_id
        self.casts: list[onnx.NodeProto] = []  # of stored weights; they stand outside the branches that read them
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}  # names, types and shapes; the data is in `arrays`
        self.arrays: dict[str, np.ndarray] = {}

    @property
    def dimensions(self) -> int:
        """D, the length of a sentence vector."""
        return self.head.dimensions(self.width)

    def tensor(self, name: str) -> np.ndarray:
        """Return a weight of the checkpoint, float32."""
        return self.weights[name].detach().float().numpy()

    def store(self, name: str, array: np.ndarray) -> str:
        """Store an array under a name, unless it is there already; returns the name."""
        if name not in self.tensors:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            self.tensors[name], self.arrays[name] = TensorProto(name=name, data_type=kind, dims=array.shape), array
        return name

    def keep(self, name: str) -> str:
        """Store a weight of the checkpoint in float32; returns its name."""
        return self.store(name, self.tensor(name))

    def node(self, kind: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output; returns the output's name, which is also the node's."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    # How weights are stored: fp32 here, other forms in compact.py.

    def words(self) -> str:
        """Add the word embeddings of `input_ids`, [B, L, D]."""
        return self.node("Gather", [self.keep("embeddings.word_embeddings.weight"), INPUTS[0]], "words")

    def weight(self, name: str, columns: np.ndarray) -> str:
        """Store the weight [in, out] of a product; returns the name of its float32 value."""
        return self.store(name, columns)

    def product(self, states: str, names: Sequence[str], output: str) -> str:
        """Multiply states [B, L, in] by the named linear layers' weights side by side: [B, L, out], without bias."""
        return self.node("MatMul", [states, self.weight(*self.columns(names))], output)

    def bias_of(self, layer: str) -> str:
        """The bias of a linear layer before a LayerNorm."""
        return self.keep(f"{layer}.bias")

    def attention(self, states: str, names: Sequence[str], bias: str, lengths: str, output: str) -> str:
        """Add self-attention of all rows, including its three projections: [B, L, D]."""
        inputs = [states, self.weight(*self.columns(names)), bias, lengths]
        return self.node("Attention", inputs, output, domain=CONTRIB, num_heads=self.heads)

    def columns(self, names: Sequence[str]) -> tuple[str, np.ndarray]:
        """Return a name and the weights [in, out] of linear layers side by side; query, key and value together are "qkv"."""
        name = names[0] if len(names) == 1 else names[0].replace(".query.", ".qkv.")
        return name, np.concatenate([self.tensor(one).T for one in names], axis=1)

    # The model.

    def embed(self) -> str:
        """Add the embedding layer: words, positions and LayerNorm, [B, L, D]."""
        pad, axis = self.store("pad_id", np.array(self.pad)), self.store("axis", np.array(1))
        padding = self.node("Equal", [INPUTS[0], pad], "is_padding")
        real = self.node("Cast", [self.node("Not", [padding], "is_real")], "real", to=TensorProto.INT64)
        counted = self.node("Mul", [self.node("CumSum", [real, axis], "counted_all"), real], "counted")
        positions = self.node("Add", [counted, self.store("position_offset", np.array(self.pad))], "positions")
        table = self.node("Gather", [self.keep("embeddings.position_embeddings.weight"), positions], "position_rows")
        row = self.store("embeddings.token_type_embeddings.weight", self.tensor("embeddings.token_type_embeddings.weight")[0])
        return self.norm(self.words(), table, "embeddings.LayerNorm", row, "embedded")

    def norm(self, states: str, skip: str, name: str, bias: str, output: str) -> str:
        """Add LayerNorm(states + skip + bias)."""
        inputs = [states, skip, self.keep(f"{name}.weight"), self.keep(f"{name}.bias"), bias]
        return self.node("SkipLayerNormalization", inputs, output, domain=CONTRIB, epsilon=self.epsilon)

    def layer_after_attention(self, layer: str, rows: str, mixed: str, output: str) -> str:
        """Add what follows the attention of a layer: projection, residual sums, norms and the feed-forward part."""
        dense = f"{layer}.attention.output.dense"
        mixed = self.product(mixed, [f"{dense}.weight"], f"{output}/projected")
        rows = self.norm(mixed, rows, f"{layer}.attention.output.LayerNorm", self.bias_of(dense), f"{output}/attended")
        wide = self.product(rows, [f"{layer}.intermediate.dense.weight"], f"{output}/wide")
        wide = self.node("BiasGelu", [wide, self.keep(f"{layer}.intermediate.dense.bias")], f"{output}/gelu", domain=CONTRIB)
        narrow = self.product(wide, [f"{layer}.output.dense.weight"], f"{output}/narrow")
        return self.norm(narrow, rows, f"{layer}.output.LayerNorm", self.bias_of(f"{layer}.output.dense"), output)

    def last_layer(self, layer: str, states: str, lengths: str, bias: str) -> None:
        """Add both outputs, each computed by the branch for all rows or by the one for `<s>` alone."""
        parts = [f"{layer}.attention.self.{part}.weight" for part in ("query", "key", "value")]
        keys, values = self.product(states, [parts[1]], f"{layer}/keys"), self.product(states, [parts[2]], f"{layer}/values")
        edges = [self.store(name, np.array([number])) for name, number in (("zero", 0), ("one", 1))]
        outside, branches = self.nodes, []
        for branch in ("all", "first"):
            self.nodes, name = [], f"{layer}/{branch}"
            rows = states if branch == "all" else self.node("Slice", [states, *edges, edges[1]], f"{name}/before")
            queries = self.product(rows, [parts[0]], f"{name}/queries")
            inputs = [queries, keys, values, bias, lengths]
            mixed = self.node("MultiHeadAttention", inputs, f"{name}/mixed", domain=CONTRIB, num_heads=self.heads)
            rows = self.layer_after_attention(layer, rows, mixed, f"{name}/rows")
            sentence = self.node("Gather", [rows, self.store("first", np.array(0))], f"{name}/sentence", axis=1)
            sentence = self.head.layers(self, sentence, name)
            shapes: list[tuple[str, list[str | int | None]]]
            shapes = [(sentence, ["batch", self.dimensions]), (rows, ["batch", None, self.width])]
            made = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape) for output, shape in shapes]
            branches.append(helper.make_graph(self.nodes, branch, [], made))
        self.store(SWITCH, np.array(True))
        names = dict(zip(("then_branch", "else_branch"), branches, strict=True))
        self.nodes = [*outside, helper.make_node("If", [SWITCH], OUTPUTS, name="last_layer", **names)]

    def model(self) -> onnx.ModelProto:
        """Build the whole graph, without the data in `arrays`."""
        mask = self.node("Cast", [INPUTS[1]], "mask", to=TensorProto.INT32)
        lengths = self.node("ReduceSum", [mask, self.store("one", np.array([1]))], "lengths", keepdims=0)
        states = self.embed()
        for index in range(self.layers):
            layer = f"encoder.layer.{index}"
            parts = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
            biases = np.concatenate([self.tensor(f"{part}.bias") for part in parts])
            bias = self.store(f"{layer}.attention.self.qkv.bias", biases)
            if index == self.layers - 1 and self.head.pooling == "cls":
                self.last_layer(layer, states, lengths, bias)
                break
            weights = [f"{part}.weight" for part in parts]
            mixed = self.attention(states, weights, bias, lengths, f"{layer}/mixed")
            states = self.layer_after_attention(layer, states, mixed, layer)
        else:  # mean pooling needs the states of all tokens
            vectors = self.head.layers(self, self.head.mean(self, states, INPUTS[1]), "sentence")
            for value, output in zip((vectors, states), OUTPUTS, strict=True):
                self.node("Identity", [value], output)
        return self.assembled(CONTRIB)

    def assembled(self, *domains: str) -> onnx.ModelProto:
        """Build the model of all nodes and stored tensors; `domains` are those of operators beside the standard ones."""
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in INPUTS]
        if SWITCH in self.tensors:
            inputs.append(helper.make_tensor_value_info(SWITCH, TensorProto.BOOL, []))  # has a value, so it is optional
        shapes: list[list[str | int | None]] = [["batch", self.dimensions], ["batch", "length", self.width]]
        outputs = [helper.make_tensor_value_info(*pair) for pair in zip(OUTPUTS, [TensorProto.FLOAT] * 2, shapes, strict=True)]
        nodes, tensors = [*self.casts, *self.nodes], list(self.tensors.values())
        graph = helper.make_graph(nodes, "xlm-roberta", inputs, outputs, tensors)
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=imports, ir_version=self.ir_version, producer_name="mexma-export")


def save_graph(writer: Writer, path: Path) -> None:
    """Write a graph to `path`; weights beyond 1.8 GB go to `<name>.data` beside it: protobuf cannot hold more than 2 GiB."""
    write_model(writer.model(), writer.arrays, path)
