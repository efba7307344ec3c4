"""XLM-R-base or -large with random weights (seed 0) and a real tokenizer, as a checkpoint for benchmarks.

    python benchmarks/random_checkpoint.py OUT --tokenizer FILE [--size large]    # XLM-R's own tokenizer.json (or .xz)

The other checkpoint of the benchmarks is that of the bundled model: mexma-export rebuild mexma-small OUT
"""

from __future__ import annotations

import argparse
import lzma
import shutil
from pathlib import Path

import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from mexma_rt.bundle.opening import bundled_models

SIZES = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}  # width, layers, heads, feed-forward width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--size", choices=list(SIZES), default="base")
    args = parser.parse_args()
    args.output.mkdir(parents=True)
    shutil.copy(bundled_models()["mexma-small"] / "tokenizer_config.json", args.output)
    raw = args.tokenizer.read_bytes()
    (args.output / "tokenizer.json").write_bytes(lzma.decompress(raw) if args.tokenizer.suffix == ".xz" else raw)
    torch.manual_seed(0)
    width, layers, heads, wide = SIZES[args.size]
    config = XLMRobertaConfig(
        vocab_size=250_002,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=wide,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(args.output, max_shard_size="100GB")


if __name__ == "__main__":
    main()
