"""Evaluates an encoder on test sets during training: retrieval, and the distribution of its vectors.

Every measure is of the two sides of a test set, texts and their English translations:

xsim        % of texts that do not find their translation by margin (ratio, k=4, text -> English; mexma_rt.evaluation)
accuracy    % of sentences whose nearest vector by cosine is their translation, mean of both directions
alignment   mean squared distance of the two sides of a pair, on the unit sphere: 0 is perfect, 2 is a right angle
uniformity  log of the mean Gaussian potential exp(-2 d^2) of two sentences of one side, mean of both sides: 0 if all vectors
            are one point; the lower, the better they are spread; about -4 is the best possible

The last two are those of Wang and Isola (ICML 2020, arXiv 2005.10242) with their alpha = 2 and t = 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mexma_rt.errors import InputError
from mexma_rt.evaluation.measures import retrieval_accuracy, xsim
from mexma_rt.files.atomic import read_lines

XSIM_K = 4  # neighbours of the margin, as LASER's xsim
MIN_PAIRS = XSIM_K + 1  # with k pairs every English sentence is a neighbour of every text
MEAN = "mean"  # key of the mean of the test sets in what `evaluate` returns

# Uniformity is exact up to this many rows of a side; of more, this many are taken, evenly spaced in the test set (33,550,336
# pairs). Both sides take 2.3 s for 1,024 dimensions on two CPU cores, about as long as xsim and accuracy together.
UNIFORMITY_ROWS = 8_192
_KERNEL_ROWS = 256  # rows of the kernel matrix computed at once: 16 MiB of float64


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Aligned sentences: text[i] is the translation of english[i]."""

    __test__ = False  # pytest would collect the class because of its name

    name: str
    english: list[str]
    text: list[str]


def read_test_set(path: str | Path) -> TestSet:
    """Read lines english<TAB>text in UTF-8 (plain, .gz, .xz or .zst); the file name up to its first dot is the set's name.

    Raises FileError if the file is missing or damaged; InputError if it has fewer than 5 pairs, or a line that is not two
    columns with text in both.
    """
    path = Path(path)
    english, text = [], []
    for number, line in enumerate(read_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) != 2 or not all(column.strip() for column in columns):
            raise InputError(
                f"{path}, line {number}: {_what_is_wrong(columns)}. A test set has lines english<TAB>text. "
                f"Look at the line, fix it or remove it: {_show(path)} | sed -n {number}p"
            )
        english.append(columns[0])
        text.append(columns[1])
    if len(text) < MIN_PAIRS:
        raise InputError(
            f"{path} has {len(text)} pairs, but xsim looks at the {XSIM_K} nearest neighbours, so a test set needs at least "
            f"{MIN_PAIRS} pairs (a few hundred for a reliable figure). Give a file with more lines english<TAB>text."
        )
    return TestSet(name=path.name.split(".")[0], english=english, text=text)


def read_test_sets(paths: Iterable[str | Path]) -> list[TestSet]:
    """`read_test_set` of each file. Raises InputError if two have the same name, by which results are told apart."""
    test_sets = [read_test_set(path) for path in paths]
    _check_names(test_sets)
    return test_sets


def evaluate_vectors(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return xsim, accuracy (both in %), alignment and uniformity of text vectors x [n, D] and English vectors y [n, D].

    Vectors need not be normalised, and are never modified. Raises InputError for shapes that do not match, NaN and n < 4.
    """
    error_rate = xsim(x, y, margin="ratio", k=XSIM_K).error_rate  # also checks x and y
    unit_x_ND, unit_y_ND = _unit(x), _unit(y)
    return {
        "xsim": error_rate,
        "accuracy": sum(retrieval_accuracy(x, y)) / 2,
        "alignment": float(((unit_x_ND - unit_y_ND) ** 2).sum(axis=1).mean()),
        "uniformity": (_uniformity(unit_x_ND) + _uniformity(unit_y_ND)) / 2,
    }


def evaluate(
    test_sets: Sequence[TestSet],
    embed: Callable[[list[str]], np.ndarray],
    mlm_accuracy: Callable[[TestSet], float] | None = None,
) -> dict[str, dict[str, float]]:
    """Return the measures of every test set under its name, and their plain mean over the test sets under "mean".

    embed turns sentences into vectors float32 [n, D]; an English sentence is embedded once, however many test sets contain it
    (all in FLORES, some in Tatoeba). mlm_accuracy returns the percentage of a test set's masked tokens that are predicted
    right, which becomes the measure of that name. No test sets: {}. Raises InputError if two have the same name.
    """
    _check_names(test_sets)
    if not test_sets:
        return {}
    row: dict[str, int] = {}  # English sentence -> its row in `english`
    for test_set in test_sets:
        for sentence in test_set.english:
            row.setdefault(sentence, len(row))
    english = embed(list(row))
    results = {}
    for test_set in test_sets:
        y = english[[row[sentence] for sentence in test_set.english]]
        measures = evaluate_vectors(embed(test_set.text), y)
        if mlm_accuracy is not None:
            measures["mlm_accuracy"] = mlm_accuracy(test_set)
        results[test_set.name] = measures
    mean = {name: sum(measures[name] for measures in results.values()) / len(results) for name in measures}
    return results | {MEAN: mean}


def _uniformity(unit_ND: np.ndarray) -> float:
    """log of the mean of exp(-2 |a - b|^2) over all pairs of rows: each pair once, no row with itself."""
    if len(unit_ND) > UNIFORMITY_ROWS:
        unit_ND = unit_ND[np.linspace(0, len(unit_ND) - 1, UNIFORMITY_ROWS).astype(np.int64)]
    n, squares_N = len(unit_ND), (unit_ND**2).sum(axis=1)
    total = 0.0
    for start in range(0, n, _KERNEL_ROWS):
        block = slice(start, start + _KERNEL_ROWS)
        distance = squares_N[block, None] + squares_N[None, start:] - 2 * unit_ND[block] @ unit_ND[start:].T
        total += float(np.triu(np.exp(-2 * np.maximum(distance, 0)), 1).sum())  # rounding can make a distance negative
    return float(np.log(total / (n * (n - 1) / 2)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """A float64 copy with rows of length 1; a zero row stays zero."""
    vectors_ND = np.array(vectors, np.float64)
    lengths = np.sqrt((vectors_ND**2).sum(axis=1, keepdims=True))
    return vectors_ND / np.where(lengths > 0, lengths, 1)


def _check_names(test_sets: Sequence[TestSet]) -> None:
    names = [test_set.name for test_set in test_sets]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{names.count(name)} test sets are named {name!r}, so their results would mix. Rename the files.")
        if name == MEAN:
            raise InputError(f"A test set is named {MEAN!r}, but that name is kept for the mean of all. Rename the file.")


def _what_is_wrong(columns: list[str]) -> str:
    if len(columns) != 2:
        return f"{len(columns)} column{'s' if len(columns) > 1 else ''} instead of 2"
    return f"the {'second' if columns[0].strip() else 'first'} column is empty"


def _show(path: Path) -> str:
    return f"{ {'.gz': 'zcat', '.xz': 'xzcat', '.zst': 'zstdcat'}.get(path.suffix, 'cat') } {path}"
