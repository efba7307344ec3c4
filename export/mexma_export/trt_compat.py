"""What differs between tensorrt 10, tensorrt 11 and tensorrt_rtx, so that engines.py is one path for all.

`tensorrt` builds for the GPU of this machine, keeps a timing cache, and its engine can be inspected afterwards. `tensorrt_rtx`
builds for any listed GPU architecture without a GPU, ignores a timing cache, and opens an engine only on a GPU, where it then
compiles the kernels: so its matrix products are counted in the parsed network. It does not support SM 90 (H100, H200).
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mexma_rt.errors import BackendError, InputError, require_extra
from mexma_rt.files import check_output

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}  # the name of an engine is also that of its extra
MAJORS = {"tensorrt": (10, 11), "rtx": (1,)}  # strongly typed networks began with tensorrt 10.0
RTX_SM = (80, 86, 89, 120)  # A100, RTX 30, RTX 40 and L4/L40, RTX 50


def load_library(engine: str) -> Any:
    """The imported module, of a version that this code knows. Raises InputError, MissingExtraError, BackendError."""
    if engine not in MODULES:
        raise InputError(f"Unknown engine {engine!r}: this export builds {' and '.join(MODULES)}.")
    name = MODULES[engine]
    require_extra(engine, name)
    try:
        trt = importlib.import_module(name)
    except Exception as error:  # the loader's ImportError or OSError, or what the package itself raises
        index = " --extra-index-url https://pypi.nvidia.com" if engine == "tensorrt" else ""  # PyPI has its bindings only
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


def architectures_for(trt: Any, engine: str, wanted: Sequence[int] | None) -> Sequence[int]:
    """The SMs to build for: `wanted` where the library can; None: this machine's GPU, or for rtx RTX_SM.

    Raises InputError (an SM that the library does not build for here) and BackendError (tensorrt without a GPU).
    """
    if wanted is not None and (not wanted or len(set(wanted)) < len(wanted)):
        raise InputError(f"GPU architectures {list(wanted)}: at least one, and none twice.")
    if engine == "tensorrt":
        try:
            here = device_sm()
        except BackendError as error:
            raise BackendError(f"{error} tensorrt builds only on the GPU it builds for; without one: --engine rtx") from error
        if wanted is not None and list(wanted) != [here]:
            raise InputError(
                f"tensorrt builds for the GPU of this machine (SM {here}) only, not for SM {', '.join(map(str, wanted))}. "
                "Leave --sm out, run it on a machine with that GPU, or build with --engine rtx."
            )
        return [here]
    known = sorted(int(name[2:]) for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name))
    if unknown := [number for number in wanted or () if number not in known]:
        hint = " An H100 or H200 needs --engine tensorrt." if 90 in unknown else ""
        raise InputError(
            f"{trt.__name__} {trt.__version__} does not build for SM {', '.join(map(str, unknown))}: it knows "
            f"{', '.join(map(str, known))}.{hint}"
        )
    return RTX_SM if wanted is None else wanted


def device_sm() -> int:
    """The compute capability of the first visible GPU (8.9 is 89), asked of the driver. Raises BackendError without one."""
    major, minor, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
        # 75 and 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
        failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    except OSError as error:
        raise BackendError(f"This machine has no NVIDIA driver ({error}), so no GPU to run on.") from error
    if failed:
        raise BackendError(f"The NVIDIA driver finds no usable GPU (CUDA error {failed}). Type: nvidia-smi")
    return major.value * 10 + minor.value


def new_logger(trt: Any) -> Any:
    """A logger that keeps errors for our messages and prints nothing."""

    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message.strip())

    return Collector()


def made(make: Callable[[], Any], trt: Any, log: Any, what: str) -> Any:
    """make()'s result; TensorRT answers None, or pybind's TypeError, and gives the reason to the logger."""
    result, reason = None, "it gave no reason"
    try:
        result = make()
    except TypeError as error:
        reason = str(error)
    if result is None:
        reason = log.errors[0][:400] if log.errors else reason
        raise BackendError(
            f"{trt.__name__} {trt.__version__} could not {what}: {reason}. A lack of memory is met by smaller --profiles; "
            "anything else is a limit of this version: try the one before or after."
        )
    return result


def count_in_network(trt: Any, network: Any) -> tuple[int, int]:
    """(matrix products, those whose factors and result are fp16); in a strongly typed network the engine keeps these types."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    tensors = [[layer.get_input(0), layer.get_input(1), layer.get_output(0)] for layer in products]
    return len(products), sum(all(tensor.dtype == trt.DataType.HALF for tensor in three) for three in tensors)


def count_in_engine(trt: Any, log: Any, plan: Any) -> tuple[int, int] | None:
    """(kernels with matrix products, those that read fp16), from the inspector; None where it names none.

    A product's kernel is a MatrixMultiply, or has "gemm" in its type or tactic (fused attention: "_gemm_mha_v2"); its inputs
    say "Half" or "... FP16 ...", as printed in NVIDIA/TensorRT issue 4397 and pytorch pull 66683.
    """
    engine = made(lambda: trt.Runtime(log).deserialize_cuda_engine(plan), trt, log, "open the engine again")
    report = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    products = [layer for layer in report.get("Layers", []) if isinstance(layer, dict) and _is_product(layer)]
    types = [" ".join(str(tensor.get("Format/Datatype")) for tensor in layer.get("Inputs", [])) for layer in products]
    return (len(products), sum("Half" in text or "FP16" in text for text in types)) if products else None


def _is_product(layer: dict[str, Any]) -> bool:
    words = " ".join(str(layer.get(key, "")) for key in ("LayerType", "TacticName")).lower()
    return layer.get("LayerType") == "MatrixMultiply" or "gemm" in words


def use_timing_cache(trt: Any, config: Any, path: Path | None) -> None:
    """Give the build the kernel timings of earlier ones. Raises BackendError for a cache of another GPU or version."""
    if path is None:
        return
    check_output(path)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise BackendError(
            f"{path} is not the timing cache of this GPU and {trt.__name__} {trt.__version__}. Delete it, or name another file."
        )
