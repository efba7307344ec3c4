"""The scan on GPUs, in half precision, by torch if it is installed or cupy.

The runtime needs neither of the two. This is the one file of it that may load them, in functions, and only where "cuda" or
"auto" was asked for. What is found here is re-scored and proved by exact.py, so a device changes times, not results.

Products of tiles, as in tiles.py; but where a CPU looks only into groups of cells that beat what is known, a GPU takes the
maxima of all groups, the k best groups of each row and column, and the k best cells in them, where those of the tile lie.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np

from mexma_rt.errors import BackendError, InputError, MissingExtraError
from mexma_rt.knn.keys import EMPTY, keys_of, merge_neighbours

GROUP = 32
SIDE = 32768  # rows and columns of a tile at most: 2 GiB in half precision
SPARE = 12  # candidates beyond k: between them the scores must fall by what half precision can err, 1e-3 for D=1024
DEVICES = ("cpu", "cuda", "auto")


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What `open_devices` chose: one set of array operations for each GPU, none for the CPU."""

    arrays: tuple[Any, ...]
    name: str
    reason: str
    precision: str = "float16"


def open_devices(device: str) -> Devices:
    """The GPUs of this machine for "cuda", or a CPU for "cpu" and, where there is no GPU that can be used, for "auto".

    Raises InputError for another name, MissingExtraError or BackendError where "cuda" was named and cannot be had.
    """
    if device not in DEVICES:
        raise InputError(f"device={device!r} is not known. Type one of: {', '.join(DEVICES)}.")
    if device == "cpu":
        return Devices(arrays=(), name="cpu", reason="named")
    reasons = []
    for library, opened in (("torch", _torch_devices), ("cupy", _cupy_devices)):
        if importlib.util.find_spec(library) is None:
            reasons.append(f"{library} is not installed")
            continue
        arrays = opened()
        if arrays:
            return Devices(arrays=arrays, name=f"{len(arrays)} x cuda ({library})", reason=f"{library} sees a GPU")
        reasons.append(f"{library} sees no GPU")
    if device == "auto":
        return Devices(arrays=(), name="cpu", reason=", ".join(reasons))
    if all("not installed" in reason for reason in reasons):
        raise MissingExtraError("A search on a GPU needs torch or cupy, and neither is installed. Type:\n    pip install torch")
    raise BackendError(
        f"device='cuda' cannot be used: {', '.join(reasons)}. Type device='cpu', or 'auto' to take what is there."
    )


class TorchArrays:
    """The operations of a scan, by torch on one device."""

    def __init__(self, device: str, precision: str = "float16") -> None:
        self.torch = importlib.import_module("torch")
        self.device, self.dtype = device, getattr(self.torch, precision)

    def free_bytes(self) -> int | None:
        return self.torch.cuda.mem_get_info(self.device)[0] if self.device.startswith("cuda") else None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Without gradients, and with sums in float32: by default torch lets parts of a sum be added in half precision."""
        flags = self.torch.backends.cuda.matmul
        names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
        before = [getattr(flags, name) for name in names]
        for name in names:
            setattr(flags, name, False)
        try:
            with self.torch.inference_mode():
                yield
        finally:
            for name, value in zip(names, before, strict=True):
                setattr(flags, name, value)

    def half(self, rows: np.ndarray) -> Any:
        return self.torch.from_numpy(rows).to(self.device).to(self.dtype)

    def numbers(self, start: int, stop: int) -> Any:
        return self.torch.arange(start, stop, device=self.device)

    def nothing(self, n: int, k: int) -> tuple[Any, Any]:
        scores = self.torch.full((n, k), -float("inf"), dtype=self.dtype, device=self.device)
        return scores, self.torch.full((n, k), -1, dtype=self.torch.int64, device=self.device)

    def maxima(self, cells: Any, axis: int) -> Any:
        return cells.amax(axis)

    def top(self, cells: Any, k: int) -> tuple[Any, Any]:
        found = self.torch.topk(cells, k, dim=1)
        return found.values, found.indices

    def take(self, cells: Any, index: Any, axis: int) -> Any:
        return self.torch.gather(cells, axis, index)

    def join(self, a: Any, b: Any) -> Any:
        return self.torch.cat([a, b], dim=1)

    def host(self, cells: Any) -> np.ndarray:
        return (cells.float() if cells.is_floating_point() else cells).cpu().numpy()


class CupyArrays:
    """The same by cupy, or by anything else that has numpy's functions."""

    def __init__(self, xp: Any, device: int | None = None) -> None:
        self.xp, self.device = xp, device

    def free_bytes(self) -> int | None:
        return None if self.device is None else self.xp.cuda.Device(self.device).mem_info[0]

    def running(self) -> Any:
        return contextlib.nullcontext() if self.device is None else self.xp.cuda.Device(self.device)

    def half(self, rows: np.ndarray) -> Any:
        return self.xp.asarray(rows).astype(self.xp.float16)

    def numbers(self, start: int, stop: int) -> Any:
        return self.xp.arange(start, stop)

    def nothing(self, n: int, k: int) -> tuple[Any, Any]:
        return self.xp.full((n, k), -self.xp.inf, self.xp.float16), self.xp.full((n, k), -1, self.xp.int64)

    def maxima(self, cells: Any, axis: int) -> Any:
        return cells.max(axis=axis)

    def top(self, cells: Any, k: int) -> tuple[Any, Any]:
        index = self.xp.argpartition(-cells, k - 1, axis=1)[:, :k]
        values = self.xp.take_along_axis(cells, index, axis=1)
        order = self.xp.argsort(-values, axis=1)
        return self.xp.take_along_axis(values, order, axis=1), self.xp.take_along_axis(index, order, axis=1)

    def take(self, cells: Any, index: Any, axis: int) -> Any:
        return self.xp.take_along_axis(cells, index, axis=axis)

    def join(self, a: Any, b: Any) -> Any:
        return self.xp.concatenate([a, b], axis=1)

    def host(self, cells: Any) -> np.ndarray:
        array = cells if isinstance(cells, np.ndarray) else cells.get()
        return array.astype(np.float32) if array.dtype.kind == "f" else array


