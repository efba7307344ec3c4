"""Checkpoint -> the fp16 graph of standard ONNX operators that TensorRT engines are built from.

TensorRT networks are strongly typed (from version 11 always): the types of this graph are those of the engine. Matrix products
and the activation are fp16; softmax, the sums of the residual stream and LayerNorm are fp32, since their numbers may pass
65504, where fp16 ends. Inputs and outputs are those of graphs.py: int64 in, float32 out.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mexma_export.graph_format import OPSET
from mexma_export.graphs import export_standard
from mexma_export.head import PLAIN, Head
from mexma_rt.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    from transformers import XLMRobertaModel

    from mexma_export.reopen import Runner


class HalfEncoder(nn.Module):
    """A copy of an XLM-R with fp16 weights and fp32 LayerNorms: (input_ids, attention_mask) [B, L] -> ([B, D], [B, L, D]).

    Not `model.half()`: its residual sums are fp16, and one beyond 65504 becomes infinite and then NaN; and it adds -65504 to
    the scores of padding, where -16 more is -inf. Raises BundleError for a weight that fp16 cannot hold, or another activation.
    """

    def __init__(self, model: XLMRobertaModel, head: Head = PLAIN) -> None:
        super().__init__()
        self.head = head
        if model.config.hidden_act != "gelu":
            raise BundleError(f"hidden_act is {model.config.hidden_act!r}, but the fp16 graph knows XLM-R's 'gelu' only.")
        self.heads, self.pad = model.config.num_attention_heads, int(model.config.pad_token_id or 0)
        check_range(model)
        kept = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
        narrow: dict[int, Any] = {id(p): nn.Parameter(p.detach().half()) for p in model.parameters() if id(p) not in kept}
        self.model: Any = copy.deepcopy(model, narrow)  # copies what is not in fp16 already
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids and mask int64 [B, L] -> raw sentence vectors [B, D] and token states [B, L, W], both float32."""
        real = (input_ids != self.pad).long()
        positions = real.cumsum(dim=1) * real + self.pad  # XLM-R counts from 2; padding stays at 1
        table = self.model.embeddings
        states = table.word_embeddings(input_ids).float() + table.position_embeddings(positions).float()
        states = table.LayerNorm(states + table.token_type_embeddings.weight[0].float())
        padding = (attention_mask == 0)[:, None, None, :]
        for layer in self.model.encoder.layer:
            mixed = linear(layer.attention.output.dense, self._attend(layer.attention.self, states.half(), padding))
            states = layer.attention.output.LayerNorm(states + mixed.float())
            wide = nn.functional.gelu(linear(layer.intermediate.dense, states.half()))
            states = layer.output.LayerNorm(states + linear(layer.output.dense, wide).float())
        return self.head(states, attention_mask), states

    def _attend(self, part: Any, states: Tensor, padding: Tensor) -> Tensor:
        """fp16 states [B, L, D], padding [B, 1, 1, L] (True: no token there) -> fp16 [B, L, D]."""
        queries, keys, values = (
            linear(layer, states).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (part.query, part.key, part.value)
        )  # [B, H, L, E]
        queries = queries * (1 / math.sqrt(queries.shape[-1]))  # before the product, so that its sums stay small
        scores = product(queries, keys.transpose(2, 3)).float()
        # The lowest finite number, not -inf: a row of padding alone then gets even weights in the place of NaN.
        weights = scores.masked_fill(padding, torch.finfo(torch.float32).min).softmax(dim=-1)
        return product(weights.half(), values).transpose(1, 2).flatten(2)


def product(a: Tensor, b: Tensor) -> Tensor:
    """fp16 a [..., M, K] @ b [..., K, N] -> fp16, its sums in fp32 as a GPU has them: beyond 65504 it is infinite.

    torch's own product of fp16 on a CPU was 5 times as slow where it was measured (16 times of attention's small ones).
    """
    return (a.float() @ b.float()).half()


def linear(layer: nn.Linear, states: Tensor) -> Tensor:
    """A linear layer as the graph has it: a product in fp16, and then the sum with the bias."""
    return product(states, layer.weight.T) + layer.bias


def check_range(model: XLMRobertaModel) -> None:
    """Raise BundleError, which names it, for a weight that fp16 cannot hold."""
    for name, parameter in model.named_parameters():
        largest = max(map(abs, map(float, torch.aminmax(parameter.detach()))))  # without a copy, as abs() would be
        if largest >= 65520:  # rounds to infinity
            raise BundleError(
                f"{name} holds {largest:.6g}, and fp16 ends at 65504: this checkpoint has no fp16 graph, and so no engine. "
                "A weight so large usually means that the training diverged; the fp32 graph still works."
            )


def half_runner(model: XLMRobertaModel, head: Head = PLAIN) -> Runner:
    """The fp16 encoder in torch, for the parity gate: true fp16 arithmetic, in which an overflow shows.

    onnxruntime on CPU does not show it: it runs fp16 graphs in fp32, with casts around (a graph whose residual sums pass 65504
    gave finite vectors there, and NaN in torch).
    """
    encoder = HalfEncoder(model, head)

    def run(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            sentence, tokens = encoder(torch.from_numpy(ids), torch.from_numpy(mask))
        return sentence.numpy(), tokens.numpy()

    return run


def export_half(model: XLMRobertaModel, path: Path, head: Head = PLAIN, *, opset: int = OPSET) -> None:
    """Write the fp16 graph of an XLM-R to `path` (and `<name>.data` beyond 1.8 GB); the model is left as it was.

    Raises BundleError for a weight beyond fp16's range or another activation than gelu.
    """
    check_range(model)
    export_standard(model, path, head, half=True, opset=opset)
