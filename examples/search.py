"""Search across languages: questions in English find answers in eight other languages, and a picture shows what lies near.

    python examples/search.py [PICTURE.png]

The corpus is helpdesk.tsv, 24 messages to a shop. No language is named to the model. The picture needs mexma-rt[plot].
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import mexma_rt as mexma

HERE = Path(__file__).parent
QUERIES = ["I forgot my password.", "Where is my parcel?", "When does the shop open?", "Can I pay by card?"]


def read_corpus() -> tuple[list[str], list[str]]:
    """Languages and texts, line by line."""
    rows = [line.split("\t") for line in (HERE / "helpdesk.tsv").read_text(encoding="utf-8").splitlines()]
    return [lang for lang, _ in rows], [text for _, text in rows]


def search(queries: list[str], texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows of the k nearest texts of each query, float32 and int64 [queries, k]. Embed a large corpus once."""
    cosine = mexma.embed(queries) @ mexma.embed(texts).T
    rows = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosine, rows, axis=1), rows


def draw(picture: str, queries: list[str], languages: list[str], texts: list[str]) -> None:
    """A map of the corpus on its two principal axes, with a line from each query to its four nearest texts."""
    from matplotlib.figure import Figure

    vectors = mexma.embed([*texts, *queries])
    centred = vectors - vectors[: len(texts)].mean(axis=0)
    axes = np.linalg.svd(centred[: len(texts)], full_matrices=False)[2][:2]
    places = centred @ axes.T
    figure = Figure(figsize=(8, 5), layout="constrained")
    plot = figure.subplots()
    for i, (query, nearest) in enumerate(zip(queries, search(queries, texts, k=4)[1], strict=True)):
        x, y = places[len(texts) + i]
        for row in nearest:
            plot.plot([x, places[row, 0]], [y, places[row, 1]], color=f"C{i}", linewidth=1, alpha=0.6)
        plot.scatter(x, y, color=f"C{i}", marker="*", s=160, label=query, zorder=3)
    plot.scatter(*places[: len(texts)].T, color="0.5", s=12)
    for language, (x, y) in zip(languages, places, strict=False):
        plot.annotate(language, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=8)
    plot.set(xticks=[], yticks=[], title="Queries (stars) and their four nearest messages")
    plot.legend(loc="best", fontsize=8)
    figure.savefig(picture, dpi=120)


def main() -> None:
    languages, texts = read_corpus()
    scores, rows = search(QUERIES, texts, k=3)
    for query, cosines, nearest in zip(QUERIES, scores, rows, strict=True):
        print(query)
        for cosine, row in zip(cosines, nearest, strict=True):
            print(f"  {cosine:.2f}  {languages[row]}  {texts[row]}")
    if len(sys.argv) > 1:
        draw(sys.argv[1], QUERIES, languages, texts)


if __name__ == "__main__":
    main()
