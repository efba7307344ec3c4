"""The scan on GPUs, in half precision, with torch if installed, or cupy (gpu_arrays.py has their operations).

The runtime requires neither. They are imported in functions, only for "cuda" or "auto". Candidates found here are re-scored and
proved by exact.py, so a device changes speed, not results.

As in tiles.py, products are computed in tiles, and each row and column searches only groups of cells whose maximum beats its
current best. A row without a current best (in its first tile) takes the k best groups, which contain the k best cells of the
tile, and the k best cells in them. gpu_vectors.py sends and measures vectors.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from mexma_rt.errors import BackendError, InputError, MissingExtraError
from mexma_rt.knn.gpu_arrays import Arrays, CupyArrays, TorchArrays
from mexma_rt.knn.gpu_copies import DeviceArray
from mexma_rt.knn.gpu_errors import explained
from mexma_rt.knn.gpu_vectors import GROUP, Sent
from mexma_rt.knn.keys import EMPTY, keys_of, merge_neighbours

SPARE = 12  # candidates beyond k: across them scores must drop by more than half precision's error, 1e-3 for D=1024
SLICE = 4096  # rows that take whole groups at a time: an 8-byte index for each of their cells
DEVICES = ("cpu", "cuda", "auto")


@dataclass(frozen=True, kw_only=True)
class OpenGpus:
    """What `open_devices` chose: one set of array operations for each GPU, none for the CPU."""

    arrays: tuple[Arrays, ...]
    name: str
    reason: str
    precision: str = "float16"


def open_devices(device: str) -> OpenGpus:
    """Open this machine's GPUs for "cuda" (one for "cuda:1"); the CPU for "cpu", and for "auto" if no GPU is usable.

    Raises InputError for another name, MissingExtraError or BackendError if "cuda" was named but is unavailable.
    """
    kind, colon, index = device.partition(":")
    if kind not in DEVICES or (colon and not (kind == "cuda" and index.isdecimal())):
        raise InputError(f"device={device!r} is not known. Type one of: {', '.join(DEVICES)}, or cuda:1 for one GPU.")
    if device == "cpu":
        return OpenGpus(arrays=(), name="cpu", reason="named")
    reasons = []
    for library, opened in (("torch", _torch_devices), ("cupy", _cupy_devices)):
        if importlib.util.find_spec(library) is None:
            reasons.append(f"{library} is not installed")
            continue
        arrays = opened()
        if colon and arrays:
            if int(index) >= len(arrays):
                raise BackendError(f"There is no {device}: {library} sees {len(arrays)} GPUs, counted from cuda:0.")
            return OpenGpus(arrays=(arrays[int(index)],), name=f"{device} ({library})", reason=f"{device} was named")
        if arrays:
            return OpenGpus(arrays=arrays, name=f"{len(arrays)} x cuda ({library})", reason=f"{library} sees a GPU")
        reasons.append(f"{library} sees no GPU")
    if device == "auto":
        return OpenGpus(arrays=(), name="cpu", reason=", ".join(reasons))
    if all("not installed" in reason for reason in reasons):
        raise MissingExtraError(
            "A search on a GPU needs torch or cupy, but neither is installed. Type:\n    pip install 'mexma-rt[torch]'"
        )
    raise BackendError(
        f"device='cuda' cannot be used: {', '.join(reasons)}. Type device='cpu', or 'auto' to use what is available."
    )


def scan_on(arrays: tuple[Arrays, ...]) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Return a scan (see `mexma_rt.knn.blocks.Scan`) on devices, for vectors or what `prepare_on` sent; each device takes every
    len(arrays)-th piece of x. Its device memory depends on what is free, not on memory_bytes.
    """

    def scan(
        x: np.ndarray | Sent,
        y: np.ndarray | Sent,
        k: int,
        x_floor: np.ndarray,
        y_floor: np.ndarray,
        *,
        memory_bytes: int,
        advance: Callable[[int], object],
    ) -> tuple[np.ndarray, np.ndarray]:
        x, y = (side if isinstance(side, Sent) else Sent(arrays, side) for side in (x, y))
        by_x = np.full((len(x.vectors), k), EMPTY)
        both = bool((y_floor < np.inf).any())  # columns that no cell can reach are skipped
        floors = [np.nextafter(floor, np.float32(-np.inf)) for floor in (x_floor, y_floor)]  # cells that equal a floor count

        def work(number: int) -> np.ndarray:
            with arrays[number].running():
                return _scan_rows(arrays[number], number, x, y, k, floors, by_x, both, advance)

        with ExitStack() as stack, ThreadPoolExecutor(len(arrays)) as pool:
            for ops in arrays:
                stack.enter_context(ops.precise())
            found = list(pool.map(work, range(len(arrays))))
        return by_x, found[0] if len(found) == 1 else merge_neighbours(*found)

    return scan


