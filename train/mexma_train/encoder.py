"""Makes, loads and saves encoders. The encoder itself is the runtime's (mexma_rt/backends/packed_encoder.py), so that what is
trained is what the torch back end runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import XLMRobertaConfig

from mexma_rt.backends.checkpoint import SPARE_ROWS, WORDS, check_kind, read_encoder
from mexma_rt.backends.packed_encoder import PAD, Encoder
from mexma_rt.errors import InputError, MexmaError
from mexma_train.config import ModelConfig
from mexma_train.data.tokenizer import load_tokenizer

FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "sentencepiece.bpe.model", "vocab.txt"]


def new_encoder(shape: ModelConfig, vocab_size: int) -> Encoder:
    """Return an encoder initialised as BERT: weights normal(0, 0.02), biases 0, LayerNorm 1 and 0, the <pad> rows 0."""
    config = XLMRobertaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_positions,
        layer_norm_eps=shape.norm_eps,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=0.0,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=PAD,
        eos_token_id=2,
        architectures=["XLMRobertaModel"],
    )
    encoder = Encoder(config)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(0, config.initializer_range)
            if isinstance(module, nn.Linear):
                module.bias.zero_()
        for table in (encoder.embeddings.word_embeddings, encoder.embeddings.position_embeddings):
            table.weight[PAD].zero_()
    return encoder


def load_encoder(source: str | Path, *, dropout: float | None = None, pieces: Path | None = None) -> Encoder:
    """Load the encoder of a Hugging Face folder or hub name that has XLM-R's pieces, from safetensors only.

    It may be XLM-R, MEXMA, one of our checkpoints, or a BERT such as multilingual-e5-small, whose position rows are shifted to
    follow the padding row (backends/checkpoint.py). A pooler and an MLM head are ignored. `pieces` is the tokenizer.json that
    it will be used with: word rows beyond its pieces, with which tables are often padded, are cut. Raises InputError for
    another architecture, a vocabulary that is not XLM-R's, and weights that are damaged or lack a tensor.
    """
    folder = _folder(source)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be read ({error}). Give a folder in Hugging Face form.") from error
    try:
        kind = check_kind(folder, config)
        if kind != "xlm-roberta" or pieces is not None:
            check_pieces(folder, kind, pieces)
        read = read_encoder(folder, config, pad=PAD)
    except MexmaError as error:
        raise InputError(f"{source} cannot be trained: {error}") from error
    settings = read.config | {"bos_token_id": 0, "eos_token_id": 2, "attention_probs_dropout_prob": 0.0}
    if dropout is not None:
        settings["hidden_dropout_prob"] = dropout
    if pieces is not None:
        settings["vocab_size"] = _cut_spare_rows(source, read.tensors, load_tokenizer(pieces).get_vocab_size())
    encoder = Encoder(XLMRobertaConfig(**settings))
    encoder.load_state_dict({name: tensor.float() for name, tensor in read.tensors.items()})
    return encoder


def check_pieces(folder: Path, kind: str, pieces: Path | None) -> None:
    """Raises InputError unless the folder's tokenizer has XLM-R's special ids, and the pieces of `pieces` at the same ids.

    An XLM-R folder without a tokenizer is trusted here; `load_encoder` compares its number of rows.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        theirs = load_tokenizer(path)
        if pieces is not None and theirs.get_vocab() != load_tokenizer(pieces).get_vocab():
            raise InputError(
                f"its tokenizer.json and that of the shards ({pieces}) have different pieces, or the same ones at different "
                "ids. Prepare the shards again with the tokenizer.json of that checkpoint."
            )
    elif kind != "xlm-roberta" and not (folder / "sentencepiece.bpe.model").is_file():
        has = "its own WordPiece vocabulary (vocab.txt)" if (folder / "vocab.txt").is_file() else "no tokenizer.json"
        raise InputError(f"it has {has}, and MEXMA trains models with XLM-R's pieces. Take multilingual-e5-small or an XLM-R.")


def _cut_spare_rows(source: str | Path, tensors: dict[str, Tensor], pieces: int) -> int:
    rows = len(tensors[WORDS])
    if not pieces <= rows < pieces + SPARE_ROWS:
        raise InputError(
            f"{source} has {rows} pieces, but the shards' tokenizer has {pieces}. Prepare the shards again with the "
            "tokenizer.json of that checkpoint."
        )
    tensors[WORDS] = tensors[WORDS][:pieces].clone()
    return pieces


def _folder(source: str | Path) -> Path:
    if Path(source).is_dir():
        return Path(source)
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=FILES))
    except Exception as error:  # the hub's errors share no base class
        raise InputError(
            f"{source} is not a folder here, and the Hugging Face hub did not provide a model of that name: {error}"
        ) from error


def save_encoder(config: XLMRobertaConfig, weights: dict[str, Tensor], folder: Path) -> None:
    """Write config.json and model.safetensors, as transformers' save_pretrained would."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
