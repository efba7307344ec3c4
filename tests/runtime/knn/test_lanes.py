"""One BLAS thread for each of several products: given back whatever happens, and the same neighbours by any number of lanes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from mexma_rt.cores import usable_cores
from mexma_rt.knn import tiles
from mexma_rt.knn.lanes import open_lanes
from mexma_rt.knn.search import mutual_neighbours


def blas_threads() -> int | None:
    """Of numpy's BLAS; None if it has no switch for them."""
    found = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas" and "numpy" in one["filepath"]]
    return found[0] if found else None


@pytest.fixture
def before() -> int:
    threads = blas_threads()
    if threads is None:
        pytest.skip("numpy's BLAS has no switch for its threads here")
    return threads


def test_the_threads_come_back_after_an_error(before: int) -> None:
    with pytest.raises(KeyError), open_lanes(8) as lanes:
        assert blas_threads() == 1
        assert lanes == min(8, usable_cores(), before)
        raise KeyError
    assert blas_threads() == before


def test_one_lane_changes_nothing(before: int) -> None:
    with open_lanes(1) as lanes:
        assert lanes == 1 and blas_threads() == before


def test_the_last_of_several_gives_them_back(before: int) -> None:
    """The second begins while the first is at work and ends after it: what it found, one thread, must not stay."""
    events = {name: threading.Event() for name in ("begun", "end", "ended", "leave")}

    def first() -> None:  # a thread that lives on, as those of a pool do
        with open_lanes(2):
            events["begun"].set()
            events["end"].wait(10)
        events["ended"].set()
        events["leave"].wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert events["begun"].wait(10)
    with open_lanes(2) as lanes:
        events["end"].set()
        assert events["ended"].wait(10)
        seen = [lanes, blas_threads()]
    after = blas_threads()
    events["leave"].set()
    thread.join()
    assert seen == [min(2, usable_cores(), before), 1]
    assert after == before


def test_as_many_as_the_blas_was_allowed() -> None:
    code = "import numpy; from mexma_rt.knn.lanes import open_lanes\nwith open_lanes(8) as lanes: print(lanes)"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["1"]


@pytest.mark.parametrize("lanes", [1, 2, 3, 7])
def test_the_same_neighbours_by_any_number_of_lanes(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small whole numbers, so that nearly all scores tie and the index decides, and tiles that end in any order."""

    @contextmanager
    def so_many(wanted: int) -> Iterator[int]:
        yield lanes

    delays, padded_rows = random.Random(3), tiles._padded_rows

    def late(*arguments: object) -> np.ndarray:
        time.sleep(delays.choice((0, 0.002, 0.01)))
        return padded_rows(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tiles, "open_lanes", so_many)
    monkeypatch.setattr(tiles, "_padded_rows", late)
    numbers = np.random.default_rng(5)
    x, y = (numbers.integers(-2, 3, (rows, 5)).astype(np.float32) for rows in (700, 2900))
    scores_xy, index_xy, scores_yx, index_yx = mutual_neighbours(x, y, 6, memory_bytes=1, progress=False)
    products = x.astype(np.float64) @ y.astype(np.float64).T
    for product, scores, index in ((products, scores_xy, index_xy), (products.T, scores_yx, index_yx)):
        best = np.argsort(-product, axis=1, kind="stable")[:, :6]
        np.testing.assert_array_equal(index, best)
        np.testing.assert_array_equal(scores, np.take_along_axis(product, best, axis=1))


@pytest.mark.parametrize(
    ("memory", "n", "m", "lanes"),
    [(1, 5, 5, 1), (1, 10_000, 10_000, 3), (4 << 20, 3000, 3000, 2), (96 << 20, 10**6, 2048, 2), (256 << 20, 10**5, 10**5, 16)],
)
def test_tiles_keep_within_a_third_of_the_memory_and_every_lane_has_work(memory: int, n: int, m: int, lanes: int) -> None:
    height, width = tiles.tile_shape(memory, n, m, lanes)
    assert height % tiles.PAD == width % tiles.PAD == 0
    assert lanes * height * width * 4 <= max(memory // 3, lanes * tiles.PAD * tiles.PAD * 4)
    assert -(-m // width) >= min(lanes, -(-m // tiles.PAD))
