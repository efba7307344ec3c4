"""Writes the w4 and w8 graphs for onnxruntime on CPU: weights in 4 or 8 bits with a scale per block (blocks.py).

Matrix products are MatMulNBits nodes. With accuracy_level 4, a product's input is rounded to 8 bits at run time, with a scale
per block of each row, so no row depends on the rest of its batch; level 0 keeps the input in float32. The bits, block size and
level of each product are chosen by what the rounding costs this checkpoint (sensitivity.py).

Word embeddings are stored in 4 bits, in blocks of 32 read with GatherBlockQuantized, if that costs little enough (in w8 only if
the table already lies on such a grid), and otherwise in 8 bits as in int8 and mixed (compact.py). A table that was coded before
training (word_codes.py) is stored as its codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper

from mexma_export.blocks import Blocks, quantise_blocks
from mexma_export.compact import WORDS, MixedWriter
from mexma_export.fused import CONTRIB, save_graph
from mexma_export.head import PLAIN, Head
from mexma_export.word_codes import WordCodes, find_codes
from mexma_rt.bundle.graphs import INPUTS

if TYPE_CHECKING:
    from transformers import XLMRobertaModel

WORDS_WEIGHT, WORDS_BLOCK = f"{WORDS}.weight", 32


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a product's weight is stored and multiplied."""

    bits: int  # 4 or 8
    size: int  # numbers that share a scale
    level: int  # MatMulNBits's accuracy_level: 4 rounds the input to 8 bits by blocks, 0 keeps it in float32


class BlockWriter(MixedWriter):
    """Stores words and products in blocks, each by its Form; 8-bit words are stored as MixedWriter does."""

    opset, ir_version = 21, 10  # the oldest with INT4

    def __init__(self, model: XLMRobertaModel, forms: Mapping[str, Form], head: Head = PLAIN) -> None:
        super().__init__(model, head)
        self.forms = forms

    def words(self) -> str:
        if self.forms[WORDS_WEIGHT].bits != 4:
            return super().words()
        table = self.tensor(WORDS_WEIGHT)
        codes = find_codes(table)
        if codes is None:
            return self._rows_in_blocks(table, INPUTS[0], "words")
        if codes.first == 0:
            return self._rows_in_codes(codes, INPUTS[0], "words")
        last, first = self.store("last_exact", np.array(codes.first - 1)), self.store("first_coded", np.array(codes.first))
        exact = self._rows_in_blocks(table[: codes.first], self.node("Min", [INPUTS[0], last], "exact_ids"), "exact_rows")
        beyond = self.node("Sub", [INPUTS[0], first], "ids_beyond")
        beyond = self.node("Max", [beyond, self.store("zero_id", np.array(0))], "coded_ids")
        coded = self._rows_in_codes(codes, beyond, "coded_rows")
        frequent = self.node("Less", [INPUTS[0], first], "frequent")
        frequent = self.node("Unsqueeze", [frequent, self.store("last_axis", np.array([-1]))], "frequent_rows")
        return self.node("Where", [frequent, exact, coded], "words")

    def _rows_in_codes(self, codes: WordCodes, ids: str, output: str) -> str:
        """Look up rows of the coded part of the table, whose row 0 is row `codes.first` of the whole table."""
        rows = self.node("Gather", [self.store(f"{WORDS}.codes", codes.codes), ids], f"{output}/codes")
        places, book, part = codes.books.shape
        starts = self.store("book_starts", np.arange(places, dtype=np.int32) * book)
        numbers = self.node("Cast", [rows], f"{output}/numbers", to=TensorProto.INT32)
        books = self.weight(f"{WORDS}.books", codes.books.reshape(-1, part))
        parts = self.node("Gather", [books, self.node("Add", [numbers, starts], f"{output}/places")], f"{output}/parts")
        return self.node("Reshape", [parts, self.store("words_shape", np.array([0, 0, self.width]))], output)

    def _rows_in_blocks(self, table: np.ndarray, ids: str, output: str) -> str:
        blocks = quantise_blocks(table, bits=4, size=WORDS_BLOCK)
        data, scales = f"{WORDS_WEIGHT}.steps4", self._scales(WORDS_WEIGHT, blocks)
        self.tensors[data] = TensorProto(name=data, data_type=TensorProto.INT4, dims=blocks.steps.shape)
        self.arrays[data] = blocks.packed ^ 0x88  # codes minus 8, as signed 4-bit numbers
        inputs = [data, ids, scales]
        attributes: dict[str, Any] = {"gather_axis": 0, "quantize_axis": 1, "block_size": WORDS_BLOCK}
        return self.node("GatherBlockQuantized", inputs, output, domain=CONTRIB, **attributes)

    def _scales(self, name: str, blocks: Blocks) -> str:
        """Store the scales; returns the name of their float32 values (fp16 is cast once, when the graph is loaded)."""
        stored = self.store(f"{name}.scales", blocks.scales)
        if blocks.scales.dtype == np.float32:
            return stored
        self.casts.append(helper.make_node("Cast", [stored], [f"{stored}/fp32"], to=TensorProto.FLOAT))
        return f"{stored}/fp32"

    def product(self, states: str, names: Sequence[str], output: str) -> str:
        (name,) = names
        form, (n, k) = self.forms[name], self.weights[name].shape
        steps, scales = f"{name}.steps{form.bits}", f"{name}.scales"  # names that mexma_rt.bundle.weights reads
        if steps not in self.tensors:
            blocks = quantise_blocks(self.tensor(name), bits=form.bits, size=form.size)
            self.store(steps, blocks.packed)
            self._scales(name, blocks)
        scales = scales if self.tensors[scales].data_type == TensorProto.FLOAT else f"{scales}/fp32"
        attributes: dict[str, Any] = {"K": k, "N": n, "bits": form.bits, "block_size": form.size, "accuracy_level": form.level}
        return self.node("MatMulNBits", [states, steps, scales], output, domain=CONTRIB, **attributes)

    def attention(self, states: str, names: Sequence[str], bias: str, lengths: str, output: str) -> str:
        parts = [self.product(states, [name], f"{output}/{name}") for name in names]
        inputs = [*parts, bias, lengths]
        return self.node("MultiHeadAttention", inputs, output, domain=CONTRIB, num_heads=self.heads)


def product_names(model: XLMRobertaModel) -> list[str]:
    """Return the names of the weights of all matrix products, layer by layer."""
    return [name for name, weight in model.named_parameters() if name.startswith("encoder.") and weight.ndim == 2]


def export_blocks(model: XLMRobertaModel, path: Path, forms: Mapping[str, Form], head: Head = PLAIN) -> None:
    """Write a graph with these forms (w4 or w8) to `path`; the model is unchanged.

    Raises BundleError for an activation other than gelu, or for widths that are not a multiple of the block size.
    """
    save_graph(BlockWriter(model, forms, head), path)
