"""Finds the TensorRT libraries, CUDA's bindings and the GPU, or says what is missing; for building and running engines.

TensorRT and TensorRT-RTX share one Python API; the engine's name, which is also its pip extra's, tells them apart.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable
from typing import Any

from mexma_rt.errors import BackendError, InputError, require_extra

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}  # an engine's name is also its pip extra's
MAJORS = {"tensorrt": (10, 11), "rtx": (1,)}  # strongly typed networks began with tensorrt 10.0


def load_library(engine: str) -> Any:
    """Import one of the libraries, in a supported version. Raises InputError, MissingExtraError, BackendError."""
    if engine not in MODULES:
        raise InputError(f"Unknown engine {engine!r}. Known: {', '.join(MODULES)}.")
    name = MODULES[engine]
    require_extra(engine, name)
    try:
        trt = importlib.import_module(name)
    except Exception as error:  # the loader's ImportError or OSError, or what the package itself raises
        index = " --extra-index-url https://pypi.nvidia.com" if engine == "tensorrt" else ""  # PyPI has only its bindings
        raise BackendError(
            f"{name} is installed, but does not load: {str(error).strip() or type(error).__name__}. Its libraries are missing "
            f"or of another version. Type:\n    pip install --force-reinstall{index} 'mexma-rt[{engine}]'"
        ) from error
    if int(trt.__version__.partition(".")[0]) not in MAJORS[engine]:
        raise BackendError(
            f"{name} {trt.__version__} is installed, but this needs {' or '.join(map(str, MAJORS[engine]))}. Type:\n"
            f"    pip install 'mexma-rt[{engine}]'"
        )
    return trt


def load_cuda(engine: str) -> Any:
    """Import `cuda.bindings.runtime` from cuda-bindings, the core of cuda-python. Raises like `load_library`."""
    require_extra(engine, "cuda")
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except Exception as error:  # an unrelated package named cuda, or one whose libraries do not load
        raise BackendError(
            f"cuda.bindings.runtime does not load: {str(error).strip() or type(error).__name__}. Type:\n"
            f"    pip install --upgrade cuda-bindings 'mexma-rt[{engine}]'"
        ) from error


def gpu_number(device: str) -> int:
    """Return the 1 of "cuda:1"; 0 (the first visible GPU) for "cuda" and "auto"."""
    return int(device.partition(":")[2] or 0)


def gpu_name(number: int) -> str:
    """Return a back end's name for its device: "cuda" for the first visible GPU, "cuda:1" for the second."""
    return f"cuda:{number}" if number else "cuda"


def device_sm(number: int = 0) -> int:
    """Ask the driver for the compute capability of a visible GPU (8.9 is 89). Raises BackendError without one."""
    major, minor, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), number)
        # 75 and 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
        failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    except OSError as error:
        raise BackendError(f"This machine has no NVIDIA driver ({error}), so no GPU to run on.") from error
    if failed:
        which = f" for cuda:{number}, counted from cuda:0" if number else ""
        raise BackendError(f"The NVIDIA driver finds no usable GPU{which} (CUDA error {failed}). Type: nvidia-smi")
    return major.value * 10 + minor.value


def new_logger(trt: Any) -> Any:
    """Return a logger that keeps errors for error messages and prints nothing."""

    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message.strip())

    return Collector()


def made(make: Callable[[], Any], trt: Any, log: Any, what: str) -> Any:
    """Return make()'s result. On failure TensorRT returns None or raises pybind's TypeError, and logs the reason."""
    result, reason = None, "it gave no reason"
    try:
        result = make()
    except TypeError as error:
        reason = str(error)
    if result is None:
        reason = log.errors[0][:400] if log.errors else reason
        raise BackendError(
            f"{trt.__name__} {trt.__version__} could not {what}: {reason}. If memory ran out, type smaller --profiles; "
            "anything else is a limitation of this version: try an older or newer one."
        )
    return result
