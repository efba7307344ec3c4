"""IVF-PQ candidates: exact scores, the recall of brute force, the same after kills, bad input explained."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mexma_rt
from mexma_rt import FileError, InputError, MissingExtraError
from mexma_rt.knn import ivfpq
from mexma_rt.knn.approximate import FoundBothWays, approximate_neighbours, measure_recall, search_part
from mexma_rt.knn.ivfpq import IvfPq
from mexma_rt.knn.keys import neighbours_of
from mexma_rt.knn.search import unit_rows
from mexma_rt.mining.pairs import mine, mine_report

needs_faiss = pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="faiss is not installed: pip install 'mexma-rt[faiss]'"
)

Sides = tuple[np.ndarray, np.ndarray]
ROWS, K = 10_000, 4  # few more than the 9,984 that training needs
SETTINGS = IvfPq(nlist=64, m=2, nprobe=8, candidates=16)
TWO_PARTS = 2 * 7_000 * (8 * 4 + 2 + 8)  # bytes for parts of 7,000 rows, but too few to train
ROOT = Path(mexma_rt.__file__).parents[1]


def vectors() -> Sides:
    """Two sides of 8 dimensions; some rows of each are equal."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((ROWS, 8))
    x[50:60] = x[50]
    y = x[rng.permutation(ROWS)[: ROWS - 5]] + 0.2 * rng.standard_normal((ROWS - 5, 8))
    y[100:110] = y[100]
    return unit_rows(x), unit_rows(y)


@pytest.fixture(scope="module")
def sides() -> Sides:
    return vectors()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ivfpq") / "index"


@pytest.fixture(scope="module")
def found(sides: Sides, folder: Path) -> FoundBothWays:
    return approximate_neighbours(*sides, K, settings=SETTINGS, folder=folder)


@needs_faiss
def test_every_score_is_the_exact_inner_product_best_first_and_ties_by_index(sides: Sides, found: FoundBothWays) -> None:
    for (queries, others), (scores, index) in zip((sides, sides[::-1]), (found[:2], found[2:]), strict=True):
        assert scores.shape == index.shape == (len(queries), K) and (scores.dtype, index.dtype) == (np.float32, np.int64)
        assert index.min() >= 0 and index.max() < len(others)
        exact = np.einsum("qd,qkd->qk", queries.astype(np.float64), others[index].astype(np.float64))
        np.testing.assert_allclose(scores, exact, atol=1e-6)
        assert all(len(set(row)) == K for row in index.tolist())
        falls, ties = np.diff(scores) < 0, np.diff(scores) == 0
        assert (falls | (ties & (np.diff(index) > 0))).all() and ties.any()


@needs_faiss
def test_recall_is_that_of_brute_force_in_float64(sides: Sides, found: FoundBothWays) -> None:
    x, y = (side.astype(np.float64) for side in sides)
    hits = []
    for start in range(0, ROWS, 1000):
        similar = x[start : start + 1000] @ y.T
        least = np.partition(similar, -K, axis=1)[:, -K:].min(axis=1)
        hits.append(np.take_along_axis(similar, found[1][start : start + 1000], axis=1) >= least[:, None] - 1e-5)
    share = np.concatenate(hits).mean()
    assert 0.3 < share < 0.99  # so that the comparison says something
    assert measure_recall(*sides, found, rows=ROWS).forward == pytest.approx(share, abs=1e-4)
    sample = measure_recall(*sides, found, rows=500, seed=3)
    assert sample.rows == 500 and sample.backward == pytest.approx(share, abs=0.08)  # of like data
    assert sample.forward == pytest.approx(share, abs=0.05)


@needs_faiss
def test_more_probes_and_candidates_find_nearly_all(sides: Sides, folder: Path, found: FoundBothWays) -> None:
    wide = approximate_neighbours(*sides, K, settings=replace(SETTINGS, nprobe=64, candidates=150), folder=folder / "wide")
    recall = measure_recall(*sides, wide)
    assert min(recall.forward, recall.backward) > 0.995 > measure_recall(*sides, found).forward


