"""The quality suite's measures besides retrieval: mined pairs, paraphrases, and pieces that both sides share.

Pure functions of texts, vectors and token states. N sentences, D dimensions, P pairs, L pieces, M pieces of the other side.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mexma_rt.mining import DEFAULT_THRESHOLD
from mexma_rt.mining.pairs import mine
from mexma_train.evaluate import TestSet
from mexma_train.suite.model import Pieces

NOISE = (0.0, 0.3)  # unpaired lines per pair of the test set, both sides together
THRESHOLDS = tuple(round(1 + step / 100, 2) for step in range(21))  # 1.00 to 1.20: where ratio margins of translations lie
SEED = 0
RANDOM_LINES = 20  # compared with each paraphrase
NEAR = 50  # random lines are drawn from this many next shorter lines and as many next longer ones
MIN_PARAPHRASES = 10  # with fewer pairs there is no figure
QUESTION_MARKS = "?؟;？"


def mining_f1(test_set: TestSet, x_ND: np.ndarray, y_ND: np.ndarray, noise: float) -> dict[str, float]:
    """Return precision, recall and F1 in percent of `mine` (ratio, k=4, one-to-one) on the shuffled lines of a test set.

    x_ND are the vectors of its texts, y_ND those of its English lines. Of n pairs, noise * n / 2 lose their English line and
    as many others their text: with 0.3, 15 of 85 lines of each side have no partner. A mined pair is right if its two lines
    are a pair of the test set (equal lines are interchangeable). "best_f1" is F1 at the best threshold of 1.00, 1.01 ... 1.20,
    chosen on these same lines: an upper bound for a threshold tuned to this model and language.
    """
    rng, n = random.Random(SEED), len(test_set.text)
    rows, cut = rng.sample(range(n), n), int(noise * n / 2)
    source, target, paired = rows[cut:], rows[: n - cut], rows[cut : n - cut]
    rng.shuffle(source)
    rng.shuffle(target)
    found = mine(
        [test_set.text[i] for i in source],
        [test_set.english[i] for i in target],
        source_vectors=x_ND[source],
        target_vectors=y_ND[target],
        threshold=-np.inf,
        progress=False,
    )
    truth = {(test_set.text[i], test_set.english[i]) for i in paired}
    # One-to-one mining takes pairs in order of falling score, so those above a threshold are what `mine` returns with it.
    right = np.array([(pair.source, pair.target) in truth for pair in found], bool)
    scores = np.array([pair.score for pair in found])

    def at(threshold: float) -> tuple[float, float, float]:
        kept = scores >= threshold
        hits = int(right[kept].sum())
        precision, recall = hits / max(1, int(kept.sum())), hits / len(truth)
        return precision, recall, 2 * precision * recall / max(1e-9, precision + recall)

    default = DEFAULT_THRESHOLD["ratio"]
    precision, recall, f1 = at(default)
    best = max(THRESHOLDS, key=lambda threshold: at(threshold)[2])
    return {
        "pairs": int((scores >= default).sum()),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": 100 * f1,
        "best_f1": 100 * at(best)[2],
        "best_threshold": best,
    }


def fold(text: str) -> str:
    """Return the case-folded text with only letters, marks, digits and question marks kept: punctuation is not compared."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = (c if c in QUESTION_MARKS or unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return " ".join("".join(kept).split())


