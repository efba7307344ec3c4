"""The two checkpoints of the embedding benchmark, as folders in Hugging Face form for `mexma-export`.

    python benchmarks/embed_models.py mini OUT                     # the bundled model's weights, read back from its graph
    python benchmarks/embed_models.py base OUT --tokenizer FILE    # XLM-R-base with random weights, seed 0

FILE is XLM-R's own tokenizer.json (or .xz). The wheel carries no safetensors of the bundled model, but its mixed graph has
every number: int8 word embeddings times their scales, and fp16 weights. So the fp32 reference of the benchmark is what the
wheel computes, not the checkpoint it was exported from.
"""

from __future__ import annotations

import argparse
import lzma
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from mexma_rt import load
from mexma_rt.bundle import bundled_models

TOKENIZER_CONFIG = Path("tokenizer_config.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["mini", "base"])
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    args = parser.parse_args()
    args.output.mkdir(parents=True)
    bundled = bundled_models()["mexma-mini"]
    shutil.copy(bundled / TOKENIZER_CONFIG, args.output)
    if args.model == "mini":
        shutil.copy(bundled / "tokenizer.json", args.output)
        model = read_back(bundled)
        check(model)
    else:
        raw = args.tokenizer.read_bytes()
        (args.output / "tokenizer.json").write_bytes(lzma.decompress(raw) if args.tokenizer.suffix == ".xz" else raw)
        torch.manual_seed(0)
        model = XLMRobertaModel(XLMRobertaConfig(**BASE), add_pooling_layer=False)
    model.save_pretrained(args.output)


BASE: dict[str, Any] = {
    "vocab_size": 250_002,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-5,
}  # beyond the defaults of transformers, which are those of a base model: 12 layers x 768


def read_back(bundle: Path) -> XLMRobertaModel:
    """The model of a mixed graph. Its weights have the names of tracing, so they are found by the nodes that read them."""
    graph = onnx.load(str(bundle / "onnx/model_mixed.onnx")).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in arrays:  # an fp16 weight
            arrays[node.output[0]] = arrays[node.input[0]]
    state = {name.removeprefix("model."): array for name, array in arrays.items() if name.startswith("model.")}
    steps, scale = (state.pop(f"embeddings.word_embeddings.{part}") for part in ("steps", "scale"))
    state["embeddings.word_embeddings.weight"] = (steps * scale).reshape(len(steps), -1)
    layer = 0
    for node in graph.node:
        if node.op_type == "Attention":
            for index, part in enumerate(("query", "key", "value")):
                weight, bias = (np.split(arrays[name], 3, axis=-1)[index] for name in node.input[1:3])
                state[f"encoder.layer.{layer}.attention.self.{part}.weight"] = weight.T
                state[f"encoder.layer.{layer}.attention.self.{part}.bias"] = bias
            layer += 1
        elif node.op_type == "MatMul" and node.input[1] in arrays:
            (place,) = re.findall(r"(encoder/layer\.\d+/.*dense)/MatMul", node.output[0])
            state[place.replace("/", ".") + ".weight"] = arrays[node.input[1]].T
    model = XLMRobertaModel(XLMRobertaConfig.from_pretrained(str(bundle)), add_pooling_layer=False)
    tensors = {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and all("position_ids" in name or "token_type_ids" in name for name in missing), (missing, unexpected)
    return model.eval()


def check(model: XLMRobertaModel) -> None:
    """The weights that were read back give the vectors of the graph."""
    encoder = load("mexma-mini", device="cpu")
    texts = ["Hello world", "Bonjour le monde, il fait beau.", "今日は良い天気です。", ""]
    for text, vector in zip(texts, encoder.embed(texts), strict=True):
        ids = torch.from_numpy(encoder.tokenizer.encode([text], 128).ids.astype(np.int64))[None]
        with torch.inference_mode():
            state = model(ids, torch.ones_like(ids)).last_hidden_state[0, 0].numpy()
        cosine = float(vector @ state / np.linalg.norm(state))
        assert cosine > 0.99999, (text, cosine)


if __name__ == "__main__":
    main()
