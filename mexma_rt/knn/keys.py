"""Encodes neighbours as sortable integers: the k best of several parts, merged in any order, are the k smallest.

A key has the score, in an order-preserving and inverted form, in its upper 32 bits and the index in the lower. Ascending keys
mean descending scores, and ascending indices for equal scores.
"""

from __future__ import annotations

import numpy as np

EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)  # sorts after every neighbour: none found yet
MOST_ROWS = 2**32 - 1  # of a side, because an index has 32 bits of the key
MATRIX = 1 << 18  # keys sorted at a time


def keys_of(scores: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Turn finite float32 scores and indices of the same shape into uint64 keys."""
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 becomes 0, so that they tie
    falling = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFF_FFFF))
    return falling.astype(np.uint64) << np.uint64(32) | index.astype(np.uint64)


def neighbours_of(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn uint64 keys of any shape into (scores float32, index int64); -inf and -1 if none was found."""
    falling = (keys >> np.uint64(32)).astype(np.uint32)
    scores = np.where(falling >> 31, falling, ~falling & np.uint32(0x7FFF_FFFF)).view(np.float32)
    index = (keys & np.uint64(0xFFFF_FFFF)).astype(np.int64)
    empty = keys == EMPTY
    return np.where(empty, np.float32(-np.inf), scores), np.where(empty, -1, index)


def no_neighbours(n: int, k: int) -> np.ndarray:
    """Return keys [n, k] of rows without neighbours yet."""
    return np.full((n, k), EMPTY)


def merge_neighbours(*parts: np.ndarray) -> np.ndarray:
    """Return the k best of several keys [n, any] of the same rows, k being the width of the first part.

    Associative and commutative. A neighbour that is in several parts counts once, so a part may be merged again.
    """
    together = np.sort(np.concatenate(parts, axis=1), axis=1)
    together[:, 1:][together[:, 1:] == together[:, :-1]] = EMPTY
    together.sort(axis=1)
    return np.ascontiguousarray(together[:, : parts[0].shape[1]])


def merge_found(keys: np.ndarray, query: np.ndarray, found: np.ndarray) -> None:
    """Merge found keys [m], each of a row query [m], into keys [n, k], in place. None of them may already be there."""
    if not len(query):
        return
    k = keys.shape[1]
    order = np.argsort(query, kind="stable")
    query, found = query[order], found[order]
    starts = np.flatnonzero(np.concatenate([[True], query[1:] != query[:-1]]))
    counts = np.diff(np.concatenate([starts, [len(query)]]))
    slot = np.repeat(np.arange(len(starts)), counts)
    rank = np.arange(len(query)) - starts[slot]
    queries = query[starts]
    while len(found):  # usually once: few rows find more than MATRIX / rows at a time
        width = min(int(rank.max()) + 1, max(k, MATRIX // len(queries)))
        now = rank < width
        both = np.full((len(queries), k + width), EMPTY)
        both[:, :k] = keys[queries]
        both[slot[now], k + rank[now]] = found[now]
        both.sort(axis=1)
        keys[queries] = both[:, :k]
        later = ~now
        found, slot, rank = found[later], slot[later], rank[later] - width
