"""Writes the fp16 graph of standard ONNX operators that TensorRT engines are built from, and runs its arithmetic in torch.

TensorRT networks are strongly typed (since version 11 always), so an engine has the types of this graph. Matrix products and
the activation are fp16; softmax, the sums of the residual stream and LayerNorm are fp32, because their values may exceed 65504,
the largest number of fp16. Inputs and outputs are those of graphs.py: int64 in, float32 out.
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

    `model.half()` would not do: its residual sums are fp16, so a sum beyond 65504 becomes infinite and then NaN; and it adds
    -65504 to the scores of padding, where another -16 gives -inf. Raises BundleError for a weight that fp16 cannot hold, or an
    activation other than gelu.
    """

    def __init__(self, model: XLMRobertaModel, head: Head = PLAIN) -> None:
        super().__init__()
        self.head = head
        if model.config.hidden_act != "gelu":
            raise BundleError(f"hidden_act is {model.config.hidden_act!r}, but the fp16 graph supports only XLM-R's 'gelu'.")
        self.heads, self.pad = model.config.num_attention_heads, int(model.config.pad_token_id or 0)
        check_range(model)
        kept = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
        narrow: dict[int, Any] = {id(p): nn.Parameter(p.detach().half()) for p in model.parameters() if id(p) not in kept}
        self.model: Any = copy.deepcopy(model, narrow)  # `narrow` is the memo: these parameters are replaced, not copied
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode ids and mask, int64 [B, L]: raw sentence vectors [B, D] and token states [B, L, W], both float32."""
        real = (input_ids != self.pad).long()
        positions = real.cumsum(dim=1) * real + self.pad  # XLM-R's start at 2; padding stays at 1
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
        """Self-attention over fp16 states [B, L, W], with padding [B, 1, 1, L] (True: no token there): fp16 [B, L, W]."""
        queries, keys, values = (
            linear(layer, states).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (part.query, part.key, part.value)
        )  # [B, H, L, E]
        queries = queries * (1 / math.sqrt(queries.shape[-1]))  # before the product, to keep its sums small
        scores = product(queries, keys.transpose(2, 3)).float()
        # The lowest finite number, not -inf: a row of padding alone then gets equal weights instead of NaN.
        weights = scores.masked_fill(padding, torch.finfo(torch.float32).min).softmax(dim=-1)
        return product(weights.half(), values).transpose(1, 2).flatten(2)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply fp16 a [..., M, K] by b [..., K, N], with fp32 sums as on a GPU: fp16, infinite beyond 65504.

    torch's own fp16 product took 5 times as long on the CPU where it was measured (16 times for attention's small ones).
    """
    return (a.float() @ b.float()).half()


def linear(layer: nn.Linear, states: Tensor) -> Tensor:
    """Apply a linear layer as the graph does: a product rounded to fp16, then the bias added in fp16."""
    return product(states, layer.weight.T) + layer.bias


def check_range(model: XLMRobertaModel) -> None:
    """Raise BundleError naming the first weight that fp16 cannot hold."""
    for name, parameter in model.named_parameters():
        largest = max(map(abs, map(float, torch.aminmax(parameter.detach()))))  # abs() of the tensor would copy it
        if largest >= 65520:  # rounds to infinity
            raise BundleError(
                f"{name} holds {largest:.6g}, but fp16 ends at 65504, so this checkpoint can have no fp16 graph and no engine. "
                "A weight this large usually means that training diverged; the fp32 graph still works."
            )


def half_runner(model: XLMRobertaModel, head: Head = PLAIN) -> Runner:
    """Return the fp16 encoder in torch, for the parity gate: real fp16 arithmetic, in which an overflow shows.

    onnxruntime on CPU hides overflows, because it runs fp16 graphs in fp32 between casts (a graph whose residual sums exceed
    65504 gave finite vectors there, and NaN in torch).
    """
    encoder = HalfEncoder(model, head)

    def run(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            sentence, tokens = encoder(torch.from_numpy(ids), torch.from_numpy(mask))
        return sentence.numpy(), tokens.numpy()

    return run


def export_half(model: XLMRobertaModel, path: Path, head: Head = PLAIN, *, opset: int = OPSET) -> None:
    """Write the fp16 graph of an XLM-R to `path` (and `<name>.data` beyond 1.8 GB); the model is unchanged.

    Raises BundleError for a weight beyond fp16's range or an activation other than gelu.
    """
    check_range(model)
    export_standard(model, path, head, half=True, opset=opset)
