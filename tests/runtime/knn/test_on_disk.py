"""Neighbours of files: the bytes of the search in memory, plans, kills, and everything that is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import mexma_rt
from mexma_rt import FileError, InputError
from mexma_rt.cli import main
from mexma_rt.knn import on_disk as knnfiles
from mexma_rt.knn import pair_search
from mexma_rt.knn import plan as knnplan
from mexma_rt.knn.blocks import absorb_blocks
from mexma_rt.knn.on_disk import knn_files, open_neighbours
from mexma_rt.knn.plan import make_plan
from mexma_rt.knn.search import mutual_neighbours, unit_rows

from ..killing import killed_at_every_step, killed_while_it_works

ROOT = Path(mexma_rt.__file__).parents[1]
RANDOM = np.random.default_rng(5)
X = np.round(RANDOM.standard_normal((700, 16)) * 2).astype(np.float32)
Y = np.round(RANDOM.standard_normal((900, 16)) * 2).astype(np.float32)
X[3], Y[40:60], Y[7] = 0, X[9], X[3]  # a zero row, twenty equal rows, a pair of zero rows


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.save("y.npy", Y)


def small_blocks(monkeypatch: pytest.MonkeyPatch, outer: int = 256, inner: int = 300, keep: bool = True) -> None:
    def plan(outer_rows: int, inner_rows: int, columns: int, k: int, memory_bytes: int) -> knnplan.Plan:
        return knnplan.Plan(
            outer_rows=outer_rows,
            inner_rows=inner_rows,
            outer_block=outer,
            inner_block=inner,
            columns=columns,
            k=k,
            memory_bytes=memory_bytes,
            keep_inner=keep,
        )

    monkeypatch.setattr(knnfiles, "make_plan", plan)


def assert_same(folder: str, expected: tuple[np.ndarray, ...]) -> None:
    for name, found, true in zip(knnfiles.NAMES, open_neighbours(folder), expected, strict=True):
        assert found.dtype == true.dtype, name
        np.testing.assert_array_equal(found, true, err_msg=name)


@pytest.mark.parametrize("keep", [True, False])
def test_blocks_give_the_bytes_of_the_search_in_memory(monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    small_blocks(monkeypatch, keep=keep)
    said: list[str] = []
    report = knn_files("x.npy", "y.npy", "out", k=5, checkpoint_seconds=1e-9, announce=said.append)
    assert_same("out", mutual_neighbours(unit_rows(X), unit_rows(Y), 5))
    assert (report.source_rows, report.target_rows, report.k, report.resumed) == (700, 900, 5, 0)
    assert (
        "700 x 900 rows of 16 dimensions, k=5" in said[0] and "3 x 3 blocks" in said[0] and said[-1].startswith("100.0% done")
    )
    assert "left; kept in" in said[1] and "left; kept in" not in said[-1]  # the end leaves nothing behind
    assert sorted(path.name for path in Path().iterdir()) == ["out", "x.npy", "y.npy"]
    knn_files("y.npy", "x.npy", "turned", k=5)  # the smaller side is still the outer one
    scores_xy, index_xy, scores_yx, index_yx = mutual_neighbours(unit_rows(X), unit_rows(Y), 5)
    assert_same("turned", (scores_yx, index_yx, scores_xy, index_xy))
    knn_files("x.npy", "y.npy", "products", k=5, metric="ip")
    assert_same("products", mutual_neighbours(X, Y, 5))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", ">f4"])
def test_shards_and_types(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    small_blocks(monkeypatch)
    whole = Y.astype(dtype)
    folder = Path("shards")
    folder.mkdir()
    cuts = [0, 100, 500, 900]
    for number, (a, b) in enumerate(pairwise(cuts)):
        np.save(folder / f"vectors-{number:05}.npy", whole[a:b])
    shards = [{"file": f"vectors-{n:05}.npy", "rows": b - a} for n, (a, b) in enumerate(pairwise(cuts))]
    (folder / "vectors.json").write_text(json.dumps({"rows": 900, "shards": shards}))
    knn_files("x.npy", folder, "out", k=3)
    assert_same("out", mutual_neighbours(unit_rows(X), unit_rows(whole), 3))


def test_a_plan_keeps_to_the_memory_and_reads_the_least() -> None:
    small = make_plan(1_000_000, 1_000_000, 256, 4, 2_000_000_000)
    assert len(small.blocks) == 1 and small.rows_read == 2_000_000  # everything is read once
    large = make_plan(10_000_000, 30_000_000, 1024, 4, 8_000_000_000)
    held = large.outer_block * (1024 * 4 + 160) + large.inner_block * 4096
    assert 6e9 < held < 8e9
    count = len(large.blocks)
    assert large.rows_read == 10_000_000 + count * 30_000_000 - (count - 1) * _last_block(large)
    assert [pair[1] for pair in large.pairs[: 2 * len(large.inner_blocks)]] == [
        *range(len(large.inner_blocks)),
        *reversed(range(len(large.inner_blocks))),
    ]
    message = r"0\.30 GB of memory is too little for 1024 dimensions and k=4. Type at least 0\.\dGB"
    with pytest.raises(InputError, match=message):
        make_plan(10_000_000, 30_000_000, 1024, 4, 300_000_000)


def _last_block(plan: knnplan.Plan) -> float:
    """Rows of the inner blocks at which the order turns, on average over the turns."""
    sizes = [b - a for a, b in plan.inner_blocks]
    turns = [sizes[-1] if i % 2 == 0 else sizes[0] for i in range(len(plan.blocks) - 1)]
    return sum(turns) / len(turns)


EVERY_STEP = """
from mexma_rt.knn import on_disk as knnfiles
from mexma_rt.knn import pair_search
from mexma_rt.knn import plan as knnplan
from mexma_rt.errors import FileError
knnfiles.make_plan = lambda a, b, columns, k, memory: knnplan.Plan(
    outer_rows=a, inner_rows=b, outer_block=40, inner_block=50, columns=columns, k=k, memory_bytes=memory, keep_inner=KEEP)

