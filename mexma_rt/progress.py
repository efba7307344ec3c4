"""The progress bar: on stderr, for jobs longer than a second, and only on a terminal unless requested."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(progress: bool | None, *, total: int | None, desc: str, unit: str) -> Iterator[Callable[[int], object]]:
    """Yield a function that advances the bar. `progress`: True, False, or None for jobs over a second on a terminal.

    It shows the rate, and the time left unless `total` is None (unknown).
    """
    shown = sys.stderr is not None and sys.stderr.isatty() if progress is None else progress
    if not shown:  # not even a disabled tqdm, which would start a thread in the calling process
        yield lambda _: None
        return
    from tqdm import tqdm

    delay = 1.0 if progress is None else 0.0
    with tqdm(total=total, desc=desc, unit=unit, unit_scale=True, delay=delay) as bar:
        yield bar.update
