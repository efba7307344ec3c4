"""The torch back end: packed sentences without padding, flash attention in fp16 on CUDA. For GPUs without an engine.

Torch is imported only here (and in packed_encoder.py, packed_attention.py and torch_head.py), when "torch" was named or "auto"
found a GPU and nothing faster. Reads the bundle's model.safetensors, or the weights in its compact graph.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mexma_rt.backends import Backend
from mexma_rt.backends.nvidia import device_sm, gpu_name, gpu_number
from mexma_rt.bundle.manifest import WEIGHTS, Bundle
from mexma_rt.bundle.weights import HOLDERS, holder, weights_of
from mexma_rt.errors import BackendError, BundleError, InputError, MexmaError, require_extra

FLASH_SM = (8, 0)  # torch's flash attention needs Ampere or later
CONFIG_NUMBERS = {
    "vocab_size": int,
    "hidden_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "intermediate_size": int,
    "max_position_embeddings": int,
    "layer_norm_eps": float,
}


class Torch(Backend):
    """An XLM-R encoder in torch. `run` may be called from many threads; on CUDA each has its own stream."""

    name = "torch"

    def __init__(self, bundle: Bundle, *, device: str, precision: str, threads: int | None, reason: str) -> None:
        """device: "cpu", "cuda", "cuda:N" or "auto"; precision: "fp32", "fp16" (CUDA only) or "auto".

        Raises MissingExtraError, BackendError (no weights, no GPU, a precision that the device lacks), BundleError.
        """
        _check_weights(bundle)
        require_extra("torch", "torch", "safetensors")
        torch = self._torch = importlib.import_module("torch")
        where, why = _device(torch, device)
        self.device = where if where == "cpu" else gpu_name(gpu_number(where))
        self.precision, also = _precision(where.partition(":")[0], precision)
        if threads is not None and self.device == "cpu":
            raise InputError(
                f"threads={threads!r}: torch's thread count applies to the whole process, which this library leaves alone. "
                f"Leave it out, and type torch.set_num_threads({threads}) before loading; or type backend='onnxruntime'."
            )
        self._where, self._local, self._pad = where, threading.local(), bundle.special_ids.pad
        self._encoder, source = _load_encoder(bundle, torch, where, self.precision)
        config = self._encoder.config
        self._attention, how = _attention(torch, where, self.precision, config.hidden_size // config.num_attention_heads)
        self._head = importlib.import_module("mexma_rt.backends.torch_head").load_head(bundle, where)
        self.lanes = 1 if self.device == "cpu" else 2  # while the GPU computes one batch, the other is packed and sent
        self.reason = "; ".join(part for part in (reason, why, also, how, source) if part)

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self._run(input_ids, attention_mask, tokens=False)

    def run_tokens(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        states_TD, real = self._run(input_ids, attention_mask, tokens=True), attention_mask.astype(bool)
        result = np.zeros((*input_ids.shape, states_TD.shape[1]), np.float32)
        result[real] = states_TD
        return result

    def _run(self, input_ids: np.ndarray, attention_mask: np.ndarray, *, tokens: bool) -> np.ndarray:
        """Return the sentences' vectors [B, D], or their tokens' states [T, D]."""
        from mexma_rt.backends.packed_attention import make_layout
        from mexma_rt.backends.packed_encoder import position_numbers

        torch, lengths_S = self._torch, attention_mask.sum(axis=1)
        ids_T = input_ids[attention_mask.astype(bool)]
        try:
            with torch.inference_mode(), self._stream():
                layout = make_layout(lengths_S, self._attention, self._where)
                positions_T = position_numbers(ids_T, lengths_S, self._pad)
                ids, positions = (torch.from_numpy(array).to(self._where) for array in (ids_T, positions_T))
                all_tokens = tokens or self._head.pooling != "cls"
                states = self._encoder(ids, positions, layout, None if all_tokens else layout.starts_S)
                vectors = states if tokens else self._head(states, lengths_S)
                found: np.ndarray = vectors.float().cpu().numpy()
                return found
        except RuntimeError as error:  # running out of memory is one
            raise BackendError(
                f"torch {torch.__version__} failed on a batch of {len(lengths_S)} sentences, {len(ids_T)} tokens, on "
                f"{self._where}: {error}\n{advice(str(error))}"
            ) from error

    def _stream(self) -> Any:
        """Return this thread's own CUDA stream, so that two batches can overlap."""
        if self.device == "cpu":
            return contextlib.nullcontext()
        if not hasattr(self._local, "stream"):
            self._local.stream = self._torch.cuda.Stream(self._where)
        return self._torch.cuda.stream(self._local.stream)


