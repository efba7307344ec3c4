"""Which pairs a batch holds: a function of (seed, batch number, batch size), so any batch can be computed at any time.

order="draw" draws each pair independently: a language with p ~ n^temperature, where n is its number of pairs weighted by
source; a source of that language by weight x pairs; and then any of its pairs with equal probability. order="epochs" goes
through a new random permutation of all pairs per epoch; it ignores weights and temperature, and a batch may span two epochs.

A duplicate English segment would be a false negative for a contrastive term and would make KoLeo's -log(distance) explode
(tests/train/test_losses.py). With distinct_english, of the pairs drawn together (a batch, or the batches of a bucket) only the
first of each English segment is kept. "draw" may draw the dropped ones again later; "epochs" skips them for that epoch.

Pairs are found through the shards' table of groups and their memory-mapped order.npy; only neighbours and translations need
arrays as long as the corpus.
"""

from __future__ import annotations

import numpy as np

from mexma_rt.errors import InputError
from mexma_train.config import SamplingConfig
from mexma_train.data.dev_split import held_out_segments, training_part
from mexma_train.data.shards import Shards
from mexma_train.neighbourhoods import Neighbourhoods, make_neighbourhoods
from mexma_train.permutation import permute
from mexma_train.translations import Translations, translations_of

BATCH, BUCKET, DEAL, EPOCH, ESTIMATE, OTHERS, NEAR, MORE = range(8)  # streams of random numbers
ESTIMATE_PAIRS = 16_384  # gives the mean length to about 1 %, as the standard deviation of lengths is about their mean


