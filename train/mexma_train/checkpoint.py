"""What a run leaves on disk: the checkpoint folder (Hugging Face form, the contract with export) and the resumable state.

Both are written under a temporary name, synced and renamed, so that a kill at any moment leaves the old one or the new one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, XLMRobertaModel

from mexma_rt.errors import FileError
from mexma_rt.files import atomic_write, move_folder


def save_checkpoint(encoder: XLMRobertaModel, tokenizer_path: Path, folder: Path) -> None:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json; an older folder is replaced whole."""
    work = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed here
    encoder.save_pretrained(work, safe_serialization=True)
    PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_path),
        model_max_length=encoder.config.max_position_embeddings - 2,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    ).save_pretrained(work)
    shutil.copyfile(tokenizer_path, work / "tokenizer.json")  # byte for byte what the shards were made with
    move_folder(work, folder)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a resumable state (tensors and plain values only) atomically."""
    with atomic_write(path) as stream:
        torch.save(state, stream)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state back; never unpickles code. Raises FileError if there is none."""
    if not path.is_file():
        raise FileError(f"{path} is not there, so there is nothing to resume. Start without --resume.")
    return torch.load(path, map_location="cpu", weights_only=True)