def paraphrases(lines: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs of different texts with the same translation among (translation, text) lines, both compared by `fold`.

    They are translations of the same line, and so mean nearly the same ("He took" and "She took" are such a pair if the other
    language has one word for both).
    """
    groups: dict[str, dict[str, str]] = {}
    for translation, text in lines:
        groups.setdefault(fold(translation), {}).setdefault(fold(text), text)
    pairs: dict[tuple[str, str], None] = {}
    for group in groups.values():
        members = list(group.values())
        for i, a in enumerate(members):
            pairs.update({(min(a, b), max(a, b)): None for b in members[i + 1 :]})
    return list(pairs)


def with_random_lines(pairs_P: Sequence[tuple[str, str]], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return row numbers in `texts` (distinct lines): each pair, int64 [P, 2]; its first text with random lines, [P * 20, 2].

    The random lines are about as long as the second text: they are drawn from its neighbours in order of length, excluding the
    first text and all its paraphrases.
    """
    rng, row = np.random.default_rng(SEED), {text: i for i, text in enumerate(texts)}
    by_length = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    place = {i: position for position, i in enumerate(by_length)}
    partners: dict[int, set[int]] = {}
    rows_P = [(row[first], row[second]) for first, second in pairs_P]
    for a, b in rows_P:
        partners.setdefault(a, {a}).add(b)
        partners.setdefault(b, {b}).add(a)
    like, unlike = [], []
    for a, b in rows_P:
        at = place[b]
        near = [i for i in by_length[max(0, at - NEAR) : at + NEAR + 1] if i not in partners[a]]
        like.append((a, b))
        unlike += [(a, near[i]) for i in rng.integers(0, len(near), RANDOM_LINES).tolist()] if near else []
    return np.array(like, np.int64).reshape(-1, 2), np.array(unlike, np.int64).reshape(-1, 2)


def cosines(unit_ND: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
    """Cosine [P] of each pair of rows of normalised vectors."""
    cosines_P: np.ndarray = np.einsum("pd,pd->p", unit_ND[pairs_P2[:, 0]], unit_ND[pairs_P2[:, 1]])
    return cosines_P


def shared_trigrams(texts: Sequence[str], pairs_P2: np.ndarray) -> np.ndarray:
    """Jaccard similarity [P] of the letter trigrams of each pair: how similar it is by spelling alone."""

    def trigrams(i: int) -> set[str]:
        text = f" {fold(texts[i])} "
        return {text[j : j + 3] for j in range(max(1, len(text) - 2))}

    sets = [(trigrams(a), trigrams(b)) for a, b in pairs_P2.tolist()]
    return np.array([len(a & b) / len(a | b) for a, b in sets])


def auc(like_P: np.ndarray, unlike_Q: np.ndarray) -> float:
    """Percent of all (like, unlike) whose like is larger, ties counting half: the area under the ROC curve (Mann-Whitney U)."""
    ordered = np.sort(unlike_Q)
    below, up_to = np.searchsorted(ordered, like_P, "left"), np.searchsorted(ordered, like_P, "right")
    return 100 * float((below + up_to).sum()) / (2 * len(like_P) * len(unlike_Q))


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Cosines of vectors and similarity by spelling, for P paraphrases and the Q random pairs they are compared with."""

    like_P: np.ndarray
    unlike_Q: np.ndarray
    spelt_like_P: np.ndarray
    spelt_unlike_Q: np.ndarray


def paraphrase_similarity(lines: Sequence[tuple[str, str]], vectors: dict[str, np.ndarray]) -> Similarity:
    """Return the similarities of the paraphrases in (translation, text) lines; vectors: text -> its normalised vector [D]."""
    texts = list(vectors)
    like, unlike = with_random_lines(paraphrases(lines), texts)
    unit_ND = np.stack([vectors[text] for text in texts])
    return Similarity(
        like_P=cosines(unit_ND, like),
        unlike_Q=cosines(unit_ND, unlike),
        spelt_like_P=shared_trigrams(texts, like),
        spelt_unlike_Q=shared_trigrams(texts, unlike),
    )


def paraphrase_auc(parts: Sequence[Similarity]) -> dict[str, Any]:
    """AUC in percent over the pairs of several languages, by vectors and by spelling; None and the reason for too few pairs."""
    count = sum(len(part.like_P) for part in parts)
    if count < MIN_PARAPHRASES or not sum(len(part.unlike_Q) for part in parts):
        reason = f"pairs in this data: {count}; a figure needs {MIN_PARAPHRASES}, and other lines to compare them with"
        return {"pairs": count, "auc": None, "auc_of_spelling": None, "reason": reason}
    like, unlike = np.concatenate([part.like_P for part in parts]), np.concatenate([part.unlike_Q for part in parts])
    spelt_like = np.concatenate([part.spelt_like_P for part in parts])
    spelt_unlike = np.concatenate([part.spelt_unlike_Q for part in parts])
    return {"pairs": count, "auc": auc(like, unlike), "auc_of_spelling": auc(spelt_like, spelt_unlike)}


def aligned_pieces(english: Sequence[Pieces], texts: Sequence[Pieces]) -> tuple[int, float, float]:
    """Return how many numbers and names the sentence pairs share, how many of them align, and how many would by chance.

    A piece counts if it occurs exactly once on each side, and either contains a digit or has two or more letters and begins
    with a capital: numbers and (parts of) names are known to correspond without a gold standard. It aligns if its two
    occurrences are each other's nearest piece by cosine of the final token states, among all pieces of the sentence. Chance is
    the exact mean over all permutations of the other sentence's pieces.
    """
    count, aligned, chance = 0, 0, 0.0
    for source, target in zip(english, texts, strict=True):
        same = _shared(source.pieces, target.pieces)
        if not same:
            continue
        cosine_LM = _unit(source.states_LD) @ _unit(target.states_LD).T
        forward_L, backward_M = cosine_LM.argmax(axis=1), cosine_LM.argmax(axis=0)
        mutual_L = backward_M[forward_L] == np.arange(len(forward_L))
        for i, j in same:
            count += 1
            aligned += int(mutual_L[i] and forward_L[i] == j)
            chance += float(mutual_L[i]) / len(target.pieces)  # a permutation moves its partner to each place equally often
    return count, float(aligned), chance


def _shared(a: list[str], b: list[str]) -> list[tuple[int, int]]:
    """(position in a, position in b) of each number or name that occurs once on each side."""
    names = [piece for piece in a if any(c.isdigit() for c in piece) or (len(piece) > 1 and piece[0].isupper())]
    return [(a.index(piece), b.index(piece)) for piece in names if a.count(piece) == 1 and b.count(piece) == 1]


def _unit(states_LD: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(states_LD, axis=1, keepdims=True)
    return states_LD / np.where(norms > 0, norms, 1)
