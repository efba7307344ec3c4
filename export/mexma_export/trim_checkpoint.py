"""Writes a checkpoint with fewer pieces, to train on: `mexma-export trim CHECKPOINT FOLDER --pieces 120000`.

The folder has the checkpoint's files, with the kept rows of its word embeddings, the trimmed tokenizer and the new vocab_size;
trim.py says what is kept. Text that lost no piece keeps its vectors bit for bit (tests/export/test_trim.py). With
`code_beyond`, the rows from that one on are replaced by their product-quantised values (word_codes.py): done before training,
a bundle's w4 and w8 graphs store these rows as codes without loss.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from mexma_export.checkpoint import load_checkpoint
from mexma_export.folder import new_folder
from mexma_export.trim import PER_PIECE, trim_vocabulary, write_weights
from mexma_export.word_codes import code_rows
from mexma_rt.bundle.manifest import TOKENIZER, WEIGHTS
from mexma_rt.errors import InputError, require_extra

COPIED: tuple[str, ...] = ("tokenizer_config.json", "special_tokens_map.json", "sentence_bert_config.json", "modules.json")
COPIED += ("config_sentence_transformers.json", "README.md")
MODULES = "[1-9]_*"  # folders of the steps after the encoder


def trim_checkpoint(
    checkpoint: str | Path,
    target: Path,
    *,
    corpus: tuple[Path, ...] = (),
    languages: tuple[str, ...] = (),
    pieces: int | None = None,
    code_beyond: int | None = None,
) -> np.ndarray:
    """Write the trimmed checkpoint folder `target`; returns the kept rows, int64 [V], in ascending order.

    corpus, languages, pieces: what to keep, as for `trim_vocabulary`. code_beyond: the first coded row. Raises InputError
    (nothing says what to keep, an unusable argument, an existing target), BundleError and FileError (the checkpoint).
    """
    require_extra("export", "torch", "transformers", "safetensors")
    if not (corpus or languages or pieces):
        raise InputError("Nothing says which pieces to keep. Type --trim-vocab CORPUS, --languages fra,deu or --pieces 120000.")
    source = load_checkpoint(checkpoint)
    trim = trim_vocabulary(source.tokenizer, corpus, languages, pieces=pieces)
    with new_folder(target) as folder:
        for name in (*COPIED, *(path.name for path in source.folder.glob(MODULES))):
            if (path := source.folder / name).is_dir():
                shutil.copytree(path, folder / name)
            elif path.is_file():
                shutil.copyfile(path, folder / name)
        config = source.config | {"vocab_size": len(trim.kept)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        trim.tokenizer.save(str(folder / TOKENIZER))
        write_weights(replace(source, kept=trim.kept), folder / WEIGHTS)
        if code_beyond is not None:
            _code_words(folder / WEIGHTS, code_beyond)
    return trim.kept


def _code_words(path: Path, first: int) -> None:
    """Code the word rows from `first` on in a safetensors file, in place; the word table is written as float32."""
    from safetensors import safe_open
    from safetensors.torch import save_file
    from torch import from_numpy

    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    (name,) = (name for name in tensors if name.endswith(PER_PIECE[0]))
    tensors[name] = from_numpy(code_rows(tensors[name].float().numpy(), first))
    save_file(tensors, path, metadata=metadata)
