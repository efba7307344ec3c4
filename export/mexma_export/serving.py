"""Turns a bundle's fp16 graph into the graph that engines are built from: only sentence vectors, without unnecessary work.

Token states are not an output, so they are neither written nor copied. If the vector is the state of the first token, the last
layer computes queries, attention and the feed-forward part for that token alone; keys and values are needed for all tokens.
If the model's owner normalises, the graph does so, too, on the GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mexma_rt.bundle.graphs import INPUTS, OUTPUTS, SENTENCE
from mexma_rt.errors import BundleError

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Cast", "Erf", "Gelu", "Tanh", "Where", "Identity"}
LEAST_NORM = 1e-30  # divisor of a zero vector, which stays zero

Inputs = list[tuple[str, int | None]]
"""For each input of a node: (tensor, axis along which only the first part is needed; None: the whole tensor)."""


def serving_graph(path: Path, *, normalize: bool) -> bytes:
    """Return the serving form of the graph in the file `path`, as ONNX bytes; weights in a second file stay there.

    Its output is `sentence_embedding` [B, D], float32: rows of length 1 with `normalize` (a zero row stays zero), else raw.
    Raises BundleError for a file that is not an ONNX graph, or whose inputs and outputs are not those of mexma-export.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own
        raise BundleError(
            f"{path}: not an ONNX graph ({str(error).strip() or type(error).__name__}): truncated or damaged. Export the "
            "bundle again."
        ) from error
    found = [[tensor.name for tensor in side] for side in (model.graph.input, model.graph.output)]
    if found != [list(INPUTS), list(OUTPUTS)]:
        raise BundleError(
            f"{path}: inputs and outputs are {', '.join([*found[0], *found[1]])}, but a graph of mexma-export has "
            f"{', '.join([*INPUTS, *OUTPUTS])}. Give onnx/model_fp16.onnx of a bundle."
        )
    if len(model.graph.value_info) < len(model.graph.node) // 2:  # our graphs carry no shapes
        model = onnx.shape_inference.infer_shapes(model)
    _first_token_only(model.graph)
    if normalize:
        _normalize(model.graph)
    _drop_unused(model.graph, [SENTENCE])
    return bytes(model.SerializeToString())


def _first_token_only(graph: GraphProto) -> None:
    """Compute what is needed only for `states[:, 0]` for the first token alone."""
    for place, node in enumerate(graph.node):
        if node.op_type == "Gather" and _integer(node, "axis", 0) == 1 and _constant(graph, node.input[1]) == 0:
            rows = _FirstRows(graph, node.input[0], 1)
            node.input[0] = rows.first(node.input[0], 1)
            before, after = list(graph.node[:place]), list(graph.node[place:])
            del graph.node[:]
            graph.node.extend([*before, *rows.nodes, *after])
            graph.initializer.extend(rows.constants)
            return


