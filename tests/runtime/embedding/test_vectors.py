"""Stored vectors: the bytes of sentence-transformers given the same ranges, never those of the batch; the way back; cosines."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mexma_rt
from mexma_rt import BundleError, InputError
from mexma_rt.files.storage import Ranges, finish, restore

STORED = ("int8", "uint8", "binary", "ubinary")


@pytest.fixture(scope="module")
def texts(sentences: list[tuple[str, str]]) -> list[str]:
    return [*(text for _, text in sentences), "", "a"]


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path, texts: list[str]) -> mexma_rt.Encoder:
    """With ranges that some components of other sentences leave."""
    encoder = mexma_rt.load(tiny_bundle, device="cpu", precision="fp32", threads=1)
    vectors = encoder.embed(texts[::2])
    ranges = Ranges(minimum=tuple(vectors.min(axis=0).tolist()), maximum=tuple(vectors.max(axis=0).tolist()))
    return dataclasses.replace(encoder, bundle=dataclasses.replace(encoder.bundle, ranges=ranges))


def of(encoder: mexma_rt.Encoder) -> np.ndarray:
    assert encoder.bundle.ranges is not None
    return np.array([encoder.bundle.ranges.minimum, encoder.bundle.ranges.maximum], np.float32)


@pytest.mark.peers
@pytest.mark.parametrize("precision", STORED)
def test_bytes_are_those_of_sentence_transformers(encoder: mexma_rt.Encoder, texts: list[str], precision: str) -> None:
    reason = "compares with sentence-transformers: pip install 'mexma-rt[bench]'"
    quantize = pytest.importorskip("sentence_transformers.util.quantization", reason=reason).quantize_embeddings
    vectors = encoder.embed_report(texts).vectors
    theirs = quantize(vectors, precision=precision, ranges=of(encoder))
    ours = encoder.embed(texts, precision=precision)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
    if precision in ("int8", "uint8"):
        assert len(np.unique(ours)) > 100 and (vectors > of(encoder)[1]).any()  # buckets are used, also beyond the ranges
    # As their encode() cuts: after the normalisation, and no second one.
    theirs = quantize(vectors[:, :12], precision=precision, ranges=of(encoder)[:, :12])
    for call in (encoder.embed, encoder.encode):
        np.testing.assert_array_equal(call(texts, precision=precision, truncate_dim=12), theirs)
    with encoder.service() as service:
        np.testing.assert_array_equal(service.embed(texts, precision=precision, truncate_dim=12), theirs)


@pytest.mark.peers
@settings(deadline=None)
@example(vectors=np.array([[2.0, *[1e-45] * 10]], np.float32), bounds=np.zeros((2, 11), np.float32))  # vanish when normalised
@given(
    vectors=hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(11)), elements=st.floats(-2, 2, width=32)),
    bounds=hnp.arrays(np.float32, (2, 11), elements=st.floats(-1, 1, width=32)),
)
def test_any_vectors_and_ranges_give_the_bytes_of_sentence_transformers(vectors: np.ndarray, bounds: np.ndarray) -> None:
    reason = "compares with sentence-transformers: pip install 'mexma-rt[bench]'"
    quantize = pytest.importorskip("sentence_transformers.util.quantization", reason=reason).quantize_embeddings
    bounds = np.sort(bounds, axis=0)
    ranges = Ranges(minimum=tuple(bounds[0].tolist()), maximum=tuple(bounds[1].tolist()))
    unit = finish(vectors, normalize=True, precision="float32", truncate_dim=None, ranges=None)
    for precision in STORED:
        ours = finish(vectors, normalize=True, precision=precision, truncate_dim=None, ranges=ranges)
        theirs = quantize(unit, precision=precision, ranges=bounds)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_a_bucket_by_hand() -> None:
    ranges = Ranges(minimum=(-1.1, 0.0, 0.5), maximum=(1.0, 1.1, 0.5))
    raw = np.array([[0.6, 0.8, 0.0], [-3.0, 0.0, 0.0]], np.float32)  # of length 1 and 3
    # floor(1.7 * 255 / 2.1) = 206, floor(0.8 * 255 / 1.1) = 185, 0 is below 0.5; floor(0.1 * 255 / 2.1) = 12
    stored = finish(raw, normalize=True, precision="uint8", truncate_dim=None, ranges=ranges)
    assert stored.tolist() == [[206, 185, 0], [12, 0, 0]]
    np.testing.assert_array_equal(
        finish(raw, normalize=True, precision="int8", truncate_dim=None, ranges=ranges), stored.astype(int) - 128
    )
    assert finish(raw, normalize=True, precision="ubinary", truncate_dim=None, ranges=None).tolist() == [[0b11000000], [0]]
    assert finish(raw, normalize=True, precision="binary", truncate_dim=None, ranges=None).tolist() == [[64], [-128]]


@pytest.mark.parametrize("precision", STORED)
def test_rows_do_not_depend_on_the_batch(encoder: mexma_rt.Encoder, texts: list[str], precision: str) -> None:
    together = encoder.embed(texts, precision=precision)
    for row, text in zip(together, texts, strict=True):
        np.testing.assert_allclose(encoder.embed([text], precision=precision)[0], row, atol=1)  # a rounding at a bucket's edge


def test_out_has_the_type_and_columns_of_the_storage(encoder: mexma_rt.Encoder) -> None:
    out = np.empty((2, 4), np.uint8)
    assert encoder.embed(["a", "b"], precision="ubinary", out=out) is out
    message = "out is uint8 (2, 4), but these texts at precision='int8' need an array int8 (2, 32)."
    with pytest.raises(InputError, match=re.escape(message)):
        encoder.embed(["a", "b"], precision="int8", out=out)
    assert encoder.embed([], precision="binary").shape == (0, 4)


# --- the way back -------------------------------------------------------------------------------------------------------


def test_restored_buckets_are_within_half_a_step(encoder: mexma_rt.Encoder, texts: list[str]) -> None:
    vectors, (low, high) = encoder.embed(texts[::2]), of(encoder)  # all within the ranges
    for precision in ("int8", "uint8"):
        for columns in (32, 12):
            stored = encoder.embed(texts[::2], precision=precision, truncate_dim=columns)
            back = encoder.restore(stored, precision=precision)
            assert back.dtype == np.float32
            assert (np.abs(back - vectors[:, :columns]) <= ((high - low) / 255 * 0.501)[:columns]).all()


def test_restored_signs(encoder: mexma_rt.Encoder, texts: list[str]) -> None:
    signs = np.where(encoder.embed(texts) > 0, 1, -1)
    for precision in ("binary", "ubinary"):
        np.testing.assert_array_equal(encoder.restore(encoder.embed(texts, precision=precision)), signs)
        cut = encoder.embed(texts, precision=precision, truncate_dim=16)
        np.testing.assert_array_equal(encoder.restore(cut, precision=precision), signs[:, :16])


def test_similarity_of_every_storage(encoder: mexma_rt.Encoder, texts: list[str]) -> None:
    texts = texts[::2]  # those that made the ranges: nothing is beyond them
    x = encoder.embed(texts).astype(np.float64)
    expected = x @ x.T
    for precision, tolerance in {"float32": 1e-6, "float16": 2e-3, "int8": 0.05, "uint8": 0.05}.items():
        stored = encoder.embed(texts, precision=precision)
        np.testing.assert_allclose(encoder.similarity(stored, stored), expected, atol=tolerance)
        np.testing.assert_allclose(encoder.similarity(x[:3].astype(np.float32), stored), expected[:3], atol=tolerance)
    bits = encoder.embed(texts, precision="ubinary")
    hamming = np.unpackbits(bits[:, None] ^ bits[None], axis=2).sum(axis=2)
    np.testing.assert_allclose(encoder.similarity(bits, bits), 1 - 2 * hamming / 32, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity(x[0], 7 * x[1]), expected[:1, 1:2], atol=1e-6)  # lengths do not matter
    assert encoder.similarity(np.zeros((1, 32)), x)[0, 0] == 0


@pytest.mark.peers
def test_similarity_is_that_of_sentence_transformers(encoder: mexma_rt.Encoder, texts: list[str]) -> None:
    reason = "compares with sentence-transformers: pip install 'mexma-rt[bench]'"
    cos_sim = pytest.importorskip("sentence_transformers.util", reason=reason).cos_sim
    raw = encoder.embed(texts, normalize=False)
    np.testing.assert_allclose(encoder.similarity(raw[:5], raw), cos_sim(raw[:5], raw), atol=1e-5)


def test_what_cannot_be_compared(encoder: mexma_rt.Encoder) -> None:
    rows = np.zeros((2, 8), np.int8)
    message = "Vectors int8 (2, 8) are not whole vectors of 32 dimensions, so say how they are stored: precision='int8' or 'bi"
    with pytest.raises(InputError, match=re.escape(message)):
        encoder.restore(rows)
    with pytest.raises(InputError, match="cannot be binary of a model with 32 dimensions"):
        encoder.restore(rows, precision="binary")
    with pytest.raises(InputError, match="cannot be uint8 of a model"):
        encoder.restore(rows, precision="uint8")
    with pytest.raises(InputError, match=re.escape("Vectors of shapes (1, 3) and (1, 4) cannot be compared")):
        encoder.similarity(np.zeros(3), np.zeros(4))
    plain = dataclasses.replace(encoder, bundle=dataclasses.replace(encoder.bundle, ranges=None))
    for call in (lambda: plain.embed(["a"], precision="uint8"), lambda: restore(rows, 8, None, "int8")):
        with pytest.raises(
            InputError, match=r"needs a range per dimension, but this bundle has none(?s:.*)Export it again, or type"
        ):
            call()


# --- the manifest -------------------------------------------------------------------------------------------------------


def with_manifest(source: Path, target: Path, **entries: object) -> Path:
    shutil.copytree(source, target)
    manifest = json.loads((target / "mexma.json").read_bytes())
    (target / "mexma.json").write_text(json.dumps(manifest | entries))
    return target


def test_ranges_come_from_the_manifest(tiny_bundle: Path, tmp_path: Path) -> None:
    ranges = {"minimum": [-0.25] * 32, "maximum": [0.5] * 31 + [1], "source": "test"}
    bundle = mexma_rt.load(with_manifest(tiny_bundle, tmp_path / "b", ranges=ranges)).bundle
    assert bundle.ranges == Ranges(minimum=(-0.25,) * 32, maximum=(0.5,) * 31 + (1.0,))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"ranges": []}, "ranges does not have 32 numbers under both minimum and maximum"),
        ({"ranges": {"minimum": [0.0] * 32, "maximum": [1.0] * 31}}, "ranges does not have 32 numbers"),
        ({"ranges": {"minimum": [0.0] * 32, "maximum": ["1"] * 32}}, "ranges does not have 32 numbers"),
        ({"ranges": {"minimum": [0.5] * 32, "maximum": [0.0] * 32}}, "a minimum that is greater than its maximum"),
        ({"ranges": {"minimum": [0.0] * 32, "maximum": [float("inf")] * 32}}, "or a number that is not finite"),
        ({"golden": {"texts": [], "vectors": []}}, "golden has no texts"),
        ({"golden": {"texts": ["a"], "vectors": [[1.0] * 31]}}, "golden does not have 1 vectors of 32 finite numbers"),
        ({"golden": {"texts": ["a"], "vectors": [[float("nan")] * 32]}}, "golden does not have 1 vectors of 32 finite numbers"),
        ({"golden": {"texts": ["a"], "vectors": [["x"] * 32]}}, "golden does not have 1 vectors of 32 finite numbers"),
    ],
)
def test_damaged_entries_are_refused(tiny_bundle: Path, tmp_path: Path, entries: dict, message: str) -> None:
    with pytest.raises(BundleError, match=rf"mexma\.json: .*{re.escape(message)}"):
        mexma_rt.load(with_manifest(tiny_bundle, tmp_path / "b", **entries))
