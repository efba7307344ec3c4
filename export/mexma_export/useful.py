"""Estimates which pieces of a vocabulary are worth keeping, from their use in text and from the tokenizer's own scores.

V pieces, F files.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

SCRIPT_PIECES = 500  # scripts with fewer pieces are ignored; XLM-R's smallest in use are Lao (1,582) and Katakana (719)
UNSEEN = 1e-4  # share of the files' pieces; a script below it occurs only in names and quotations


def usefulness(counts: np.ndarray, scores: np.ndarray, pieces: Sequence[str] = ()) -> np.ndarray:
    """Estimate how often each piece occurs, float64 [V], as the mean of two shares.

    One is the piece's mean share of the corpus files (counts [F, V]), which represent the text at hand; all files have the same
    weight whatever their size, so give one per language. The other comes from the tokenizer's own scores [V], which are
    logarithms of probabilities, and represents every language that the tokenizer was made for (a hundred for XLM-R), even those
    without text here. Without files, only the scores are used.

    A script that no file uses counts as one more file, with shares by the scores: by the scores alone, 84,000 of XLM-R's pieces
    would include only 8 % of the Lao ones, and a Lao text would lose half of its pieces. `pieces` [V] are the pieces' texts.
    """
    own: np.ndarray = np.exp(scores - scores.max())
    own[scores >= 0] = 0  # special pieces, which have no score and are kept anyway
    own /= own.sum()
    if not len(counts):
        return own
    shares = [*(counts / counts.sum(axis=1, keepdims=True)), *_unseen_scripts(counts, own, pieces)]
    return np.asarray(np.mean(shares, axis=0) / 2 + own / 2)


def _unseen_scripts(counts: np.ndarray, own: np.ndarray, pieces: Sequence[str]) -> list[np.ndarray]:
    """Return shares [V] for each script that the files do not use."""
    script, seen = np.array([script_of(piece) for piece in pieces]), counts.sum(axis=0)
    rows = []
    for name in sorted(set(script.tolist())):
        of_script = script == name
        if name and of_script.sum() >= SCRIPT_PIECES and seen[of_script].sum() < UNSEEN * seen.sum():
            rows.append(np.where(of_script, own, 0) / own[of_script].sum())
    return rows


def script_of(piece: str) -> str:
    """Return the script of a piece's first letter, from its Unicode name ("LAO", "CJK"); "" for a piece without letters."""
    letter = next((character for character in piece if character.isalpha()), "")
    return unicodedata.name(letter, "").partition(" ")[0] if letter else ""
