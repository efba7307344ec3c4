"""Exact neighbours for vector files larger than memory; memory-bounded, resumable.

The result is a folder of four arrays, `NAMES`, to open with `open_neighbours`: byte for byte those of `mutual_neighbours`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mexma_rt.checks import check_choice, check_count, check_dimensions_of, check_k
from mexma_rt.errors import FileError, InputError, typed
from mexma_rt.files import resumable
from mexma_rt.files.atomic import move_folder, sha256_of
from mexma_rt.knn.blocks import choose_device, neighbours_of
from mexma_rt.knn.keys import MOST_ROWS
from mexma_rt.knn.pair_search import LocalPairSearch, PairSearch, StartPairSearch
from mexma_rt.knn.plan import Plan, duration, flops_per_second, make_plan
from mexma_rt.knn.state import SideState
from mexma_rt.knn.vector_files import VectorFiles, open_vectors
from mexma_rt.progress import progress_bar

NAMES = ("source_scores", "source_index", "target_scores", "target_index")
INDEX = "knn.json"
METRICS = ("cosine", "ip")
EFFICIENCY = 0.85  # share of the peak rate of matrix products, to estimate the time


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """The settings of a search in files, as `knn_files` describes them; making one raises InputError for an unusable value."""

    k: int = 4
    metric: str = "cosine"
    memory_bytes: int = 2_000_000_000
    checkpoint_seconds: float = 60.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_k(self.k, {}, "")
        check_choice("metric", self.metric, METRICS)
        check_count("memory_bytes", self.memory_bytes)
        if not self.checkpoint_seconds > 0:
            raise InputError(f"checkpoint_seconds={self.checkpoint_seconds!r} must be a number above 0.")


class SearchState(resumable.WorkState):
    """The state.json of a search; `done` counts pairs of blocks."""

    seconds: float
    computed_anew: int


@dataclass(frozen=True, kw_only=True)
class KnnReport:
    """What a call to `knn_files` did."""

    output: str
    source_rows: int
    target_rows: int
    columns: int
    k: int
    metric: str
    device: str
    computed_anew: int  # rows of block pairs that the scan in float32 could not prove, so that they were recomputed
    resumed: float  # share of the work that an interrupted run had done, 0 to 1
    seconds: float  # of all runs together


def knn_files(  # noqa: PLR0913  (public keywords)
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    k: int = 4,
    metric: str = "cosine",
    memory_bytes: int = 2_000_000_000,
    checkpoint_seconds: float = 60.0,
    device: str = "cpu",
    progress: bool | None = None,
    announce: Callable[[str], object] | None = None,
) -> KnnReport:
    """Write the k nearest target rows of every source row, and vice versa, to the new folder `output`; return a report.

    source, target: .npy files [n, D], [m, D] or folders of shards (`mexma embed --shard-rows`), of float16, float32 or float64;
    quantised int8, uint8 and sign bits are refused. metric: "cosine" (rows are scaled to length 1) or "ip", the inner
    product of the unscaled rows.
    memory_bytes bounds the memory of the whole process. checkpoint_seconds: about how often the results so far are
    saved; after a kill, the same call resumes from there and produces identical bytes. announce is called with lines of text:
    the plan and, at each checkpoint, rate and time left. device: as for `mutual_neighbours`.

    Raises InputError or FileError for unusable input (before any work), too little memory, an existing output, or a checkpoint
    that is damaged or belongs to another job.
    """
    settings = SearchSettings(
        k=k, metric=metric, memory_bytes=memory_bytes, checkpoint_seconds=checkpoint_seconds, device=device
    )
    return write_neighbours(source, target, output, settings, progress=progress, announce=announce)


def write_neighbours(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: SearchSettings,
    *,
    progress: bool | None = None,
    announce: Callable[[str], object] | None = None,
    over: StartPairSearch | None = None,
) -> KnnReport:
    """Do the work of `knn_files`, with its settings in one object. over: starts a search of block pairs elsewhere."""
    say = announce if announce is not None else lambda text: None
    where = choose_device(settings.device)
    final = resumable.check_target(output, source, 1)
    x, y = (open_vectors(path, unit=settings.metric == "cosine") for path in (source, target))
    plan, swapped = _planned(x, y, settings)
    job = _job(x, y, settings, plan)
    with resumable.work_folder(final) as folder:
        state = resumable.resume(folder, SearchState(job=job, done=0, seconds=0.0, computed_anew=0))
        resumed = state["done"] / len(plan.pairs)
        if not (state["done"] == len(plan.pairs) and not (folder / "data").exists() and (final / INDEX).exists()):
            if final.exists():
                raise FileError(f"{output} already exists. Choose another name, or move it away.")
            _check_room(final, plan)
            rate = flops_per_second(plan.columns) * EFFICIENCY
            left = plan.flops * (1 - resumed) / rate
            say(plan.text(left) + (f" from {resumed:.1%}, where an earlier run was interrupted" if state["done"] else ""))
            sides = (
                SideState(folder, "outer", plan.blocks, plan.k, keep=False),
                SideState(folder, "inner", plan.inner_blocks, plan.k, keep=plan.keep_inner),
            )
            _check_files(folder, sides, plan, state["done"])
            run = _Run(plan=plan, sides=sides, folder=folder, final=final, settings=settings, progress=progress, say=say)
            outer, inner = (y, x) if swapped else (x, y)
            start = over or (lambda outer, inner, plan, todo: LocalPairSearch(outer, inner, plan, where))
            _search(run, state, lambda todo: start(outer, inner, plan, todo))
            index = {key: job[key] for key in ("format", "source", "target", "k", "metric")} | {"columns": plan.columns}
            _write(folder, final, sides[::-1] if swapped else sides, plan, swapped, index)
    return KnnReport(
        output=str(output),
        source_rows=x.rows,
        target_rows=y.rows,
        columns=x.columns,
        k=plan.k,
        metric=settings.metric,
        device=where.name,
        computed_anew=state["computed_anew"],
        resumed=resumed,
        seconds=round(state["seconds"], 1),
    )


def _planned(x: VectorFiles, y: VectorFiles, settings: SearchSettings) -> tuple[Plan, bool]:
    """Plan a search; return the plan, and whether y is its outer side. Raises InputError for incompatible sides."""
    check_dimensions_of((x.rows, x.columns), (y.rows, y.columns), x.name, y.name)
    check_k(settings.k, {x.name: x.rows, y.name: y.rows}, "rows")
    if max(x.rows, y.rows) > MOST_ROWS:
        raise InputError(f"More than {MOST_ROWS:,} rows of a side do not fit the index. Split it.")
    swapped = y.rows < x.rows
    outer, inner = (y, x) if swapped else (x, y)
    return make_plan(outer.rows, inner.rows, x.columns, int(settings.k), settings.memory_bytes), swapped


def _job(x: VectorFiles, y: VectorFiles, settings: SearchSettings, plan: Plan) -> dict[str, object]:
    """Return everything that the result's bytes depend on; reads all vectors. Raises InputError for unusable values."""
    (x_hash, x_largest), (y_hash, y_largest) = x.check(), y.check()
    if x_largest * y_largest * x.columns > float(np.finfo(np.float32).max):
        raise InputError("The vectors are so long that their products overflow float32. Use the metric cosine.")
    sides = {"source": x_hash[:16], "target": y_hash[:16]}
    return {**sides, "k": plan.k, "metric": settings.metric, "plan": asdict(plan), "format": 1}