class PairSampler:
    """Draws batches of pair numbers. Has no state but caches, and may be shared between threads."""

    def __init__(self, shards: Shards, config: SamplingConfig) -> None:
        """Raises InputError for a source that the shards lack, a negative weight or seed, and weights that exclude all."""
        _check(shards, config)
        if config.dev_share:
            shards = training_part(shards, held_out_segments(shards, config.dev_share))
        self.shards, self.config = shards, config
        share = self._group_shares()
        used = [(group, p) for group, p in zip(shards.groups, share, strict=True) if p > 0]
        self.starts, self.counts, self.langs = np.array([(g.start, g.count, g.lang) for g, _ in used], np.int64).T
        self.share = np.array([p for _, p in used])  # probability of each used group
        self._near: Neighbourhoods | None = None
        self._translations: Translations | None = None
        self._last: tuple[tuple[int, int, int | None], list[np.ndarray]] | None = None

    def _group_shares(self) -> np.ndarray:
        """The probability of each of the shards' groups for a drawn pair: float64 [groups]."""
        groups = self.shards.groups
        counts = np.array([group.count for group in groups], np.float64)
        if self.config.order == "epochs":
            return np.asarray(counts / counts.sum())
        weight = np.array([self.config.source_weights.get(name, 1.0) for name in self.shards.sources])
        langs = np.array([group.lang for group in groups])
        mass = counts * weight[[group.source for group in groups]]
        of_lang = np.bincount(langs, weights=mass, minlength=len(self.shards.languages))
        if not mass.any():
            raise InputError("sampling.source_weights is 0 for every source of the shards, so there is nothing to draw from.")
        share: np.ndarray = np.zeros_like(of_lang)
        share[of_lang > 0] = of_lang[of_lang > 0] ** self.config.temperature
        share /= share.sum()
        within = np.divide(mass, of_lang[langs], out=np.zeros_like(mass), where=of_lang[langs] > 0)
        return np.asarray(share[langs] * within)

    @property
    def language_share(self) -> np.ndarray:
        """Expected share of each language in what is drawn: float64, in the order of shards.languages."""
        return np.bincount(self.langs, weights=self.share, minlength=len(self.shards.languages))

    def batch(self, number: int, pairs: int) -> np.ndarray:
        """Return batch `number` (>= 0): int64 pair numbers, `pairs` of them minus those that distinct_english drops."""
        return self._distinct(self._rows(BATCH, number, pairs))

    def neighbour_batch(self, number: int, pairs: int, group: int) -> np.ndarray:
        """Like `batch`, in groups of up to `group` pairs with similar English segments: see neighbourhoods.py.

        The first pair of a group is drawn as in `batch`; the others are segments of its neighbourhood, each with a random
        translation. Raises InputError for order="epochs".
        """
        if self._near is None:
            self._near = make_neighbourhoods(self.shards, self._drawable("ranking.neighbours"), self.config.seed)
        seeds = self._drawn(NEAR, number, max(1, pairs // group))
        rng = self._rng(NEAR, number)
        near = self._near.near(rng, self.shards.pair_english[seeds].astype(np.int64), group)
        return self._distinct(np.concatenate([seeds, self._pairs_of_segments().one_of(rng, near)]))

    def more_translations(self, number: int, rows: np.ndarray, most: int) -> np.ndarray:
        """Return the rows, and up to `most` - 1 other drawable pairs of each one's English segment, chosen at random."""
        segments = self.shards.pair_english[rows].astype(np.int64)
        found = self._pairs_of_segments().others(self._rng(MORE, number), segments, most)
        found = found[~np.isin(found, rows)]
        of_segment = self.shards.pair_english[found]
        starts = np.flatnonzero(np.concatenate([[True], of_segment[1:] != of_segment[:-1]])) if len(found) else found
        place = np.arange(len(found)) - np.repeat(starts, np.diff(np.append(starts, len(found))))
        return np.concatenate([rows, found[place < most - 1]])

    def _pairs_of_segments(self) -> Translations:
        if self._translations is None:
            self._translations = translations_of(self.shards, self._drawable("ranking.translations"))
        return self._translations

    def _drawable(self, what: str) -> np.ndarray:
        """Every pair that can be drawn."""
        if self.config.order == "epochs":
            raise InputError(f"{what} needs --sampling.order draw: epochs take every pair once, and cannot add similar ones.")
        used = [np.arange(start, start + count) for start, count in zip(self.starts, self.counts, strict=True)]
        return np.asarray(self.shards.order[np.concatenate(used)])

    def others(self, number: int, pairs: int, batch: np.ndarray) -> np.ndarray:
        """Return pairs drawn like those of a batch, at most one for each English segment and none for those of the batch."""
        rows, english = self._drawn(OTHERS, number, pairs), self.shards.english_hash
        hashes, first = np.unique(english[self.shards.pair_english[rows]], return_index=True)
        return rows[np.sort(first[~np.isin(hashes, english[self.shards.pair_english[batch]])])]

    def micro_batch(self, number: int, pairs: int, max_tokens: int | None = None) -> np.ndarray:
        """Like `batch`, but with pairs of similar length; the batches of a bucket have equal tokens, give or take one pair.

        config.bucket batches are drawn together, sorted by tokens (of both sides, each cut to max_tokens) and cut into that
        many parts, which are shuffled. Raises InputError if fewer distinct pairs are drawn than there are parts.
        """
        if self.config.bucket == 1:
            return self.batch(number, pairs)
        bucket, place = divmod(number, self.config.bucket)
        key = (bucket, pairs, max_tokens)
        last = self._last  # read once, because another thread may replace it
        if last is None or last[0] != key:
            last = self._last = (key, self._bucket(bucket, pairs, max_tokens))
        return last[1][place].copy()

    def _bucket(self, number: int, pairs: int, max_tokens: int | None) -> list[np.ndarray]:
        parts = self.config.bucket
        rows = self._distinct(self._rows(BUCKET, number, pairs * parts))
        if len(rows) < parts:
            raise InputError(
                f"{pairs} pairs x sampling.bucket={parts} hold only {len(rows)} distinct English segments, fewer than the "
                "batches to fill. Set sampling.bucket to 1, or sampling.distinct_english to no."
            )
        lengths = self.shards.lengths(rows, max_tokens)
        by_length = np.argsort(lengths, kind="stable")
        cut = np.split(rows[by_length], equal_cuts(lengths[by_length], parts))
        return [cut[i] for i in self._rng(DEAL, number).permutation(parts)]

    def pairs_for_tokens(self, tokens: int, max_tokens: int) -> int:
        """How many pairs (at least 1) should have `tokens` tokens: both sides with <s> and </s>, cut to max_tokens each."""
        return max(1, round(tokens / self.mean_tokens(max_tokens)))

    def mean_tokens(self, max_tokens: int) -> float:
        """Mean tokens of a drawn pair: both sides with <s> and </s>, cut to max_tokens each; estimated on a fixed sample."""
        if self.config.order == "epochs":
            rows = permute(np.arange(min(ESTIMATE_PAIRS, len(self.shards))), len(self.shards), self._seed(ESTIMATE, 0))
        else:
            rows = self._drawn(ESTIMATE, 0, ESTIMATE_PAIRS)
        return float(self.shards.lengths(rows, max_tokens).mean())

    def _rows(self, stream: int, number: int, pairs: int) -> np.ndarray:
        return self._in_epochs(number, pairs) if self.config.order == "epochs" else self._drawn(stream, number, pairs)

    def _drawn(self, stream: int, number: int, pairs: int) -> np.ndarray:
        rng = self._rng(stream, number)
        group = np.repeat(np.arange(len(self.counts)), rng.multinomial(pairs, self.share))
        return np.asarray(self.shards.order[rng.permutation(self.starts[group] + rng.integers(0, self.counts[group]))])

    def _in_epochs(self, number: int, pairs: int) -> np.ndarray:
        epoch, place = np.divmod(number * pairs + np.arange(pairs), len(self.shards))
        rows = np.empty(pairs, np.int64)
        for e in np.unique(epoch):
            rows[epoch == e] = permute(place[epoch == e], len(self.shards), self._seed(EPOCH, int(e)))
        return rows

    def _distinct(self, rows: np.ndarray) -> np.ndarray:
        if not self.config.distinct_english:
            return rows
        _, first = np.unique(self.shards.english_hash[self.shards.pair_english[rows]], return_index=True)
        return rows[np.sort(first)]

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, stream, number))

    def _seed(self, stream: int, number: int) -> int:
        return int(np.random.SeedSequence((self.config.seed, stream, number)).generate_state(1, np.uint64)[0])


