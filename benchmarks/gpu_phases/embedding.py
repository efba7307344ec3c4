"""The torch back end beside sentence-transformers and the peak, on real sentences: XLM-R-large's shape, and the bundled model.

Both run the same weights in fp16 (fp32 with --smoke) on the same sentences. Rounds are interleaved; of sentence-transformers,
where it is installed, each batch size is told. `compute` is the back end alone, on batches that are packed already.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import run_cells
import torch
from clock import peak, seconds
from models import MAX_LENGTH, bundled, flops, open_torch, random_large
from telling import flags, say

from mexma_rt.embedding.encoder import Encoder
from mexma_rt.embedding.packing import pack

REPOSITORY = Path(__file__).resolve().parents[2]
ROUNDS = 3


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--texts", type=Path, help="one sentence a line")
    args = parser.parse_args()
    device = "cpu" if args.smoke else "cuda"
    dtype = torch.float32 if args.smoke else torch.float16
    best = peak(dtype, device)
    say(what="peak", dtype=str(dtype), tflops=round(best / 1e12, 3))
    with tempfile.TemporaryDirectory() as work:
        small = bundled(Path(work) / "bundled")
        models = [(small, 24 if args.smoke else 65536)]
        if not args.smoke:
            models.insert(0, (random_large(small, Path(work) / "large", device), 24576))
        for folder, count in models:
            encoder = open_torch(folder, device)
            measure(encoder, folder, real_texts(args.texts, count), device, dtype, best)
            run_cells.fit(folder.name, encoder.backend, *((run_cells.SHAPES[:3], 1) if args.smoke else ()))


def real_texts(path: Path | None, count: int) -> list[str]:
    """Sentences, no two alike: what is there, then again with a number before it."""
    if path is None:
        gate = (REPOSITORY / "export/mexma_export/parity_sentences.tsv").read_text(encoding="utf-8").splitlines()
        found = [line.split("\t")[1] for line in gate if not line.startswith("#")]
        for file in sorted((REPOSITORY / "examples").glob("*.txt")):
            found += file.read_text(encoding="utf-8").splitlines()
    else:
        found = path.read_text(encoding="utf-8").splitlines()
    distinct = list(dict.fromkeys(line for line in found if line.strip()))
    return [distinct[n % len(distinct)] if n < len(distinct) else f"{n} {distinct[n % len(distinct)]}" for n in range(count)]


def measure(encoder: Encoder, folder: Path, texts: list[str], device: str, dtype: torch.dtype, best: float) -> None:
    lengths = encoder.tokenizer.encode(texts, MAX_LENGTH).lengths
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    work, tokens = flops(config, torch.from_numpy(lengths.astype(np.float64))), int(lengths.sum())
    common = {"model": folder.name, "sentences": len(texts), "tokens": tokens}
    say(what="texts", **common, flops=work, backend=repr(encoder), reason=encoder.backend.reason)

    def tell(what: str, taken: float, **more: object) -> None:
        say(what=what, **common, seconds=taken, tokens_per_second=tokens / taken, share_of_peak=work / taken / best, **more)

    started = time.perf_counter()
    encoder.tokenizer.encode(texts, MAX_LENGTH)
    say(what="tokeniser alone", **common, seconds=time.perf_counter() - started)
    for cells in (4096, 16384, 32768):
        batches = packed(encoder, texts, cells)
        for ids, mask in batches[:2]:
            encoder.backend.run(ids, mask)
        tell(
            "compute",
            seconds(partial(run_all, encoder, batches), device, rounds=2, warm=0),
            cells=cells,
        )
    arms: dict[str, Callable[[], np.ndarray]] = {
        f"embed, {cells} cells": partial(encoder.embed, texts, batch_tokens=cells) for cells in (4096, 16384, 32768)
    }
    if importlib.util.find_spec("sentence_transformers") is None:
        say(what="sentence-transformers", **common, error="not installed, so not compared")
    else:
        arms |= peers(folder, texts, device, dtype)
    vectors: dict[str, np.ndarray] = {}
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(1 if device == "cpu" else ROUNDS):
        for name, arm in arms.items():
            started = time.perf_counter()
            vectors[name] = arm()
            taken[name].append(time.perf_counter() - started)
    first = next(iter(vectors.values()))
    for name, times in taken.items():
        tell(name, statistics.median(times), rounds=times, least_cosine_to_first=float((vectors[name] * first).sum(1).min()))


def packed(encoder: Encoder, texts: list[str], cells: int) -> list[tuple[np.ndarray, np.ndarray]]:
    tokens = encoder.tokenizer.encode(texts, MAX_LENGTH)
    return [tokens.batch(rows) for rows in pack(tokens.lengths, cells, None, encoder.backend.run_cells)]


def run_all(encoder: Encoder, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for ids, mask in batches:
        encoder.backend.run(ids, mask)


def peers(folder: Path, texts: list[str], device: str, dtype: torch.dtype) -> dict[str, Callable[[], np.ndarray]]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": dtype}, local_files_only=True)
    model.max_seq_length = MAX_LENGTH

    def encode(size: int) -> np.ndarray:
        vectors = model.encode(texts, batch_size=size, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(vectors, np.float32)

    sizes = (32,) if device == "cpu" else (32, 128, 512)
    return {f"sentence-transformers, batch_size={size}": partial(encode, size) for size in sizes}


if __name__ == "__main__":
    main()
