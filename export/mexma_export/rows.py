"""The graph int8 for onnxruntime on CPU: products in 8 bits, one scale for each row of the input and channel of the weight.

No row depends on another, so a vector does not depend on its batch-mates; in onnxruntime's own dynamic int8, with one scale for
the whole batch, it does. Speed on one core of an EPYC (Zen 4): 2.8 to 3.1 times fp32, where MatMulNBits has 1.1 to 1.7
(benchmarks/results/kernels.md).

A few dimensions of a LayerNorm's output are far larger than the others and would use up nearly all steps of a row's scale. As
in SmoothQuant (arXiv 2211.10438, equation 4), dimension j of the input is divided by s_j = max|x_j|^a / max|w_j|^(1 - a), and
column j of the weight multiplied by it; max|x_j| is measured on the calibration sentences. SmoothQuant folds the division into
the LayerNorm; here the residual sum needs the undivided states too, so it is a Mul of its own.

GELU's results are -0.17 or more: 0.17 is added, so that all steps of unsigned codes are used, and the bias takes it back.

Codes of the input are unsigned and those of the weight signed: CPUs with VNNI multiply such a pair fastest. Without VNNI,
onnxruntime would add two of these products in 16 bits, which saturate. There the runtime asks it for unsigned weights
(mexma_rt/backends/onnxruntime.py), which give the same sums to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto

from mexma_export.blockwise import BlockWriter, Form
from mexma_export.fused import CONTRIB, save_graph
from mexma_export.head import PLAIN, Head
from mexma_rt.bundle.rows import TINY, row_codes
from mexma_rt.bundle.structure import DATA

if TYPE_CHECKING:
    import torch
    from transformers import XLMRobertaModel

ROWS = Form(bits=8, size=0, level=4)  # a whole row has one scale
FLOAT = Form(bits=32, size=0, level=0)  # the product stays in float32, its weight in float16
ALIGN = 64  # bytes: where a weight starts in the file that is written later
SMOOTHING = 0.6  # a. multilingual-e5-small, centred cosine: 0.99690 (0.4), 0.99799 (0.5), 0.99843 (0.6), 0.99813 (0.7)


@dataclass(frozen=True, kw_only=True)
class RowProduct:
    """A product's weight in signed codes [N, K] with scales [N], for an input [..., K] divided by `smoothing` [K].

    `shift` >= 0 is added to the input before that; with it no input is negative.
    """

    codes: np.ndarray
    scales: np.ndarray
    smoothing: np.ndarray | None
    shift: float

    @property
    def divided(self) -> np.ndarray:
        """The numbers that the codes represent, [N, K]: the weight times the smoothing."""
        divided: np.ndarray = self.codes * self.scales[:, None]
        return divided

    @property
    def numbers(self) -> np.ndarray:
        """The weight that the codes represent, [N, K]."""
        return self.divided if self.smoothing is None else self.divided / self.smoothing

    @property
    def added(self) -> np.ndarray:
        """What the shift adds to the product, [N]."""
        added: np.ndarray = self.shift * self.numbers.sum(axis=1)
        return added

    def round_input(self, states: torch.Tensor) -> torch.Tensor:
        """states [..., K] as the graph rounds them; torch's imitation."""
        import torch

        smoothing = torch.ones(()) if self.smoothing is None else torch.from_numpy(self.smoothing)
        states = (states + self.shift) / smoothing
        steps = 255 if self.shift else 127
        scale = states.abs().amax(dim=-1, keepdim=True).clamp_min(TINY) / steps
        return ((states / scale).round() * scale) * smoothing - self.shift


def row_product(weight: np.ndarray, *, largest: np.ndarray | None, weights: Sequence[np.ndarray], shift: float) -> RowProduct:
    """Round a weight float32 [N, K]. `largest` [K]: max|x_j| of its input (None: no smoothing); `weights`: all that read it."""
    smoothing = None
    if largest is not None:
        peaks = np.maximum(np.max([np.abs(one).max(axis=0) for one in weights], axis=0), 1e-6)
        smoothing = (np.maximum(largest, 1e-6) ** SMOOTHING / peaks ** (1 - SMOOTHING)).astype(np.float32)
    codes, scales = row_codes(weight, smoothing)
    return RowProduct(codes=codes, scales=scales, smoothing=smoothing, shift=shift)


