"""Align a chapter in two languages: sentences that were split, joined or left out by the translator find their partners.

    python examples/chapter.py

chapter.fr and chapter.en have one sentence a line, in order. `mexma align chapter.fr chapter.en -o beads.tsv` does the same.
"""

from __future__ import annotations

from pathlib import Path

import mexma_rt as mexma

HERE = Path(__file__).parent


def read(name: str) -> list[str]:
    return (HERE / name).read_text(encoding="utf-8").splitlines()


def main() -> None:
    french, english = read("chapter.fr"), read("chapter.en")
    for bead in mexma.align_documents(french, english):
        kind = f"{len(bead.source)}-{len(bead.target)}"
        print(f"{kind}  {bead.score:5.2f}  {' '.join(french[row] for row in bead.source) or '(nothing)'}")
        print(f"            {' '.join(english[row] for row in bead.target) or '(nothing)'}")


if __name__ == "__main__":
    main()
