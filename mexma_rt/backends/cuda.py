"""The parts of CUDA that an engine needs, without torch: a stream, events, device and pinned memory, captured graphs.

A thin layer: each method is one or two calls to `cuda.bindings.runtime`, and errors carry CUDA's own text.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mexma_rt.errors import BackendError


@contextlib.contextmanager
def on_gpu(runtime: Any, number: int) -> Iterator[None]:
    """Make a visible GPU this thread's current one, and restore the previous one afterwards.

    Engine, stream and memory must be on one GPU, but other libraries in the process may have chosen another.
    """
    before = _call(runtime, "cudaGetDevice")
    if before == number:
        yield
        return
    _call(runtime, "cudaSetDevice", number)
    try:
        yield
    finally:
        _call(runtime, "cudaSetDevice", before)


class Cuda:
    """A stream and its allocations, until `release`. Copies, launches and captured work run in stream order."""

    def __init__(self, runtime: Any) -> None:
        """`runtime` is the module `cuda.bindings.runtime`. Raises BackendError, as every method does."""
        self._runtime = runtime
        self._stack = contextlib.ExitStack()
        # Non-blocking: it must not wait for the default stream, which other libraries in this process may use.
        self._stream = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self._free_later("cudaStreamDestroy", self._stream)

    @property
    def stream(self) -> int:
        """The stream's address, as TensorRT expects it."""
        return int(self._stream)

    def memory(self, size: int) -> int:
        """Allocate `size` bytes on the device and return their address."""
        address = int(self._call("cudaMalloc", size))
        self._free_later("cudaFree", address)
        return address

    def pinned(self, count: int, dtype: type[np.generic]) -> np.ndarray:
        """Return an array [count] in page-locked memory, so that copies can overlap other work. Invalid after `release`."""
        size = count * np.dtype(dtype).itemsize
        address = int(self._call("cudaMallocHost", size))
        self._free_later("cudaFreeHost", address)
        block: Any = (ctypes.c_byte * size).from_address(address)
        return np.frombuffer(block, dtype=dtype)

    def upload(self, source: np.ndarray, target: int) -> None:
        """Start copying a contiguous pinned array to an address on the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source.ctypes.data, source.nbytes, kind, self._stream)

    def download(self, source: int, target: np.ndarray) -> None:
        """Start filling a contiguous pinned array from an address on the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, source, target.nbytes, kind, self._stream)

    def event(self) -> Any:
        """Create an event, for `record` and `wait`."""
        event = self._call("cudaEventCreateWithFlags", self._runtime.cudaEventDisableTiming)  # timing would cost time
        self._free_later("cudaEventDestroy", event)
        return event

    def record(self, event: Any) -> None:
        """Record the event after everything now in the stream."""
        self._call("cudaEventRecord", event, self._stream)

    def wait(self, event: Any) -> None:
        """Block until everything before the event is done, raising its errors. Other threads keep running."""
        self._call("cudaEventSynchronize", event)

    def capture(self, work: Callable[[], None]) -> Any:
        """Capture what `work` enqueues, without running it, as a graph for `launch`."""
        # Thread-local: CUDA calls by other threads of the process do not disturb the recording.
        self._call("cudaStreamBeginCapture", self._stream, self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            with contextlib.suppress(BackendError):  # end the capture, but report the first error
                self._call("cudaStreamEndCapture", self._stream)
            raise
        recorded = self._call("cudaStreamEndCapture", self._stream)
        try:
            graph = self._call("cudaGraphInstantiate", recorded, 0)
        finally:
            self._call("cudaGraphDestroy", recorded)
        self._free_later("cudaGraphExecDestroy", graph)
        return graph

    def launch(self, graph: Any) -> None:
        """Start a captured graph."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def synchronize(self) -> None:
        """Wait until the stream has done everything; errors of the work itself appear here."""
        self._call("cudaStreamSynchronize", self._stream)

    def release(self) -> None:
        """Free the stream and all memory. A second call does nothing."""
        self._stack.close()

    def _call(self, name: str, *arguments: Any) -> Any:
        return _call(self._runtime, name, *arguments)

    def _free_later(self, name: str, handle: Any) -> None:
        def free() -> None:
            with contextlib.suppress(BackendError):  # at the end of the process CUDA may already be gone
                self._call(name, handle)

        self._stack.callback(free)


def _call(runtime: Any, name: str, *arguments: Any) -> Any:
    """Call a function, which returns (error, ...), and return what follows the error."""
    error, *results = getattr(runtime, name)(*arguments)
    if int(error):
        _, words = runtime.cudaGetErrorString(error)
        raise BackendError(f"CUDA's {name} failed: {words.decode(errors='replace')} (error {int(error)})")
    return results[0] if results else None
