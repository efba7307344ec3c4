"""Which pieces of a vocabulary are worth keeping: by how often text uses them, and by the tokenizer's own scores.

V pieces, F files.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

SCRIPT_PIECES = 500  # of a script that somebody writes in; XLM-R's smallest are Lao (1,582) and Katakana (719)
UNSEEN = 1e-4  # of the files' pieces: a script with less is one of names and quotations


def usefulness(counts: np.ndarray, scores: np.ndarray, pieces: Sequence[str] = ()) -> np.ndarray:
    """How often a piece is met, float64 [V]: half the mean of its shares of the corpus files' pieces (counts [F, V]), half its
    share by the tokenizer's own scores [V], which are logarithms of probabilities.

    The files speak for the text at hand, each alike whatever its size, so one a language; the scores speak for every language
    that the tokenizer was made for (XLM-R's: a hundred), also where there is no text. Without files the scores decide alone.
    A script that no file is written in counts as one more file, with shares by the scores: by the scores alone, 84,000 of
    XLM-R's pieces leave Lao 8 % of its own, and half of the pieces of a Lao text are gone. `pieces` [V] are the pieces' texts.
    """
    own: np.ndarray = np.exp(scores - scores.max())
    own[scores >= 0] = 0  # special pieces have no score; they are kept anyway
    own /= own.sum()
    if not len(counts):
        return own
    shares = [*(counts / counts.sum(axis=1, keepdims=True)), *_unseen_scripts(counts, own, pieces)]
    return np.asarray(np.mean(shares, axis=0) / 2 + own / 2)


def _unseen_scripts(counts: np.ndarray, own: np.ndarray, pieces: Sequence[str]) -> list[np.ndarray]:
    """Shares [V] of the pieces of each script that the files do not use."""
    script, seen = np.array([script_of(piece) for piece in pieces]), counts.sum(axis=0)
    rows = []
    for name in sorted(set(script.tolist())):
        of_script = script == name
        if name and of_script.sum() >= SCRIPT_PIECES and seen[of_script].sum() < UNSEEN * seen.sum():
            rows.append(np.where(of_script, own, 0) / own[of_script].sum())
    return rows


def script_of(piece: str) -> str:
    """The script of a piece's first letter, as its character is called ("LAO", "CJK"); "" for a piece without letters."""
    letter = next((character for character in piece if character.isalpha()), "")
    return unicodedata.name(letter, "").partition(" ")[0] if letter else ""
