"""Copies of rows to a device through page-locked memory: a piece is packed into one half while the other half is copied."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np

STAGED_BYTES = 64 << 20  # of a piece on its way: large enough for the full rate of PCIe, small beside the memory of any GPU

# Neither library may be imported for its types: a search that needs no GPU must not load one.
Library: TypeAlias = Any  # the module torch or cupy
DeviceArray: TypeAlias = Any  # a torch.Tensor or a cupy.ndarray
Event: TypeAlias = Any  # of torch or cupy: what a stream reaches when it has done what came before


class Copies(Protocol):
    """Asynchronous copies to one device, in the stream that computes."""

    def pinned(self, cells: int) -> np.ndarray:
        """A page-locked float32 buffer [cells] of the host."""

    def copy(self, target: DeviceArray, buffer: np.ndarray, cells: int) -> Event:
        """Start the copy of the first cells of a buffer to target; returns the event of its end."""

    def wait(self, event: Event) -> None:
        """Block until the event."""


class Staging:
    """Rows -> float32 on a device, piece by piece through two page-locked buffers: one is filled while the other is copied."""

    def __init__(self, copies: Copies, bytes_at_once: int = STAGED_BYTES) -> None:
        self.copies, self.cells = copies, bytes_at_once // 4
        self.buffers = [copies.pinned(self.cells) for _ in range(2)]
        self.busy: list[Event | None] = [None, None]  # the event after which a buffer may be written again
        self.turn = 0

    def send(self, rows: np.ndarray, target: DeviceArray) -> None:
        """Fill target [n, D], which whatever the device does next waits for; the rows may be changed at once."""
        step = max(self.cells // max(rows.shape[1], 1), 1)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            if self.busy[self.turn] is not None:
                self.copies.wait(self.busy[self.turn])
            view = self.buffers[self.turn][: part.size].reshape(part.shape)
            np.copyto(view, part, casting="unsafe")
            self.busy[self.turn] = self.copies.copy(target[start : start + step], self.buffers[self.turn], part.size)
            self.turn = 1 - self.turn


class TorchCopies:
    """Asynchronous copies by torch, in the stream that computes: the host packs the next piece meanwhile."""

    def __init__(self, torch: Library, device: str) -> None:
        self.torch, self.device = torch, device
        self.held: dict[int, DeviceArray] = {}  # address -> page-locked tensor

    def pinned(self, cells: int) -> np.ndarray:
        tensor = self.torch.empty(cells, dtype=self.torch.float32, pin_memory=True)
        view = tensor.numpy()
        self.held[view.ctypes.data] = tensor
        return view

    def copy(self, target: DeviceArray, buffer: np.ndarray, cells: int) -> Event:
        source = self.held[buffer.ctypes.data][:cells].view(target.shape)
        target.copy_(source, non_blocking=True)
        event = self.torch.cuda.Event()
        event.record(self.torch.cuda.current_stream(self.device))
        return event

    def wait(self, event: Event) -> None:
        event.synchronize()


class CupyCopies:
    """The same by cupy."""

    def __init__(self, cupy: Library) -> None:
        self.cupy = cupy

    def pinned(self, cells: int) -> np.ndarray:
        return np.frombuffer(self.cupy.cuda.alloc_pinned_memory(cells * 4), np.float32, cells)

    def copy(self, target: DeviceArray, buffer: np.ndarray, cells: int) -> Event:
        stream = self.cupy.cuda.get_current_stream()
        target.data.copy_from_host_async(buffer.ctypes.data, cells * 4, stream)
        return stream.record()

    def wait(self, event: Event) -> None:
        event.synchronize()