def scan_on(arrays: tuple[Any, ...]) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """A scan (see `mexma_rt.knn.blocks.Scan`) on devices; each takes every len(arrays)-th block of rows of x."""

    def scan(
        x: np.ndarray,
        y: np.ndarray,
        k: int,
        x_floor: np.ndarray,
        y_floor: np.ndarray,
        *,
        memory_bytes: int,
        advance: Callable[[int], object],
    ) -> tuple[np.ndarray, np.ndarray]:
        side = min(_side(one, memory_bytes, x.shape[1], len(y), k) for one in arrays)
        by_x = np.full((len(x), k), EMPTY)
        starts = range(0, len(x), side)

        def work(number: int) -> np.ndarray:
            ops = arrays[number]
            with ops.running():
                return _scan_rows(ops, x, y, k, side, starts[number :: len(arrays)], by_x, memory_bytes, advance)

        with ThreadPoolExecutor(len(arrays)) as pool:
            return by_x, merge_neighbours(*pool.map(work, range(len(arrays))))

    return scan


def _scan_rows(
    ops: Any,
    x: np.ndarray,
    y: np.ndarray,
    k: int,
    side: int,
    starts: range,
    by_x: np.ndarray,
    memory_bytes: int,
    advance: Callable[[int], object],
) -> np.ndarray:
    """Scan the blocks of x that begin at `starts`; fills their rows of by_x and returns keys [m, k] of y."""
    room = (ops.free_bytes() or memory_bytes) // 4  # for rows of y that stay on the device
    held: dict[int, Any] = {}
    of_y = {j: ops.nothing(min(side, len(y) - j), k) for j in range(0, len(y), side)}
    for i in starts:
        b = min(side, len(x) - i)
        rows, of_x = ops.half(_whole_groups(x[i : i + side])), ops.nothing(b, k)
        for j in of_y:
            c = min(side, len(y) - j)
            columns = held.get(j)
            if columns is None:
                columns = ops.half(_whole_groups(y[j : j + side]))
                if room >= columns.nbytes:
                    held[j], room = columns, room - columns.nbytes
            tile = rows @ columns.T
            tile[b:] = -float("inf")
            tile[:, c:] = -float("inf")
            of_x = _join(ops, of_x, _best(ops, tile, k, j, by_row=True, n=b), k)
            of_y[j] = _join(ops, of_y[j], _best(ops, tile, k, i, by_row=False, n=c), k)
            advance(b * c)
        by_x[i : i + b] = _keys(ops, of_x)
    return np.concatenate([_keys(ops, of_y[j]) for j in of_y])


def _best(ops: Any, tile: Any, k: int, first: int, *, by_row: bool, n: int) -> tuple[Any, Any]:
    """The k best cells, or all, of each of the first n rows (or columns) of a tile: scores, and indices counted from first."""
    rows, columns = tile.shape
    if by_row:
        maxima = ops.maxima(tile.reshape(rows, columns // GROUP, GROUP), 2)
    else:
        maxima = ops.maxima(tile.reshape(rows // GROUP, GROUP, columns), 1).T
    groups = ops.top(maxima, min(k, maxima.shape[1]))[1]
    cells = (groups[:, :, None] * GROUP + ops.numbers(0, GROUP)).reshape(len(groups), -1)
    scores = ops.take(tile, cells, 1) if by_row else ops.take(tile, cells.T, 0).T
    scores, at = ops.top(scores, min(k, scores.shape[1]))
    return scores[:n], ops.take(cells, at, 1)[:n] + first


def _join(ops: Any, a: tuple[Any, Any], b: tuple[Any, Any], k: int) -> tuple[Any, Any]:
    scores, at = ops.top(ops.join(a[0], b[0]), k)
    return scores, ops.take(ops.join(a[1], b[1]), at, 1)


def _keys(ops: Any, found: tuple[Any, Any]) -> np.ndarray:
    scores, index = (ops.host(one) for one in found)
    nothing = ~np.isfinite(scores)  # not seen, or beyond what half precision holds: the bound of the error is infinite then
    keys = keys_of(np.where(nothing, np.float32(0), scores), np.where(nothing, 0, index))
    return np.where(nothing, EMPTY, keys)


def _side(ops: Any, memory_bytes: int, dimensions: int, m: int, k: int) -> int:
    """Rows and columns of a tile, whole groups: a quarter of the free memory for it, as much for the best groups."""
    free = ops.free_bytes() or memory_bytes
    side = min(SIDE, isqrt(free // 8), free // (8 * (k * GROUP * 10 + dimensions * 2)))
    return max(side // GROUP, 1) * GROUP


def _whole_groups(rows: np.ndarray) -> np.ndarray:
    """Rows in float32, with rows of zeros up to a whole number of groups."""
    padded = np.zeros((-(-len(rows) // GROUP) * GROUP, rows.shape[1]), np.float32)
    padded[: len(rows)] = rows
    return padded


def _torch_devices() -> tuple[Any, ...]:
    torch = importlib.import_module("torch")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(TorchArrays(f"cuda:{number}") for number in range(count))


def _cupy_devices() -> tuple[Any, ...]:
    cupy = importlib.import_module("cupy")
    try:
        return tuple(CupyArrays(cupy, number) for number in range(cupy.cuda.runtime.getDeviceCount()))
    except cupy.cuda.runtime.CUDARuntimeError:
        return ()