def run():
    try:
        return knnfiles.knn_files("x.npy", "y.npy", "out", k=3, checkpoint_seconds=1e-9).resumed
    except FileError as error:
        assert "already exists" in str(error), error
        return 1.0

every_step(run, "out", (pair_search, "absorb_blocks"), STRIDE)
"""


@pytest.mark.kill
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("keep", "stride"), [(True, 4), (False, 7)])
def test_killed_at_every_step(keep: bool, stride: int) -> None:
    np.save("x.npy", X[:75])
    np.save("y.npy", Y[:90])
    code = EVERY_STEP.replace("KEEP", str(keep)).replace("STRIDE", str(stride))
    result = killed_at_every_step(code, Path())
    assert result["equal"] and result["steps"] > 20, result
    assert {0, 1} < set(result["results"]) <= {0, 0.25, 0.5, 0.75, 1}
    assert set(result["last"]) == {"x.npy", "y.npy", "out/knn.json", *(f"out/{name}.npy" for name in knnfiles.NAMES)}


@pytest.mark.kill
def test_the_command_killed_while_it_works() -> None:
    x, y = (unit_rows(np.random.default_rng(6).standard_normal((rows, 16))) for rows in (3_000, 45_000))
    np.save("x.npy", x)
    np.save("y.npy", y)
    arguments = ["knn", "x.npy", "y.npy", "-o", "out", "--checkpoint=0.01", "--json", "-k2"]
    kills, _, ended = killed_while_it_works(arguments, Path("out").absolute(), total=3, times=2)  # 45,000 rows: 3 blocks
    resumed = json.loads(ended.stdout)["resumed"]
    assert kills >= 1 and resumed > 0 and "where an earlier run was interrupted" in ended.stderr
    assert "GFLOP/s" in ended.stderr
    assert (" left" in ended.stderr) == (resumed < 0.5)  # said after each block but the last; one may be all that remains
    assert_same("out", mutual_neighbours(unit_rows(x), unit_rows(y), 2))


def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after one block pair of nine."""
    small_blocks(monkeypatch)
    real, calls = absorb_blocks, []

    def stops(*arguments: Any, **keywords: Any) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(pair_search, "absorb_blocks", stops)
        with pytest.raises(KeyboardInterrupt):
            knn_files("x.npy", "y.npy", "out", checkpoint_seconds=1e-9)


def test_an_unfinished_run_of_another_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch)
    with pytest.raises(InputError, match=r"unfinished run of another job.*k: 4 then, 3 now.*rm -r"):
        knn_files("x.npy", "y.npy", "out", k=3)
    changed = Y.copy()
    changed[-1, -1] += 1
    np.save("y.npy", changed)
    with pytest.raises(InputError, match="differs in target: "):
        knn_files("x.npy", "y.npy", "out")
    np.save("y.npy", Y)
    assert knn_files("x.npy", "y.npy", "out").resumed == pytest.approx(1 / 9)
    assert_same("out", mutual_neighbours(unit_rows(X), unit_rows(Y), 4))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "state"])
