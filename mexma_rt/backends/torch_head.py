"""What follows the encoder in the torch back end: pooling of packed states, and the bundle's dense layers.

S sentences, T packed tokens, states of width W, vectors of D dimensions. Needs torch and safetensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from mexma_rt.bundle.manifest import WEIGHTS, Bundle
from mexma_rt.errors import BundleError

ACTIVATIONS: dict[str, Any] = {"Tanh": torch.tanh, "Identity": torch.nn.Identity()}  # as mexma-export writes them


@dataclass(frozen=True, kw_only=True)
class TorchHead:
    """`pooling` as in the manifest; layers of (weight [out, in], bias [out], activation), all in fp32."""

    pooling: str
    layers: tuple[tuple[Tensor, Tensor, str], ...]

    def __call__(self, states: Tensor, lengths_S: np.ndarray) -> Tensor:
        """Turn states ("cls": [S, W] of first tokens; "mean": [T, W] of all tokens) into raw vectors [S, D], fp32."""
        vectors = states.float()
        if self.pooling == "mean":
            lengths = torch.from_numpy(lengths_S).to(states.device)
            sentence_T = torch.repeat_interleave(torch.arange(len(lengths), device=states.device), lengths)
            total = vectors.new_zeros((len(lengths), vectors.shape[1])).index_add_(0, sentence_T, vectors)
            vectors = total / lengths[:, None]
        for weight, bias, activation in self.layers:
            vectors = ACTIVATIONS[activation](torch.nn.functional.linear(vectors, weight, bias))
        return vectors


def load_head(bundle: Bundle, where: str) -> TorchHead:
    """Load a bundle's head onto a device. Raises BundleError for files that cannot be read."""
    layers = []
    for name in bundle.dense:
        folder = bundle.folder / name
        try:
            tensors = load_file(folder / WEIGHTS, device=where)
            said = json.loads((folder / "config.json").read_text(encoding="utf-8"))["activation_function"]
            activation = said.rsplit(".", 1)[-1]
            ACTIVATIONS[activation]
            layers.append((tensors["linear.weight"].float(), tensors["linear.bias"].float(), activation))
        except Exception as error:  # safetensors' own, or a file that is not such a layer
            raise BundleError(f"{folder} is not a dense layer ({error}). Export the bundle again with mexma-export.") from error
    return TorchHead(pooling=bundle.pooling, layers=tuple(layers))
