"""Warnings where mining scores mean little, none where they do, and the rest of the report."""

from __future__ import annotations

import numpy as np
import pytest

from mexma_rt.mining import warnings as mining_warnings
from mexma_rt.mining.pairs import mine_report


def vectors(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 32)).astype(np.float32)


def kinds(x: np.ndarray, y: np.ndarray, src: list[str] | None = None, tgt: list[str] | None = None) -> list[tuple[str, str]]:
    report = mine_report(src, tgt, source_vectors=x, target_vectors=y).report
    assert all(len(warning.message) > 80 for warning in report.warnings)
    return [(warning.kind, warning.side) for warning in report.warnings]


def test_ordinary_corpora_have_none() -> None:
    assert kinds(vectors(0, 1100), vectors(1, 1000)) == []


def test_tiny() -> None:
    assert kinds(vectors(0, 1100), vectors(1, 999)) == [("tiny", "target")]


def test_identical_vectors_or_texts() -> None:
    x, y = vectors(0, 1000), vectors(1, 1200)
    y[:199] = x[:199]
    assert kinds(x, y) == []
    y[199] = x[199] * 3
    assert kinds(x, y) == [("identical", "both")]
    src, tgt = [f"s{i}" for i in range(1000)], [f"t{i}" for i in range(1200)]
    assert kinds(x, y, src, tgt) == []  # what counts is the text
    tgt[:200] = src[-200:]
    (warning,) = mine_report(src, tgt, source_vectors=x, target_vectors=y).report.warnings
    assert warning.kind == "identical" and warning.share == 0.2 and "200 lines of the source (20% of" in warning.message


def test_vectors_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining_warnings, "COMPARED_ROWS", 300)
    x, y = vectors(0, 1000), vectors(1, 1000)
    x[:, 0] = x[0] = 0  # a component that is 0 everywhere does not matter
    x[999] = 0
    assert kinds(x, y) == [("zeros", "source")]
    corner = np.eye(32, dtype=np.float32)[np.arange(1000) % 32]  # one near neighbour or more, and nothing but 0 behind it
    assert "zeros" not in {kind for kind, _ in kinds(corner[:32], corner[:32])}
    warnings = mine_report(None, None, source_vectors=y, target_vectors=x).report.warnings
    assert [(w.side, w.share) for w in warnings] == [("target", 0.002)]
    assert "2 vectors of the target are zeros" in warnings[0].message


def test_near_duplicates_of_the_side_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining_warnings, "COMPARED_ROWS", 300)  # the copy lies in another block than the original
    x, y = vectors(0, 1000), vectors(1, 1000)
    y[600:630] = y[:30] + 0.01 * vectors(2, 30)
    assert kinds(x, y) == [("near-duplicates", "target")]
    y[629] = vectors(3, 1)
    y[628] = vectors(4, 1)
    y[615:628] = vectors(5, 13)
    assert kinds(x, y) == []


def test_report_counts_lines() -> None:
    x, y = vectors(0, 6), vectors(1, 5)
    mined = mine_report(["a", "b", "a", "", "c", " "], list("pqrst"), source_vectors=x, target_vectors=y, k=2, threshold=-1)
    report = mined.report
    source = report.source
    assert (source.lines, source.blank, source.repeated, source.compared) == (6, 2, 1, 3)
    assert (report.target.lines, report.target.compared) == (5, 5)
    assert (report.margin, report.k, report.retrieval, report.threshold, report.dimensions) == ("ratio", 2, "max", -1, 32)
    assert report.pairs == len(mined.pairs) == 3 and report.seconds > 0
