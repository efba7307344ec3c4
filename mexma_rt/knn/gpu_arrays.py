"""Array operations of the GPU scan, one class each for torch and cupy, with the same methods.

Each holds one device. Rows are sent through page-locked memory (gpu_copies.py).
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

import numpy as np

from mexma_rt.knn.gpu_copies import CupyCopies, DeviceArray, Library, Staging, TorchCopies, sent_type
from mexma_rt.knn.gpu_errors import explained

HASHED_ROWS = 4096  # at a time: their products are int64 [rows, D]
# Settings that may round a product's sum to half precision midway; the bound of exact.py holds for float32 sums.
SHORT_SUMS = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)
_lock = threading.Lock()
_before: dict[str, object] = {}
_users = 0


class TorchArrays:
    """Operations by torch on one device. memory: assumed free memory of a device that cannot be asked (the CPU, in tests)."""

    library = "torch"

    def __init__(self, device: str, precision: str = "float16", memory: int = 256 << 20) -> None:
        self.torch = importlib.import_module("torch")
        self.device, self.dtype, self.memory = device, getattr(self.torch, precision), memory
        self.staging: Staging | None = None
        self.total_bytes = self.free_bytes()  # before the search takes any

    def free_bytes(self) -> int:
        """Free bytes of the device, including memory that torch reserves but does not use."""
        if not self.device.startswith("cuda"):
            return self.memory
        unused = self.torch.cuda.memory_reserved(self.device) - self.torch.cuda.memory_allocated(self.device)
        return int(self.torch.cuda.mem_get_info(self.device)[0] + unused)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Set the current device and no gradients for the thread that works on this device; errors become BackendError."""
        current = self.torch.cuda.device(self.device) if self.device.startswith("cuda") else contextlib.nullcontext()
        with explained("torch", self.device), self.torch.inference_mode(), current:
            yield

    @contextlib.contextmanager
    def precise(self) -> Iterator[None]:
        """Make the process's products sum in float32 until the last of several searches (threads, devices) has left."""
        global _users
        flags = self.torch.backends.cuda.matmul
        with _lock:
            _users += 1
            if _users == 1:
                for name in SHORT_SUMS:  # the last of them since torch 2.7
                    with contextlib.suppress(AttributeError, RuntimeError):
                        _before[name] = getattr(flags, name)
                        setattr(flags, name, False)
        try:
            yield
        finally:
            with _lock:
                _users -= 1
                while _users == 0 and _before:
                    setattr(flags, *_before.popitem())

    def send(self, rows: np.ndarray) -> DeviceArray:
        """Return rows of any real type as float32 [n, D] on the device."""
        if not self.device.startswith("cuda"):
            return self.torch.from_numpy(np.ascontiguousarray(rows, np.float32))
        self.staging = self.staging or Staging(TorchCopies(self.torch, self.device))
        dtype = getattr(self.torch, sent_type(rows).name)
        sent = self.torch.empty(rows.shape, dtype=dtype, device=self.device)
        self.staging.send(rows, sent)
        return sent.float()

    def half(self, rows: DeviceArray, n: int) -> DeviceArray:
        """Return rows in the scan's precision, padded to n with rows of zeros."""
        low = self.torch.zeros((n, rows.shape[1]), dtype=self.dtype, device=self.device)
        low[: len(rows)] = rows
        return low

    def norms(self, rows: DeviceArray) -> DeviceArray:
        """Euclidean lengths, summed in float64."""
        return self.torch.linalg.vector_norm(rows, dim=1, dtype=self.torch.float64)

    def hashes(self, rows: DeviceArray, factors: np.ndarray) -> DeviceArray:
        """Compute `exact.hashes_of` as int64, whose arithmetic equals uint64's."""
        by = self.torch.from_numpy(factors.view(np.int64)).to(self.device)
        parts = [
            ((part.view(self.torch.int32).to(self.torch.int64) & 0xFFFF_FFFF) * by).sum(1) for part in rows.split(HASHED_ROWS)
        ]
        return self.torch.cat(parts)

    def single(self, cells: DeviceArray) -> DeviceArray:
        return cells.float()

    def floor(self, numbers: np.ndarray) -> DeviceArray:
        return self.torch.from_numpy(numbers).to(self.device)

    def higher(self, a: DeviceArray, b: DeviceArray) -> DeviceArray:
        return self.torch.maximum(a, b)

    def numbers(self, start: int, stop: int) -> DeviceArray:
        return self.torch.arange(start, stop, device=self.device)

    def nothing(self, n: int, k: int) -> tuple[DeviceArray, DeviceArray]:
        """Return scores of -inf and indices of -1, [n, k]."""
        scores = self.torch.full((n, k), -float("inf"), dtype=self.dtype, device=self.device)
        return scores, self.torch.full((n, k), -1, dtype=self.torch.int64, device=self.device)

    def maxima(self, cells: DeviceArray, axis: int) -> DeviceArray:
        return cells.amax(axis)

    def rows_first(self, cells: DeviceArray) -> DeviceArray:
        """The transpose as a copy: reductions and top-k along a strided axis read each cache line many times."""
        return cells.T.contiguous()

    def top(self, cells: DeviceArray, k: int) -> tuple[DeviceArray, DeviceArray]:
        found = self.torch.topk(cells, k, dim=1)
        return found.values, found.indices

    def take(self, cells: DeviceArray, index: DeviceArray, axis: int) -> DeviceArray:
        return self.torch.gather(cells, axis, index)

    def where(self, mask: DeviceArray) -> tuple[DeviceArray, ...]:
        """Return the indices of true cells along each axis, in row order."""
        found: tuple[DeviceArray, ...] = self.torch.nonzero(mask, as_tuple=True)
        return found

    def counts(self, index: DeviceArray, n: int) -> DeviceArray:
        return self.torch.bincount(index, minlength=n)

    def join(self, a: DeviceArray, b: DeviceArray) -> DeviceArray:
        return self.torch.cat([a, b], dim=1)

    def host(self, cells: DeviceArray) -> np.ndarray:
        array: np.ndarray = (cells.float() if cells.dtype == self.dtype else cells).cpu().numpy()
        return array


