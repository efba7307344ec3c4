"""Near-duplicates across languages: which headlines tell the same story, whatever the language.

    python examples/duplicates.py

Every text is compared with its nearest ones; those that are each other's near neighbours with a high cosine are joined to groups.
"""

from __future__ import annotations

import numpy as np

import mexma_rt as mexma

LEAST = 0.6  # cosine; look at the pairs around yours before you choose it
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
    "The museum opens a new exhibition of old maps",
    "Farmers expect a good harvest this year",
]


def groups(texts: list[str], least: float, k: int = 4) -> list[list[int]]:
    """Rows that belong together, the largest group first; a text without a near one is in no group."""
    vectors = mexma.embed(texts)
    all_scores, index, _, _ = mexma.knn.mutual_neighbours(vectors, vectors, k=k + 1)  # the row itself is among them
    parent = list(range(len(texts)))

    def root(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    for row, (scores, nearest) in enumerate(zip(all_scores, index, strict=True)):
        for other in nearest[(scores >= least) & (nearest > row)].tolist():
            parent[root(other)] = root(row)
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