class Best:
    """The k best cells so far of some rows of the product, on a device: scores and indices [n, k], best first."""

    def __init__(self, ops: Arrays, n: int, k: int, floor: np.ndarray) -> None:
        self.ops, self.k, self.known = ops, k, False
        self.scores, self.index = ops.nothing(n, k)
        self.above = self.floor = ops.floor(floor)  # float32 [n]: what a cell must exceed
        self.fresh = bool(np.isneginf(floor).any()) if n else False

    def merge(self, rows: DeviceArray, scores: DeviceArray, index: DeviceArray) -> None:
        """Merge further cells [m, w] of some rows (a slice or distinct numbers)."""
        ops = self.ops
        best, at = ops.top(ops.join(self.scores[rows], scores), self.k)
        self.index[rows] = ops.take(ops.join(self.index[rows], index), at, 1)
        self.scores[rows] = best

    def demand_better(self) -> None:
        """Raise the bar: from here on, cells that equal the k-th best do not count."""
        self.above = self.ops.higher(self.floor, self.ops.single(self.scores[:, -1]))
        self.fresh = False

    def keys(self) -> np.ndarray:
        """The best cells as keys uint64 [n, k] (keys.py), in host memory."""
        scores, index = (self.ops.host(one) for one in (self.scores, self.index))
        nothing = ~np.isfinite(scores)  # not seen, or beyond half precision's range, where the error bound is infinite
        keys = keys_of(np.where(nothing, np.float32(0), scores), np.where(nothing, 0, index))
        return np.where(nothing, EMPTY, keys)


def _scan_rows(
    ops: Arrays,
    number: int,
    x: Sent,
    y: Sent,
    k: int,
    floors: list[np.ndarray],
    by_x: np.ndarray,
    both: bool,
    advance: Callable[[int], object],
) -> np.ndarray:
    """Scan this device's pieces of x; fill their rows of by_x and return keys [m, k] of y."""
    m, step = len(y.vectors), y.side
    of_y = {j: Best(ops, min(step, m - j), k, floors[1][j : j + step]) for j in y.starts} if both else {}
    for i in x.starts[number :: len(x.arrays)]:
        rows = x.piece(number, i)
        b = min(x.side, len(x.vectors) - i)
        of_x = Best(ops, b, k, floors[0][i : i + b])
        for j in y.starts:
            c = min(step, m - j)
            tile = rows @ y.piece(number, j).T
            tile[b:] = -float("inf")
            tile[:, c:] = -float("inf")
            _absorb(of_x, tile, j, by_row=True)
            if both:
                _absorb(of_y[j], tile, i, by_row=False)
            advance(b * c)
        by_x[i : i + b] = of_x.keys()
    return np.concatenate([of_y[j].keys() for j in y.starts]) if both else np.full((m, k), EMPTY)


def _absorb(best: Best, tile: DeviceArray, first: int, *, by_row: bool) -> None:
    """Merge what the rows (or columns) of a tile find in it; its columns (or rows) are numbered from `first`."""
    ops, n, (rows, columns) = best.ops, len(best.scores), tile.shape
    if by_row:
        groups = tile.reshape(rows, columns // GROUP, GROUP)
        maxima = ops.maxima(groups, 2)[:n]
    else:
        groups = tile.reshape(rows // GROUP, GROUP, columns)
        maxima = ops.rows_first(ops.maxima(groups, 1))[:n]
    if best.fresh:
        _take_best_groups(best, tile, maxima, first, by_row=by_row)
    else:
        row, group = ops.where(maxima > best.above[:, None])
        if len(row) > n * min(best.k, maxima.shape[1]):  # more than the best groups of all rows
            _take_best_groups(best, tile, maxima, first, by_row=by_row)
        elif len(row):
            cells = groups[row, group] if by_row else groups[group, :, row]
            _take_cells(best, row, group, cells, first)
    best.demand_better()


def _take_best_groups(best: Best, tile: DeviceArray, maxima: DeviceArray, first: int, *, by_row: bool) -> None:
    """Take the k best cells (or all) of each row, which lie in its k best groups."""
    ops, inside = best.ops, best.ops.numbers(0, GROUP)
    for start in range(0, len(maxima), SLICE):
        part = slice(start, min(start + SLICE, len(maxima)))
        groups = ops.top(maxima[part], min(best.k, maxima.shape[1]))[1]
        index = (groups[:, :, None] * GROUP + inside).reshape(len(groups), -1)
        scores = ops.take(tile[part], index, 1) if by_row else ops.rows_first(ops.take(tile[:, part], index.T, 0))
        scores, at = ops.top(scores, min(best.k, scores.shape[1]))
        best.merge(part, scores, ops.take(index, at, 1) + first)


def _take_cells(best: Best, row: DeviceArray, group: DeviceArray, cells: DeviceArray, first: int) -> None:
    """Take those cells [m, GROUP] of some groups that beat their rows' current best; rows ascend."""
    ops = best.ops
    which, inside = ops.where(cells > best.above[row][:, None])
    query, scores, index = row[which], cells[which, inside], group[which] * GROUP + inside + first
    counts = ops.counts(query, len(best.scores))
    width = int(counts.max())
    if width == 0:
        return
    ends = counts.cumsum(0)
    place = ops.numbers(0, len(query)) - (ends - counts)[query]
    finders = ops.where(counts > 0)[0]
    slot = ((counts > 0).cumsum(0) - 1)[query]
    table, names = ops.nothing(len(finders), width)
    table[slot, place], names[slot, place] = scores, index
    best.merge(finders, table, names)


def _torch_devices() -> tuple[Arrays, ...]:
    torch = importlib.import_module("torch")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(TorchArrays(f"cuda:{number}") for number in range(count))


def _cupy_devices() -> tuple[Arrays, ...]:
    with explained("cupy", "cuda"):
        cupy = importlib.import_module("cupy")
    try:
        return tuple(CupyArrays(cupy, number) for number in range(cupy.cuda.runtime.getDeviceCount()))
    except cupy.cuda.runtime.CUDARuntimeError:
        return ()
