"""Files that make a bundle a folder of sentence-transformers and text-embeddings-inference, too.

With them, `SentenceTransformer(BUNDLE).encode(texts)` returns what `mexma_rt.load(BUNDLE).encode(texts)` does. The module names
are understood by sentence-transformers 2 to 6.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mexma_export.checkpoint import Checkpoint
    from mexma_export.pipeline import Pipeline

_PACKAGE = "sentence_transformers.models"
TORCH_NAMES = {"Tanh": "torch.nn.modules.activation.Tanh", "Identity": "torch.nn.modules.linear.Identity"}


def peer_files(source: Checkpoint, *, max_length: int, length_limit: int) -> dict[str, dict[str, Any] | list[Any]]:
    """Return {relative path: JSON content}. Texts are cut at `max_length` tokens; the tokenizer allows `length_limit`."""
    config, pipeline = source.config, source.pipeline
    kinds = ["Transformer", "Pooling", *["Dense"] * len(pipeline.dense), *(["Normalize"] if pipeline.normalize else [])]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], start=1))]
    layers: dict[str, dict[str, Any] | list[Any]] = {
        f"{path}/config.json": {
            "in_features": layer.weight.shape[1],
            "out_features": layer.weight.shape[0],
            "bias": True,
            "activation_function": TORCH_NAMES[layer.activation],
        }
        for path, layer in zip(paths[2:], pipeline.dense, strict=False)
    }
    if pipeline.normalize:
        layers[f"{paths[-1]}/config.json"] = {}  # versions 2 to 5 never read it
    return {
        # Without "auto_map": no file from the checkpoint's folder may run code. The type is that of the computation; the
        # stored numbers may be bf16.
        "config.json": {k: v for k, v in config.items() if k != "auto_map"}
        | {"architectures": ["XLMRobertaModel"], "dtype": "float32"},
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"{_PACKAGE}.{kind}"}
            for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ],
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": dict(pipeline.prompts),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": config["hidden_size"],
            "pooling_mode_cls_token": pipeline.head.pooling == "cls",
            "pooling_mode_mean_tokens": pipeline.head.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        **layers,
        # Not XLMRobertaTokenizerFast, which since transformers 5 builds its own normaliser and pre-tokeniser around the
        # vocabulary, so that ids differ; this class uses tokenizer.json unchanged.
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": length_limit,
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            **_token_names(source),
        },
    }


def _token_names(source: Checkpoint) -> dict[str, str]:
    """Return the tokenizer's special tokens under transformers' names for them."""
    ids, tokenizer = source.special_ids, source.tokenizer
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_token") or (None if model.get("unk_id") is None else tokenizer.id_to_token(model["unk_id"]))
    mask = next((name for name in ("<mask>", "[MASK]") if tokenizer.token_to_id(name) is not None), None)
    first, last, pad = (tokenizer.id_to_token(i) for i in (ids.bos, ids.eos, ids.pad))
    names = {"bos_token": first, "cls_token": first, "eos_token": last, "sep_token": last, "unk_token": unknown}
    names |= {"pad_token": pad, "mask_token": mask}
    return {key: name for key, name in names.items() if name is not None}


def dense_weights(pipeline: Pipeline) -> dict[str, dict[str, np.ndarray]]:
    """Return {relative path: tensors} of the dense layers, named as in sentence-transformers."""
    return {
        f"{i}_Dense/model.safetensors": {"linear.weight": layer.weight, "linear.bias": layer.bias}
        for i, layer in enumerate(pipeline.dense, start=2)
    }
