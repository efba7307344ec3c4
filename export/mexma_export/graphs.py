"""Checkpoint -> the fp32 graph of standard ONNX operators; fused.py and compact.py write those for onnxruntime on CPU.

All graphs take `input_ids` and `attention_mask` (int64 [B, L], padding on the right) and give, in this order,
`sentence_embedding` (float32 [B, D], not normalised: what head.py makes of the last states, for MEXMA the one of `<s>`) and
`last_hidden_state` (float32 [B, L, D]).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mexma_export.graph_format import ONE_FILE_BYTES, OPSET
from mexma_export.head import PLAIN, Head
from mexma_rt.bundle.graphs import INPUTS, OUTPUTS

if TYPE_CHECKING:
    from transformers import XLMRobertaModel


class SentenceEncoder(torch.nn.Module):
    """XLM-R with the two outputs of our graphs; any row, fully padded ones included, gives finite numbers."""

    def __init__(self, model: XLMRobertaModel, head: Head = PLAIN) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.eval()  # the exporters restore the wrapper's flag afterwards: without this dropout comes back on

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and mask int64 [B, L] -> raw sentence vectors [B, D] and token states [B, L, W]."""
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(states, attention_mask), states


def export_standard(encoder: torch.nn.Module, path: Path, *, length_limit: int, opset: int = OPSET) -> None:
    """Write the fp32 graph of standard ONNX operators (TensorRT, OpenVINO and onnxruntime read it).

    Weights beyond 1.8 GB go to a second file beside it (`<name>.data`), because protobuf cannot hold more than 2 GiB.
    """
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=length_limit)
    dynamic = {name: {0: batch, 1: length} for name in INPUTS}
    parameters = sum(p.numel() * p.element_size() for p in encoder.parameters())
    with _quiet():
        torch.onnx.export(
            encoder,
            _example(),
            str(path),
            dynamo=True,
            opset_version=opset,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=dynamic,
            external_data=parameters > ONE_FILE_BYTES,
            verbose=False,
        )
    strip_notes(path)


def _example() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sentences of different lengths: sizes of 1 would be taken for constants."""
    ids = torch.tensor([[0, 4, 5, 6, 7, 2], [0, 4, 5, 2, 1, 1], [0, 6, 2, 1, 1, 1]])
    return ids, (ids != 1).long()


def strip_notes(path: Path) -> None:
    """Rewrite a graph without the exporter's notes: stack traces, which name folders of this machine."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for item in [model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    onnx.save(model, str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' remarks about their own internals; the parity gate judges the result."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