class RowWriter(BlockWriter):
    """Words as BlockWriter has them; each product by rows, or in float32."""

    def __init__(
        self, model: XLMRobertaModel, forms: Mapping[str, Form], rows: Mapping[str, RowProduct], head: Head = PLAIN
    ) -> None:
        super().__init__(model, forms, head)
        self.rows = rows
        self.rounded: dict[tuple[str, str], tuple[str, str]] = {}

    def product(self, states: str, names: Sequence[str], output: str) -> str:
        """states [B, L, K] times the named weight, by rows or in float32 -> float32 [B, L, N]."""
        (name,) = names
        if self.forms[name] != ROWS:
            return self.node("MatMul", [states, self.weight(f"{name}.columns", self.columns(names)[1])], output)
        product = self.rows[name]
        codes, row_scale = self._rounded(states, name, product)
        inputs = [codes, self.store(f"{name}.codes", np.ascontiguousarray(product.codes.T)), self._number("one", 1)]
        inputs += [self.store(f"{name}.scales", product.scales), self._zero(product)]
        sums = self.node("MatMulIntegerToFloat", inputs, f"{output}/sums", domain=CONTRIB)
        return self.node("Mul", [sums, row_scale], output)

    def bias_of(self, layer: str) -> str:
        """The bias of a linear layer, less what the shift of its input adds to the product."""
        name = f"{layer}.weight"
        if self.forms[name] != ROWS or not self.rows[name].shift:
            return super().bias_of(layer)
        bias = (self.tensor(f"{layer}.bias") - self.rows[name].added).astype(np.float32)
        return self.store(f"{layer}.bias.shifted", bias)

    def _rounded(self, states: str, name: str, product: RowProduct) -> tuple[str, str]:
        """(unsigned codes of states [B, L, K], their scales [B, L, 1]); query, key and value of the same states share them."""
        key = states, name.rpartition(".self.")[0] or name
        if key in self.rounded:
            return self.rounded[key]
        place = f"{states}/rounded"
        if product.shift:
            states = self.node("Add", [states, self._number("gelu_shift", product.shift)], f"{place}/shifted")
        if product.smoothing is not None:
            inverse = self.store(f"{key[1]}.inverse_smoothing", 1 / product.smoothing)
            states = self.node("Mul", [states, inverse], f"{place}/smooth")
        size = states if product.shift else self.node("Abs", [states], f"{place}/size")
        largest = self.node("ReduceMax", [size, self.store("last_axis", np.array([-1]))], f"{place}/largest", keepdims=1)
        largest = self.node("Max", [largest, self._number("tiny", TINY)], f"{place}/at_least")
        steps = 255 if product.shift else 127
        scale = self.node("Mul", [largest, self._number(f"step_{steps}", 1 / steps)], f"{place}/scale")
        inverse = self.node("Reciprocal", [scale], f"{place}/inverse")
        scaled = self.node("Mul", [states, inverse], f"{place}/scaled")
        codes = self.node("QuantizeLinear", [scaled, self._number("one", 1), self._zero(product)], f"{place}/codes")
        self.rounded[key] = codes, scale
        return codes, scale

    def _zero(self, product: RowProduct) -> str:
        """The code that means zero: 128 for numbers of both signs."""
        return self.store(*(("zero_0", np.array(0, np.uint8)) if product.shift else ("zero_128", np.array(128, np.uint8))))

    def _number(self, name: str, value: float) -> str:
        return self.store(f"number_{name}", np.array(value, np.float32))


class RowStructure(RowWriter):
    """The same graph without weights: mexma_rt.bundle.structure takes them from w4, and rounds them as `row_product` does."""

    def assembled(self, *domains: str) -> onnx.ModelProto:
        """The model, whose weights have a place in a file that is written later."""
        end = 0
        for name, tensor in self.tensors.items():
            if name.startswith(("embeddings.", "encoder.")) and not name.endswith(".inverse_smoothing"):
                length = self.arrays.pop(name).nbytes
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in {"location": DATA, "offset": end, "length": length}.items():
                    tensor.external_data.add(key=key, value=str(value))
                end += -(-length // ALIGN) * ALIGN
        return super().assembled(*domains)


def export_rows(
    model: XLMRobertaModel,
    path: Path,
    forms: Mapping[str, Form],
    rows: Mapping[str, RowProduct],
    head: Head = PLAIN,
    *,
    weights: bool = True,
) -> None:
    """Write the int8 graph to `path`, or its structure; the model is unchanged. Raises BundleError for an activation other
    than gelu."""
    path.parent.mkdir(exist_ok=True)
    save_graph((RowWriter if weights else RowStructure)(model, forms, rows, head), path)
