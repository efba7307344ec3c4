"""The checkpoint folder: what training hands to `mexma-export`, sentence-transformers and transformers (Hugging Face form).

It is written under a temporary name, synced and renamed, so a kill at any moment leaves the old folder or the new one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig

from mexma_rt.files.folders import new_folder
from mexma_train.encoder import save_encoder


def save_checkpoint(config: XLMRobertaConfig, weights: dict[str, Tensor], tokenizer_path: Path, folder: Path) -> None:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json, replacing all of an older folder."""
    with new_folder(folder, check=lambda _: None, tidy=True) as work:
        save_encoder(config, weights, work)
        PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types here
            tokenizer_file=str(tokenizer_path),
            model_max_length=config.max_position_embeddings - 2,
            bos_token="<s>",
            cls_token="<s>",
            eos_token="</s>",
            sep_token="</s>",
            pad_token="<pad>",
            unk_token="<unk>",
            mask_token="<mask>",
        ).save_pretrained(work)
        shutil.copyfile(tokenizer_path, work / "tokenizer.json")  # byte for byte what the shards were made with
