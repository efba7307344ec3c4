"""Mine with an encoder of your own: any object with `embed(texts, progress=None)` that returns one row per text.

    python examples/own_encoder.py

This one counts groups of three letters, which is enough for languages as close as Spanish and Portuguese. In its place may
stand a model of sentence-transformers, an API, or vectors that you have: mexma.mine(source_vectors=..., target_vectors=...).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np

import mexma_rt as mexma

SPANISH = [
    "La casa está cerca de la estación.",
    "El presidente visitó la universidad.",
    "Necesito comprar una computadora nueva.",
    "La música clásica es muy tranquila.",
    "Los animales del bosque son nocturnos.",
    "El importante contrato fue firmado ayer.",
    "Mi hermano vive en otra ciudad.",
]
PORTUGUESE = [
    "Os animais da floresta são noturnos.",
    "O contrato importante foi assinado ontem.",
    "A casa está perto da estação.",
    "Preciso comprar um computador novo.",
    "Gosto de café sem açúcar.",
    "O presidente visitou a universidade.",
    "A música clássica é muito tranquila.",
]


class Trigrams:
    """Counts of groups of three characters, in a table of 2,048 columns."""

    def embed(self, texts: Iterable[str], *, progress: bool | None = None) -> np.ndarray:
        rows = [f" {text.lower()} " for text in texts]
        vectors = np.zeros((len(rows), 2048), np.float32)
        for row, text in enumerate(rows):
            for start in range(len(text) - 2):
                vectors[row, zlib.crc32(text[start : start + 3].encode()) % 2048] += 1
        return np.sqrt(vectors)  # so that a frequent group does not drown the rare ones


def main() -> None:
    # The default threshold is of the bundled model: every encoder needs its own, found by reading pairs.
    for pair in mexma.mine(SPANISH, PORTUGUESE, encoder=Trigrams(), threshold=1.3, progress=False):
        print(f"{pair.score:.2f}  {pair.source}  {pair.target}")


if __name__ == "__main__":
    main()
