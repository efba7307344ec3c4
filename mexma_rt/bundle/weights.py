"""Reads the encoder's weights back from a graph that holds them, as {name in the checkpoint: float32 array}.

The graphs that mexma-export writes itself keep every tensor's name. w4 and w8 hold steps and scales of blocks, and codes for
word rows that were coded before training; mixed holds int8 steps and scales for words, and fp16 products; fused is all float32.
These are the numbers that the graph computes with. (w4 and w8 also round the inputs of products, but those are not weights.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mexma_rt.bundle.manifest import Bundle
from mexma_rt.bundle.onnxfile import Tensor, initialisers, read_tensor
from mexma_rt.errors import InputError

HOLDERS = ("fused", "mixed", "w8", "w4")  # precisions whose graphs hold every weight, the most exact first
WORDS = "embeddings.word_embeddings"
TYPES = "embeddings.token_type_embeddings.weight"


def holder(bundle: Bundle) -> str:
    """Return the precision whose graph to read the weights from: the bundle's default if it holds them, or the most exact.

    Raises InputError if no graph does.
    """
    for precision in (bundle.default_precision, *HOLDERS):
        if precision in HOLDERS and precision in bundle.graphs:
            return precision
    raise InputError(
        f"{bundle.folder} has no graph that holds the weights under their names ({', '.join(HOLDERS)}; its graphs: "
        f"{', '.join(bundle.graphs)})."
    )


def weights_of(graph: Path, *, words: bool = True) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, float32 array) of each weight of a graph of HOLDERS, as in checkpoints: a product's rows are its outputs.

    `words=False` leaves the word table out, which may be larger than all else.
    Raises BundleError (not an ONNX file), InputError (a graph from an older mexma-export, whose names differ).
    """
    held = initialisers(graph)
    if not any(name.startswith(WORDS) for name in held):
        raise InputError(f"{graph} was written by an older mexma-export, whose names differ. Use a newer bundle.")
    for name, tensor in held.items():
        if not name.startswith(("embeddings.", "encoder.")) or name.endswith((".scales", ".scale")):
            continue  # a constant of the graph, or read with its steps
        base, _, kind = name.rpartition(".")
        if name in (f"{WORDS}.books", f"{WORDS}.weight.steps4") and f"{WORDS}.codes" in held:
            continue  # read with the codes
        if not words and name.startswith(f"{WORDS}."):
            continue
        if name == f"{WORDS}.codes":
            yield f"{WORDS}.weight", _coded(graph, held)
        elif kind in ("steps4", "steps8"):
            yield base, _blocks(graph, tensor, held[f"{base}.scales"])
        elif kind == "steps":
            steps = read_tensor(graph, tensor).astype(np.float32) * read_tensor(graph, held[f"{base}.scale"])
            yield f"{base}.weight", steps.reshape(len(steps), -1)
        else:
            yield from _plain(name, read_tensor(graph, tensor).astype(np.float32))


def _coded(graph: Path, held: Mapping[str, Tensor]) -> np.ndarray:
    """Read the word table [V, D]: the first rows, if any, in blocks, the others in codes, uint8 [V - first, P], each of which
    picks one of the 256 parts in its position's book, float16 [P * 256, D / P]."""
    codes, books = (read_tensor(graph, held[f"{WORDS}.{part}"]) for part in ("codes", "books"))
    coded = coded_rows(codes, books.reshape(codes.shape[1], -1, books.shape[1]))
    first = held.get(f"{WORDS}.weight.steps4")
    if first is None:
        return coded
    return np.concatenate([_blocks(graph, first, held[f"{WORDS}.weight.scales"]), coded])


def coded_rows(codes: np.ndarray, books: np.ndarray) -> np.ndarray:
    """Decode codes [R, P] to float32 [R, P * W]: each picks a part from its position's book in books [P, parts, W]."""
    rows: np.ndarray = books.astype(np.float32)[np.arange(len(books)), codes].reshape(len(codes), -1)
    return rows


def _blocks(graph: Path, steps: Tensor, scales: Tensor) -> np.ndarray:
    """Return [R, C] of steps (INT4 [R, C], or MatMulNBits' codes [R, C / size, size * bits / 8]) and scales [R, C / size]."""
    codes, scale = read_tensor(graph, steps), read_tensor(graph, scales).astype(np.float32)
    if codes.dtype == np.uint8:
        four = steps.name.endswith("4")
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1) if four else codes
        numbers = codes.astype(np.float32) - np.float32(8 if four else 128)
    else:
        numbers = codes.astype(np.float32)
    wide = numbers.reshape(*scale.shape, -1) * scale[..., None]
    return wide.reshape(len(scale), -1)


def _plain(name: str, numbers: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if ".qkv." in name:
        for part, piece in zip(("query", "key", "value"), np.split(numbers, 3, axis=-1), strict=True):
            yield name.replace(".qkv.", f".{part}."), piece.T
    elif name == TYPES:
        yield name, numbers[None]
    else:  # graphs keep a product's columns, checkpoints its rows
        yield name, numbers.T if name.startswith("encoder.") and numbers.ndim == 2 else numbers
