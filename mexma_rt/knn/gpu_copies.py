"""Copies rows to a device through page-locked memory: a piece is packed into one half while the other half is copied."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np

STAGED_BYTES = 64 << 20  # per piece in transit: enough for the full rate of PCIe, but small next to any GPU's memory

# Neither library may be imported for its types: a search that needs no GPU must not load one.
Library: TypeAlias = Any  # the module torch or cupy
DeviceArray: TypeAlias = Any  # a torch.Tensor or a cupy.ndarray
Event: TypeAlias = Any  # of torch or cupy: reached when a stream has done everything before it


class Copies(Protocol):
    """Asynchronous copies to one device, in the stream that computes."""

    def pinned(self, size: int) -> np.ndarray:
        """A page-locked buffer of the host, uint8 [size]."""

    def copy(self, target: DeviceArray, buffer: np.ndarray) -> Event:
        """Start copying the beginning of a buffer to a target, filling it; return the event that marks the end."""

    def wait(self, event: Event) -> None:
        """Block until the event."""


def sent_type(rows: np.ndarray) -> np.dtype:
    """Return the type in which rows cross the bus: half precision unchanged, in half the time; everything else as float32, to
    which the host converts faster than to half precision.
    """
    return np.dtype(np.float16 if rows.dtype == np.float16 else np.float32)


class Staging:
    """Sends rows to a device piece by piece through two page-locked buffers: one is filled while the other is copied."""

    def __init__(self, copies: Copies, bytes_at_once: int = STAGED_BYTES) -> None:
        self.copies, self.bytes = copies, bytes_at_once
        self.buffers = [copies.pinned(bytes_at_once) for _ in range(2)]
        self.busy: list[Event | None] = [None, None]  # the event after which a buffer may be written again
        self.turn = 0

    def send(self, rows: np.ndarray, target: DeviceArray) -> None:
        """Fill target [n, D] of `sent_type`; later work on the device waits for it, but the rows may be changed immediately."""
        dtype = sent_type(rows)
        step = max(self.bytes // (dtype.itemsize * max(rows.shape[1], 1)), 1)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            if self.busy[self.turn] is not None:
                self.copies.wait(self.busy[self.turn])
            buffer = self.buffers[self.turn][: part.size * dtype.itemsize]
            np.copyto(buffer.view(dtype).reshape(part.shape), part, casting="unsafe")
            self.busy[self.turn] = self.copies.copy(target[start : start + step], buffer)
            self.turn = 1 - self.turn


class TorchCopies:
    """Asynchronous copies by torch, in the stream that computes; the host packs the next piece meanwhile."""

    def __init__(self, torch: Library, device: str) -> None:
        self.torch, self.device = torch, device
        self.held: dict[int, DeviceArray] = {}  # address -> page-locked tensor

    def pinned(self, size: int) -> np.ndarray:
        tensor = self.torch.empty(size, dtype=self.torch.uint8, pin_memory=True)
        view: np.ndarray = tensor.numpy()
        self.held[view.ctypes.data] = tensor
        return view

    def copy(self, target: DeviceArray, buffer: np.ndarray) -> Event:
        source = self.held[buffer.ctypes.data][: len(buffer)].view(target.dtype).view(target.shape)
        target.copy_(source, non_blocking=True)
        event = self.torch.cuda.Event()
        event.record(self.torch.cuda.current_stream(self.device))
        return event

    def wait(self, event: Event) -> None:
        event.synchronize()


class CupyCopies:
    """Asynchronous copies by cupy."""

    def __init__(self, cupy: Library) -> None:
        self.cupy = cupy

    def pinned(self, size: int) -> np.ndarray:
        return np.frombuffer(self.cupy.cuda.alloc_pinned_memory(size), np.uint8, size)

    def copy(self, target: DeviceArray, buffer: np.ndarray) -> Event:
        stream = self.cupy.cuda.get_current_stream()
        target.data.copy_from_host_async(buffer.ctypes.data, len(buffer), stream)
        return stream.record()

    def wait(self, event: Event) -> None:
        event.synchronize()
