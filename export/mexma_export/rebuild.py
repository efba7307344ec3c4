"""A bundle without model.safetensors -> a checkpoint folder: `python -m mexma_export.rebuild BUNDLE CHECKPOINT`.

The bundled model ships without torch weights, which would not fit in the wheel, but its graph holds every number of the encoder
under its name of the checkpoint (mexma_rt/bundle/weights.py). The checkpoint made of it is the model that the graph computes,
in fp32: for fine-tuning, for sentence-transformers, and to export other graphs. It is not the checkpoint that the graph was
once exported from, whose weights were rounded on the way (unless they lay on the graph's grid already); nor does it round
the inputs of products, as the graphs w4 and w8 do.
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
from mexma_rt.bundle.weights import holder, weights_of
from mexma_rt.errors import InputError, MexmaError, require_extra

if TYPE_CHECKING:
    from numpy import ndarray

KEPT = ("config.json", TOKENIZER, "tokenizer_config.json", "README.md")


def rebuild_checkpoint(bundle: str | Path, target: Path) -> Path:
    """Write the checkpoint folder `target` from a graph of a bundle (folder, bundled name); returns it.

    The graph is the default one if it is mixed, w8, w4 or fused, else the first of fused, mixed, w8, w4 that there is.
    Raises InputError (none of those, or one of an older mexma-export; an existing target), BundleError, FileError.
    """
    require_extra("export", "torch", "transformers", "safetensors", "onnx", "onnxscript")
    from safetensors.numpy import save_file

    opened = open_bundle(bundle)
    graph = opened.folder / opened.graphs[holder(opened)]
    weights = {name: np.ascontiguousarray(array) for name, array in weights_of(graph)}
    config = json.loads((opened.folder / "config.json").read_text(encoding="utf-8"))
    with new_folder(target) as folder:
        for name in KEPT:
            if (opened.folder / name).is_file():
                shutil.copyfile(opened.folder / name, folder / name)
        _check(weights, config)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return target


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
