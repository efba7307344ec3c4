"""Quantises weights to 4 or 8 bits with one scale per block of a row: number = step * scale, rounded to float32.

Steps are whole numbers from -8 to 7 (4 bits) or -128 to 127 (8 bits). If a 4-bit block already lies on such a grid (ggml's
Q4_0, or weights trained with this rounding), the grid is recovered: each number is reproduced bit for bit, or up to its last
digit if float32 rounded the number that the scale is derived from. Otherwise the scale with the least squared error is used.
Scales are stored as fp16, which halves their size, unless the matrix lies on a grid whose scales fp16 cannot hold exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from mexma_rt.errors import BundleError

ROWS = 4096  # processed at once: for all of XLM-R-large's word embeddings, temporaries would take gigabytes
# Possible steps of the number farthest from zero in a block on a 4-bit grid: -8 in Q4_0, 7 or less elsewhere.
PEAKS = (-8, 7, 6, 5, 4, 3, 2, 1, -7, -6, -5, -4, -3, -2, -1)
LAST_DIGIT = 2.0**-21  # relative error of float32 left by dividing by a rounded multiple of the scale
# Scales tried for a block off the grid, as multiples of (number farthest from zero) / (lowest step): clipping the farthest
# number, or leaving steps unused, often rounds the others better. On normal numbers: 0.89 of the squared error of 1.0.
SHRINK = np.linspace(0.8, 1.16, 19, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A quantised matrix [R, C]: steps int8 [R, C], within the range of `bits`; scales [R, C / size], float16 or float32."""

    steps: np.ndarray
    scales: np.ndarray
    bits: int
    size: int

    @property
    def numbers(self) -> np.ndarray:
        """The dequantised numbers, float32 [R, C]."""
        rows, columns = self.steps.shape
        wide = self.steps.reshape(rows, -1, self.size).astype(np.float32) * self.scales.astype(np.float32)[..., None]
        return wide.reshape(rows, columns)

    @property
    def packed(self) -> np.ndarray:
        """uint8 codes in the layout of MatMulNBits, [R, C / size, size * bits / 8]; code = step + 8 (4 bits) or + 128 (8 bits).

        Of two 4-bit codes in a byte, the first is in the lower half.
        """
        rows, columns = self.steps.shape
        codes = self.steps.view(np.uint8) + np.uint8(1 << (self.bits - 1))  # wraps around, as intended
        codes = codes.reshape(rows, columns // self.size, -1)
        return codes if self.bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4


def quantise_blocks(matrix: np.ndarray, *, bits: int, size: int) -> Blocks:
    """Quantise a float32 matrix [R, C] to 4 or 8 bits with a scale per `size` numbers of a row; returns the Blocks.

    In 4 bits, blocks that lie on a grid are stored without loss. Raises BundleError if C is not a multiple of `size`.
    """
    rows, columns = matrix.shape
    if columns % size:
        raise BundleError(
            f"Rows of {columns} numbers cannot be split into blocks of {size}: the w4 and w8 graphs need widths that are "
            f"multiples of {size}. Type --precision fp32,int8"
        )
    steps = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, columns // size), np.float32)
    for start in range(0, rows, ROWS):
        part = np.ascontiguousarray(matrix[start : start + ROWS], dtype=np.float32).reshape(-1, size)
        found, scale, on_grid = _grids(part) if bits == 4 else (np.zeros(part.shape, np.int8), *_none(part))
        if not on_grid.all():
            found[~on_grid], scale[~on_grid] = _nearest(part[~on_grid], bits)
        steps[start : start + ROWS] = found.reshape(-1, columns)
        scales[start : start + ROWS] = scale.reshape(-1, columns // size)
    half = scales.astype(np.float16)
    fits = np.array_equal(half.astype(np.float32), scales)
    return Blocks(steps=steps, scales=half if fits else scales, bits=bits, size=size)


def on_grid(matrix: np.ndarray, *, size: int) -> bool:
    """Whether every block of `size` numbers of a row of [R, C] lies on a 4-bit grid, so that 4 bits store it without loss."""
    rows, columns = matrix.shape
    if columns % size:
        return False
    parts = (matrix[start : start + ROWS].reshape(-1, size) for start in range(0, rows, ROWS))
    return all(bool(_grids(np.ascontiguousarray(part, dtype=np.float32))[2].all()) for part in parts)


def _none(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(len(part), np.float32), np.zeros(len(part), bool)


def _grids(part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recover the 4-bit grids of blocks [N, size]: steps int8 [N, size], scales float32 [N], and bool [N], where it worked."""
    steps, scales = np.zeros(part.shape, np.int8), np.zeros(len(part), np.float32)
    top = part[np.arange(len(part)), np.abs(part).argmax(axis=1)]
    done = top == 0
    for tolerance, peak in product((0.0, LAST_DIGIT), PEAKS):
        left = np.flatnonzero(~done)
        if not len(left):
            break
        numbers, scale = part[left], top[left] / np.float32(peak)
        whole = np.rint(numbers / scale[:, None])
        near = np.abs(whole * scale[:, None] - numbers) <= np.float32(tolerance) * np.abs(numbers)
        good = ((whole >= -8) & (whole <= 7) & near).all(axis=1)
        steps[left[good]], scales[left[good]], done[left[good]] = whole[good], scale[good], True
    return steps, scales, done


def _nearest(part: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantise blocks [N, size] by the scale of SHRINK with the least squared error: steps int8 [N, size], scales float32 [N].

    The scales are fp16 numbers.
    """
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    top = part[np.arange(len(part)), np.abs(part).argmax(axis=1)]
    steps, scales, least = (
        np.zeros(part.shape, np.int8),
        np.zeros(len(part), np.float32),
        np.full(len(part), np.inf, np.float32),
    )
    for shrink in SHRINK if bits == 4 else SHRINK[10:11]:  # in 8 bits 1.0 alone: clipping the farthest number does not pay
        # fp16 ranges from 6e-8 to 65504; a scale below that is zero, and the block's numbers, which are as small, are lost
        scale = np.clip(top / np.float32(low) * shrink, -65504, 65504).astype(np.float16).astype(np.float32)
        whole = np.clip(np.rint(part / np.where(scale == 0, np.inf, scale)[:, None]), low, high)
        error = ((whole * scale[:, None] - part) ** 2).sum(axis=1)
        better = error < least
        steps[better], scales[better], least[better] = whole[better], scale[better], error[better]
    return steps, scales
