"""Models of the phases of gpu_once.py for the torch back end, which reads safetensors: the bundled one, and random ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from mexma_rt.backends.torch import Torch
from mexma_rt.bundle.manifest import TOKENIZER, WEIGHTS, Bundle, FileEntry
from mexma_rt.bundle.opening import open_bundle
from mexma_rt.bundle.safetensors_folder import encoder_shapes, write_checkpoint
from mexma_rt.embedding import DEFAULT_MODEL, Encoder
from mexma_rt.embedding.tokenizer import Tokenizer

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
MAX_LENGTH = 128


def bundled(folder: Path) -> Path:
    """The checkpoint of the bundled model."""
    return write_checkpoint(open_bundle(DEFAULT_MODEL), folder)


def random_large(like: Path, folder: Path, device: str) -> Path:
    """XLM-R-large's layers with random fp16 weights made on the device, and the pieces of the checkpoint `like`."""
    shutil.copytree(like, folder, ignore=shutil.ignore_patterns(WEIGHTS))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | LARGE
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps(pooling | {"word_embedding_dimension": LARGE["hidden_size"]}), encoding="utf-8"
    )
    torch.manual_seed(0)
    tensors = {}
    for name, shape in encoder_shapes(config).items():
        made = torch.zeros(shape, device=device) if name.endswith("bias") else torch.randn(shape, device=device) * 0.02
        tensors[name] = (made + 1 if name.endswith("LayerNorm.weight") else made).half().cpu()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


def open_torch(folder: Path, device: str, precision: str = "auto") -> Encoder:
    """An encoder by the torch back end of a checkpoint folder, which has no manifest."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    files = {name: FileEntry(sha256="0" * 64, bytes=0) for name in (TOKENIZER, WEIGHTS)}
    bundle = Bundle(
        name=folder.name,
        dimensions=config["hidden_size"],
        max_length=MAX_LENGTH,
        max_length_limit=config["max_position_embeddings"] - 2,
        default_precision="fp32",
        source={},
        graphs={},
        parity={},
        files=files,
        folder=folder,
    )
    backend = Torch(bundle, device=device, precision=precision, threads=None, reason="a phase of gpu_once.py")
    return Encoder(bundle=bundle, tokenizer=Tokenizer(folder / TOKENIZER), backend=backend, max_length=MAX_LENGTH)


def flops(config: dict[str, int], lengths: torch.Tensor) -> float:
    """Of encoding sentences of these lengths (float64) without padding: all layers but the last whole, that one at <s> alone
    after its attention; products and attention, nothing else.
    """
    width, inner, layers = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    tokens, squares = float(lengths.sum()), float((lengths**2).sum())
    rest = 2 * (width**2 + 2 * width * inner)  # of a row, after the attention
    return layers * (6 * width**2 * tokens + 4 * width * squares) + rest * ((layers - 1) * tokens + len(lengths))
