"""What a run leaves on disk: the checkpoint folder (Hugging Face form, the contract with export) and the resumable state.

Both are written under a temporary name, synced and renamed, so that a kill at any moment leaves the old one or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import XLMRobertaModel

from mexma_rt.errors import FileError


def save_checkpoint(encoder: XLMRobertaModel, tokenizer_path: Path, folder: Path) -> None:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json; replaces an older folder whole."""
    work, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (work, old):
        shutil.rmtree(leftover, ignore_errors=True)
    encoder.save_pretrained(work, safe_serialization=True)
    shutil.copyfile(tokenizer_path, work / "tokenizer.json")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "model_max_length": encoder.config.max_position_embeddings - 2,
        "clean_up_tokenization_spaces": False,
    }
    (work / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1) + "\n", encoding="utf-8")
    for path in work.iterdir():
        _sync(path)
    if folder.exists():
        folder.rename(old)
    work.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a resumable state (tensors and plain values only) atomically."""
    work = path.with_suffix(".tmp")
    torch.save(state, work)
    _sync(work)
    work.replace(path)
    _sync(path.parent)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state back; never unpickles code. Raises FileError if there is none."""
    if not path.is_file():
        raise FileError(f"{path} is not there, so there is nothing to resume. Start without --resume.")
    return torch.load(path, map_location="cpu", weights_only=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
