"""Exact neighbours on a Ray cluster: workers search pairs of blocks, and the caller merges their keys.

A pair gives the same keys on any machine, and merging gives the same result in any order (blocks.py), so the files are the same
as from one machine. Workers read the blocks themselves, so the vectors must have the same path everywhere.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mexma_rt.cluster import explained, session, worker_threads
from mexma_rt.errors import InputError
from mexma_rt.knn.blocks import Block, absorb_blocks, merge_neighbours, no_neighbours
from mexma_rt.knn.on_disk import KnnReport, SearchSettings, write_neighbours
from mexma_rt.knn.pair_search import BlockPair
from mexma_rt.knn.plan import SCAN_BYTES, Plan
from mexma_rt.knn.vector_files import VectorFiles

AHEAD = 2  # tasks queued per worker, so that none is idle


def write_neighbours_on(
    address: str,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: SearchSettings,
    *,
    progress: bool | None = None,
    announce: Callable[[str], object] | None = None,
) -> KnnReport:
    """Run `mexma_rt.knn.knn_files` on the Ray cluster at `address` (see `session`), with the same bytes. If this process is
    killed, the same call resumes, with or without a cluster.

    settings: memory_bytes applies to this process and to each worker, and device "auto" means the CPU.
    """
    check_device(settings.device)
    source, target = (Path(path).absolute() for path in (source, target))
    with session(address) as ray:
        start, here = partial(ClusterPairSearch, ray), replace(settings, device="cpu")
        return write_neighbours(source, target, output, here, progress=progress, announce=announce, over=start)


def check_device(device: str) -> None:
    """Raise InputError for a device that the workers cannot use."""
    if device not in ("cpu", "auto"):
        raise InputError(f"device={device!r} is not supported on a Ray cluster: its workers search on their CPUs.")


class ClusterPairSearch:
    """A PairSearch whose pairs are searched by a Ray cluster's workers; their keys are merged here."""

    def __init__(self, ray: Any, outer: VectorFiles, inner: VectorFiles, plan: Plan, pairs: Sequence[BlockPair]) -> None:
        self._found = _found_by_workers(ray, outer, inner, plan, pairs)

    def __call__(self, pair: BlockPair, by_outer: np.ndarray, by_inner: np.ndarray, advance: Callable[[int], object]) -> int:
        """See `PairSearch`."""
        found_outer, found_inner, anew = next(self._found)
        by_inner[:] = merge_neighbours(by_inner, found_inner)
        if len(found_outer):  # otherwise it came with an earlier pair
            by_outer[:] = merge_neighbours(by_outer, found_outer)
        advance(len(by_outer) * len(by_inner))
        return anew


def _found_by_workers(
    ray: Any, outer: VectorFiles, inner: VectorFiles, plan: Plan, pairs: Sequence[BlockPair]
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield (keys of the outer block, keys of the inner block, rows recomputed) of each pair, in order.

    A task is a run of pairs with one outer block, which it reads once; that block's keys come with the first pair of the run.
    """
    threads = worker_threads(ray)
    workers = max(1, int(ray.cluster_resources().get("CPU", 0)) // threads)
    task = ray.remote(_pairs).options(num_cpus=threads, max_retries=-1)
    sides = [ray.put(side) for side in (outer, inner)]
    waiting: deque[Any] = deque()
    with explained(ray):
        for i, numbers in runs(plan, pairs, workers):
            waiting.append(task.remote(*sides, plan.k, plan.blocks[i], [plan.inner_blocks[j] for j in numbers]))
            if len(waiting) == AHEAD * workers:
                yield from ray.get(waiting.popleft())
        while waiting:
            yield from ray.get(waiting.popleft())


def runs(plan: Plan, pairs: Sequence[BlockPair], workers: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (outer block, inner blocks) of each task: inner blocks up to an outer one's size, but AHEAD tasks per worker."""
    longest = max(1, min(plan.outer_block // plan.inner_block, len(pairs) // (AHEAD * workers)))
    for i, run in groupby(pairs, key=lambda pair: pair[0]):
        numbers = [j for _, j in run]
        for start in range(0, len(numbers), longest):
            yield i, numbers[start : start + longest]


def _pairs(
    outer: VectorFiles, inner: VectorFiles, k: int, rows: tuple[int, int], columns: list[tuple[int, int]]
) -> list[tuple[np.ndarray, np.ndarray, int]]:
    x = Block.of(outer.read(*rows), k, rows[0], owned=True)
    by_x = no_neighbours(rows[1] - rows[0], k)
    found: list[tuple[np.ndarray, np.ndarray, int]] = []
    for start, stop in columns:
        y, by_y = Block.of(inner.read(start, stop), k, start, owned=True), no_neighbours(stop - start, k)
        anew = absorb_blocks(by_x, by_y, x, y, memory_bytes=SCAN_BYTES, advance=lambda cells: None)
        found.append((by_x if not found else no_neighbours(0, k), by_y, anew))  # by_x is filled by all of them
    return found
