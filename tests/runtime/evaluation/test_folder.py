"""evaluate_folder called from Python: rows, average and mean against float64 formulas; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mexma_rt import FileError, InputError
from mexma_rt.evaluation import Comparison, FolderResult, XsimSettings, evaluate_folder

N, D = 24, 10


class Lookup:
    """Vectors of known lines; counts its calls."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors, self.calls = vectors, 0

    def embed(self, texts: list[str], /) -> np.ndarray:
        self.calls += 1
        return np.stack([self.vectors[text] for text in texts])


def write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def encoder(tmp_path: Path) -> Lookup:
    """A folder of four languages, each with noise of its own around shared meanings."""
    random = np.random.default_rng(5)
    meaning = random.standard_normal((N, D))
    vectors: dict[str, np.ndarray] = {}
    for name, noise in (("eng", 0.0), ("deu", 0.5), ("fin", 0.9), ("ell", 1.3)):
        lines = [f"{name} {i}" for i in range(N)]
        vectors |= dict(zip(lines, (meaning + noise * random.standard_normal((N, D))).astype(np.float32), strict=True))
        write(tmp_path / f"{name}.txt", lines)
    return Lookup(vectors)


def cosines(encoder: Lookup, a: str, b: str) -> np.ndarray:
    """[n, n] in float64."""
    x, y = (np.stack([encoder.vectors[f"{name} {i}"] for i in range(N)]).astype(np.float64) for name in (a, b))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T


def errors(encoder: Lookup, a: str, b: str, k: int) -> int:
    """LASER's ratio margin: a cosine over the mean of both sides' k nearest cosines; candidates are the k nearest."""
    cosine = cosines(encoder, a, b)
    there, back = np.sort(cosine, axis=1)[:, -k:].mean(axis=1), np.sort(cosine, axis=0)[-k:].mean(axis=0)
    ratio = cosine / ((there[:, None] + back[None, :]) / 2)
    ratio[cosine < np.sort(cosine, axis=1)[:, [-k]]] = -np.inf
    return int((ratio.argmax(axis=1) != np.arange(N)).sum())


def test_languages_against_one(tmp_path: Path, encoder: Lookup) -> None:
    result = evaluate_folder(encoder, tmp_path)
    assert [row.language for row in result.rows] == ["deu", "ell", "fin"]
    for row in result.rows:
        cosine, right = cosines(encoder, row.language, "eng"), np.arange(N)
        assert (row.sentences, row.errors, row.target) == (N, errors(encoder, row.language, "eng", 4), None)
        assert row.xsim == pytest.approx(100 * row.errors / N)
        assert row.accuracy_there == pytest.approx(100 * (cosine.argmax(axis=1) == right).mean())
        assert row.accuracy_back == pytest.approx(100 * (cosine.argmax(axis=0) == right).mean())
    assert len({row.errors for row in result.rows}) == 3
    total = sum(row.errors for row in result.rows)
    assert (result.average.sentences, result.average.errors) == (3 * N, total)
    assert result.average.xsim == pytest.approx(100 * total / (3 * N))
    assert encoder.calls == 4  # the target once


def test_average_weighs_sentences_and_mean_does_not() -> None:
    rows = [
        Comparison(language="a", sentences=100, errors=10, xsim=10.0, by_type={"Number": 10, "Misaligned": 0}),
        Comparison(language="b", sentences=300, errors=90, xsim=30.0, by_type={"Number": 80, "Misaligned": 10}),
    ]
    result = FolderResult.of(rows)
    assert (result.average.xsim, result.mean.xsim) == (25.0, 20.0)
    assert result.average.by_type == {"Number": 90, "Misaligned": 10}
    assert (result.average.accuracy_there, result.mean.errors) == (None, 100)


def test_all_pairs_both_ways(tmp_path: Path, encoder: Lookup) -> None:
    result = evaluate_folder(encoder, tmp_path, all_pairs=True, settings=XsimSettings(k=3))
    names = ("deu", "ell", "eng", "fin")
    found = {(row.language, row.target): row.errors for row in result.rows}
    assert found == {(a, b): errors(encoder, a, b, 3) for a in names for b in names if a != b}
    assert encoder.calls == 4 and result.mean.accuracy_there is None


def test_altered_copies_are_counted_by_type(tmp_path: Path, encoder: Lookup) -> None:
    copies = [f"eng {i}, altered" for i in range(N)]
    for i in range(N):  # of the first half, the copy is what the German line finds
        encoder.vectors[copies[i]] = encoder.vectors[f"deu {i}"] * (1 if i < N // 2 else -1)
    write(tmp_path / "altered", copies)
    types = {copy: {"src": f"eng {i}", "errtype": "Number Replacement"} for i, copy in enumerate(copies)}
    (tmp_path / "types.json").write_text(json.dumps(types))
    files = {"augmented": tmp_path / "altered", "errtypes": tmp_path / "types.json"}
    (row,) = evaluate_folder(encoder, tmp_path, languages=["deu"], **files).rows
    assert row.by_type is not None and row.by_type["Number Replacement"] >= N // 2
    assert sum(row.by_type.values()) == row.errors < N


def test_equal_lines_at_another_place(tmp_path: Path, encoder: Lookup) -> None:
    write(tmp_path / "eng.txt", ["eng 0", *(f"eng {i}" for i in range(N - 1))])  # the first line twice
    write(tmp_path / "fra.txt", ["eng 0", *(f"eng {i}" for i in range(N - 1))])
    by_text = evaluate_folder(encoder, tmp_path, languages=["fra"])
    by_index = evaluate_folder(encoder, tmp_path, languages=["fra"], settings=XsimSettings(index_comparison=True))
    assert (by_text.average.errors, by_index.average.errors) == (0, 1)


def test_refusals(tmp_path: Path, encoder: Lookup) -> None:
    with pytest.raises(FileError, match=r"jpn\.txt does not exist"):
        evaluate_folder(encoder, tmp_path, target="jpn")
    with pytest.raises(InputError, match=r"has no jpn\.txt to compare with eng\.txt\. It has: deu, ell, fin"):
        evaluate_folder(encoder, tmp_path, languages=["jpn"])
    with pytest.raises(InputError, match="augmented and errtypes go together"):
        evaluate_folder(encoder, tmp_path, augmented="altered")
    for wrong in ({"all_pairs": True}, {"settings": XsimSettings(index_comparison=True)}):
        with pytest.raises(InputError, match="does not go with"):
            evaluate_folder(encoder, tmp_path, augmented="altered", errtypes="types.json", **wrong)
    with pytest.raises(InputError, match=r"deu\.txt has 24 lines, too few to find k=25 neighbours"):
        evaluate_folder(encoder, tmp_path, settings=XsimSettings(k=25))
    write(tmp_path / "fra.txt", ["one line"])
    with pytest.raises(InputError, match=r"fra\.txt has 1 lines and .*eng\.txt 24, but they must be line-aligned"):
        evaluate_folder(encoder, tmp_path)
    write(tmp_path / "fra.txt", [""] * N)
    with pytest.raises(InputError, match=r"fra\.txt has 24 lines but no text"):
        evaluate_folder(encoder, tmp_path)
    assert encoder.calls == 0
