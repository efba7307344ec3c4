"""Explains a library's error on a GPU, and says what to type."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mexma_rt.errors import BackendError


@contextlib.contextmanager
def explained(library: str, device: str) -> Iterator[None]:
    """Turn a library's error on a device into a BackendError that says what to type."""
    try:
        yield
    except BackendError:
        raise
    except Exception as error:  # torch raises RuntimeError and its children, cupy a class for each of CUDA's libraries
        kinds = {one.__module__.partition(".")[0] for one in type(error).__mro__}
        text = str(error).strip() or type(error).__name__
        if not (isinstance(error, RuntimeError) or kinds & {"cupy", "cupy_backends", "torch"}):
            raise
        raise BackendError(f"{library} failed on {device}: {text}\n{_advice(library, type(error).__name__ + text)}") from error


def _advice(library: str, error: str) -> str:
    lower = error.lower()
    if "out of memory" in lower or "outofmemory" in lower or "memoryallocation" in lower:
        return (
            "The GPU's memory ran out. nvidia-smi lists what uses it; CUDA_VISIBLE_DEVICES=1 (or another number) selects "
            "another GPU, and device='cpu' gives the same result."
        )
    if "no kernel image" in lower or "nokernelimage" in lower or "compileexception" in lower or "nvrtc" in lower:
        return (
            f"This {library} has no kernels for this GPU, or cannot compile them. Install a build of {library} for its CUDA "
            "and architecture (https://pytorch.org/get-started/locally, https://docs.cupy.dev/en/stable/install.html); "
            "device='cpu' gives the same result."
        )
    return "Check the GPU: nvidia-smi. device='cpu' gives the same result."
