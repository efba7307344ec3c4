"""Tiny random models of the forms that people bring, in folders as sentence-transformers writes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from . import tiny

CLS: dict[str, object] = {"pooling_mode_cls_token": True, "word_embedding_dimension": 32}
MEAN: dict[str, object] = {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
    "model_max_length": 96,
}
WORD_PIECE_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
    "model_max_length": 96,
}


def sentence_transformers(folder: Path, pooling: dict[str, object] | None, *more: str) -> None:
    """modules.json as sentence-transformers writes it, and the pooling's own file (None: left out)."""
    kinds = ["Transformer", "Pooling", *more]
    paths = ["", "1_Pooling", *(f"{i}_{kind}" for i, kind in enumerate(more, 2))]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def add_dense(folder: Path, place: str, width: int, dimensions: int, activation: str, *, bias: bool = True) -> None:
    """A random dense layer as sentence-transformers writes it, at the place that modules.json names."""
    import torch
    from safetensors.torch import save_file

    config = {"in_features": width, "out_features": dimensions, "bias": bias, "activation_function": activation}
    (folder / place).mkdir()
    (folder / place / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(2)
    tensors = {"linear.weight": torch.randn(dimensions, width, generator=random) / 8}
    if bias:
        tensors["linear.bias"] = torch.randn(dimensions, generator=random)
    save_file(tensors, folder / place / "model.safetensors")


def word_pieces() -> Any:
    """A WordPiece tokenizer of the characters of the tests' sentences, as LaBSE's and distiluse's are made."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    characters = sorted({c for _, text in tiny.SENTENCES for c in text if not c.isspace()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters), "the", "##er"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(pieces[:5])
    return tokenizer


def make_model(folder: Path, kind: str, *, word_piece: bool = False, layers: int = 2) -> Any:
    """Write a random encoder "xlm-roberta", "bert" or "distilbert" with the tiny model's pieces; returns it, in fp32.

    Layers of 32, 4 heads, 322 pieces; texts have up to 96 tokens. BERT's configuration names another pad_token_id than its
    tokenizer, as multilingual-e5-small's and paraphrase-multilingual-MiniLM's do. word_piece: with `word_pieces` instead.
    """
    import torch
    from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, XLMRobertaConfig, XLMRobertaModel

    tokenizer = word_pieces() if word_piece else None
    shape: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size() if tokenizer else 322, "initializer_range": 0.3}
    bert: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 64}
    makers: dict[str, Any] = {
        "xlm-roberta": lambda: XLMRobertaModel(
            XLMRobertaConfig(**shape, **bert, max_position_embeddings=98, type_vocab_size=1, pad_token_id=1)
        ),
        "bert": lambda: BertModel(BertConfig(**shape, **bert, max_position_embeddings=96, type_vocab_size=2, pad_token_id=0)),
        "distilbert": lambda: DistilBertModel(
            DistilBertConfig(
                **shape, dim=32, n_layers=layers, n_heads=4, hidden_dim=64, max_position_embeddings=96, pad_token_id=1
            )
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = makers[kind]()
    model.save_pretrained(folder)
    if tokenizer:
        tokenizer.enable_padding(length=64)  # as the files of many such models have it
        tokenizer.enable_truncation(16)
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        shutil.copy(tiny.TOKENIZER, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(WORD_PIECE_CONFIG if tokenizer else TOKENIZER_CONFIG))
    return model.eval()
