"""Estimates the cost (products, bytes, hours, blocks) of an exact or IVF-PQ search from its sizes, and of embedding.

Rates are per core and were measured once (benchmarks/results/plan.md, which also compares predictions with
measurements). Seconds are CPU seconds of one core: divide by cores.
"""

from __future__ import annotations

from dataclasses import dataclass

from mexma_rt.knn.ivfpq import CODEBOOK, TRAINING, IvfPq, index_sizes, part_size
from mexma_rt.knn.plan import make_plan

COARSE_ROUNDS = 10  # of k-means, faiss's default for the lists
CODE_ROUNDS, CODE_TRAINING = 25, 256  # the same for the code words, with at most this many rows for each


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates of one core. The defaults come from benchmarks/results/plan.md: AVX2, shared with other work."""

    exact_flops: float  # FLOP per second of a whole exact search
    faiss_flops: float  # the same for training, adding and finding lists
    code_byte: float  # seconds per byte of a code that is read
    component: float  # seconds per component of a re-scored candidate
    sentences: float  # embedded per second


MEASURED = Rates(
    exact_flops=22e9, faiss_flops=23e9, code_byte=1.4e-9, component=7.2e-9, sentences=364
)  # 3 layers x 256: embed.md


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of searching both directions for the k nearest."""

    cpu_seconds: float
    read_bytes: float  # of vectors and codes
    index_bytes: float  # on disk, besides the vectors; 0 for exact search
    result_bytes: float
    tasks: int  # pairs of blocks (on a cluster, runs of them), or parts of the index
    block: tuple[int, int]  # rows of the two blocks, or of the parts of the two sides


def exact_cost(n: int, m: int, dimensions: int, k: int, memory_bytes: int, rates: Rates, *, apart: bool) -> Cost:
    """Estimate `mexma knn` on n x m rows of float32. apart: on a cluster, where a task reads an outer block and as many inner
    ones as add up to its size, and memory_bytes is per worker.
    """
    plan = make_plan(min(n, m), max(n, m), dimensions, k, memory_bytes)
    run = max(1, plan.outer_block // plan.inner_block)
    sides = len(plan.blocks), -(-len(plan.inner_blocks) // run) if apart else len(plan.inner_blocks)
    rows = plan.outer_rows * sides[1] + plan.inner_rows * sides[0] if apart else plan.rows_read
    return Cost(
        cpu_seconds=plan.flops / rates.exact_flops,
        read_bytes=4.0 * dimensions * (rows + n + m),  # and the first pass, which checks
        index_bytes=0,
        result_bytes=12.0 * k * (n + m),
        tasks=sides[0] * sides[1],
        block=(plan.outer_block, plan.inner_block * run if apart else plan.inner_block),
    )


def ivfpq_cost(n: int, m: int, dimensions: int, k: int, memory_bytes: int, settings: IvfPq, rates: Rates) -> Cost:
    """Estimate `approximate_neighbours`, including building both indexes."""
    seconds = read = index = 0.0
    tasks = 0
    block: list[int] = []
    for rows, queries, name in ((n, m, "x"), (m, n, "y")):
        nlist, code = index_sizes(settings, rows, dimensions, name, memory_bytes)
        part = part_size(rows, dimensions, code, memory_bytes)
        parts = -(-rows // part)
        index += index_bytes(rows, dimensions, nlist, code, parts)
        seconds += build_flops(rows, dimensions, nlist) / rates.faiss_flops
        seconds += search_seconds(rows, queries, dimensions, nlist, code, parts, settings, rates)
        read += 4.0 * dimensions * (2 * rows + parts * queries) + rows * (code + 8)
        tasks, block = tasks + parts, [*block, part]
    return Cost(
        cpu_seconds=seconds,
        read_bytes=read,
        index_bytes=index,
        result_bytes=12.0 * k * (n + m),
        tasks=tasks,
        block=(block[0], block[1]),
    )


def index_bytes(rows: int, dimensions: int, nlist: int, code: int, parts: int) -> float:
    """Return the size of codes and row numbers, plus centroids and code words, once per part and once more."""
    return rows * (code + 8) + (parts + 1) * (nlist + CODEBOOK) * dimensions * 4


def build_flops(rows: int, dimensions: int, nlist: int) -> float:
    """Return the FLOP of training lists and code words, assigning every row to a list, and coding it."""
    sample = min(rows, max(nlist, CODEBOOK) * TRAINING)
    lists = 2.0 * dimensions * nlist * (sample * COARSE_ROUNDS + rows)
    codes = 2.0 * dimensions * CODEBOOK * (min(sample, CODEBOOK * CODE_TRAINING) * CODE_ROUNDS + rows)
    return lists + codes


def search_seconds(
    rows: int, queries: int, dimensions: int, nlist: int, code: int, parts: int, settings: IvfPq, rates: Rates
) -> float:
    """Estimate queries against an index: lists are found again for every part, codes read once, candidates re-scored."""
    probes = min(settings.nprobe, nlist)
    lists = 2.0 * dimensions * nlist * queries * parts / rates.faiss_flops
    looked_at = float(queries) * rows * probes / nlist * code * rates.code_byte
    scored = float(queries) * parts * settings.candidates * dimensions * rates.component
    return lists + looked_at + scored
