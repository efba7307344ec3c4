"""The files that make a bundle a sentence-transformers (and text-embeddings-inference) folder too.

With them `SentenceTransformer(BUNDLE).encode(texts)` gives what `mexma_rt.load(BUNDLE).embed(texts)` gives: the `<s>` state
of the torch weights, normalised. The module names are those that sentence-transformers 2 to 6 understand.
"""

from __future__ import annotations

from typing import Any

_PACKAGE = "sentence_transformers.models"


def peer_files(config: dict[str, Any], *, max_length: int, length_limit: int) -> dict[str, dict[str, Any] | list[Any]]:
    """Relative path -> JSON content."""
    return {
        # Only the encoder is promised, and no file of the checkpoint's folder may run code ("auto_map").
        # The type is that of the computation, not of the stored numbers, which may be bf16.
        "config.json": {k: v for k, v in config.items() if k != "auto_map"}
        | {"architectures": ["XLMRobertaModel"], "dtype": "float32"},
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{_PACKAGE}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{_PACKAGE}.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{_PACKAGE}.Normalize"},
        ],
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        "1_Pooling/config.json": {
            "word_embedding_dimension": config["hidden_size"],
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        "2_Normalize/config.json": {},  # versions 2 to 5 have no settings and never read it
        # Not XLMRobertaTokenizerFast: since transformers 5 that class builds its own normaliser and pre-tokeniser
        # around the vocabulary, so that ids differ; this one takes tokenizer.json as it is.
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": length_limit,
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            "bos_token": "<s>",
            "cls_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    }
