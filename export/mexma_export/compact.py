"""The graphs for onnxruntime on CPU, of fused operators (fused.py): fp32, and two compact ones with int8 word embeddings.

int8: every matrix product in 8 bits too, unsigned times unsigned: weights per output channel, inputs quantised at run time (per
batch).
mixed: matrix products in fp32, their weights stored as fp16. For models whose vectors int8 products disturb: a small one gains
little speed from them, and nearly all of its bytes are word embeddings.

Word embeddings, most of a small multilingual model: int8, symmetric, one scale for each group of 64 numbers of a row, read with
Gather -> Cast -> Mul. A scale for the whole table (what onnxruntime's own Gather quantisation does) would let one large row
coarsen all the others.

Why unsigned weights: for the same vectors on every CPU. onnxruntime multiplies unsigned inputs by signed weights on x86 without
VNNI in 16-bit sums of two products, which saturate (255 * 127 * 2 > 32767): so one file silently gave different vectors there.
Unsigned weights take a path with 32-bit sums everywhere, and their zero point per channel wastes no code. On AVX2, lowest, mean
cosine (speed against fp32 products; two noisy cores): tests' tiny model, signed 0.945 / 0.983, signed in 7 bits (which cannot
saturate) 0.9935 / 0.9987, unsigned 0.9985 / 0.9996; bundled model, signed 0.9725 / 0.9966 (1.4 times), 7 bits 0.9791 / 0.9922
(1.4), unsigned 0.9975 / 0.9990 (1.1), weights in blocks of 32 (MatMulNBits) 0.9997 / 0.9998 (0.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from mexma_export.fused import CONTRIB, Writer, save_graph
from mexma_export.head import PLAIN, Head
from mexma_rt.bundle.graphs import INPUTS

if TYPE_CHECKING:
    from transformers import XLMRobertaModel

# Numbers that share a scale. On the bundled model's warm start (62 languages, 140 sentences) the lowest cosine of a sentence
# vector was 0.99930 with whole rows of 256, 0.99966 with groups of 64, 0.99970 with 32; 64 costs 6 % more bytes.
GROUP = 64
TABLE_ROWS = 16384  # rows of the table at once: three temporaries of XLM-R-large's would be 3 GB
WORDS = "embeddings.word_embeddings"


def group_quantise(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [V, D] -> int8 steps [V, G, D/G] and float32 scales [V, G, 1]: number = scale * step.

    |step| <= 127; the rounding error of a number is at most half a step, max|group| / 254. Groups of GROUP numbers, or the
    largest common divisor of GROUP and D. A group of zeros (<pad>) has scale 0.
    """
    rows, width = table.shape
    size = gcd(GROUP, width)
    steps, scale = np.empty((rows, width // size, size), np.int8), np.empty((rows, width // size, 1), np.float32)
    for start in range(0, rows, TABLE_ROWS):
        groups = table[start : start + TABLE_ROWS].reshape(-1, width // size, size)
        block = np.abs(groups).max(axis=2, keepdims=True) / np.float32(127)
        scale[start : start + TABLE_ROWS] = block
        steps[start : start + TABLE_ROWS] = np.rint(groups / np.where(block > 0, block, 1))
    return steps, scale


def channel_quantise(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 [in, out] -> uint8 [in, out], float32 scales [out], uint8 zero points [out]: number = scale * (code - zero).

    A channel's range always holds 0, so that its zero point is a code.
    """
    low, high = np.minimum(columns.min(axis=0), 0), np.maximum(columns.max(axis=0), 0)
    scale = ((high - low) / np.float32(255)).astype(np.float32)
    scale[scale == 0] = 1
    zero = np.rint(-low / scale)
    codes = np.clip(np.rint(columns / scale) + zero, 0, 255)
    return codes.astype(np.uint8), scale, zero.astype(np.uint8)


class MixedWriter(Writer):
    """Word embeddings in int8 groups; weights of products as fp16, cast back once, when onnxruntime loads the graph."""

    def words(self) -> str:
        """Word embeddings of `input_ids`, [B, L, D], from int8 steps and group scales."""
        steps, scale = group_quantise(self.tensor(f"{WORDS}.weight"))
        held = self.store(f"{WORDS}.steps", steps), self.store(f"{WORDS}.scale", scale)
        found = [self.node("Gather", [name, INPUTS[0]], f"{name}/rows") for name in held]
        numbers = self.node("Cast", found[:1], "steps", to=TensorProto.FLOAT)
        rows = self.node("Mul", [numbers, found[1]], "groups")
        return self.node("Reshape", [rows, self.store("words_shape", np.array([0, 0, self.width]))], "words")

    def weight(self, name: str, columns: np.ndarray) -> str:
        """A product's weight [in, out], stored as fp16; returns the name of its float32 form."""
        if name not in self.tensors:
            half = self.store(name, columns.astype(np.float16))
            self.casts.append(helper.make_node("Cast", [half], [f"{name}/fp32"], to=TensorProto.FLOAT))
        return f"{name}/fp32"


class Int8Writer(MixedWriter):
    """Word embeddings in int8 groups; products of uint8, weights per channel, inputs by their range at run time."""

    def __init__(self, model: XLMRobertaModel, head: Head = PLAIN) -> None:
        super().__init__(model, head)
        self.quantised: set[str] = set()

    def _codes(self, names: Sequence[str]) -> list[str]:
        """Names of the codes, scales and zero points of a product's weight."""
        name, columns = self.columns(names)
        parts = [name, f"{name}.scale", f"{name}.zero_point"]
        if name not in self.tensors:
            for part, array in zip(parts, channel_quantise(columns), strict=True):
                self.store(part, array)
        return parts

    def _quantised(self, states: str) -> list[str]:
        """Names of the codes, scale and zero point of a product's input."""
        parts = [f"{states}/codes", f"{states}/scale", f"{states}/zero_point"]
        if parts[0] not in self.quantised:
            self.quantised.add(parts[0])
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [states], parts))
        return parts

    def product(self, states: str, names: Sequence[str], output: str) -> str:
        """states [B, L, in] times the named weights side by side, in integers -> float32 [B, L, out]."""
        (codes, scale, zero), (x, x_scale, x_zero) = self._codes(names), self._quantised(states)
        sums = self.node("MatMulInteger", [x, codes, x_zero, zero], f"{output}/sums")
        floats = self.node("Cast", [sums], f"{output}/floats", to=TensorProto.FLOAT)
        return self.node("Mul", [floats, self.node("Mul", [x_scale, scale], f"{output}/scales")], output)

    def attention(self, states: str, names: Sequence[str], bias: str, lengths: str, output: str) -> str:
        """onnxruntime's QAttention over states [B, L, D] -> [B, L, D]."""
        (codes, scale, zero), (x, x_scale, x_zero) = self._codes(names), self._quantised(states)
        inputs = [x, codes, bias, x_scale, scale, lengths, x_zero, zero]
        return self.node("QAttention", inputs, output, domain=CONTRIB, num_heads=self.heads)


def export_fused(model: XLMRobertaModel, path: Path, head: Head = PLAIN) -> None:
    """Write the fused fp32 graph of an XLM-R to `path` (and `<name>.data` beyond 1.8 GB); the model is unchanged.

    Raises BundleError for another activation.
    """
    save_graph(Writer(model, head), path)


def export_int8(model: XLMRobertaModel, path: Path, head: Head = PLAIN) -> None:
    """Write the int8 graph of an XLM-R to `path`; the model is unchanged. Raises BundleError for another activation."""
    save_graph(Int8Writer(model, head), path)


def export_mixed(model: XLMRobertaModel, path: Path, head: Head = PLAIN) -> None:
    """Write the mixed graph of an XLM-R to `path`; the model is unchanged. Raises BundleError for another activation."""
    save_graph(MixedWriter(model, head), path)
