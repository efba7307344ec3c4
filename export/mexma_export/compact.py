"""The compact graphs for onnxruntime on CPU, both with fused attention and int8 word embeddings.

int8: every matrix product in 8 bits too, unsigned times unsigned (see WEIGHTS): weights per output channel, inputs quantised at
run time (per batch).
mixed: matrix products in fp32, their weights stored as fp16. For models whose vectors int8 products disturb: a small one gains
little speed from them, and nearly all of its bytes are word embeddings.

Word embeddings, most of a small multilingual model: int8, symmetric, one scale for each group of 64 numbers of a row, read with
Gather -> Cast -> Mul. A scale for the whole table (what onnxruntime's own Gather quantisation does) would let one large row
coarsen all the others.
"""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mexma_export.graphs import SentenceEncoder, export_traced, strip_notes

if TYPE_CHECKING:
    from onnxruntime.transformers.onnx_model import OnnxModel
    from transformers import XLMRobertaModel

# Numbers that share a scale. On the bundled model's warm start (62 languages, 140 sentences) the lowest cosine of a sentence
# vector was 0.99930 with whole rows of 256, 0.99966 with groups of 64, 0.99970 with 32; 64 costs 6 % more bytes.
GROUP = 64

# Unsigned weights, for the same vectors on every CPU. onnxruntime multiplies unsigned inputs by signed weights on x86 without
# VNNI in 16-bit sums of two products, which saturate (255 * 127 * 2 > 32767): one graph gave other vectors there, in silence.
# Unsigned weights take a path with 32-bit sums everywhere. Lowest / mean cosine on AVX2, tests' tiny model, 562 sentences:
# signed 0.945 / 0.983; signed in 7 bits, which cannot saturate, 0.9935 / 0.9987; unsigned 0.9985 / 0.9996, as signed with VNNI.
WEIGHTS = "QUInt8"


class Int8Embedding(torch.nn.Module):
    """An embedding table [V, D] stored as int8 [V, G, D/G] with float32 scales [V, G, 1]: number = scale * int8.

    |int8| <= 127; the rounding error of a number is at most half a step, max|group| / 254. Groups of GROUP numbers, or the
    largest common divisor of GROUP and D.
    """

    steps: torch.Tensor
    scale: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        rows, width = table.shape
        groups = table.detach().view(rows, -1, gcd(GROUP, width))
        scale = groups.abs().amax(dim=2, keepdim=True) / 127
        steps = torch.where(scale > 0, groups / scale, 0.0)  # a group of zeros (<pad>) keeps scale 0
        self.register_buffer("steps", torch.round(steps).to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return (self.steps[input_ids].float() * self.scale[input_ids]).flatten(-2)


def export_int8(model: XLMRobertaModel, path: Path) -> None:
    """Write the int8 graph of an XLM-R with eager attention to `path`; the model is left as it was."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    fused = _fused(model, path)
    add_pre_process_metadata(fused.model)  # true, and without the mark quantize_dynamic talks to the root logger
    unquantised = path.with_name("fused.onnx")
    fused.save_model_to_file(str(unquantised))
    quantize_dynamic(
        unquantised,
        path,
        op_types_to_quantize=["MatMul", "Attention"],
        per_channel=True,
        weight_type=QuantType[WEIGHTS],
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # fused operators have no inferred types
    )
    unquantised.unlink()
    strip_notes(path)


def export_mixed(model: XLMRobertaModel, path: Path) -> None:
    """Write the mixed graph of an XLM-R with eager attention to `path`; the model is left as it was."""
    fused = _fused(model, path)
    _store_weights_as_half(fused.model.graph)
    fused.save_model_to_file(str(path))
    strip_notes(path)


def _fused(model: XLMRobertaModel, path: Path) -> OnnxModel:
    """The graph with int8 word embeddings and fused fp32 layers. A traced copy lies beside `path` for the time of the work."""
    from onnxruntime.transformers.optimizer import optimize_model

    traced = path.with_name("traced.onnx")
    embeddings: Any = model.embeddings
    words = embeddings.word_embeddings
    embeddings.word_embeddings = Int8Embedding(words.weight)
    try:
        export_traced(SentenceEncoder(model), traced)
    finally:
        embeddings.word_embeddings = words
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    fused = optimize_model(str(traced), model_type="bert", num_heads=heads, hidden_size=width, opt_level=0)
    traced.unlink()
    return fused


def _store_weights_as_half(graph: Any) -> None:
    """Store the float32 weights of matrix products as fp16 and cast them back; onnxruntime does the cast once, at load."""
    import numpy as np
    import onnx

    products = {node.input[1] for node in graph.node if node.op_type in ("MatMul", "Attention")}
    casts = []
    for weight in [t for t in graph.initializer if t.name in products and t.data_type == onnx.TensorProto.FLOAT]:
        name, array = weight.name, onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], name=f"{name}_cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]  # a node comes after those it reads
    del graph.node[:]
    graph.node.extend(nodes)
