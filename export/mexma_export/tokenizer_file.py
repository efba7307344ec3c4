"""Loads a checkpoint's tokenizer.json and checks it against the word table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mexma_rt.backends.checkpoint import SPARE_ROWS
from mexma_rt.bundle.graphs import SpecialIds
from mexma_rt.errors import BundleError, FileError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SLOW = ("sentencepiece.bpe.model", "vocab.txt")  # of XLM-R and BERT: tokenizer.json can be made from them
PAD_NAMES = ("<pad>", "[PAD]")  # tried if no file names the padding token


def load_tokenizer(folder: Path) -> tuple[Tokenizer, SpecialIds]:
    """Return the tokenizer without truncation and padding, and its special ids.

    Raises FileError (no tokenizer.json) and BundleError (unreadable, no padding token, or it does not add exactly one token
    before and one after a text).
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileError(f"{folder}: tokenizer.json is missing. {_how_to_make(folder)}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError(f"{path}: not a readable tokenizer ({error}). Copy the checkpoint again.") from error
    padding = tokenizer.padding or {}
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if len(around := tokenizer.encode("").ids) != 2:
        raise BundleError(
            f"{path}: an empty text gives the ids {around}, but a sentence needs one token before and one after it, such as "
            "<s> and </s> or [CLS] and [SEP]. Copy the tokenizer.json that the model was trained with."
        )
    names = [*_pad_tokens(folder), padding.get("pad_token"), *PAD_NAMES]
    pad = next((i for name in names if name and (i := tokenizer.token_to_id(name)) is not None), None)
    if pad is None:
        raise BundleError(
            f"{path}: nothing says which token is for padding (there is no {' or '.join(PAD_NAMES)}). Put "
            '"pad_token" into tokenizer_config.json.'
        )
    return tokenizer, SpecialIds(bos=around[0], pad=pad, eos=around[1])


def _how_to_make(folder: Path) -> str:
    slow = next((name for name in SLOW if (folder / name).is_file()), None)
    if slow is None:
        return "Copy the one that the model was trained with."
    needs = " (install what it needs first: pip install sentencepiece)" if slow.endswith(".model") else ""
    line = f"transformers.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    return f"transformers makes it from {slow}{needs}. In Python, type: import transformers; {line}"


def _pad_tokens(folder: Path) -> Iterator[str]:
    """Yield the padding token's name in tokenizer_config.json and in special_tokens_map.json, if given."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            said = json.loads((folder / name).read_text(encoding="utf-8"))["pad_token"]
            token = said["content"] if isinstance(said, dict) else said
            if isinstance(token, str):
                yield token
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no such file, or it does not say


def check_fit(folder: Path, tokenizer: Tokenizer, rows: int | None) -> None:
    """Raise BundleError unless a word table of this many rows fits the tokenizer. None, for unknown, is not checked."""
    if not isinstance(rows, int):
        return
    pieces = 1 + max(tokenizer.get_vocab().values(), default=-1)
    added = [token.content for row, token in sorted(tokenizer.get_added_tokens_decoder().items()) if row >= rows]
    if added and len(added) == pieces - rows:
        raise BundleError(
            f"{folder}: tokenizer.json has {pieces} pieces, but config.json says vocab_size {rows}: its last {len(added)}, "
            f"from {added[0]!r} on, were added later, and the weights have no rows for them. Copy the tokenizer.json that the "
            "model was trained with, or the weights that were trained with these tokens."
        )
    if not rows - SPARE_ROWS < pieces <= rows:
        raise BundleError(
            f"{folder}: tokenizer.json has {pieces} pieces, but config.json says vocab_size {rows}. They belong to "
            "different models: every vector would be wrong. Copy the tokenizer.json that the model was trained with."
        )