def why_not_torch(bundle: Bundle) -> str | None:
    """Why "auto" skips torch on a GPU: "" without a GPU (nothing to report), None if it should try.

    Imports nothing heavy: a torch built without CUDA is recognised by its version.
    """
    try:
        device_sm()
    except MexmaError:
        return ""
    try:
        _check_weights(bundle)
        require_extra("torch", "torch", "safetensors")
    except MexmaError as error:
        return f"torch was refused ({str(error).partition(chr(10))[0].removesuffix(' Type:')})"
    version = importlib.metadata.version("torch") if importlib.util.find_spec("torch") else ""
    return f"torch was refused (torch {version} is built without CUDA)" if version.endswith("+cpu") else None


def advice(error: str) -> str:
    """Return what to type after a CUDA error, judging by its message."""
    if "out of memory" in error:
        return "Type a smaller batch_tokens, or free the GPU: nvidia-smi lists what uses its memory."
    if "no kernel image" in error or "not compatible with the current PyTorch" in error:
        return "This torch has no kernels for this GPU. Install a build that does, see https://pytorch.org/get-started/locally"
    return "If memory ran out, type a smaller batch_tokens; otherwise check the GPU: nvidia-smi"


def _check_weights(bundle: Bundle) -> None:
    if WEIGHTS in bundle.files and (bundle.folder / WEIGHTS).is_file():
        return
    if WEIGHTS in bundle.files:
        at = f" --revision {bundle.revision}" if bundle.revision else ""
        raise BackendError(
            f"backend='torch' reads {WEIGHTS}, which was not fetched with {bundle.name!r}. Fetch the whole bundle and load "
            f"that folder. Type:\n    hf download ORGANISATION/{bundle.name}{at} --local-dir {bundle.name}"
        )
    if any(precision in HOLDERS for precision in bundle.graphs):
        return
    raise BackendError(
        f"backend='torch' reads {WEIGHTS}, but the bundle {bundle.name!r} has none. Rebuild a checkpoint from its graph and "
        f"export that. Type:\n    mexma-export rebuild {bundle.folder} {bundle.name}-checkpoint\n"
        f"    mexma-export {bundle.name}-checkpoint {bundle.name}-bundle"
    )


def _device(torch: Any, device: str) -> tuple[str, str]:
    """Return torch's name for the device, and the reason if it was chosen here."""
    seen = torch.cuda.is_available()
    if device == "auto":
        return ("cuda:0", "torch sees a GPU") if seen else ("cpu", "torch sees no GPU")
    if device == "cpu":
        return "cpu", ""
    number = gpu_number(device)
    if not seen:
        built = "has CUDA, but sees no GPU or driver" if torch.version.cuda else "is built without CUDA"
        raise BackendError(
            f"backend='torch' cannot run on {device}: torch {torch.__version__} {built}. See nvidia-smi, and "
            "https://pytorch.org/get-started/locally for a build with CUDA; or name device='cpu'."
        )
    if number >= torch.cuda.device_count():
        raise BackendError(f"There is no {device}: torch sees {torch.cuda.device_count()} GPUs, counted from cuda:0.")
    return f"cuda:{number}", ""