def test_a_damaged_checkpoint_is_refused(monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    interrupted(monkeypatch)
    path = Path(".out.part/inner-00000.keys")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[100] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "remove":
        path.unlink()
    else:
        Path(".out.part/state.json").write_text("{")
    with pytest.raises(FileError, match=r"(is damaged|is missing).*Start over: rm -r"):
        knn_files("x.npy", "y.npy", "out")
    assert Path(".out.part").is_dir() and not Path("out").exists()  # nothing was thrown away


def saved(name: str, array: np.ndarray) -> str:
    np.save(name, array)
    return name


def bad(kind: str) -> tuple[str, dict[str, Any]]:
    """The name of y and arguments."""
    broken = Y.copy()
    broken[777, 2] = np.nan
    if kind == "cut":
        Path("cut.npy").write_bytes(Path("y.npy").read_bytes()[:-1])
    if kind in ("exists", "empty folder", "ubinary", "binary", "int8", "uint8"):
        Path("folder").mkdir()
    if kind in ("ubinary", "binary", "int8", "uint8"):
        Path("folder/vectors.json").write_text(json.dumps({"storage": kind, "shards": []}))
    if kind == "outside":
        Path("folder").mkdir()
        Path("folder/vectors.json").write_text(json.dumps({"shards": [{"file": "../y.npy", "rows": 900}]}))
    Path("text.npy").write_text("no array")
    makers: dict[str, tuple[Callable[[], str], dict[str, Any]]] = {
        "nan": (lambda: saved("a.npy", broken), {}),
        "huge": (lambda: saved("a.npy", np.full((9, 16), 1e300)), {}),
        "dimensions": (lambda: saved("a.npy", Y[:, :7].copy()), {}),
        "empty": (lambda: saved("a.npy", Y[:0]), {}),
        "k": (lambda: "y.npy", {"k": 701}),
        "flat": (lambda: saved("a.npy", Y.ravel()), {}),
        "fortran": (lambda: saved("a.npy", np.asfortranarray(Y)), {}),
        "bytes": (lambda: saved("a.npy", np.ones((9, 16), np.uint8)), {}),
        "long": (lambda: saved("a.npy", Y * 1e36), {"metric": "ip"}),
        "memory": (lambda: "y.npy", {"memory_bytes": 1000}),
        "metric": (lambda: "y.npy", {"metric": "euclidean"}),
        "missing": (lambda: "no.npy", {}),
        "text": (lambda: "text.npy", {}),
        "cut": (lambda: "cut.npy", {}),
        "exists": (lambda: "y.npy", {"output": "folder"}),
        "file": (lambda: "y.npy", {"output": "y.npy"}),
        "empty folder": (lambda: "folder", {}),
        "ubinary": (lambda: "folder", {}),
        "binary": (lambda: "folder", {}),
        "int8": (lambda: "folder", {}),
        "uint8": (lambda: "folder", {}),
        "codes": (lambda: saved("a.npy", np.ones((900, 16), np.int8)), {}),
        "outside": (lambda: "folder", {}),
    }
    make, keywords = makers[kind]
    return make(), keywords


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r"a.npy has NaN or infinity in row 777 \(counted from 0\)"),
        ("huge", "a.npy has NaN or infinity in row 0"),
        ("dimensions", r"x.npy has shape \(700, 16\) and a.npy \(900, 7\): the dimensions 16 and 7 differ"),
        ("empty", "a.npy is empty: there is nothing to compare with"),
        ("k", "x.npy has 700 rows, too few to find k=701 neighbours"),
        ("flat", r"a.npy has shape \(14400,\), but vectors are needed"),
        ("fortran", "a.npy is stored column by column.*Type numpy.save"),
        ("bytes", "a.npy has type uint8, but vectors are real numbers"),
        ("long", "so long that their products overflow float32"),
        ("memory", "0.00 GB of memory is too little.*Type at least"),
        ("metric", "metric='euclidean' is not known. Type one of: cosine, ip"),
        ("missing", "no.npy does not exist. Vectors come from: mexma embed"),
        ("text", "text.npy is not a .npy file"),
        ("cut", "cut.npy is cut off"),
        ("exists", "folder already exists. Choose another name, or move it away."),
        ("file", "y.npy looks like the name of a file"),
        ("empty folder", "folder without vectors.json"),
        ("ubinary", "sign bits"),
        ("binary", r"folder holds sign bits \(binary\)"),
        ("int8", "folder holds int8 codes, whose ranges per dimension belong to their model"),
        ("uint8", "folder holds uint8 codes.*Embed again with --storage float16"),
        ("codes", r"a.npy holds int8 codes.*encoder.restore\(codes\)"),
        ("outside", "which is not in its folder"),
    ],
)
def test_bad_input(kind: str, message: str) -> None:
    name, keywords = bad(kind)
    before = sorted(Path().rglob("*"))
    with pytest.raises((InputError, FileError), match=message):
        knn_files("x.npy", name, **{"output": "out", **keywords})
    assert sorted(Path().rglob("*")) == before


def test_the_command_says_what_it_does_and_what_is_wrong() -> None:
    result = CliRunner().invoke(main, ["knn", "x.npy", "y.npy", "-o", "out", "--memory", "0.5 GB"])
    assert result.exit_code == 0 and "uses at most 0.50 GB of memory" in result.stderr
    assert "out: 4 neighbours of 700 and 900 rows" in result.stdout
    assert Path("out/knn.json").is_file()
    result = CliRunner().invoke(main, ["knn", "x.npy", "y.npy", "-o", "out"])
    assert result.exit_code == 1 and "out already exists" in result.stderr
    result = CliRunner().invoke(main, ["knn", "x.npy", "y.npy", "-o", "out2", "--memory", "lots"])
    assert result.exit_code == 2 and "is not an amount of memory" in result.stderr
    with pytest.raises(FileError, match=r"x\.npy is not a folder of neighbours"):
        open_neighbours("x.npy")
