"""Turns a bundle into a folder for sentence-transformers and text-embeddings-inference: `mexma models --checkpoint FOLDER`.

The weights come from the bundle's compact graph (weights.py), in fp32; the other files are the bundle's own. The safetensors
format (github.com/huggingface/safetensors#format) is a length, a JSON header and the numbers, so writing it needs no library.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mexma_rt.bundle.manifest import TOKENIZER, WEIGHTS, Bundle
from mexma_rt.bundle.weights import holder, weights_of
from mexma_rt.errors import BundleError
from mexma_rt.files.folders import new_folder

FILES = (
    "config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "README.md",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
MODULE = re.compile(r"\d+_[A-Za-z]+/(config\.json|model\.safetensors)")  # what follows the encoder: pooling, dense layers


def write_checkpoint(bundle: Bundle, target: Path, *, from_graph: bool = False) -> Path:
    """Write the new folder `target` from an opened bundle; return it. A bundle's own model.safetensors is copied, unless
    `from_graph`.

    Raises InputError (`target` exists, or no graph holds the weights), BundleError (they do not match config.json), FileError
    (it cannot be written; nothing is left behind).
    """
    with new_folder(target) as work:
        for name in (name for name in bundle.files if name in FILES or MODULE.fullmatch(name)):
            (work / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(bundle.folder / name, work / name)
        if (bundle.folder / WEIGHTS).is_file() and not from_graph:
            shutil.copyfile(bundle.folder / WEIGHTS, work / WEIGHTS)
        else:
            _write_weights(bundle, work / WEIGHTS)
    return target


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write float32 arrays by name."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + 4 * array.size]}
        end += 4 * array.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers start at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array, dtype="<f4").tobytes())


def encoder_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor of transformers' XLMRobertaModel, without its pooler, from its config.json."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    products = {f"attention.{name}": (width, width) for name in ("self.query", "self.key", "self.value", "output.dense")}
    products |= {"intermediate.dense": (inner, width), "output.dense": (width, inner)}
    for layer in (f"encoder.layer.{i}." for i in range(config["num_hidden_layers"])):
        for name, (outputs, inputs) in products.items():
            shapes |= {f"{layer}{name}.weight": (outputs, inputs), f"{layer}{name}.bias": (outputs,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}{name}.weight": (width,), f"{layer}{name}.bias": (width,)}
    return shapes


def _write_weights(bundle: Bundle, path: Path) -> None:
    arrays = dict(weights_of(bundle.folder / bundle.graphs[holder(bundle)]))
    found = {name: array.shape for name, array in arrays.items()}
    wanted = encoder_shapes(json.loads((bundle.folder / "config.json").read_text(encoding="utf-8")))
    if found != wanted:
        other = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise BundleError(
            f"{bundle.folder}: the graph's tensors do not match its config.json: {', '.join(other[:3])} differ. Export "
            "the bundle again."
        )
    write_safetensors(path, arrays)
