"""Plans a search larger than memory: blocks, bytes, reads and time, from its sizes and the memory allowed.

Blocks of one side, the outer one, are held in turn while the other side is read past each of them: every byte of the outer side
is read once, and of the inner side once per outer block. The minimum is reached with the smaller side outside and blocks as
large as memory allows. The inner side is read alternately forwards and backwards, which saves one block at each turn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from mexma_rt.cores import usable_cores
from mexma_rt.errors import InputError
from mexma_rt.knn.exact import PROVED_ROWS

BASE_BYTES = 160 << 20  # interpreter, numpy and the BLAS's buffers (measured 98 MB with 2 threads), and 16 MB of reading
SCAN_BYTES = 96 << 20  # bound of a scan: in two lanes tiles of 2048 x 2048, their maxima and the cells looked into
INNER_ROWS = 16384  # of an inner block at most
PAIR_FLOP = 2e12  # of a pair of blocks, after which a checkpoint can be made: 13 s at 150 GFLOP/s


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search of outer rows x inner rows, in blocks."""

    outer_rows: int
    inner_rows: int
    outer_block: int
    inner_block: int
    columns: int
    k: int
    memory_bytes: int
    keep_inner: bool  # the neighbours of all inner rows stay in memory between checkpoints

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """The (start, stop) of the outer blocks."""
        return _cut(self.outer_rows, self.outer_block)

    @property
    def inner_blocks(self) -> list[tuple[int, int]]:
        """The (start, stop) of the inner blocks."""
        return _cut(self.inner_rows, self.inner_block)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Return (outer block, inner block) numbers in working order: inner blocks alternately forwards and backwards."""
        inner = range(len(self.inner_blocks))
        return [(i, j) for i in range(len(self.blocks)) for j in (inner if i % 2 == 0 else reversed(inner))]

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole product."""
        return 2.0 * self.outer_rows * self.inner_rows * self.columns

    @property
    def rows_read(self) -> int:
        """Rows read of both sides, after the first pass that checks them."""
        passes, inner = len(self.blocks), self.inner_blocks
        last, first = (stop - start for start, stop in (inner[-1], inner[0]))  # of the inner side: where the direction changes
        return self.outer_rows + passes * self.inner_rows - passes // 2 * last - (passes - 1) // 2 * first

    def text(self, seconds: float) -> str:
        """Describe the plan in one line, with the estimated seconds."""
        return (
            f"{self.outer_rows:,} x {self.inner_rows:,} rows of {self.columns} dimensions, k={self.k}: {self.flops:.3g} FLOP "
            f"in {len(self.blocks)} x {len(self.inner_blocks)} blocks of {self.outer_block:,} x {self.inner_block:,} rows; "
            f"reads {self.rows_read * self.columns * 4 / 1e9:,.2f} GB, uses at most {self.memory_bytes / 1e9:,.2f} GB of "
            f"memory, takes about {duration(seconds)}"
        )


def make_plan(outer_rows: int, inner_rows: int, columns: int, k: int, memory_bytes: int) -> Plan:
    """Choose the blocks. Raises InputError, saying how much is needed, if memory is too small for any."""
    keys = 8 * (3 * k + 8)  # of a row: known, scanned and proved neighbours
    row = columns * 4 + keys + 64  # and its length, hash, order and place
    fixed = BASE_BYTES + SCAN_BYTES + PROVED_ROWS * usable_cores() * 8 * (2 * k + 6) * 6
    widest = min(outer_rows, memory_bytes // row)
    inner_block = min(inner_rows, INNER_ROWS, max(int(PAIR_FLOP / (2 * columns * max(widest, 1))) // 2048, 1) * 2048)
    room = memory_bytes - fixed - inner_block * row
    keep_inner = inner_rows * k * 8 <= room // 8
    if keep_inner:
        room -= inner_rows * k * 8
    outer_block = min(outer_rows, room // row)
    least = min(outer_rows, 2048)
    if outer_block < least:
        needed = fixed + (inner_block + least) * row
        raise InputError(
            f"{memory_bytes / 1e9:.2f} GB of memory is too little for {columns} dimensions and k={k}. Type at least "
            f"{needed * 1.15 / 1e9:.1f}GB."
        )
    count = -(-outer_rows // outer_block)
    equal = -(-outer_rows // count)
    outer_block = min(outer_block, -(-equal // 256) * 256)
    return Plan(
        outer_rows=outer_rows,
        inner_rows=inner_rows,
        outer_block=outer_block,
        inner_block=inner_block,
        columns=columns,
        k=k,
        memory_bytes=memory_bytes,
        keep_inner=keep_inner,
    )


def flops_per_second(columns: int) -> float:
    """Measure the rate of float32 products on this machine for a tenth of a second."""
    side = np.full((2048, columns), 0.5, np.float32)
    out = np.empty((2048, 2048), np.float32)
    best, until = 0.0, time.perf_counter() + 0.1 * usable_cores()
    while not best or time.perf_counter() < until:
        started = time.perf_counter()
        np.matmul(side, side.T, out=out)
        best = max(best, 2.0 * 2048 * 2048 * columns / (time.perf_counter() - started))
    return best


def duration(seconds: float) -> str:
    """Format seconds: 43 s, 12 min, 3.4 h, 5.1 days."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def _cut(rows: int, block: int) -> list[tuple[int, int]]:
    return [(start, min(start + block, rows)) for start in range(0, rows, max(1, block))]
