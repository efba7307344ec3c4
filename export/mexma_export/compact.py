"""Writes graphs of fused operators (fused.py) for onnxruntime on CPU: fp32, and two compact ones with int8 word embeddings.

int8: every matrix product is in 8 bits too, unsigned times unsigned, with weights quantised per output channel and inputs at
run time (per batch).
mixed: matrix products are in fp32, with weights stored as fp16. For models whose vectors suffer from int8 products: a small
one gains little speed from them, and nearly all of its bytes are word embeddings.

Word embeddings, most of a small multilingual model, are symmetric int8 with a scale per group of 64 numbers of a row, read with
Gather -> Cast -> Mul. With one scale for the whole table (as in onnxruntime's own Gather quantisation), one large row would
coarsen all the others.

Weights are unsigned so that vectors are the same on every CPU. On x86 without VNNI, onnxruntime multiplies unsigned inputs by
signed weights in 16-bit sums of two products, which saturate (255 * 127 * 2 > 32767), so the same file silently gave different
vectors there. Unsigned weights take a path with 32-bit sums everywhere, and a zero point per channel leaves no code unused.
Lowest / mean cosine on AVX2 (speed relative to fp32 products; two noisy cores): tests' tiny model, signed 0.945 / 0.983, signed
7 bits (which cannot saturate) 0.9935 / 0.9987, unsigned 0.9985 / 0.9996; bundled model, signed 0.9725 / 0.9966 (1.4 times),
7 bits 0.9791 / 0.9922 (1.4), unsigned 0.9975 / 0.9990 (1.1), weights in blocks of 32 (MatMulNBits) 0.9997 / 0.9998 (0.8).
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
# vector was 0.99930 with whole rows of 256, 0.99966 with groups of 64, 0.99970 with 32. With 64, scales add 6 % to the bytes.
GROUP = 64
TABLE_ROWS = 16384  # rows processed at once: three temporaries of XLM-R-large's whole table would take 3 GB
WORDS = "embeddings.word_embeddings"


def group_quantise(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise float32 [V, D] in G groups per row; returns int8 steps [V, G, D/G] and float32 scales [V, G, 1].

    number = scale * step, with |step| <= 127; the rounding error is at most half a step, max|group| / 254. A group has GROUP
    numbers, or the greatest common divisor of GROUP and D. A group of zeros (<pad>) has scale 0.
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
    """Quantise float32 [in, out] per output channel; returns uint8 codes [in, out], float32 scales and uint8 zeros [out].

    number = scale * (code - zero). A channel's range always includes 0, so its zero point is a valid code.
    """
    low, high = np.minimum(columns.min(axis=0), 0), np.maximum(columns.max(axis=0), 0)
    scale = ((high - low) / np.float32(255)).astype(np.float32)
    scale[scale == 0] = 1
    zero = np.rint(-low / scale)
    codes = np.clip(np.rint(columns / scale) + zero, 0, 255)
    return codes.astype(np.uint8), scale, zero.astype(np.uint8)


class MixedWriter(Writer):
    """Stores word embeddings in int8 groups, and product weights as fp16, cast once when onnxruntime loads the graph."""

    def words(self) -> str:
        """Add the word embeddings of `input_ids`, [B, L, D], from int8 steps and group scales."""
        steps, scale = group_quantise(self.tensor(f"{WORDS}.weight"))
        held = self.store(f"{WORDS}.steps", steps), self.store(f"{WORDS}.scale", scale)
        found = [self.node("Gather", [name, INPUTS[0]], f"{name}/rows") for name in held]
        numbers = self.node("Cast", found[:1], "steps", to=TensorProto.FLOAT)
        rows = self.node("Mul", [numbers, found[1]], "groups")
        return self.node("Reshape", [rows, self.store("words_shape", np.array([0, 0, self.width]))], "words")

    def weight(self, name: str, columns: np.ndarray) -> str:
        """Store a product's weight [in, out] as fp16; returns the name of its float32 form."""
        if name not in self.tensors:
            half = self.store(name, columns.astype(np.float16))
            self.casts.append(helper.make_node("Cast", [half], [f"{name}/fp32"], to=TensorProto.FLOAT))
        return f"{name}/fp32"


class Int8Writer(MixedWriter):
    """Stores word embeddings in int8 groups; products are uint8, with scales per channel (weights) and per batch (inputs)."""

    def __init__(self, model: XLMRobertaModel, head: Head = PLAIN) -> None:
        super().__init__(model, head)
        self.quantised: set[str] = set()

    def _codes(self, names: Sequence[str]) -> list[str]:
        """Store a product's weight; returns the names of its codes, scales and zero points."""
        name, columns = self.columns(names)
        parts = [name, f"{name}.scale", f"{name}.zero_point"]
        if name not in self.tensors:
            for part, array in zip(parts, channel_quantise(columns), strict=True):
                self.store(part, array)
        return parts

    def _quantised(self, states: str) -> list[str]:
        """Quantise a product's input; returns the names of its codes, scale and zero point."""
        parts = [f"{states}/codes", f"{states}/scale", f"{states}/zero_point"]
        if parts[0] not in self.quantised:
            self.quantised.add(parts[0])
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [states], parts))
        return parts

    def product(self, states: str, names: Sequence[str], output: str) -> str:
        """Multiply states [B, L, in] by the named weights side by side, in integers: float32 [B, L, out]."""
        (codes, scale, zero), (x, x_scale, x_zero) = self._codes(names), self._quantised(states)
        sums = self.node("MatMulInteger", [x, codes, x_zero, zero], f"{output}/sums")
        floats = self.node("Cast", [sums], f"{output}/floats", to=TensorProto.FLOAT)
        return self.node("Mul", [floats, self.node("Mul", [x_scale, scale], f"{output}/scales")], output)

    def attention(self, states: str, names: Sequence[str], bias: str, lengths: str, output: str) -> str:
        """Add onnxruntime's QAttention over states [B, L, D]: [B, L, D]."""
        (codes, scale, zero), (x, x_scale, x_zero) = self._codes(names), self._quantised(states)
        inputs = [x, codes, bias, x_scale, scale, lengths, x_zero, zero]
        return self.node("QAttention", inputs, output, domain=CONTRIB, num_heads=self.heads)


def export_fused(model: XLMRobertaModel, path: Path, head: Head = PLAIN) -> None:
    """Write the fused fp32 graph of an XLM-R to `path` (and `<name>.data` beyond 1.8 GB); the model is unchanged.

    Raises BundleError for an activation other than gelu.
    """
    save_graph(Writer(model, head), path)


def export_int8(model: XLMRobertaModel, path: Path, head: Head = PLAIN) -> None:
    """Write the int8 graph of an XLM-R to `path`. Same errors as `export_fused`."""
    save_graph(Int8Writer(model, head), path)


def export_mixed(model: XLMRobertaModel, path: Path, head: Head = PLAIN) -> None:
    """Write the mixed graph of an XLM-R to `path`. Same errors as `export_fused`."""
    save_graph(MixedWriter(model, head), path)
