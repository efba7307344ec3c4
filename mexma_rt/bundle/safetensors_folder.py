"""A bundle -> the folder that sentence-transformers and text-embeddings-inference load: `mexma models --checkpoint FOLDER`.

The weights come from the bundle's compact graph (weights.py), in fp32; the other files are the bundle's own. The safetensors
format (github.com/huggingface/safetensors#format) is a length, a JSON header and the numbers: it needs no library to write.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mexma_rt.bundle.manifest import TOKENIZER, WEIGHTS, Bundle
from mexma_rt.bundle.weights import holder, weights_of
from mexma_rt.errors import BundleError, FileError, InputError
from mexma_rt.files.atomic import move_folder

FILES = (
    "config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "README.md",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Normalize/config.json",
)


def write_checkpoint(bundle: Bundle, target: Path) -> Path:
    """Write the new folder `target` from an opened bundle; returns it. A bundle with model.safetensors keeps that file.

    Raises InputError (`target` exists, or no graph holds the weights), BundleError (they are not those of config.json),
    FileError (it cannot be written; nothing is left then).
    """
    target = target.absolute()
    if target.exists():
        raise InputError(f"{target} exists already. Name a new folder.")
    work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        work.mkdir()
        for name in (name for name in FILES if name in bundle.files):
            (work / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(bundle.folder / name, work / name)
        if (bundle.folder / WEIGHTS).is_file():
            shutil.copyfile(bundle.folder / WEIGHTS, work / WEIGHTS)
        else:
            _write_weights(bundle, work / WEIGHTS)
        move_folder(work, target)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{target} was not written: {error.strerror or error}. Nothing is left of it.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
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


def _write_weights(bundle: Bundle, path: Path) -> None:
    arrays = dict(weights_of(bundle.folder / bundle.graphs[holder(bundle)]))
    config = json.loads((bundle.folder / "config.json").read_text(encoding="utf-8"))
    words, layers = arrays["embeddings.word_embeddings.weight"].shape, config["num_hidden_layers"]
    found = len({name.split(".")[2] for name in arrays if name.startswith("encoder.layer.")})
    if words != (config["vocab_size"], config["hidden_size"]) or found != layers:
        raise BundleError(
            f"{bundle.folder}: the graph has {words[0]} words of {words[1]} dimensions and {found} layers, config.json "
            f"{config['vocab_size']}, {config['hidden_size']} and {layers}. Export the bundle again."
        )
    write_safetensors(path, arrays)
