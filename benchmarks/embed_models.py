"""XLM-R-base with random weights (seed 0) and a real tokenizer, as a checkpoint for the embedding benchmark.

    python benchmarks/embed_models.py OUT --tokenizer FILE         # XLM-R's own tokenizer.json (or .xz)

The benchmark's other checkpoint is that of the bundled model: python -m mexma_export.rebuild mexma-mini OUT
"""

from __future__ import annotations

import argparse
import lzma
import shutil
from pathlib import Path

import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from mexma_rt.bundle import bundled_models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True)
    shutil.copy(bundled_models()["mexma-mini"] / "tokenizer_config.json", args.output)
    raw = args.tokenizer.read_bytes()
    (args.output / "tokenizer.json").write_bytes(lzma.decompress(raw) if args.tokenizer.suffix == ".xz" else raw)
    torch.manual_seed(0)
    config = XLMRobertaConfig(vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(args.output)  # 12 layers x 768: the defaults


if __name__ == "__main__":
    main()