def equal_cuts(lengths: np.ndarray, parts: int) -> np.ndarray:
    """Where to cut n >= parts pairs laid end to end into parts of equal token sums: int64 [parts - 1], each part >= 1 pair.

    Part k begins with the first pair whose middle lies beyond k / parts of all tokens, so each sum differs from the mean by at
    most the longest pair, unless a pair longer than the mean must form a part of its own.
    """
    ends = np.cumsum(lengths)
    middles = ends - lengths / 2
    cuts = np.searchsorted(middles, ends[-1] * np.arange(1, parts) / parts)
    place = np.arange(1, parts)
    cuts = np.maximum.accumulate(np.maximum(cuts, place) - place) + place  # at least one pair before each cut ...
    return np.asarray(np.minimum(cuts, len(lengths) - parts + place))  # ... and after it


def deal(lengths: np.ndarray, ranks: int) -> np.ndarray:
    """Return the rank int64 [n] of each pair: pair counts differ by at most one, token sums by at most the longest pair.

    Pairs are dealt longest first, in rounds: a round gives every rank one pair, the longest to the rank with the fewest tokens
    so far. Of two ranks, the one with fewer tokens gets the longer pair, so their difference shrinks, or changes its sign and
    is then at most the difference of the two pairs.
    """
    lengths = np.asarray(lengths, np.int64)
    rank = np.empty(len(lengths), np.int64)
    sums = np.zeros(ranks, np.int64)
    by_length = np.argsort(-lengths, kind="stable")
    for first in range(0, len(lengths), ranks):
        pairs = by_length[first : first + ranks]
        emptiest = np.argsort(sums, kind="stable")[: len(pairs)]
        rank[pairs] = emptiest
        sums[emptiest] += lengths[pairs]
    return rank


def _check(shards: Shards, config: SamplingConfig) -> None:
    unknown = sorted(set(config.source_weights) - set(shards.sources))
    if unknown:
        raise InputError(
            f"sampling.source_weights names {', '.join(unknown)}, but the shards {shards.folder} have the sources "
            f"{', '.join(shards.sources)}. Correct the name, or leave it out."
        )
    if wrong := {name: w for name, w in config.source_weights.items() if not 0 <= w < float("inf")}:
        raise InputError(f"sampling.source_weights has {wrong}; a weight is a number from 0 (never drawn) up.")
    if not 0 <= config.dev_share < 1 or (config.dev_share and config.order == "epochs"):
        raise InputError(
            f"sampling.dev_share is {config.dev_share} with order {config.order!r}; it is a share from 0 up to 1, and needs "
            "--sampling.order draw, because epochs go through all pairs."
        )
    if config.bucket < 1 or config.seed < 0:
        raise InputError(f"sampling.bucket is {config.bucket} and sampling.seed {config.seed}; at least 1 and 0 are needed.")
