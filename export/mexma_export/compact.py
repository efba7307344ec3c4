"""Writes graphs of fused operators (fused.py) for onnxruntime on CPU: `fused`, all in fp32, and `mixed`.

mixed: word embeddings in int8, matrix products in fp32 with weights stored as fp16. Most bytes of a small multilingual model
are its word embeddings.

Word embeddings are symmetric int8 with a scale per group of 64 numbers of a row, read with Gather -> Cast -> Mul. With one
scale for the whole table (as in onnxruntime's own Gather quantisation), one large row would coarsen all the others.
"""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from mexma_export.fused import Writer, save_graph
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


def export_fused(model: XLMRobertaModel, path: Path, head: Head = PLAIN) -> None:
    """Write the fused fp32 graph of an XLM-R to `path` (and `<name>.data` beyond 1.8 GB); the model is unchanged.

    Raises BundleError for an activation other than gelu.
    """
    save_graph(Writer(model, head), path)


def export_mixed(model: XLMRobertaModel, path: Path, head: Head = PLAIN) -> None:
    """Write the mixed graph of an XLM-R to `path`. Same errors as `export_fused`."""
    save_graph(MixedWriter(model, head), path)
