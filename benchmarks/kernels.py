"""Speed and error of onnxruntime's products with a weight, on one core, in the shapes of a 12 x 384 feed-forward part.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/kernels.py [-o benchmarks/results/kernels.md]

Two pairs of 384 x 1,536 and 1,536 x 384 in a row, normal numbers, no biases or activations. Kinds take turns; a time is the
process's CPU time, so that other work on the machine disturbs it less, and the ratio is that of medians to fp32. The error
is the root mean square of the difference to fp32, relative to fp32's numbers.

"rows" rounds each row of the input with a scale of its own, so that no row depends on another: Abs, ReduceMax, Reciprocal,
QuantizeLinear and two Muls, which are standard, and onnxruntime's MatMulIntegerToFloat.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from embed import machine
from onnx import NodeProto, TensorProto, helper, numpy_helper

ROWS, ROUNDS, WIDTH, WIDE = (16, 256, 2048), 9, 384, 1536
CONTRIB = "com.microsoft"
KINDS = {
    "fp32 MatMul": "fp32",
    "MatMulNBits, 8 bits, block 32, accuracy_level 4": "8 32",
    "MatMulNBits, 8 bits, block 128, accuracy_level 4": "8 128",
    "MatMulNBits, 4 bits, block 32, accuracy_level 4": "4 32",
    "MatMulNBits, 4 bits, block 128, accuracy_level 4": "4 128",
    "DynamicQuantizeMatMul, one input scale for the batch": "batch",
    "MatMulIntegerToFloat, one input scale for each row": "rows",
}


class Chain:
    """A graph of products in one kind."""

    def __init__(self, kind: str, weights: list[np.ndarray]) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        states = "x"
        for number, weight in enumerate(weights):
            self.prefix = f"{number}/"
            states = self.product(kind, states, weight)
        self.nodes.append(helper.make_node("Identity", [states], ["y"]))

    def keep(self, name: str, array: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(array, self.prefix + name))
        return self.prefix + name

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [self.prefix + output], domain=domain, **attributes))
        return self.prefix + output

    def product(self, kind: str, x: str, weight: np.ndarray) -> str:
        if kind == "fp32":
            return self.node("MatMul", [x, self.keep("weight", weight)], "product")
        if kind not in ("batch", "rows"):
            return self.in_blocks(x, weight, *map(int, kind.split()))
        scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
        codes, scales = self.keep("codes", np.rint(weight / scale).astype(np.int8)), self.keep("scales", scale)
        if kind == "batch":
            return self.node("DynamicQuantizeMatMul", [x, codes, scales], "product", CONTRIB)
        largest = self.node("ReduceMax", [self.node("Abs", [x], "abs"), self.keep("last", np.array([-1]))], "max", keepdims=1)
        row_scale = self.node("Mul", [largest, self.keep("step", np.array(1 / 127, np.float32))], "row_scale")
        scaled = self.node("Mul", [x, self.node("Reciprocal", [row_scale], "inverse")], "scaled")
        zero = self.keep("zero", np.array(128, np.uint8))
        rounded = self.node("QuantizeLinear", [scaled, self.keep("one", np.array(1, np.float32)), zero], "rounded")
        one = self.keep("one_scale", np.array(1, np.float32))
        inputs = [rounded, codes, one, scales, zero]
        return self.node("Mul", [self.node("MatMulIntegerToFloat", inputs, "sums", CONTRIB), row_scale], "product")

    def in_blocks(self, x: str, weight: np.ndarray, bits: int, size: int) -> str:
        columns, rows = weight.shape
        blocks, top = weight.T.reshape(rows, columns // size, size), 2 ** (bits - 1)
        scale = (np.abs(blocks).max(axis=2) / (top - 1)).astype(np.float32)
        codes = (np.rint(blocks / scale[..., None]) + top).astype(np.uint8)
        codes = codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
        inputs = [x, self.keep("codes", codes), self.keep("scales", scale)]
        attributes = {"K": columns, "N": rows, "bits": bits, "block_size": size, "accuracy_level": 4}
        return self.node("MatMulNBits", inputs, "product", CONTRIB, **attributes)

    def session(self) -> onnxruntime.InferenceSession:
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH]) for name in "xy"]
        graph = helper.make_graph(self.nodes, "chain", ends[:1], ends[1:], self.tensors)
        imports = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        content = helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    shapes = [(WIDTH, WIDE), (WIDE, WIDTH)] * 2
    weights = [(random.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32) for shape in shapes]
    sessions = {name: Chain(kind, weights).session() for name, kind in KINDS.items()}
    cells: dict[str, list[str]] = {name: [] for name in KINDS}
    errors: dict[str, float] = {}
    for rows in ROWS:
        x = random.standard_normal((rows, WIDTH)).astype(np.float32)
        wanted = sessions["fp32 MatMul"].run(None, {"x": x})[0]
        times: dict[str, list[float]] = {name: [] for name in KINDS}
        repeats = max(1, 512 // rows)
        for _ in range(ROUNDS + 1):
            for name, session in sessions.items():
                started = time.process_time()
                for _ in range(repeats):
                    (got,) = session.run(None, {"x": x})
                times[name].append((time.process_time() - started) / repeats)
                errors[name] = float(np.sqrt(((got - wanted) ** 2).mean() / (wanted**2).mean()))
        base = float(np.median(times["fp32 MatMul"][1:]))  # the first round warms up
        for name, seconds in times.items():
            cells[name].append(f"{base / float(np.median(seconds[1:])):.2f}")
        cells["fp32 MatMul"][-1] += f" ({sum(2 * a * b for a, b in shapes) * rows / base / 1e9:.0f} GFLOP/s)"
    lines = [
        f"{machine()}, onnxruntime {onnxruntime.__version__}; {ROUNDS} rounds.",
        "",
        f"| product | {' | '.join(f'{rows:,} rows' for rows in ROWS)} | error |",
        "|---|" + "---|" * (len(ROWS) + 1),
        *(f"| {name} | {' | '.join(cells[name])} | {errors[name]:.4f} |" for name in KINDS),
    ]
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
