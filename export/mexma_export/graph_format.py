"""The files and the format of the graphs, without torch: what every writer and the gate agree on."""

from __future__ import annotations

GRAPHS = {
    "fp32": "onnx/model.onnx",
    "fused": "onnx/model_fused.onnx",  # fp32 too, of onnxruntime's own operators, for CPU
    "int8": "onnx/model_int8.onnx",
    "mixed": "onnx/model_mixed.onnx",
    "w8": "onnx/model_w8.onnx",  # weights in blocks of 8 bits, or of 4, inputs of products rounded by blocks: blockwise.py
    "w4": "onnx/model_w4.onnx",
    "fp16": "onnx/model_fp16.onnx",  # what TensorRT engines are built from
}

# Of the standard graphs: the lowest, for the oldest TensorRT. TensorRT-RTX 1.7 built fp16 engines of 18, 19, 20, 22 and 23.
OPSET = 18
OPSETS = range(18, 24)  # torch writes 18 and more itself (17 by another library's conversion)
