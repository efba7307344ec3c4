"""Finds a model's thresholds on a small parallel sample: where the F1 of mining is best when some lines have no partner.

In each draw, some pairs of the sample stay whole and others keep only one side, so that, as in real corpora, some lines of each
side have no translation on the other. Mining takes candidates by descending score, so the pairs above any threshold are a
prefix of one list, whose precision, recall and F1 are known for all thresholds at once. F1 is averaged over several draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mexma_rt.bundle.thresholds import Thresholds
from mexma_rt.checks import check_k, check_texts
from mexma_rt.errors import InputError
from mexma_rt.knn.margin import MARGINS
from mexma_rt.knn.search import mutual_neighbours, unit_rows
from mexma_rt.mining.candidates import OneToOne, ScoredNeighbours, best_first, candidate_blocks
from mexma_rt.mining.pairs import Embeds
from mexma_rt.mining.sides import compared_rows
from mexma_rt.mining.thresholds import thresholds_of

ALONE = 0.3  # share of the lines of a side that have no partner
DRAWS = 5  # F1 is averaged over these: with 1,000 pairs the best threshold of a single draw varied by 0.02
FEWEST, STEADY, MOST = 100, 1_000, 20_000  # pairs: refused below; warned below; above, this many are sampled
LEAST_F1 = 50.0  # %: below it the lines are not translations of each other, or the model does not know the languages
NEAR = 1.0  # points of F1: the range of thresholds within this much of the best is reported
STEPS = {  # thresholds to try; models of the e5 family have all ratios within 0.1 of 1
    "ratio": np.round(np.arange(0.9, 1.8001, 0.001), 3),
    "distance": np.round(np.arange(-0.1, 0.5001, 0.001), 3),
    "absolute": np.round(np.arange(-0.2, 1.0001, 0.001), 3),
}
SORTED = 1_000_000  # candidates sorted at a time


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """One margin: its best threshold, the results of mining there in %, and those at the previous threshold."""

    threshold: float
    precision: float
    recall: float
    f1: float
    near: tuple[float, float]  # lowest and highest threshold whose F1 is within NEAR points
    before: float
    f1_before: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What `calibrate` found. lines: per side in each draw; left_out: blank, repeated or equal lines of the sample."""

    model: str
    pairs: int
    left_out: int
    lines: int
    k: int
    seed: int
    prompt: str | None  # name of the prompt put before every text
    margins: Mapping[str, Calibrated]

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds to write into a bundle."""
        found = {margin: one.threshold for margin, one in self.margins.items()}
        return Thresholds(**found, k=self.k, pairs=self.pairs, seed=self.seed, prompt=self.prompt)


def calibrate(
    src: Iterable[str],
    tgt: Iterable[str],
    *,
    encoder: Embeds | None = None,
    k: int = 4,
    seed: int = 0,
    progress: bool | None = None,
) -> Calibration:
    """Find a model's thresholds for `mine` and `filter`, for every margin; src[i] and tgt[i] are translations.

    At least a hundred pairs are needed, a thousand or more give a stable result, and of more than 20,000 that many are sampled.
    Use text similar to what you will mine: short sentences need a lower threshold than long ones. Five times, 30 % of the lines
    of each side are left without their partner, and the threshold is where the mean F1 is best; the same texts, model and seed
    give the same result. encoder: what `mexma_rt.load` returns; None takes the bundled default model. k: as for `mine`.

    `mexma_rt.bundle.write_thresholds(encoder.bundle, found.thresholds)` writes the result into the bundle, where `mine` and
    `filter` find it when it is loaded again.
    Raises InputError for sides of unequal length, too few pairs, and lines that are not translations of each other.
    """
    source, target, left_out = usable_pairs(check_texts(src, "source"), check_texts(tgt, "target"))
    rng = np.random.default_rng(seed)
    if len(source) > MOST:
        kept = np.sort(rng.permutation(len(source))[:MOST]).tolist()
        source, target = [source[row] for row in kept], [target[row] for row in kept]
    if encoder is None:
        from mexma_rt.embedding.loading import shared_encoder

        encoder = shared_encoder()
    x, y = (unit_rows(encoder.embed(texts, progress=progress)) for texts in (source, target))
    side = int(len(source) / (1 + ALONE))
    whole = side - int(ALONE * side)
    check_k(k, {"source": side, "target": side}, "lines in a draw")
    draws = []
    for _ in range(DRAWS):
        order = rng.permutation(len(source))
        rows, columns = order[:side], np.concatenate([order[:whole], order[side : 2 * side - whole]])
        src, tgt = ([texts[row] for row in chosen.tolist()] for texts, chosen in ((source, rows), (target, columns)))
        draws.append(f1_curves(src, tgt, x[rows], y[columns], whole, k=k))
    before = thresholds_of(encoder).by_margin
    margins = {
        margin: _best(np.mean([draw[margin] for draw in draws], axis=0), STEPS[margin], before[margin]) for margin in MARGINS
    }
    best = max(one.f1 for one in margins.values())
    if best < LEAST_F1:
        raise InputError(
            f"Mining finds so few of these {len(source):,} pairs (F1 {best:.0f} % at the best threshold) that no threshold "
            "is meaningful: the lines are not translations of each other, line by line, or the model does not know the "
            "languages. Check that these are the right files."
        )
    name = getattr(getattr(encoder, "bundle", None), "name", type(encoder).__name__)
    return Calibration(
        model=name,
        pairs=len(source),
        left_out=left_out,
        lines=side,
        k=int(k),
        seed=seed,
        prompt=getattr(encoder, "prompt", None),
        margins=margins,
    )


def usable_pairs(source: Sequence[str], target: Sequence[str]) -> tuple[list[str], list[str], int]:
    """Return the distinct pairs of two sides, and the number of others: blank, equal on both sides, or sharing a side with an
    earlier pair. Raises InputError for sides of unequal length, and for fewer than FEWEST pairs."""
    if len(source) != len(target):
        raise InputError(
            f"The source has {len(source):,} lines and the target {len(target):,}, but line i of one translates line i of the "
            "other: pass the same number on each side."
        )
    seen: tuple[set[str], set[str]] = (set(), set())
    kept: list[tuple[str, str]] = []
    for pair in zip(source, target, strict=True):
        a, b = (text.strip() for text in pair)
        if a and b and a != b and a not in seen[0] and b not in seen[1]:
            kept.append(pair)
            seen[0].add(a)
            seen[1].add(b)
    if len(kept) < FEWEST:
        alike = {name: len(set(map(str.strip, side))) for name, side in (("source", source), ("target", target))}
        equal = [f"all lines of the {name} are equal" for name, count in alike.items() if count == 1 and len(source) > 1]
        why = f" ({equal[0]})" if equal else ""
        raise InputError(
            f"Of {len(source):,} lines, {len(kept):,} are usable pairs{why}: not blank, not equal on both "
            f"sides, no line repeated. A threshold needs at least {FEWEST}, and is stable with {STEADY:,} or more. Pass more."
        )
    return [a for a, _ in kept], [b for _, b in kept], len(source) - len(kept)


def f1_curves(
    source: Sequence[str],
    target: Sequence[str],
    x: np.ndarray,
    y: np.ndarray,
    pairs: int,
    *,
    k: int = 4,
    steps: Mapping[str, np.ndarray] = STEPS,
) -> dict[str, np.ndarray]:
    """Return the precision, recall and F1 in % [3, thresholds] of `mine` at every step of each margin.

    x [n, D], y [m, D]: vectors of the lines, of any norm. The first `pairs` lines of both sides are translations of each other,
    and no others are. As in `mine`, equal lines count once, and blank lines never.
    """
    rows, row_of = compared_rows(list(source), unify=True)
    columns, column_of = compared_rows(list(target), unify=True)
    truth = np.unique(np.stack([row_of[:pairs], column_of[:pairs]], axis=1), axis=0)
    truth = truth[(truth >= 0).all(axis=1)]
    keys = truth[:, 0] * len(columns) + truth[:, 1]
    found = mutual_neighbours(unit_rows(x[rows]), unit_rows(y[columns]), k, progress=False)
    curves = {}
    for margin, thresholds in steps.items():
        mined = _one_to_one(ScoredNeighbours.of(*found, margin=margin))
        right = np.isin(mined["row"] * len(columns) + mined["column"], keys)
        hits = np.concatenate([[0], np.cumsum(right)])
        given = np.searchsorted(-mined["score"], -thresholds, side="right")  # pairs with a score of the threshold or more
        precision = 100 * hits[given] / np.maximum(1, given)
        recall = 100 * hits[given] / max(1, len(truth))
        curves[margin] = np.stack([precision, recall, 2 * precision * recall / np.maximum(1e-9, precision + recall)])
    return curves


def _one_to_one(neighbours: ScoredNeighbours) -> np.ndarray:
    """Return all pairs that "max" retrieval finds without a threshold, best first."""
    matching = OneToOne(len(neighbours.x_mean), len(neighbours.y_mean))
    chunks = best_first(lambda: candidate_blocks(neighbours, "max"), SORTED, matching.free)
    return np.concatenate([matching.take(chunk) for chunk in chunks])


def _best(curve: np.ndarray, steps: np.ndarray, before: float) -> Calibrated:
    """Choose the middle of the adjacent thresholds that share the highest F1."""
    precision, recall, f1 = curve
    top = int(f1.argmax())
    last = top + int(np.argmax(np.append(f1[top:], -1.0) < f1[top])) - 1
    at = (top + last) // 2
    near = steps[f1 >= f1[at] - NEAR]
    return Calibrated(
        threshold=float(steps[at]),
        precision=float(precision[at]),
        recall=float(recall[at]),
        f1=float(f1[at]),
        near=(float(near[0]), float(near[-1])),
        before=before,
        f1_before=float(f1[int(np.abs(steps - before).argmin())]),
    )
