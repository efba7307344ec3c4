"""Product-quantised word rows: 96 bytes for a row of 384 numbers, which takes 216 in 4 bits (Jégou et al. 2011,
https://doi.org/10.1109/TPAMI.2010.57).

A row is cut into parts of PART numbers. Each place in the row has a codebook of 256 parts, and the row stores one byte per
place. The first rows, a tokenizer's most frequent pieces (XLM-R orders them by frequency), keep their numbers. Coding happens
before training, so that the layers learn with the rows that ship; an export recovers the codes from the table alone, bit for
bit (`find_codes`).

The cost of coding before any training, with layers trained on exact rows (multilingual-e5-small's 250,002; FLORES error on the
first 400 lines of 9 hard languages / Tatoeba accuracy over 4, %): exact 2.89 / 85.65, the first 32,000 exact 2.97 / 85.18,
all coded 3.22 / 84.49. The earlier bundled model, with 84,000 exact rows and layers trained for them: 5.39 / 75.97.

V rows, D numbers per row, P = D / PART places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mexma_export.blocks import on_grid
from mexma_rt.bundle.weights import coded_rows
from mexma_rt.errors import InputError, require_extra

PART = 4  # numbers per part
WORDS_OF_A_BOOK = 256  # a code is one byte
SLAB = 1024  # the first coded row is a multiple of it
ITERATIONS, SEED = 25, 0  # of k-means
ZIPF = 1000  # k-means draws row r with weight 1 / (r + ZIPF), so frequent pieces count more


@dataclass(frozen=True, kw_only=True)
class WordCodes:
    """Rows `first` to V of a table: codes uint8 [V - first, P] into books float16 [P, 256, PART]."""

    first: int
    codes: np.ndarray
    books: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """The decoded rows, float32 [V - first, D]."""
        return coded_rows(self.codes, self.books)


def code_rows(table: np.ndarray, first: int) -> np.ndarray:
    """Return the table as float32 [V, D], with the rows from `first` on replaced by their decoded codes.

    Raises InputError if `first` is outside 0 to V - 256 or not a multiple of SLAB, or if D is not a multiple of PART;
    MissingExtraError without faiss-cpu.
    """
    require_extra("faiss", "faiss")
    import faiss

    rows, width = table.shape
    if width % PART or first % SLAB or not 0 <= first <= rows - WORDS_OF_A_BOOK:
        raise InputError(
            f"Rows from {first} on of a table [{rows}, {width}] cannot be coded: the first must be a multiple of {SLAB}, at "
            f"least {WORDS_OF_A_BOOK} rows must be coded, and the row width must be a multiple of {PART}."
        )
    coded = np.ascontiguousarray(table[first:], np.float32)
    weight = 1 / (np.arange(first, rows) + ZIPF)
    drawn = np.random.default_rng(SEED).choice(len(coded), len(coded), p=weight / weight.sum())
    quantizer = faiss.ProductQuantizer(width, width // PART, 8)
    settings = quantizer.cp
    settings.niter, settings.seed = ITERATIONS, SEED
    settings.min_points_per_centroid, settings.max_points_per_centroid = 1, len(coded)
    quantizer.train(coded[drawn])
    books = faiss.vector_to_array(quantizer.centroids).reshape(-1, WORDS_OF_A_BOOK, PART).astype(np.float16)
    faiss.copy_array_to_vector(books.astype(np.float32).ravel(), quantizer.centroids)
    found = WordCodes(first=first, codes=quantizer.compute_codes(coded), books=books)
    return np.concatenate([table[:first].astype(np.float32), found.rows])


def find_codes(table: np.ndarray) -> WordCodes | None:
    """Recover the codes of a table [V, D] whose last rows are coded, as many as there are; None if fewer than half are.

    The codes reproduce the rows bit for bit.
    """
    rows, width = table.shape
    if width % PART or rows <= 2 * WORDS_OF_A_BOOK:
        return None
    table = np.ascontiguousarray(table, np.float32)
    places, first = width // PART, 0
    for place in range(places):
        first = max(first, _first_coded(_part_names(table, place)))
        if first > rows // 2:
            return None
    books = np.zeros((places, WORDS_OF_A_BOOK, PART), np.float16)
    codes = np.empty((rows - first, places), np.uint8)
    for place in range(places):
        _, where, codes[:, place] = np.unique(_part_names(table, place)[first:], return_index=True, return_inverse=True)
        books[place, : len(where)] = table[first + where, place * PART : (place + 1) * PART]
    found = WordCodes(first=first, codes=codes, books=books)
    return found if np.array_equal(found.rows, table[first:]) else None


def stored_without_loss(table: np.ndarray) -> bool:
    """Whether 4-bit blocks (blocks.py) and codes store every number of a word table [V, D] without loss."""
    codes = find_codes(table)
    return on_grid(table if codes is None else table[: codes.first], size=32)


def _part_names(table: np.ndarray, place: int) -> np.ndarray:
    """Hash the part of each row at a place, uint64 [V]; the same bits have the same hash, and others hardly ever do."""
    halves = np.ascontiguousarray(table[:, place * PART : (place + 1) * PART]).view(np.uint64)
    names: np.ndarray = halves[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ halves[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F)
    return names


def _first_coded(names: np.ndarray) -> int:
    """Return the first row, a multiple of SLAB, from which on there are at most 256 different parts; V if there is none."""
    last = len(names) - 1 - np.unique(names[::-1], return_index=True)[1]  # the last row of each part
    if len(last) <= WORDS_OF_A_BOOK:
        return 0
    before = int(np.partition(last, -WORDS_OF_A_BOOK - 1)[-WORDS_OF_A_BOOK - 1])  # from this row on, there are 257
    return min((before // SLAB + 1) * SLAB, len(names))