def open_neighbours(folder: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Map the arrays of a folder that `knn_files` wrote: scores_xy [n, k], index_xy, scores_yx [m, k], index_yx."""
    try:
        arrays = [np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in NAMES]
    except (OSError, ValueError) as error:
        raise FileError(f"{folder} is not a folder of neighbours: {error}. Type: mexma knn SOURCE TARGET -o {folder}") from None
    return arrays[0], arrays[1], arrays[2], arrays[3]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A search in progress: its plan, where its keys are kept, and how it reports."""

    plan: Plan
    sides: tuple[SideState, SideState]  # outer, inner
    folder: Path
    final: Path
    settings: SearchSettings
    progress: bool | None
    say: Callable[[str], object]


def _search(run: _Run, state: SearchState, start: Callable[[Sequence[tuple[int, int]]], PairSearch]) -> None:
    """Search the pairs of blocks that the state does not count yet; the state is updated, and saved at each checkpoint."""
    plan, (outer, inner) = run.plan, run.sides
    todo = plan.pairs[state["done"] :]
    search = start(todo)
    cells = sum(_cells(plan, pair) for pair in todo)
    worked, held = 0, -1
    by_outer = np.empty((0, plan.k), np.uint64)
    begun = saved = time.monotonic()
    with progress_bar(run.progress, total=cells, desc="neighbours", unit="cell") as advance:
        for done, (i, j) in enumerate(todo, start=state["done"] + 1):
            if i != held:
                del by_outer  # freed before the next ones are read
                held, by_outer = i, outer.load(i)
            by_inner = inner.load(j)
            state["computed_anew"] += search((i, j), by_outer, by_inner, advance)
            inner.store(j, by_inner)
            worked, now = worked + _cells(plan, (i, j)), time.monotonic()
            ends = done == len(plan.pairs) or plan.pairs[done][0] != i
            if ends or now - saved >= run.settings.checkpoint_seconds:
                with resumable.explained(run.final):
                    outer.store(i, by_outer)
                    inner.flush()
                state["seconds"] += now - saved
                state["done"], saved = done, now
                resumable.write_state(run.folder, run.final, state)
                left = (now - begun) / worked * (cells - worked)
                rate = 2 * plan.columns * worked / (now - begun)
                rest = f", {duration(left)} left; kept in {run.folder}" if worked < cells else ""
                run.say(
                    f"{1 - (cells - worked) / (plan.outer_rows * plan.inner_rows):.1%} done, {rate / 1e9:,.0f} GFLOP/s{rest}"
                )


def _cells(plan: Plan, pair: tuple[int, int]) -> int:
    (a, b), (c, d) = plan.blocks[pair[0]], plan.inner_blocks[pair[1]]
    return (b - a) * (d - c)


def _check_files(folder: Path, sides: tuple[SideState, SideState], plan: Plan, done: int) -> None:
    """Raise FileError if files counted by the state are missing."""
    counted = plan.pairs[:done]
    missing = [
        path
        for side, numbers in zip(sides, (sorted({i for i, _ in counted}), sorted({j for _, j in counted})), strict=True)
        for path in side.missing(numbers)
    ]
    if missing:
        raise FileError(f"{missing[0]} is missing, although state.json counts it. Start over: rm -r {typed(folder)}")


def _check_room(final: Path, plan: Plan) -> None:
    needed, free = 20 * plan.k * (plan.outer_rows + plan.inner_rows), shutil.disk_usage(final.parent).free
    if needed > free:
        raise FileError(
            f"{final} needs {needed / 1e6:,.1f} MB, but {final.parent} has {free / 1e6:,.1f} MB free. Make room, or "
            "write to another disk."
        )


def _write(
    folder: Path, final: Path, sides: tuple[SideState, ...], plan: Plan, swapped: bool, index: dict[str, object]
) -> None:
    """Write the keys of both sides as arrays, to a folder that gets its name when it is complete."""
    data = folder / "data"
    with resumable.explained(final):
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        blocks = (plan.blocks, plan.inner_blocks)
        for side, cuts, name in zip(sides, blocks[::-1] if swapped else blocks, ("source", "target"), strict=True):
            shape = (cuts[-1][1], plan.k)
            with (data / f"{name}_scores.npy").open("wb") as scores, (data / f"{name}_index.npy").open("wb") as places:
                for stream, dtype in ((scores, np.float32), (places, np.int64)):
                    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(stream, header)
                for number, (start, stop) in enumerate(cuts):
                    keys = side.load(number)
                    for at in range(0, stop - start, 65536):
                        found = neighbours_of(keys[at : at + 65536])
                        scores.write(found[0].data)
                        places.write(found[1].data)
        index |= {"sha256": {name: sha256_of(data / f"{name}.npy") for name in NAMES}}
        (data / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        move_folder(data, final)
