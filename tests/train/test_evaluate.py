"""What is measured on test sets. Expected values: by hand, or from the formulas in float64 on the whole similarity matrix."""

from __future__ import annotations

import gzip
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_rt.errors import FileError, InputError
from mexma_train import evaluate as module
from mexma_train.evaluate import TestSet, evaluate, evaluate_vectors, read_test_set, read_test_sets

LINES = "".join(f"English {i}.\tФраза {i}.\n" for i in range(6))


def set_of(name: str, english: list[str], text: list[str] | None = None) -> TestSet:
    return TestSet(name=name, english=english, text=text or [f"{name} {sentence}" for sentence in english])


# Reading


def test_plain_and_packed_files_give_the_same_test_set(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="part of mexma-rt[train]")
    data = b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode()
    half = data.index(b"English 3")
    packed = {
        "rus.tsv": data,
        "rus.dev.tsv.gz": gzip.compress(data),
        "rus.tsv.xz": lzma.compress(data),
        "rus.tsv.zst": zstandard.compress(data[:half]) + zstandard.compress(data[half:]),  # two frames, as pzstd writes
    }
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
        read = read_test_set(tmp_path / name)
        assert read.name == "rus"
        assert read.english == [f"English {i}." for i in range(6)]
        assert read.text == [f"Фраза {i}." for i in range(6)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no tab", r"rus\.tsv, line 3: 1 column instead of 2\. A test set has lines english<TAB>text"),
        ("", r"line 3: 1 column instead of 2"),
        ("fra\ttatoeba\tHello.\tBonjour.", r"line 3: 4 columns instead of 2"),
        (" \tBonjour.", r"line 3: the first column is empty"),
        ("Hello.\t", r"line 3: the second column is empty.* remove it: cat .*rus\.tsv \| sed -n 3p"),
    ],
)
def test_a_line_without_two_columns_is_named(tmp_path: Path, line: str, message: str) -> None:
    lines = LINES.splitlines()
    lines[2] = line
    (tmp_path / "rus.tsv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_test_set(tmp_path / "rus.tsv")


def test_the_command_that_shows_a_bad_line_unpacks_the_file(tmp_path: Path) -> None:
    (tmp_path / "rus.tsv.xz").write_bytes(lzma.compress(b"no tab\n"))
    with pytest.raises(InputError, match=r"xzcat .*rus\.tsv\.xz \| sed -n 1p"):
        read_test_set(tmp_path / "rus.tsv.xz")


def test_five_pairs_are_needed_and_enough(tmp_path: Path) -> None:
    path = tmp_path / "rus.tsv"
    for pairs in (0, 4):
        path.write_text("".join(LINES.splitlines(keepends=True)[:pairs]), encoding="utf-8")
        with pytest.raises(InputError, match=rf"rus\.tsv has {pairs} pairs, but xsim looks at the 4 .* at least 5 pairs"):
            read_test_set(path)
    path.write_text("".join(LINES.splitlines(keepends=True)[:5]), encoding="utf-8")
    assert len(read_test_set(path).text) == 5


def test_missing_damaged_and_foreign_files_are_explained(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="part of mexma-rt[train]")
    for name in ("no.tsv", "no.tsv.zst"):
        with pytest.raises(FileError, match=rf"{name} does not exist"):
            read_test_set(tmp_path / name)
    for content in (b"no archive", zstandard.compress(LINES.encode() * 50)[:-6]):  # the second is cut off
        (tmp_path / "bad.tsv.zst").write_bytes(content)
        with pytest.raises(FileError, match=r"bad\.tsv\.zst is damaged or incomplete.*again"):
            read_test_set(tmp_path / "bad.tsv.zst")
    for name, pack in (("latin.tsv", bytes), ("latin.tsv.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(pack(b"Hello.\tHallo.\nTree\tB\xe4ume\n"))
        with pytest.raises(InputError, match=rf"{name}, line 2.*not valid UTF-8.*iconv"):
            read_test_set(tmp_path / name)


def test_two_test_sets_of_one_name_are_refused_before_anything_is_embedded(tmp_path: Path) -> None:
    (tmp_path / "flores").mkdir()
    paths = [tmp_path / "rus.tsv", tmp_path / "flores" / "rus.tsv", tmp_path / "mean.tsv"]
    for path in paths:
        path.write_text(LINES, encoding="utf-8")
    assert [s.name for s in read_test_sets(paths[:1])] == ["rus"]
    with pytest.raises(InputError, match=r"2 test sets are named 'rus', so their results would mix\. Rename"):
        read_test_sets(paths[:2])
    with pytest.raises(InputError, match="A test set is named 'mean'"):
        read_test_sets(paths[2:])
    with pytest.raises(InputError, match="2 test sets are named 'x'"):
        evaluate([set_of("x", ["a"]), set_of("x", ["b"])], embed=lambda texts: pytest.fail("embedded before the check"))


# Measures of vectors


def test_alignment_and_uniformity_by_hand() -> None:
    """Text vectors at 0, 90, 180, 270 degrees and again 0, English ones at 0, 0, 180, 0, 90: lengths do not count."""
    right, up, left, down = [2.0, 0], [0, 3.0], [-0.5, 0], [0, -1.0]
    x = np.array([right, up, left, down, right])
    y = np.array([right, right, left, right, up]) * 7
    measures = evaluate_vectors(x, y)
    assert measures["alignment"] == pytest.approx((0 + 2 + 0 + 2 + 2) / 5, rel=1e-12)
    # x, 10 pairs: both `right` are 0 apart (squared), `right`-`left` twice and `up`-`down` 4, the other six 2.
    x_mean = (1 + 3 * math.exp(-8) + 6 * math.exp(-4)) / 10
    # y, 10 pairs: three among the `right` 0, `left` with each of them 4, `up` with the other four 2.
    y_mean = (3 + 3 * math.exp(-8) + 4 * math.exp(-4)) / 10
    assert measures["uniformity"] == pytest.approx((math.log(x_mean) + math.log(y_mean)) / 2, rel=1e-12)


def test_vectors_in_one_point_are_aligned_and_not_uniform() -> None:
    point = np.tile(np.array([0.1, 0.2, 0.3], np.float32), (6, 1))
    measures = evaluate_vectors(point, point)
    assert measures["alignment"] == 0
    assert measures["uniformity"] == pytest.approx(0, abs=1e-12)
    assert measures["accuracy"] == pytest.approx(100 / 6)  # the first row wins every tie


def test_random_vectors_on_a_wide_sphere_come_near_minus_four() -> None:
    """All squared distances are near 2 there: log exp(-4). The docstring promises that."""
    vectors = np.random.default_rng(0).normal(size=(400, 1024))
    assert evaluate_vectors(vectors, vectors)["uniformity"] == pytest.approx(-4, abs=0.02)


def test_xsim_and_accuracy_by_the_formulas() -> None:
    """The margin of Artetxe and Schwenk (arXiv 1811.01136, ratio) on the whole cosine matrix, k = 4."""
    rng = np.random.default_rng(4)  # where k = 1, 3 and 5 and the other direction all give other figures
    x = rng.normal(size=(60, 8))
    y = x + 0.8 * rng.normal(size=x.shape)
    cosine = (x / np.linalg.norm(x, axis=1)[:, None]) @ (y / np.linalg.norm(y, axis=1)[:, None]).T
    of_x = np.sort(cosine, axis=1)[:, -4:].mean(axis=1)
    of_y = np.sort(cosine, axis=0)[-4:].mean(axis=0)
    margin = cosine / ((of_x[:, None] + of_y[None]) / 2)
    nearest = cosine >= np.sort(cosine, axis=1)[:, -4:-3]  # the candidates of x
    errors = (np.where(nearest, margin, -np.inf).argmax(axis=1) != np.arange(60)).sum()
    there, back = (cosine.argmax(axis=1) == np.arange(60)).mean(), (cosine.argmax(axis=0) == np.arange(60)).mean()
    assert there != back and errors != (cosine.argmax(axis=1) != np.arange(60)).sum()  # direction and margin matter here
    measures = evaluate_vectors(x.astype(np.float32), y.astype(np.float32))
    assert measures["xsim"] == pytest.approx(100 * errors / 60)
    assert measures["accuracy"] == pytest.approx(100 * (there + back) / 2)
    swapped = evaluate_vectors(y, x)
    assert swapped["xsim"] != measures["xsim"]
    assert list(measures) == ["xsim", "accuracy", "alignment", "uniformity"]
    assert all(type(value) is float for value in measures.values())  # for JSON


@settings(max_examples=30, deadline=None)
@given(n=st.integers(5, 40), seed=st.integers(0, 2**32 - 1), block=st.integers(1, 50))
def test_uniformity_takes_each_pair_once_whatever_the_block(n: int, seed: int, block: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    pairs = [math.exp(-2 * float(((unit[i] - unit[j]) ** 2).sum())) for i in range(n) for j in range(i)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_KERNEL_ROWS", block)
        found = evaluate_vectors(vectors, vectors)["uniformity"]
    assert found == pytest.approx(math.log(math.fsum(pairs) / len(pairs)), rel=1e-10, abs=1e-12)


def test_a_large_test_set_is_sampled_evenly_for_uniformity(monkeypatch: pytest.MonkeyPatch) -> None:
    """21 rows with room for 11: every other row, first and last among them."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 21, 4))
    exact = evaluate_vectors(x[::2], y[::2])["uniformity"]
    assert evaluate_vectors(x, y)["uniformity"] != pytest.approx(exact, rel=1e-6)
    monkeypatch.setattr(module, "UNIFORMITY_ROWS", 11)
    assert evaluate_vectors(x, y)["uniformity"] == pytest.approx(exact, rel=1e-12)


def test_vectors_are_not_modified_and_bad_ones_are_refused() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    before = x.copy(), y.copy()
    evaluate_vectors(x, y)
    assert np.array_equal(before[0], x) and np.array_equal(before[1], y)
    x[3, 1] = np.nan
    with pytest.raises(InputError, match="x has NaN or infinity in row 3"):
        evaluate_vectors(x, y)
    with pytest.raises(InputError, match="6 rows and y 5"):
        evaluate_vectors(y, y[:5])


# Several test sets


class Embedder:
    """Vectors from the bytes of a sentence; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        return np.stack([self.vector(text) for text in texts])

    @staticmethod
    def vector(text: str) -> np.ndarray:
        return np.random.default_rng(list(text.encode())).normal(size=16).astype(np.float32)


def test_english_is_embedded_once_and_lands_in_the_right_rows() -> None:
    flores = [f"Sentence {i}." for i in range(8)]
    sets = [
        set_of("fra", flores),
        set_of("deu", flores),
        set_of("tat", [flores[6], "Only here.", flores[1], flores[1], "Also here.", flores[0]]),  # other order, one twice
    ]
    embed = Embedder()
    results = evaluate(sets, embed)
    english = [text for text in embed.asked if text in {*flores, "Only here.", "Also here."}]
    assert sorted(english) == sorted([*flores, "Only here.", "Also here."])
    assert sorted(text for text in embed.asked if text not in english) == sorted(text for s in sets for text in s.text)
    assert list(results) == ["fra", "deu", "tat", "mean"]
    for test_set in sets:
        x, y = (np.stack([Embedder.vector(text) for text in side]) for side in (test_set.text, test_set.english))
        assert results[test_set.name] == evaluate_vectors(x, y)
    for measure in ("xsim", "accuracy", "alignment", "uniformity"):
        mean = math.fsum(results[name][measure] for name in ("fra", "deu", "tat")) / 3
        assert results["mean"][measure] == pytest.approx(mean, rel=1e-12)


def test_mlm_accuracy_is_kept_and_averaged_only_where_it_is_given() -> None:
    sets = [set_of("fra", [f"a{i}" for i in range(5)]), set_of("deu", [f"b{i}" for i in range(7)])]
    assert "mlm_accuracy" not in evaluate(sets, Embedder())["mean"]
    asked = []

    def mlm_accuracy(test_set: TestSet) -> float:
        asked.append(test_set)
        return {"fra": 30.0, "deu": 40.0}[test_set.name]

    results = evaluate(sets, Embedder(), mlm_accuracy)
    assert asked == sets
    assert [results[name]["mlm_accuracy"] for name in ("fra", "deu", "mean")] == [30, 40, 35]


def test_no_test_sets_give_nothing() -> None:
    assert evaluate([], embed=lambda texts: pytest.fail("nothing to embed")) == {}
