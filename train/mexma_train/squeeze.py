"""Bytes of a file that are known to be numbers, made small and brought back: what pieces.py does to each block.

A block is rearranged as its numbers suggest (a Code says how) and then compressed with xz, which Python itself can read, so
that the other machine needs no package. Measured on 5.6 million pairs of 62 languages in blocks of 8 MiB, packed over raw size:
    token ids, uint16      numbers in place: xz -6 41 %, zstandard level 19 44 %, level 10 49 %; byte planes with xz 63 %
    offsets, order         differences in byte planes: 8.5 % and 0.02 %
    pair_english           numbers in place: 12 %, differences 16 %; so of int64 both are tried and the smaller is kept
    weights, float32       byte planes: 82 %; in place 91 %
    teacher, float16       byte planes: 86 %; rounded to 8, 7, 6, 5 bits a number, by columns: 42, 35, 29, 24 %
A rounded teacher (8,000 rows of 256 principal axes) has least cosines of 0.9998, 0.9990, 0.996, 0.982 with the exact one.
"""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mexma_rt.errors import FileError, InputError

BITS_IN_PLACE = {1: 0, 2: 1, 4: 2, 8: 3}  # xz's lp and pb: log2 of the width to which the numbers are aligned


class Code(NamedTuple):
    """How a block is rearranged. `width`: bytes of a number, but for "rows" numbers of a row.

    plain   as it is
    planes  first bytes of all numbers, then the second ones, ...: exponents beside exponents
    delta   differences of unsigned 64-bit numbers, in planes
    rows    float16 rows as float32 steps [n] and int8 multiples of them, column by column [width, n]: NOT lossless
    """

    kind: str
    width: int


PLAIN = Code("plain", 1)


def code_of(path: Path) -> tuple[int, Code]:
    """Where in a file the numbers begin, and how they are best rearranged; (0, PLAIN) for anything that is not known."""
    if path.suffix == ".safetensors":
        return 0, Code("planes", 4)
    if path.suffix != ".npy":
        return 0, PLAIN
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError):  # empty, of Python objects, or no array at all
        return 0, PLAIN
    kind, width = array.dtype.kind, array.dtype.itemsize
    if width not in BITS_IN_PLACE:
        return 0, PLAIN
    return array.offset, Code("planes" if kind == "f" else "plain", width)  # type: ignore[attr-defined]


def rows_of(path: Path) -> tuple[int, Code]:
    """Where in a float16 [n, width] array file the rows begin, and their code. Raises FileError, InputError if it is none."""
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise FileError(f"{path} is damaged: {error}. Teach the shards again.") from None
    if array.dtype != np.dtype("<f2") or array.ndim != 2:
        raise InputError(f"{path} is {array.dtype} {list(array.shape)}; --teacher-bits rounds float16 [segments, dimensions].")
    return array.offset, Code("rows", array.shape[1])  # type: ignore[attr-defined]


def round_rows(data: bytes, width: int, bits: int) -> tuple[bytes, bytes]:
    """Float16 rows [n, width] rounded to `bits` bits a number: as `decode` of a "rows" block takes them, and what it gives.

    A row's step is its largest number over 2^(bits-1)-1: no number is off by more than half of it, and float16's rounding.
    """
    rows = np.frombuffer(data, "<f2").reshape(-1, width).astype(np.float32)
    if not np.isfinite(rows).all():
        raise InputError("teacher.npy holds numbers that are not finite, which cannot be rounded. Teach the shards again.")
    steps = (np.abs(rows).max(axis=1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)).astype("<f4")
    multiples = np.rint(rows / np.where(steps > 0, steps, 1)).astype(np.int8)
    rounded = steps.tobytes() + multiples.T.tobytes()
    return rounded, _rows(rounded, width)


def encode(data: bytes, code: Code) -> tuple[Code, bytes]:
    """The block packed, and the code with which it was: of plain 8-byte numbers the smaller of plain and delta."""
    if code == Code("plain", 8):
        return min(((c, _pack(data, c)) for c in (code, Code("delta", 8))), key=lambda both: len(both[1]))
    return code, _pack(data, code)


def decode(packed: bytes, code: Code) -> bytes:
    """The block as it was; of a "rows" block float16 rows, as `round_rows` says. Raises lzma.LZMAError."""
    data = lzma.decompress(packed)
    if code.kind == "rows":
        return _rows(data, code.width)
    if code.kind == "planes":
        return _from_planes(data, code.width)
    if code.kind == "delta":
        differences = np.frombuffer(_from_planes(data, 8), "<u8")
        return np.cumsum(differences, dtype="<u8").tobytes()
    return data


def _pack(data: bytes, code: Code) -> bytes:
    aligned = BITS_IN_PLACE[code.width] if code.kind == "plain" else 0
    if code.kind == "delta":
        numbers = np.frombuffer(data, "<u8")
        data = np.diff(numbers, prepend=np.zeros(1, "<u8")).tobytes()
    if code.kind in ("planes", "delta"):
        data = _planes(data, code.width)
    window = max(4096, len(data))  # not the preset's 8 MiB, for which xz takes ten times as much memory
    how = {"preset": 6, "dict_size": window, "lp": aligned, "lc": min(3, 4 - aligned), "pb": aligned}
    filters = [{"id": lzma.FILTER_LZMA2, **how}]
    return lzma.compress(data, check=lzma.CHECK_NONE, filters=filters)  # pieces.py has checksums of its own


def _planes(data: bytes, width: int) -> bytes:
    whole = len(data) // width * width
    return np.frombuffer(data, np.uint8, whole).reshape(-1, width).T.tobytes() + data[whole:]


def _from_planes(data: bytes, width: int) -> bytes:
    whole = len(data) // width * width
    return np.frombuffer(data, np.uint8, whole).reshape(width, -1).T.tobytes() + data[whole:]


def _rows(rounded: bytes, width: int) -> bytes:
    count = len(rounded) // (width + 4)
    steps = np.frombuffer(rounded, "<f4", count)
    multiples = np.frombuffer(rounded, np.int8, offset=4 * count).reshape(width, count).T
    return (multiples.astype(np.float32) * steps[:, None]).astype("<f2").tobytes()
