"""Blocks of numbers made small: every code back to the same bytes, layouts by hand, rounding held against float64."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_rt.errors import InputError
from mexma_train.squeeze import PLAIN, Code, code_of, decode, encode, round_rows

LOSSLESS = [*(Code("plain", width) for width in (1, 2, 4, 8)), *(Code("planes", width) for width in (2, 4, 8))]


@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=400).map(lambda data: data[: len(data) // 8 * 8]), code=st.sampled_from(LOSSLESS))
def test_every_lossless_code_gives_the_same_bytes(data: bytes, code: Code) -> None:
    used, packed = encode(data, code)
    assert decode(packed, used) == data
    assert used == code or (code, used) == (Code("plain", 8), Code("delta", 8))


@settings(deadline=None, max_examples=60)
@given(data=st.binary(min_size=1, max_size=50), width=st.sampled_from([2, 4]))
def test_bytes_behind_the_last_whole_number_stay(data: bytes, width: int) -> None:
    assert decode(encode(data, Code("planes", width))[1], Code("planes", width)) == data


def test_layouts_by_hand() -> None:
    planes = lzma.compress(bytes([1, 3, 5, 2, 4, 6, 9]))  # of the numbers 1 2 | 3 4 | 5 6, and a byte left over
    assert decode(planes, Code("planes", 2)) == bytes([1, 2, 3, 4, 5, 6, 9])
    differences = np.array([5, 2, -1, 0], "<i8").tobytes()  # of 5, 7, 6, 6
    transposed = bytes(differences[8 * i + byte] for byte in range(8) for i in range(4))
    assert np.frombuffer(decode(lzma.compress(transposed), Code("delta", 8)), "<i8").tolist() == [5, 7, 6, 6]
    rows = np.array([0.5, 0.25], "<f4").tobytes() + bytes([2, 255, 0, 4, 1, 3])  # columns (2, -1), (0, 4), (1, 3)
    expected = [[1.0, 0.0, 0.5], [-0.25, 1.0, 0.75]]
    assert np.frombuffer(decode(lzma.compress(rows), Code("rows", 3)), "<f2").reshape(2, 3).tolist() == expected


def test_of_eight_byte_numbers_the_smaller_code_is_kept() -> None:
    rng = np.random.default_rng(0)
    offsets = np.cumsum(rng.integers(1, 30, 5000)).astype("<i8").tobytes()
    repeated = np.tile(rng.integers(0, 2**62, 50), 100).astype("<i8").tobytes()
    assert encode(offsets, Code("plain", 8))[0] == Code("delta", 8)
    assert encode(repeated, Code("plain", 8))[0] == Code("plain", 8)
    assert len(encode(offsets, Code("plain", 8))[1]) < 0.12 * len(offsets)  # 4.9 bits of entropy in 64, and no waste beside it


def test_codes_of_files(tmp_path: Path) -> None:
    def code(name: str, array: np.ndarray) -> tuple[int, Code]:
        np.save(tmp_path / name, array)
        return code_of(tmp_path / name)

    assert code("a.npy", np.zeros(9, "<u2")) == (128, Code("plain", 2))
    assert code("b.npy", np.zeros((3, 4), "<f2")) == (128, Code("planes", 2))
    assert code("c.npy", np.zeros(9, "<i8")) == (128, Code("plain", 8))
    assert code("d.npy", np.zeros(9, "<U3")) == (0, PLAIN)
    (tmp_path / "no.npy").write_bytes(b"no array")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "a.safetensors").write_bytes(b"any")
    names = ("no.npy", "empty.npy", "a.safetensors", "a.json")
    assert [code_of(tmp_path / name) for name in names] == [(0, PLAIN), (0, PLAIN), (0, Code("planes", 4)), (0, PLAIN)]


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_rounding_is_to_the_nearest_multiple_and_said_beforehand(bits: int) -> None:
    rows = np.random.default_rng(bits).standard_normal((40, 16)).astype("<f2")
    rows[7] = 0
    rounded, restored = round_rows(rows.tobytes(), 16, bits)
    assert decode(encode(rounded, PLAIN)[1], PLAIN) == rounded
    assert decode(lzma.compress(rounded), Code("rows", 16)) == restored
    got, exact = np.frombuffer(restored, "<f2").reshape(40, 16).astype(np.float64), rows.astype(np.float64)
    largest = np.abs(exact).max(1, keepdims=True)
    step = np.where(largest > 0, largest, 1) / (2 ** (bits - 1) - 1)
    nearest = np.clip(np.round(exact / step), -128, 127) * step
    assert np.abs(got - exact).max() <= (0.5 * step + 2**-10 * largest).max()
    assert np.abs(got - nearest).max() <= 2**-10 * largest.max()  # float16's own rounding
    assert (got[7] == 0).all() and np.unique(np.round(got / step)).size <= 2**bits - 1


def test_numbers_that_are_not_finite_are_not_rounded_away() -> None:
    rows = np.array([[1, np.nan]], "<f2")
    with pytest.raises(InputError, match="not finite"):
        round_rows(rows.tobytes(), 2, 8)
