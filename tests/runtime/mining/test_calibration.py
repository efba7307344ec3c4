"""Calibration: curves against mining itself, the threshold where it must lie, what is written, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import mexma_rt
from mexma_rt import InputError
from mexma_rt.bundle import write_thresholds
from mexma_rt.bundle.opening import open_bundle, read_manifest
from mexma_rt.errors import FileError, ThresholdWarning
from mexma_rt.files.atomic import sha256_of
from mexma_rt.mining.calibration import calibrate, f1_curves
from mexma_rt.mining.pairs import mine, mine_report
from mexma_rt.mining.thresholds import DEFAULT_THRESHOLD, thresholds_of


class Lines:
    """An encoder of numbered lines: line i of a language is near line i of the other, as far as `noise` allows."""

    def __init__(self, noise: float, dimensions: int = 32) -> None:
        self.noise, self.dimensions = noise, dimensions

    def embed(self, texts: list[str], *, progress: bool | None = None) -> np.ndarray:
        rows = []
        for text in texts:
            language, number = text.split()
            meaning = np.random.default_rng(int(number)).standard_normal(self.dimensions)
            own = np.random.default_rng([int(number), ord(language[0])]).standard_normal(self.dimensions)
            rows.append(meaning / np.linalg.norm(meaning) + self.noise * own / np.linalg.norm(own))
        return np.array(rows, np.float32)


def lines(language: str, count: int) -> list[str]:
    return [f"{language} {i}" for i in range(count)]


@pytest.mark.parametrize("margin", ["ratio", "distance", "absolute"])
def test_curves_are_what_mining_gives_at_each_threshold(margin: str) -> None:
    encoder, pairs = Lines(noise=1.2), 60
    source = [*lines("x", 60), *(f"x {i}" for i in range(200, 230)), "x 3", " "]  # a repeated and a blank line, too
    target = [*lines("y", 60), *(f"y {i}" for i in range(300, 330)), "y 7", ""]
    texts = [[text for text in side if text.strip()] for side in (source, target)]
    embedded = [dict(zip(side, encoder.embed(side), strict=True)) for side in texts]
    x, y = (
        np.array([known.get(text, np.ones(32)) for text in side], np.float32)
        for known, side in zip(embedded, (source, target), strict=True)
    )
    truth = {(f"x {i}", f"y {i}") for i in range(pairs)}
    steps = {"ratio": [0.0, 0.5, 1.0, 1.3], "distance": [-0.2, 0.0, 0.05, 0.1], "absolute": [-0.2, 0.3, 0.4, 0.5]}[margin]
    precision, recall, f1 = f1_curves(source, target, x, y, pairs, steps={margin: np.array(steps)})[margin]
    for place, threshold in enumerate(steps):
        found = mine(source, target, source_vectors=x, target_vectors=y, margin=margin, threshold=threshold)
        right = sum((pair.source, pair.target) in truth for pair in found)
        assert precision[place] == pytest.approx(100 * right / max(1, len(found)))
        assert recall[place] == pytest.approx(100 * right / pairs)
        assert f1[place] == pytest.approx(200 * right / (len(found) + pairs))
    assert 0 < recall[-1] < recall[0]


def test_the_threshold_lies_between_right_and_wrong_pairs() -> None:
    encoder = Lines(noise=0.5)  # right pairs have cosines of 0.8, and in 32 dimensions strangers at most 0.7 or so
    found = calibrate(lines("x", 300), lines("y", 300), encoder=encoder)
    assert (found.pairs, found.left_out, found.lines, found.k, found.seed) == (300, 0, 230, 4, 0)
    x, y = (encoder.embed(lines(side, 300)) for side in "xy")
    unit_x, unit_y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y))
    cosines = unit_x @ unit_y.T
    right, wrong = np.diag(cosines), cosines[~np.eye(300, dtype=bool)]
    absolute = found.margins["absolute"]
    assert absolute.f1 > 99 and np.quantile(right, 0.02) > absolute.threshold > np.quantile(wrong, 0.999)
    for one in found.margins.values():
        assert one.near[0] <= one.threshold <= one.near[1] and one.f1 >= one.f1_before
    thresholds = found.thresholds.by_margin()
    assert thresholds == {margin: one.threshold for margin, one in found.margins.items()}


def test_the_same_seed_gives_the_same_and_another_one_other_draws() -> None:
    sides = lines("x", 200), lines("y", 200)
    first, again, other = (calibrate(*sides, encoder=Lines(noise=0.9), seed=seed) for seed in (3, 3, 4))
    assert first == again and first.margins != other.margins


def test_lines_that_cannot_be_told_apart_are_left_out() -> None:
    source, target = lines("x", 120), lines("y", 120)
    source[5], target[6], source[7], target[8] = source[4], target[4], " ", source[8]
    assert (found := calibrate(source, target, encoder=Lines(noise=0.5))).left_out == 4 and found.pairs == 116


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (
            lines("x", 99),
            lines("y", 99),
            r"Of 99 lines, 99 are usable pairs.* needs at least 100, and is stable with 1,000 or more",
        ),
        (lines("x", 120), lines("y", 119), "The source has 120 lines and the target 119, but line i of one translates line i"),
        (["x 1"] * 150, lines("y", 150), r"Of 150 lines, 1 are usable pairs .*\(all lines of the source are equal\)"),
        (lines("x", 150), lines("x", 150), "Of 150 lines, 0 are usable pairs: .*not equal on both sides"),
        (lines("x", 150), lines("y", 151)[1:], r"\(F1 \d+ % at the best threshold\).*not translations of each other, line by"),
        ([], [], "Of 0 lines, 0 are usable pairs"),
        ("x 1", ["y 1"], "str"),
    ],
)
def test_samples_that_give_no_threshold_are_refused(source: list[str], target: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibrate(source, target, encoder=Lines(noise=0.3))


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "own"))


def thresholds(**values: float) -> mexma_rt.bundle.Thresholds:
    return mexma_rt.bundle.Thresholds(**({"ratio": 1.25, "distance": 0.125, "absolute": 0.5} | values), k=4, pairs=300, seed=0)


def test_thresholds_are_written_into_the_manifest_and_nothing_else_changes(bundle: Path) -> None:
    before = {path: sha256_of(path) for path in bundle.rglob("*") if path.is_file() and path.name != "mexma.json"}
    content = json.loads((bundle / "mexma.json").read_text()) | {"of_a_later_version": [1, 2]}
    (bundle / "mexma.json").write_text(json.dumps(content))
    assert write_thresholds(open_bundle(bundle), thresholds()) == bundle
    assert {path: sha256_of(path) for path in bundle.rglob("*") if path.is_file() and path.name != "mexma.json"} == before
    written = json.loads((bundle / "mexma.json").read_text())
    assert written.pop("thresholds") == {"ratio": 1.25, "distance": 0.125, "absolute": 0.5, "k": 4, "pairs": 300, "seed": 0}
    assert written == content
    assert open_bundle(bundle).thresholds == thresholds()
    write_thresholds(open_bundle(bundle), thresholds(ratio=1.5))
    assert read_manifest(bundle).thresholds == thresholds(ratio=1.5)


def test_a_write_that_fails_leaves_the_old_manifest(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (bundle / "mexma.json").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left on device"):
        write_thresholds(open_bundle(bundle), thresholds())
    assert (bundle / "mexma.json").read_bytes() == before
    assert not [path for path in bundle.iterdir() if path.name.endswith(".tmp")]


def test_a_bundle_of_the_package_is_copied(tmp_path: Path) -> None:
    bundled = open_bundle("mexma-small")
    with pytest.raises(FileError, match=r"belongs to the installed package\. Name a new folder .*--output FOLDER"):
        write_thresholds(bundled, thresholds())
    copy = write_thresholds(bundled, thresholds(), tmp_path / "copy")
    assert open_bundle(copy).thresholds == thresholds() and read_manifest(bundled.folder).thresholds is bundled.thresholds
    with pytest.raises(InputError, match=r"copy already exists\. Name another folder for the copy"):
        write_thresholds(bundled, thresholds(), copy)


def test_a_read_only_bundle_is_copied(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write anywhere
    with pytest.raises(
        FileError, match=r"is read-only here\. Name a new folder for a copy with the thresholds: --output FOLDER"
    ):
        write_thresholds(open_bundle(bundle), thresholds())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([1.1], "not a number for each of ratio, distance, absolute"),
        ({"ratio": 1.1, "distance": 0.1}, "not a number for each of ratio, distance, absolute"),
        ({"ratio": "1.1", "distance": 0.1, "absolute": 0.5}, "not a number for each"),
        ({"ratio": 1.1, "distance": 0.1, "absolute": 0.5, "k": 4}, "without the whole numbers k, pairs, seed"),
    ],
)
def test_a_manifest_with_other_thresholds_is_refused(entry: object, message: str, bundle: Path) -> None:
    content = json.loads((bundle / "mexma.json").read_text())
    (bundle / "mexma.json").write_text(json.dumps(content | {"thresholds": entry}))
    with pytest.raises(mexma_rt.BundleError, match=message):
        read_manifest(bundle)


def test_mine_takes_the_thresholds_of_the_encoders_bundle(bundle: Path, sentences: list[tuple[str, str]]) -> None:
    texts = [text for _, text in sentences]
    others = [text + " !" for text in texts]
    encoder = mexma_rt.load(bundle)
    least = DEFAULT_THRESHOLD["ratio"]
    said = f"The threshold {least:g} of the margin 'ratio' was chosen for mexma-small, not for the model 'tiny'"
    with pytest.warns(ThresholdWarning, match=said):
        mine(texts, others, encoder=encoder)
    report = mine_report(texts, others, encoder=encoder).report
    assert report.warnings[0].kind == "threshold" and "mexma calibrate" in report.warnings[0].message

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        everything = mine(texts, others, encoder=encoder, threshold=-np.inf)
        least = everything[len(everything) // 2].score
        write_thresholds(encoder.bundle, thresholds(ratio=least))
        own = mexma_rt.load(bundle)
        assert mine(texts, others, encoder=own) == [pair for pair in everything if pair.score >= least]
    found = mine_report(texts, others, encoder=own).report
    assert found.threshold == least and "threshold" not in [warning.kind for warning in found.warnings]


def test_whose_thresholds_are_taken(bundle: Path) -> None:
    shipped = thresholds_of(mexma_rt.load("mexma-small"))
    assert shipped.own and shipped.warning("ratio") is None
    assert thresholds_of(None).own
    stranger = thresholds_of(Lines(noise=1))
    warning = stranger.warning("distance")
    assert not stranger.own and warning is not None and "not for this encoder, whose" in warning.message
