"""The head turns an encoder's last states into sentence vectors: pooling, then dense layers; in torch and in ONNX.

B sentences, L tokens, W numbers per state, D per vector. Always in fp32: for one row per sentence that costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mexma_rt.errors import BundleError

if TYPE_CHECKING:
    from torch import Tensor

    from mexma_export.fused import Writer

ACTIVATIONS = {"Tanh": "Tanh", "Identity": ""}  # torch's class -> ONNX operator
FEWEST = 1e-9  # tokens: a row of padding alone is divided by this instead of 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense:
    """A linear layer and its activation."""

    name: str  # of its folder, such as 2_Dense
    weight: np.ndarray  # float32 [out, in]
    bias: np.ndarray  # float32 [out]; zeros if the layer has none
    activation: str  # a key of ACTIVATIONS


@dataclass(frozen=True, kw_only=True)
class Head:
    """The steps in order; normalising is left to the runtime."""

    pooling: str = "cls"
    dense: tuple[Dense, ...] = ()

    def dimensions(self, width: int) -> int:
        """Return D, the length of a sentence vector, for states of `width` numbers."""
        return len(self.dense[-1].weight) if self.dense else width

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """Compute raw sentence vectors [B, D] from states [B, L, W] and mask [B, L]."""
        import torch

        vectors = states[:, 0]
        if self.pooling == "mean":
            real = mask.to(states.dtype).unsqueeze(-1)
            vectors = (states * real).sum(dim=1) / real.sum(dim=1).clamp(min=FEWEST)
        for layer in self.dense:
            vectors = torch.nn.functional.linear(vectors, torch.from_numpy(layer.weight), torch.from_numpy(layer.bias))
            vectors = torch.tanh(vectors) if layer.activation == "Tanh" else vectors
        return vectors

    def mean(self, graph: Writer, states: str, mask: str) -> str:
        """Add to an ONNX graph the masked mean of `states` [B, L, W] by the int64 `mask` [B, L]: [B, W]."""
        from onnx import TensorProto

        real = graph.node("Cast", [mask], "mean/real", to=TensorProto.FLOAT)
        tokens, last = graph.store("mean/tokens", np.array([1])), graph.store("mean/last", np.array([2]))
        column = graph.node("Unsqueeze", [real, last], "mean/column")
        total = graph.node("ReduceSum", [graph.node("Mul", [states, column], "mean/kept"), tokens], "mean/sum", keepdims=0)
        count = graph.node("ReduceSum", [real, tokens], "mean/count", keepdims=1)
        count = graph.node("Max", [count, graph.store("mean/fewest", np.array(FEWEST, np.float32))], "mean/at_least")
        return graph.node("Div", [total, count], "mean/vectors")

    def layers(self, graph: Writer, vectors: str, output: str) -> str:
        """Add to an ONNX graph the dense layers that follow `vectors` [B, W]: [B, D]; new names start with `output`."""
        for layer in self.dense:
            stored = [graph.store(f"{layer.name}.{part}", getattr(layer, part)) for part in ("weight", "bias")]
            vectors = graph.node("Gemm", [vectors, *stored], f"{output}/{layer.name}", transB=1)
            if operator := ACTIVATIONS[layer.activation]:
                vectors = graph.node(operator, [vectors], f"{output}/{layer.name}/{operator}")
        return vectors


PLAIN = Head()  # the state of the first token, as in MEXMA


def read_dense(folder: Path, config: dict[str, Any]) -> Dense:
    """Read the dense layer of a module folder whose config.json is `config`.

    Raises BundleError for missing, pickled or damaged weights, an unknown activation, or shapes that do not fit.
    """
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if not path.is_file():
        found = sorted(p.name for pattern in ("*.bin", "*.pt") for p in folder.glob(pattern))
        only = f" (there is only {found[0]}, a pickle, which can run any code: load and save the model again)" if found else ""
        raise BundleError(f"{folder}: model.safetensors of this dense layer is missing{only}. Copy the whole folder again.")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS:
        raise BundleError(f"{folder}: its activation is {activation}, but this export supports only {', '.join(ACTIVATIONS)}.")
    try:
        tensors = {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
        weight = tensors.pop("linear.weight")
        bias = tensors.pop("linear.bias", np.zeros(len(weight), np.float32))
    except Exception as error:  # safetensors' own, or no such tensor
        raise BundleError(f"{path} cannot be read ({error}). Copy the whole folder again.") from error
    wanted = (config.get("out_features", len(weight)), config.get("in_features", weight.shape[-1]))
    if tensors or weight.shape != wanted or bias.shape != wanted[:1]:
        raise BundleError(
            f"{path} holds a weight {weight.shape}, a bias {bias.shape} and other tensors {sorted(tensors)}, but its "
            f"config.json says (out, in) = {wanted}. Copy the whole folder again."
        )
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise BundleError(f"{path}: NaN or infinite numbers. Training diverged; use an earlier checkpoint.")
    return Dense(name=folder.name, weight=weight, bias=bias, activation=activation)
