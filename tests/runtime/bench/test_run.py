"""The benchmark of routes: the protocol with real processes, the arithmetic with invented seconds, the command's table."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mexma_rt import InputError
from mexma_rt.bench import run as bench
from mexma_rt.bench.run import Route, as_table, measure
from mexma_rt.bundle.opening import bundled_models, open_bundle
from mexma_rt.cli import main

WORKER = """
import sys, time, numpy as np
from mexma_rt.bench.worker import serve
def load():
    print("a library that prints")
    def embed(texts):
        time.sleep(float(sys.argv[1]))
        return np.tile(np.array(eval(sys.argv[2]), np.float32), (len(texts), 1))
    return embed, {"note": "n"}
serve(load)
"""


def fake(name: str, seconds: float, vector: str = "[1, 0]", **keywords: Any) -> Route:
    return Route(name=name, command=(sys.executable, "-c", WORKER, str(seconds), vector), **keywords)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("eins\nzwei drei\nvier\n", encoding="utf-8")
    return path


def test_ratios_cosines_and_what_failed(file: Path) -> None:
    routes = [
        fake("slow", 0.4, "[3, 4]"),
        fake("fp32 of ours", 0.1, "[1, 0]"),
        fake("other model", 0.1, "[1, 2, 3]", comparable=False),
        Route(name="broken", command=(sys.executable, "-c", "raise SystemExit('no such module')")),
    ]
    rows, facts = measure(routes, [file], model="mexma-small", rounds=3, singles=2)
    slow, ours, other = rows
    assert ours.ratio > 1.5 and slow.ratio == 1.0 and facts["base"] == "slow"
    assert (slow.lowest_cosine, ours.lowest_cosine) == (pytest.approx(0.6), pytest.approx(1.0))  # 3 / 5
    assert other.lowest_cosine is None and other.gemm_share is None
    assert slow.single_ms is not None and slow.single_ms[0] >= 400 and len(slow.seconds) == 3
    assert facts["failed"] == {"broken": "broken ended with status 1: no such module"}
    assert facts["files"]["texts"]["sentences"] == 3
    table = as_table(rows, facts)
    assert "| other model |" in table and "broken did not run: broken ended" in table


def test_no_route_at_all_is_an_error(file: Path) -> None:
    broken = Route(name="broken", command=(sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(InputError, match="No route started"):
        measure([broken], [file], model="mexma-small", rounds=1)


def test_operations_of_a_token() -> None:
    # 12 layers of 384 and 1,536: four products of 384 x 384 and two of 384 x 1,536, two operations a multiplication
    assert bench.flops_per_token(open_bundle(bundled_models()["mexma-small"])) == 12 * 2 * (4 * 147_456 + 2 * 589_824)


def test_the_peak_is_that_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "GEMM_SIZE", 256)
    assert 1e8 < bench.gemm_flops() < 1e14


def test_the_command(file: Path) -> None:
    arguments = ["bench", "embed", str(file), "--rounds", "1", "--json", "--peer", "broken=false"]
    picture = file.with_suffix(".svg")
    drawn = importlib.util.find_spec("matplotlib") is not None  # without it the command is tried all the same
    result = CliRunner().invoke(main, [*arguments, *(["--plot", str(picture)] if drawn else [])])
    assert result.exit_code == 0, result.output
    assert not drawn or "mexma-small: speed relative to mexma embed, w4" in picture.read_text(encoding="utf-8")
    data = json.loads(result.stdout)
    (row,) = data["rows"]
    assert row["route"] == "mexma embed, w4" and row["sentences_per_second"] > 0 and row["lowest_cosine"] == pytest.approx(1)
    assert "broken ended with status 1" in data["failed"]["broken"]
    assert CliRunner().invoke(main, ["bench", "embed", str(file), "--peer", "nothing"]).exit_code == 2


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="part of mexma-rt[plot]")
    monkeypatch.setattr(bench, "measure", lambda *routes, **settings: pytest.fail("worked first"))
    for name, words in (
        ("x.gif", "a picture's name must end in .png, .svg or .pdf"),
        (file.parent / "no" / "x.png", "does not exist"),
    ):
        refused = CliRunner().invoke(main, ["bench", "embed", str(file), "--plot", str(name)])
        assert refused.exit_code == 1 and words in refused.stderr, refused.output


def test_percentiles_are_in_milliseconds() -> None:
    assert np.isclose(bench._percentiles([0.001] * 99 + [1.0])[0], 1.0)


def test_import_and_first_vector_are_quick() -> None:
    start = bench.cold_start("mexma-small", times=1)
    assert 0 < start["import"] < 3 and start["import"] < start["first vector"] < 20  # generous: ten processes a core ran here
