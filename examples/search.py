"""Search across languages: questions in English find answers in eight other languages, and a picture shows them.

    python examples/search.py [PICTURE.svg]

The corpus is helpdesk.tsv, 24 messages to a shop. No language is named to the model.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

import numpy as np

import mexma_rt as mexma

HERE = Path(__file__).parent
QUERIES = ["I forgot my password.", "Where is my parcel?", "When does the shop open?", "Can I pay by card?"]
STYLE = """
text { fill: #1f2328 } .soft { fill: #59636e } .bar { fill: #0969da; opacity: 0.16 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .soft { fill: #9198a1 } .bar { fill: #58a6ff; opacity: 0.24 } }
"""


def read_corpus() -> tuple[list[str], list[str]]:
    """Languages and texts, line by line."""
    rows = [line.split("\t") for line in (HERE / "helpdesk.tsv").read_text(encoding="utf-8").splitlines()]
    return [lang for lang, _ in rows], [text for _, text in rows]


def search(queries: list[str], texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows of the k nearest texts of each query, float32 and int64 [queries, k]. Embed a large corpus once."""
    cosine = mexma.embed(queries) @ mexma.embed(texts).T
    rows = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosine, rows, axis=1), rows


def picture(found: list[tuple[str, list[tuple[float, str, str]]]]) -> str:
    """Each query above its nearest texts as SVG, with a bar as long as the cosine; for light and dark pages."""
    lines, y = [], 0
    for query, answers in found:
        y += 28
        lines.append(f'<text x="4" y="{y}" font-weight="bold">{escape(query)}</text>')
        for cosine, language, text in answers:
            y += 27
            lines += [
                f'<rect class="bar" x="44" y="{y - 17}" width="{550 * cosine:.0f}" height="23" rx="4"/>',
                f'<text class="soft" x="4" y="{y}">{language}</text><text x="52" y="{y}">{escape(text)}</text>',
                f'<text class="soft" x="636" y="{y}" text-anchor="end">{cosine:.2f}</text>',
            ]
        y += 14
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{y}" viewBox="0 0 640 {y}"'
    return "\n".join(
        [f'{head} font-family="system-ui, sans-serif" font-size="16">', f"<style>{STYLE}</style>", *lines, "</svg>\n"]
    )


def main() -> None:
    languages, texts = read_corpus()
    scores, rows = search(QUERIES, texts, k=3)
    found = []
    for query, cosines, nearest in zip(QUERIES, scores, rows, strict=True):
        found.append(
            (query, [(float(cosine), languages[row], texts[row]) for cosine, row in zip(cosines, nearest, strict=True)])
        )
        print(query)
        for cosine, language, text in found[-1][1]:
            print(f"  {cosine:.2f}  {language}  {text}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()
