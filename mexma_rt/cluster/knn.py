"""Exact neighbours on a Ray cluster: each pair of blocks is a task, and their keys are merged where the call was made.

A pair gives the same keys on any machine, and a merge is the same in any order (blocks.py), so the files are those of one
machine. Workers read the blocks themselves: the vectors must be under the same path everywhere.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from mexma_rt.blocks import Block, absorb_blocks, no_neighbours
from mexma_rt.cluster import explained, session, worker_threads
from mexma_rt.knnfiles import KnnReport, knn_files
from mexma_rt.knnplan import Plan
from mexma_rt.vectorfiles import VectorFiles

AHEAD = 2  # tasks for each worker that are sent before their turn, so that none waits


def knn_files_on(
    address: str,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    output: str | os.PathLike[str],
    **settings: Any,
) -> KnnReport:
    """`mexma_rt.knnfiles.knn_files` on the Ray cluster at `address` (see `session`): the same bytes, and after a kill of this
    process the same call, with or without a cluster, goes on.

    settings: those of knn_files; memory_bytes is that of this process and of each worker.
    """
    with session(address) as ray:
        return knn_files(source, target, output, over=partial(block_pairs, ray), **settings)


def block_pairs(
    ray: Any, outer: VectorFiles, inner: VectorFiles, plan: Plan, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(keys of the outer block, keys of the inner block, rows computed anew) of each pair, in their order."""
    threads = worker_threads(ray)
    task = ray.remote(_pair).options(num_cpus=threads, max_retries=-1)
    width = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 0)) // threads)
    sides = [ray.put(side) for side in (outer, inner)]
    waiting: deque[Any] = deque()
    with explained(ray):
        for i, j in pairs:
            waiting.append(task.remote(*sides, plan.k, plan.blocks[i], plan.inner_blocks[j]))
            if len(waiting) == width:
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())


def _pair(
    outer: VectorFiles, inner: VectorFiles, k: int, rows: tuple[int, int], columns: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, int]:
    x, y = (Block.of(side.read(*place), k, place[0], owned=True) for side, place in ((outer, rows), (inner, columns)))
    by_x, by_y = no_neighbours(rows[1] - rows[0], k), no_neighbours(columns[1] - columns[0], k)
    anew = absorb_blocks(by_x, by_y, x, y, memory_bytes=64 << 20, advance=lambda cells: None)
    return by_x, by_y, anew