class NearlyEmptyLists:
    """An index whose probed lists have two rows for every second query, and all together all."""

    nlist = 64

    def search(self, block: np.ndarray, count: int, params: Any) -> tuple[None, np.ndarray]:
        rows = np.tile(np.arange(count), (len(block), 1))
        if params.nprobe < self.nlist:
            rows[::2, 2:] = -1
        return None, rows


@needs_faiss
def test_a_row_whose_lists_are_nearly_empty_gets_all_its_neighbours(sides: Sides) -> None:
    queries, vectors = sides[0][:6], sides[1][:16]
    scores, index = neighbours_of(search_part(queries, (NearlyEmptyLists(), vectors), 100, K, SETTINGS))
    exact = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    np.testing.assert_array_equal(index, 100 + np.argsort(-exact, axis=1, kind="stable")[:, :K])
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :K], atol=1e-6)


@needs_faiss
def test_the_seed_decides_and_nothing_else(sides: Sides, found: FoundBothWays, tmp_path: Path) -> None:
    again = approximate_neighbours(*sides, K, settings=SETTINGS)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one, other)
    different = approximate_neighbours(*sides, K, settings=replace(SETTINGS, seed=1))
    assert (different[1] != found[1]).any()


@needs_faiss
def test_a_second_call_uses_the_index_and_other_data_or_settings_are_refused(
    sides: Sides, folder: Path, found: FoundBothWays, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = sides
    monkeypatch.setattr(ivfpq, "_train", lambda *_: pytest.fail("trained again"))
    for one, other in zip(found, approximate_neighbours(x, y, K, settings=SETTINGS, folder=folder), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match="nlist: 64 then, 32 now"):
        approximate_neighbours(x, y, K, settings=replace(SETTINGS, nlist=32), folder=folder)
    with pytest.raises(InputError, match="nprobe: 8 then, 9 now"):
        approximate_neighbours(x, y, K, settings=replace(SETTINGS, nprobe=9), folder=folder)
    changed = y.copy()
    changed[-1] = y[0]
    with pytest.raises(FileError, match=r"is the index of other vectors than y, or damaged: part 0 differs.*rm -r"):
        approximate_neighbours(x, changed, K, settings=SETTINGS, folder=folder)


@needs_faiss
@pytest.mark.parametrize("name", ["y/part-00000.faiss", "xy/found-00001.npy"])
def test_damaged_files_are_named(sides: Sides, folder: Path, found: FoundBothWays, name: str) -> None:
    path = folder / name
    whole, state = path.read_bytes(), (folder / "xy" / "state.json").read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        if name.startswith("y/"):
            (folder / "xy" / "state.json").write_text(json.dumps(json.loads(state) | {"done": 0}))
        with pytest.raises(FileError, match=rf"{path.name} is damaged.*rm -r"):
            approximate_neighbours(*sides, K, settings=SETTINGS, folder=folder)
    finally:
        path.write_bytes(whole)
        (folder / "xy" / "state.json").write_bytes(state)


@needs_faiss
def test_mining_with_it_gives_the_exact_scores_of_nearly_all_pairs_and_says_what_it_found(sides: Sides) -> None:
    exact, ours = (
        mine_report(source_vectors=sides[0], target_vectors=sides[1], retrieval="fwd", threshold=0.0, index=index)
        for index in ("exact", "ivfpq")
    )
    places = [{(pair.source_index, pair.target_index): pair.cosine for pair in mined.pairs} for mined in (exact, ours)]
    common = places[0].keys() & places[1].keys()
    assert len(common) > 0.9 * ROWS and all(places[0][pair] == places[1][pair] for pair in common)
    assert (exact.report.index, exact.report.recall) == ("exact", None)
    recall = ours.report.recall
    assert ours.report.index == "ivfpq" and recall is not None and recall.rows == 1000 and 0.9 < recall.forward < 1


def test_an_index_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"index='hnsw' is not known\. Type one of: exact, ivfpq"):
        mine(["a"], ["b"], index="hnsw")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"mexma-rt\[faiss\]"):
        mine(["a"], ["b"], index="ivfpq")


