"""The int8 graph for onnxruntime on CPU: fused attention, int8 matrix products, int8 word embeddings.

Weights of all linear layers: int8 per output channel, symmetric; their inputs are quantised at run time (per batch).
Word embeddings, most of a small multilingual model: int8 per row, symmetric, read with Gather -> Cast -> Mul. A
per-tensor scale (what onnxruntime's own Gather quantisation does) would let one large row coarsen all the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mexma_export.graphs import SentenceEncoder, export_traced, strip_notes

if TYPE_CHECKING:
    from transformers import XLMRobertaModel


class RowInt8Embedding(torch.nn.Module):
    """An embedding table [V, D] stored as int8 with one float32 scale per row: row = scale * int8, |int8| <= 127.

    The rounding error of a number is at most half a step, max|row| / 254.
    """

    steps: torch.Tensor
    scale: torch.Tensor

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        table = table.detach()
        scale = table.abs().amax(dim=1, keepdim=True) / 127
        steps = torch.where(scale > 0, table / scale, 0.0)  # a row of zeros (<pad>) keeps scale 0
        self.register_buffer("steps", torch.round(steps).to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.steps[input_ids].float() * self.scale[input_ids]


def export_int8(model: XLMRobertaModel, path: Path) -> None:
    """Write the fused int8 graph of an XLM-R with eager attention to `path`; the model is left as it was.

    A traced fp32 graph (encoder layers in fp32, about 4 bytes a parameter) lies beside `path` for the time of the work.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata
    from onnxruntime.transformers.optimizer import optimize_model

    traced = path.with_name("traced.onnx")
    embeddings: Any = model.embeddings
    words = embeddings.word_embeddings
    embeddings.word_embeddings = RowInt8Embedding(words.weight)
    try:
        export_traced(SentenceEncoder(model), traced)
    finally:
        embeddings.word_embeddings = words
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    fused = optimize_model(str(traced), model_type="bert", num_heads=heads, hidden_size=width, opt_level=0)
    add_pre_process_metadata(fused.model)  # true, and without the mark quantize_dynamic talks to the root logger
    fused.save_model_to_file(str(traced))
    quantize_dynamic(
        traced,
        path,
        op_types_to_quantize=["MatMul", "Attention"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # fused operators have no inferred types
    )
    traced.unlink()
    strip_notes(path)
