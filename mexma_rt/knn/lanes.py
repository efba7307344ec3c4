"""Runs several matrix products at a time with one BLAS thread each, instead of one product with all threads.

Between products, BLAS threads spin on their cores (OpenBLAS: some 28 ms) and slow down whatever else runs there. A lane that
computes its own products and processes them itself does not wait.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from mexma_rt.cores import usable_cores

_lock = threading.Lock()
_users = 0  # running searches of this process: the first limits the BLAS's threads, the last restores them
_allowed = 0  # threads that it had
_limit: Any = None


@contextmanager
def open_lanes(wanted: int) -> Iterator[int]:
    """Make this process's BLAS use one thread per product during the block. Yields how many products to compute at once: at
    most `wanted`, the usable cores, and the threads that the BLAS was allowed (OMP_NUM_THREADS and the like).

    With `wanted` 1 nothing changes. A BLAS without such a switch (Apple's) keeps its threads.
    """
    if wanted <= 1:
        yield 1
        return
    allowed = _begin()
    try:
        yield min(wanted, usable_cores(), allowed)
    finally:
        _end()


def _begin() -> int:
    global _users, _allowed, _limit
    with _lock:
        if _users == 0:
            _allowed = max((one["num_threads"] for one in _blas().info()), default=usable_cores())
            _limit = _blas().limit(limits=1, user_api="blas")
        _users += 1
        return _allowed


def _end() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            _let_any_thread_limit()
            _limit.restore_original_limits()
            _let_any_thread_limit()


def _let_any_thread_limit() -> None:
    """threadpoolctl 3.8 ignores whoever is not the thread that set limits before, and that may be another search's."""
    from threadpoolctl import OpenBLASController

    if hasattr(OpenBLASController, "clear_controlling_thread"):
        OpenBLASController.clear_controlling_thread(force=True)


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController  # numpy's BLAS is loaded by now

    return ThreadpoolController().select(user_api="blas")
