"""Near-duplicates across languages: which headlines tell the same story, whatever the language.

    python examples/duplicates.py

Every text is compared with its nearest ones. Two are joined where their cosine is above what both have on average with their
neighbours: a margin, as in mining, since what a high cosine is differs between models.
"""

from __future__ import annotations

import numpy as np

import mexma_rt as mexma

LEAST = 1.1  # margin; look at the pairs around yours before you choose it
HEADLINES = [
    "The central bank raised interest rates on Thursday",
    "La banque centrale a relevé les taux d'intérêt jeudi",
    "Die Zentralbank hat am Donnerstag die Zinsen erhöht",
    "A strong earthquake shook the capital last night",
    "Un fuerte terremoto sacudió la capital anoche",
    "Un forte terremoto ha scosso la capitale la scorsa notte",
    "Scientists discovered a new species of frog in the forest",
    "Wissenschaftler haben im Wald eine neue Froschart entdeckt",
    "The football team won the final in extra time",
    "L'équipe de football a gagné la finale en prolongation",
    "Heavy rain caused floods in the north of the country",
    "As chuvas fortes causaram inundações no norte do país",
    "Rents fell in most large cities",
    "Farmers expect a good harvest this year",
]


def groups(texts: list[str], least: float, k: int = 4) -> list[list[int]]:
    """Rows that belong together, the largest group first; a text without a near one is in no group."""
    vectors = mexma.embed(texts)
    cosine, index, _, _ = mexma.knn.mutual_neighbours(vectors, vectors, k=k + 1)
    itself = index == np.arange(len(texts))[:, None]  # every row finds itself
    means = np.where(itself, 0, cosine).sum(axis=1) / k
    margins = 2 * cosine / (means[:, None] + means[index])
    parent = list(range(len(texts)))

    def root(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    for row, column in np.argwhere((margins >= least) & ~itself).tolist():
        parent[root(index[row, column])] = root(row)
    roots = np.array([root(row) for row in range(len(texts))])
    sets = [np.flatnonzero(roots == each).tolist() for each in np.unique(roots)]
    return sorted((rows for rows in sets if len(rows) > 1), key=len, reverse=True)


def main() -> None:
    for number, rows in enumerate(groups(HEADLINES, LEAST), start=1):
        print(f"group {number}")
        for row in rows:
            print(f"  {HEADLINES[row]}")


if __name__ == "__main__":
    main()