class CupyArrays:
    """The same operations by cupy, or by anything else with numpy's functions."""

    library = "cupy"

    def __init__(self, xp: Library, device: int | None = None, memory: int = 256 << 20) -> None:
        self.xp, self.device, self.memory = xp, device, memory
        self.staging: Staging | None = None
        self.total_bytes = self.free_bytes()

    def free_bytes(self) -> int:
        if self.device is None:
            return self.memory
        return int(self.xp.cuda.Device(self.device).mem_info[0] + self.xp.get_default_memory_pool().free_bytes())

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        current = contextlib.nullcontext() if self.device is None else self.xp.cuda.Device(self.device)
        with explained("cupy", f"cuda:{self.device}"), current:
            yield

    def precise(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()  # cupy's products of float16 sum in float32

    def send(self, rows: np.ndarray) -> DeviceArray:
        if self.device is None:
            return self.xp.asarray(rows, dtype=np.float32)
        self.staging = self.staging or Staging(CupyCopies(self.xp))
        sent = self.xp.empty(rows.shape, sent_type(rows))
        self.staging.send(rows, sent)
        return sent.astype(np.float32, copy=False)

    def half(self, rows: DeviceArray, n: int) -> DeviceArray:
        low = self.xp.zeros((n, rows.shape[1]), np.float16)
        with np.errstate(over="ignore"):  # infinite where a component is beyond the precision
            low[: len(rows)] = rows
        return low

    def norms(self, rows: DeviceArray) -> DeviceArray:
        parts = (rows[start : start + HASHED_ROWS].astype(np.float64) for start in range(0, len(rows), HASHED_ROWS))
        return self.xp.concatenate([self.xp.sqrt((part * part).sum(axis=1)) for part in parts])

    def hashes(self, rows: DeviceArray, factors: np.ndarray) -> DeviceArray:
        by, bits = self.xp.asarray(factors), rows.view(np.uint32)
        parts = (bits[start : start + HASHED_ROWS].astype(np.uint64) for start in range(0, len(rows), HASHED_ROWS))
        return self.xp.concatenate([(part * by).sum(axis=1) for part in parts])

    def single(self, cells: DeviceArray) -> DeviceArray:
        return cells.astype(np.float32)

    def floor(self, numbers: np.ndarray) -> DeviceArray:
        return self.xp.asarray(numbers)

    def higher(self, a: DeviceArray, b: DeviceArray) -> DeviceArray:
        return self.xp.maximum(a, b)

    def numbers(self, start: int, stop: int) -> DeviceArray:
        return self.xp.arange(start, stop)

    def nothing(self, n: int, k: int) -> tuple[DeviceArray, DeviceArray]:
        return self.xp.full((n, k), -self.xp.inf, self.xp.float16), self.xp.full((n, k), -1, self.xp.int64)

    def maxima(self, cells: DeviceArray, axis: int) -> DeviceArray:
        return cells.max(axis=axis)

    def rows_first(self, cells: DeviceArray) -> DeviceArray:
        return self.xp.ascontiguousarray(cells.T)

    def top(self, cells: DeviceArray, k: int) -> tuple[DeviceArray, DeviceArray]:
        """Take the best k times, because cupy's argpartition sorts whole rows."""
        left, rows = cells.copy(), self.xp.arange(len(cells))
        values, index = self.xp.empty((len(cells), k), cells.dtype), self.xp.empty((len(cells), k), np.int64)
        for place in range(k):
            best = left.argmax(axis=1)
            values[:, place], index[:, place] = left[rows, best], best
            left[rows, best] = -self.xp.inf
        return values, index

    def take(self, cells: DeviceArray, index: DeviceArray, axis: int) -> DeviceArray:
        return self.xp.take_along_axis(cells, index, axis=axis)

    def where(self, mask: DeviceArray) -> tuple[DeviceArray, ...]:
        found: tuple[DeviceArray, ...] = self.xp.nonzero(mask)
        return found

    def counts(self, index: DeviceArray, n: int) -> DeviceArray:
        return self.xp.bincount(index, minlength=n)

    def join(self, a: DeviceArray, b: DeviceArray) -> DeviceArray:
        return self.xp.concatenate([a, b], axis=1)

    def host(self, cells: DeviceArray) -> np.ndarray:
        array = cells if isinstance(cells, np.ndarray) else cells.get()
        return array.astype(np.float32) if array.dtype == np.float16 else array


Arrays: TypeAlias = TorchArrays | CupyArrays
