"""Backgrounds: scores equal a float64 reference and those of score_pairs, chunks are comparable, mismatches are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mexma_rt import FileError, InputError, score_pairs
from mexma_rt.mining.background import Background, model_identity, open_background


def bitext(seed: int, n: int = 40, d: int = 10) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, d)).astype(np.float32) + 0.5
    y = x + random.standard_normal((n, d)).astype(np.float32)
    return [f"s{seed}-{i}" for i in range(n)], [f"t{seed}-{i}" for i in range(n)], x, y


def reference(x: np.ndarray, y: np.ndarray, around_x: np.ndarray, around_y: np.ndarray, k: int) -> list[float]:
    """Ratio of each pair; its neighbourhoods are the background and its partner, which the background does not have."""
    x, y, around_x, around_y = (
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in map(np.float64, (x, y, around_x, around_y))
    )
    scores = []
    for a, b in zip(x, y, strict=True):
        means = [np.sort([*(others @ one), a @ b])[-k:].mean() for one, others in ((a, around_y), (b, around_x))]
        scores.append(a @ b / (sum(means) / 2))
    return scores


@pytest.mark.parametrize("k", [1, 4])
def test_scores_of_other_pairs_equal_the_reference(k: int) -> None:
    src, tgt, x, y = bitext(0)
    around = Background.of(src, tgt, x, y, k=k)
    new_src, new_tgt, new_x, new_y = bitext(1)
    scores = around.scores(new_src, new_tgt, new_x, new_y)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, reference(new_x, new_y, x, y, k), rtol=1e-5)


@pytest.mark.parametrize("margin", ["ratio", "distance", "absolute"])
@pytest.mark.parametrize("size", [1, 3, 17])
def test_chunks_of_the_background_itself_score_as_the_whole(margin: str, size: int) -> None:
    src, tgt, x, y = bitext(2)
    src[5], src[9], tgt[9], tgt[11] = src[4], " ", tgt[8], ""
    x[5], y[9] = x[4], y[8]
    expected = score_pairs(src, tgt, source_vectors=x, target_vectors=y, margin=margin)
    around = Background.of(src, tgt, x, y)
    parts = [slice(start, start + size) for start in range(0, 40, size)]
    chunks = [around.scores(src[part], tgt[part], x[part], y[part], margin=margin) for part in parts]
    np.testing.assert_allclose(np.concatenate(chunks), expected, rtol=2e-6, atol=1e-6)
    assert (expected[[9, 11]] == -np.inf).all()


def test_file_and_score_pairs(tmp_path: Path) -> None:
    src, tgt, x, y = bitext(3)
    around = Background.of(src, tgt, x, y, k=3, model="m")
    around.save(tmp_path / "b.npz")
    read = open_background(tmp_path / "b.npz")
    assert (read.k, read.model) == (3, "m")
    new_src, new_tgt, new_x, new_y = bitext(4)
    expected = around.scores(new_src, new_tgt, new_x, new_y)
    vectors: dict[str, Any] = {"source_vectors": new_x, "target_vectors": new_y}
    np.testing.assert_allclose(
        score_pairs(new_src, new_tgt, **vectors, k=3, background=tmp_path / "b.npz"), expected, rtol=1e-6
    )
    with pytest.raises(InputError, match="another value of k: 3 then, 4 now"):
        score_pairs(new_src, new_tgt, **vectors, background=read)
    with pytest.raises(InputError, match="pass src and tgt as well as the vectors"):
        score_pairs(**vectors, k=3, background=read)
    encoder: Any = SimpleNamespace(embed=lambda texts, progress: new_x)
    with pytest.raises(InputError, match="another value of the model: 'm' then, 'SimpleNamespace' now"):
        score_pairs(new_src, new_tgt, encoder=encoder, k=3, background=read)


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    src, tgt, x, y = bitext(5)
    around = Background.of(src, tgt, x, y)
    around.save(path)
    x_unit, refused = around.source, 0
    whole = path.read_bytes()
    for at in range(100, len(whole) - 100, 211):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            read = open_background(path)
        except FileError:
            refused += 1
        else:  # a byte that says nothing, such as the time of an entry
            assert (read.source == x_unit).all() and read.k == 4
    assert refused > 10
    for content in (b"", whole[:500], b"hello"):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"b\.npz"):
            open_background(path)
    np.savez(path, x=x)
    with pytest.raises(FileError, match="is not a background"):
        open_background(path)
    with pytest.raises(FileError, match="does not exist"):
        open_background(tmp_path / "none.npz")


def test_identity_of_models() -> None:
    def encoder(name: str, length: int, sha: str) -> SimpleNamespace:
        files = {"model.onnx": SimpleNamespace(sha256=sha)}
        return SimpleNamespace(bundle=SimpleNamespace(name=name, files=files), max_length=length)

    one = model_identity(encoder("mini", 128, "aa"))
    assert one == model_identity(encoder("mini", 128, "aa")) and one.startswith("mini 128 ")
    assert len({one, model_identity(encoder("mini", 64, "aa")), model_identity(encoder("mini", 128, "bb"))}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((40, 9))}, "dimensions 9 and 10 differ"),
        ({"x": np.full((40, 10), np.nan)}, "source_vectors has NaN"),
        ({"src": ["same"] * 40}, "source has 1 distinct sentences, too few to find k=4"),
        ({"src": ["a"]}, "source has 1 sentences and 40 vectors"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    src, tgt, x, y = bitext(6)
    arguments = {"src": src, "tgt": tgt, "x": x, "y": y} | change
    with pytest.raises(InputError, match=message):
        Background.of(**arguments)
    around = Background.of(src, tgt, x, y)
    with pytest.raises(InputError, match="as many lines as vectors"):
        around.scores(src[:3], tgt, x, y)