class _FirstRows:
    """Moves "take the first part along an axis" from a tensor upstream, as far as the computation allows."""

    def __init__(self, graph: GraphProto, name: str, axis: int) -> None:
        self.makers = {output: node for node in graph.node for output in node.output}
        self.dims: dict[str, list[int | str]] = {
            tensor.name: [dim.dim_param or dim.dim_value for dim in tensor.type.tensor_type.shape.dim]
            for tensor in (*graph.value_info, *graph.input, *graph.output)
        }
        self.dims |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.done: dict[tuple[str, int], str] = {}
        self.number = count()
        self.whole = self._needed_whole(name, axis)

    def first(self, name: str, axis: int) -> str:
        """Return the name of a tensor with the first part of `name` along an axis, which is kept with size 1."""
        if (name, axis) not in self.done:
            node = self.makers.get(name)
            inputs = None if node is None or name in self.whole else self._inputs(node, axis)
            made = self._sliced(name, axis) if node is None or inputs is None else self._copied(node, inputs, axis)
            self.done[name, axis] = made
        return self.done[name, axis]

    def _needed_whole(self, name: str, axis: int) -> set[str]:
        """Return every tensor that keys and values are computed from."""
        seen, waiting, roots = set(), [(name, axis)], []
        while waiting:
            one = waiting.pop()
            if one in seen or (node := self.makers.get(one[0])) is None:
                continue
            seen.add(one)
            for tensor, part in self._inputs(node, one[1]) or ():
                if part is not None:
                    waiting.append((tensor, part))
                elif tensor in self.makers:
                    roots.append(tensor)
        return set(_ancestors(self.makers, roots))

    def _inputs(self, node: NodeProto, axis: int) -> Inputs | None:
        """Return what the first part of a node's result is computed from; None if it needs whole tensors or is unknown."""
        data, shape = node.input[0], self.dims.get(node.output[0])
        rest: Inputs = [(name, None) for name in node.input[1:]]
        if shape is None or any(name and name not in self.dims for name in node.input):
            return None
        if node.op_type in ELEMENTWISE:
            return [(name, self._own_axis(name, axis - len(shape))) for name in node.input]
        if node.op_type in ("LayerNormalization", "Softmax"):
            own = _integer(node, "axis", -1) % len(shape)
            return [(data, axis), *rest] if axis < own else None
        if node.op_type == "MatMul":
            return [(data, axis), *rest] if axis == len(shape) - 2 and len(self.dims[data]) == len(shape) else None
        if node.op_type == "Transpose":
            return [(data, next(each.ints[axis] for each in node.attribute if each.name == "perm"))]
        if node.op_type == "Reshape":
            behind = all(isinstance(size, int) for size in shape[axis + 1 :])
            return [(data, axis), *rest] if behind and self.dims[data][: axis + 1] == shape[: axis + 1] else None
        return None

    def _own_axis(self, name: str, axis: int) -> int | None:
        """Return the axis of an input that may be broadcast, for one counted from the end; None if absent or of size 1."""
        dims = self.dims[name]
        return None if -axis > len(dims) or dims[axis] == 1 else axis + len(dims)

    def _copied(self, node: NodeProto, inputs: Inputs, axis: int) -> str:
        from onnx import helper

        names = [name if part is None else self.first(name, part) for name, part in inputs]
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "Reshape":
            behind = self.dims[node.output[0]][axis + 1 :]
            names[1] = self._stored([*[0] * (axis + 1), *(int(size) for size in behind)])  # 0: as in the input
            attributes = {}
        made = f"{node.output[0]}/first"
        self.nodes.append(helper.make_node(node.op_type, names, [made], name=made, domain=node.domain, **attributes))
        return made

    def _sliced(self, name: str, axis: int) -> str:
        from onnx import helper

        made = f"{name}/first{axis}"
        bounds = [self._stored([value]) for value in (0, 1, axis)]
        self.nodes.append(helper.make_node("Slice", [name, *bounds], [made], name=made))
        return made

    def _stored(self, values: Sequence[int]) -> str:
        from onnx import numpy_helper

        name = f"first_token/{next(self.number)}"
        self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name


def _normalize(graph: GraphProto) -> None:
    """Divide `sentence_embedding` by its L2 norm, in float32."""
    from onnx import helper, numpy_helper

    raw = f"{SENTENCE}/raw"
    for node in graph.node:
        node.name = raw if node.name == SENTENCE else node.name  # frees the name for the last new node
        for names in (node.input, node.output):
            names[:] = [raw if name == SENTENCE else name for name in names]
    axis, least = np.array([1], np.int64), np.array(LEAST_NORM, np.float32)
    graph.initializer.extend([numpy_helper.from_array(axis, "norm/axis"), numpy_helper.from_array(least, "norm/least")])
    steps: list[tuple[str, list[str], str]] = [
        ("Mul", [raw, raw], "norm/squares"),
        ("ReduceSum", ["norm/squares", "norm/axis"], "norm/sum"),
        ("Sqrt", ["norm/sum"], "norm/root"),
        ("Max", ["norm/root", "norm/least"], "norm/length"),
        ("Div", [raw, "norm/length"], SENTENCE),
    ]
    graph.node.extend(helper.make_node(kind, names, [made], name=made) for kind, names, made in steps)


def _drop_unused(graph: GraphProto, outputs: list[str]) -> None:
    """Keep only the named outputs and what they are computed from."""
    makers = {output: node for node in graph.node for output in node.output}
    needed = set(_ancestors(makers, outputs))
    kept = {
        "node": [node for node in graph.node if needed & set(node.output)],
        "initializer": [tensor for tensor in graph.initializer if tensor.name in needed],
        "output": [tensor for tensor in graph.output if tensor.name in outputs],
        "value_info": [],
    }
    for field, items in kept.items():
        graph.ClearField(field)
        getattr(graph, field).extend(items)


def _ancestors(makers: dict[str, NodeProto], names: Iterable[str]) -> Iterator[str]:
    """Yield these tensors and every tensor that they are computed from, once each."""
    seen, waiting = set(), list(names)
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            yield name
            if name in makers:
                waiting += makers[name].input


def _integer(node: NodeProto, name: str, default: int) -> int:
    return next((each.i for each in node.attribute if each.name == name), default)


def _constant(graph: GraphProto, name: str) -> int | None:
    """Return the value of a scalar integer stored in the graph; None if there is no such tensor."""
    from onnx import numpy_helper

    for tensor in graph.initializer:
        if tensor.name == name and not tensor.dims and not tensor.external_data:
            return int(numpy_helper.to_array(tensor))
    return None
