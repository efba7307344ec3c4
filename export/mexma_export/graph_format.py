"""File names and opsets of the graphs, shared by the writers and the gate; importable without torch."""

from __future__ import annotations

GRAPHS = {
    "fp32": "onnx/model.onnx",
    "fused": "onnx/model_fused.onnx",  # fp32 too, with onnxruntime's own operators, for CPU
    "int8": "onnx/model_int8.onnx",
    "mixed": "onnx/model_mixed.onnx",
    "w8": "onnx/model_w8.onnx",  # weights (8 or 4 bits) and inputs of products rounded in blocks: blockwise.py
    "w4": "onnx/model_w4.onnx",
    "fp16": "onnx/model_fp16.onnx",  # what TensorRT engines are built from
}

# Default for the standard graphs: the lowest, for the oldest TensorRT. TensorRT-RTX 1.7 built fp16 engines from 18, 19, 20, 22
# and 23.
OPSET = 18
OPSETS = range(18, 24)
