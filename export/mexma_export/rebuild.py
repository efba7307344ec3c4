"""A bundle without model.safetensors -> a checkpoint folder: `python -m mexma_export.rebuild BUNDLE CHECKPOINT`.

The bundled model ships without torch weights (75 MB would not fit in the wheel), but its mixed graph holds every number of the
encoder under its name of the checkpoint: word embeddings as int8 steps and scales, matrices as fp16. The checkpoint made of it
is the model that the graph computes, in fp32: for fine-tuning, for sentence-transformers, and to export other graphs. It is not
the checkpoint that the graph was once exported from, whose embeddings and matrices were rounded on the way.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mexma_export.folder import new_folder
from mexma_rt.bundle.manifest import TOKENIZER, WEIGHTS
from mexma_rt.bundle.opening import open_bundle
from mexma_rt.errors import InputError, MexmaError, require_extra

if TYPE_CHECKING:
    from numpy import ndarray

WORDS = "embeddings.word_embeddings"
KEPT = ("config.json", TOKENIZER, "tokenizer_config.json", "README.md")


def rebuild_checkpoint(bundle: str | Path, target: Path) -> Path:
    """Write the checkpoint folder `target` from the mixed graph of a bundle (folder, bundled name); returns it.

    Raises InputError (no mixed graph, or one of an older mexma-export; an existing target), BundleError, FileError.
    """
    require_extra("export", "torch", "transformers", "safetensors", "onnx", "onnxscript")
    from safetensors.numpy import save_file

    opened = open_bundle(bundle)
    if "mixed" not in opened.graphs:
        raise InputError(
            f"{opened.folder} has no mixed graph (its graphs: {', '.join(opened.graphs)}), the only kind read here."
        )
    weights = _weights(opened.folder / opened.graphs["mixed"])
    config = json.loads((opened.folder / "config.json").read_text(encoding="utf-8"))
    with new_folder(target) as folder:
        for name in KEPT:
            if (opened.folder / name).is_file():
                shutil.copyfile(opened.folder / name, folder / name)
        _check(weights, config)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return target


def _weights(graph: Path) -> dict[str, ndarray]:
    """Name of the checkpoint -> float32 array."""
    import onnx

    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(graph).graph.initializer}
    if f"{WORDS}.steps" not in held:
        raise InputError(f"{graph} was written by an older mexma-export, whose names differ. Use a newer bundle.")
    steps = held.pop(f"{WORDS}.steps").astype(np.float32) * held.pop(f"{WORDS}.scale")
    weights = {f"{WORDS}.weight": steps.reshape(len(steps), -1)}
    for name, array in held.items():
        if not name.startswith(("embeddings.", "encoder.")):
            continue  # constants of the graph
        numbers = array.astype(np.float32)
        if ".qkv." in name:
            for part, piece in zip(("query", "key", "value"), np.split(numbers, 3, axis=-1), strict=True):
                weights[name.replace(".qkv.", f".{part}.")] = piece.T
        elif array.dtype == np.float16:
            weights[name] = numbers.T  # a product's columns: checkpoints store rows
        else:
            weights[name] = numbers[None] if name.endswith("token_type_embeddings.weight") else numbers
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}


def _check(weights: dict[str, ndarray], config: dict[str, Any]) -> None:
    """Every tensor that the configuration asks for, in its shape."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    with torch.device("meta"):
        model = XLMRobertaModel(XLMRobertaConfig(**config), add_pooling_layer=False)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: array.shape for name, array in weights.items()}
    if wanted != found:
        other = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise InputError(f"The graph's tensors are not those of its config.json: {', '.join(other[:3])} differ.")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: python -m mexma_export.rebuild BUNDLE CHECKPOINT   (a bundle's folder or bundled name; a new folder)")
    try:
        rebuild_checkpoint(sys.argv[1], Path(sys.argv[2]))
    except MexmaError as error:
        sys.exit(f"Error: {error}")
