"""Writes the graphs of standard ONNX operators, fp32 and fp16; fused.py and compact.py write those for the CPU.

All graphs take `input_ids` and `attention_mask` (int64 [B, L], padding on the right) and return, in this order,
`sentence_embedding` (float32 [B, D], not normalised: head.py applied to the last states; for MEXMA the state of `<s>`) and
`last_hidden_state` (float32 [B, L, W], W being the encoder's width).

They are written by hand (structure.py), not traced: for the fp32 graph of a 12 x 384 encoder with 250,002 pieces torch's
exporter took 20 CPU seconds, and this takes 6, most of it to write 470 MB; onnxruntime runs both at the same speed. The parity
gate judges them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from mexma_export.fused import save_graph
from mexma_export.graph_format import OPSET
from mexma_export.head import PLAIN, Head
from mexma_export.structure import StructureWriter

if TYPE_CHECKING:
    from transformers import XLMRobertaModel


class StandardWriter(StructureWriter):
    """Writes standard operators of any opset of OPSETS with the weights inside; product weights are stored transposed."""

    def __init__(self, model: XLMRobertaModel, head: Head = PLAIN, *, half: bool, opset: int = OPSET) -> None:
        super().__init__(model, head, half=half)
        self.opset = opset
        self.ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])

    def outside(self, name: str, kind: int = TensorProto.FLOAT) -> str:
        """Store a weight of the checkpoint in the graph itself."""
        narrow = np.float16 if kind == TensorProto.FLOAT16 else np.float32
        return self.store(name, self.tensor(name).astype(narrow, copy=False))

    def columns_of(self, weight: str) -> str:
        """Store a linear layer's weight [out, in] as [in, out], in the type of matrix products."""
        return self.store(weight, self.tensor(weight).T.astype(np.float16 if self.half else np.float32, copy=False))


def export_standard(model: XLMRobertaModel, path: Path, head: Head = PLAIN, *, half: bool = False, opset: int = OPSET) -> None:
    """Write the fp32 or fp16 graph of standard ONNX operators to `path` (for TensorRT, OpenVINO and onnxruntime).

    Weights beyond 1.8 GB go to a second file beside it (`<name>.data`), because protobuf cannot hold more than 2 GiB. Raises
    BundleError for an activation other than gelu. The model is unchanged.
    """
    save_graph(StandardWriter(model, head, half=half, opset=opset), path)