# One thread, so that fork is safe. Each child is killed before its fourth renaming of a file; what is left is gone on with.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_approximate import K, SETTINGS, TWO_PARTS, vectors
from mexma_rt.knn import approximate
from mexma_rt.knn import ivfpq

ivfpq.LEAST_TRAINING = 20  # parts of 7,000 rows
sides = vectors()
run = lambda folder: approximate.approximate_neighbours(*sides, K, settings=SETTINGS, folder=folder, memory_bytes=TWO_PARTS)
whole = run("whole")
exact = np.einsum("qd,qkd->qk", sides[0].astype(float), sides[1][whole[1]].astype(float))
assert abs(whole[0] - exact).max() < 1e-6 and whole[1].max() > 7_000 > whole[1].min() >= 0  # of both parts
kills = 0
while kills < 20:
    pid = os.fork()
    if pid == 0:
        real, count = os.replace, [0]
        def replace(*arguments, **keywords):
            count[0] += 1
            if count[0] == 4:  # three make a step that is not done again: trained, part, state
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)
        os.replace = Path.replace = replace
        result = run("killed")
        np.savez("result.npz", *result)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status == 0:
        break
    assert status == signal.SIGKILL, status
    kills += 1
with np.load("result.npz") as result:
    equal = all((result[name] == part).all() for name, part in zip(result.files, whole, strict=True))
names = lambda name: sorted(str(path.relative_to(name)) for path in Path(name).rglob("*"))
print(json.dumps({"kills": kills, "equal": bool(equal), "left": names("killed") == names("whole"), "files": names("whole")}))
"""


@pytest.mark.kill
@needs_faiss
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_again_and_again_in_the_middle(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] >= 5 and result["equal"] and result["left"], result
    assert {"x/part-00001.faiss", "y/part-00001.faiss", "xy/found-00002.npy"} <= set(result["files"])
    assert not any(name.endswith((".tmp", "found-00001.npy")) for name in result["files"])


@needs_faiss
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"m": 3}, "m=3 bytes per vector do not divide its 8 dimensions into equal pieces. Type m=2 or m=4"),
        ({"nlist": 300}, r"x has 10,000 rows, too few.*nlist=300 lists are 11,700. Take a smaller nlist, or search exactly"),
        ({"candidates": 3}, "candidates=3 are too few to find k=4 neighbours among them. Type candidates=32"),
        ({"nprobe": 0}, "nprobe=0 must be a whole number of at least 1"),
        ({"seed": -1}, "seed=-1 must be a whole number of at least 0"),
        ({"m": 2.0}, r"m=2.0 must be a whole number"),
    ],
)
def test_settings_that_cannot_be_used(sides: Sides, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        approximate_neighbours(*sides, K, settings=replace(SETTINGS, **settings))


@needs_faiss
def test_input_that_cannot_be_used(sides: Sides, tmp_path: Path) -> None:
    x, y = sides
    with pytest.raises(InputError, match=r"y has 9,000 rows, too few to train.*256 code words.*--index exact"):
        approximate_neighbours(x, y[:9000], K)
    with pytest.raises(InputError, match="dimensions 8 and 7 differ"):
        approximate_neighbours(x, y[:, :7], K)
    with pytest.raises(InputError, match="y has 3 rows, too few to find k=4"):
        approximate_neighbours(x, y[:3], K)
    broken = y.copy()
    broken[17, 2] = np.nan
    with pytest.raises(InputError, match="y has NaN or infinity in row 17"):
        approximate_neighbours(x, broken, K)
    with pytest.raises(InputError, match=r"To train nlist=64 lists.*must be in memory.*more than 100,000"):
        approximate_neighbours(x, y, K, settings=SETTINGS, memory_bytes=100_000)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(FileError, match="is a file, but an index is a folder"):
        approximate_neighbours(x, y, K, settings=SETTINGS, folder=file)


def test_without_faiss_the_pip_line_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"faiss is not installed.*\n    pip install 'mexma-rt\[faiss\]'"):
        approximate_neighbours(np.zeros((0, 0)), np.zeros((0, 0)), K)