def _precision(device: str, precision: str) -> tuple[str, str]:
    if precision == "auto":
        return ("fp16", "fp16 is its fastest on cuda") if device == "cuda" else ("fp32", "fp32, its precision on the cpu")
    if precision == "fp32" or (precision, device) == ("fp16", "cuda"):
        return precision, f"precision={precision!r} was named"
    has = "fp16 or fp32" if device == "cuda" else "fp32"
    raise BackendError(f"backend='torch' computes in {has} on {device}, not in {precision}. Name that, or leave precision out.")


def _attention(torch: Any, where: str, precision: str, head_size: int) -> tuple[str, str]:
    """Return the kind of attention (packed_attention.py), and why."""
    if where == "cpu":
        return "padded", ""
    if precision != "fp16":
        return "padded", "attention is padded, because flash attention needs fp16"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return "padded", f"attention is padded, because torch {torch.__version__} is older than 2.10"
    if (found := torch.cuda.get_device_capability(where)) < FLASH_SM:
        return "padded", f"attention is padded, because flash attention needs compute capability 8.0 and this GPU has {found}"
    if head_size % 8 or head_size > 256:
        return "padded", f"attention is padded, because flash attention has no heads of {head_size}"
    return "varlen", "flash attention without padding"


def _load_encoder(bundle: Bundle, torch: Any, where: str, precision: str) -> tuple[Any, str]:
    """Return the encoder, and what to say about its weights."""
    from mexma_rt.backends.packed_encoder import Encoder

    config = _config(bundle)
    with torch.device("meta"):
        encoder = Encoder(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    path, held, source = _weights(bundle, torch)
    wrong = sorted(name for name, shape in wanted.items() if name not in held or tuple(held[name].shape) != shape)
    if wrong:
        raise BundleError(
            f"{path} lacks {len(wrong)} tensors of the encoder that config.json describes, or has them in another shape "
            f"(first: {wrong[0]}). Export the bundle again with mexma-export."
        )
    dtype = torch.float16 if precision == "fp16" else torch.float32
    try:
        moved = {name: held[name].to(where, dtype) for name in wanted}
    except RuntimeError as error:
        raise BackendError(f"torch cannot load {bundle.name} on {where}: {error}\n{advice(str(error))}") from error
    encoder.load_state_dict(moved, assign=True)
    return encoder.eval(), source


def _weights(bundle: Bundle, torch: Any) -> tuple[Path, dict[str, Any], str]:
    """Return the file, its tensors by name, and what to say of them: of a compact graph they are the rounded ones."""
    if WEIGHTS not in bundle.files:
        precision = holder(bundle)
        path = bundle.folder / bundle.graphs[precision]
        held = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights_of(path)}
        return path, held, f"with the weights of the bundle's {precision} graph"
    path = bundle.folder / WEIGHTS
    try:
        return path, importlib.import_module("safetensors.torch").load_file(path), ""
    except Exception as error:  # safetensors' own, for a damaged file
        raise BundleError(f"{path} cannot be read ({error}). Export the bundle again.") from error


def _config(bundle: Bundle) -> SimpleNamespace:
    """Read the numbers from the bundle's config.json, after checking that packed_encoder.py can compute this encoder."""
    path = bundle.folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}). Export the bundle again with mexma-export.") from error
    known = {"model_type": "xlm-roberta", "hidden_act": "gelu", "pad_token_id": bundle.special_ids.pad, "type_vocab_size": 1}
    for key, value in known.items():
        if config.get(key, value if key != "model_type" else None) != value:
            raise BackendError(
                f"backend='torch' computes encoders with {key} {value!r}, but {bundle.name!r} has {config.get(key)!r}. Type "
                "backend='onnxruntime', which runs its graph."
            )
    for key, kind in CONFIG_NUMBERS.items():
        if not isinstance(config.get(key), (int, kind)) or isinstance(config[key], bool) or config[key] <= 0:
            raise BundleError(f"{path}: {key} is {config.get(key)!r}. Export the bundle again with mexma-export.")
    return SimpleNamespace(**{key: config[key] for key in CONFIG_NUMBERS}, hidden_dropout_prob=0.0)
