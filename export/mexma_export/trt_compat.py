"""Hides the differences between tensorrt 10, tensorrt 11 and tensorrt_rtx, so that engines.py needs only one code path.

`tensorrt` builds for the GPU of this machine, keeps a timing cache, and its engine can be inspected afterwards. `tensorrt_rtx`
builds for any listed GPU architecture without a GPU, ignores timing caches, and opens an engine only on a GPU, where it
compiles the kernels; matrix products are therefore counted in the parsed network. It does not support SM 90 (H100, H200).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mexma_rt.backends.nvidia import device_sm, made
from mexma_rt.errors import BackendError, InputError
from mexma_rt.files.atomic import check_output

RTX_SM = (80, 86, 89, 120)  # A100, RTX 30, RTX 40 and L4/L40, RTX 50


def architectures_for(trt: ModuleType, engine: str, wanted: Sequence[int] | None) -> Sequence[int]:
    """Return the SMs to build for: `wanted`, or if None, this machine's GPU (tensorrt) or RTX_SM (rtx).

    Raises InputError (an SM that the library does not build for here) and BackendError (tensorrt without a GPU).
    """
    if wanted is not None and (not wanted or len(set(wanted)) < len(wanted)):
        raise InputError(f"GPU architectures {list(wanted)}: there must be at least one, without duplicates.")
    if engine == "tensorrt":
        try:
            here = device_sm()
        except BackendError as error:
            raise BackendError(
                f"{error} tensorrt builds only on the GPU that it builds for. Without one: mexma-export engine BUNDLE rtx"
            ) from error
        if wanted is not None and list(wanted) != [here]:
            raise InputError(
                f"tensorrt builds only for this machine's GPU (SM {here}), not for SM {', '.join(map(str, wanted))}. "
                "Omit --sm, run it on a machine with that GPU, or build for rtx: mexma-export engine BUNDLE rtx"
            )
        return [here]
    known = sorted(int(name[2:]) for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name))
    if unknown := [number for number in wanted or () if number not in known]:
        hint = " An H100 or H200 needs a tensorrt engine: mexma-export engine BUNDLE tensorrt" if 90 in unknown else ""
        raise InputError(
            f"{trt.__name__} {trt.__version__} does not build for SM {', '.join(map(str, unknown))}: it supports "
            f"{', '.join(map(str, known))}.{hint}"
        )
    return RTX_SM if wanted is None else wanted


def count_in_network(trt: ModuleType, network: Any) -> tuple[int, int]:
    """Return (matrix products, those whose factors and result are fp16); the engine of a strongly typed network keeps these."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    tensors = [[layer.get_input(0), layer.get_input(1), layer.get_output(0)] for layer in products]
    return len(products), sum(all(tensor.dtype == trt.DataType.HALF for tensor in three) for three in tensors)


def count_in_engine(trt: ModuleType, log: Any, plan: Any) -> tuple[int, int] | None:
    """Return (kernels with matrix products, those that read fp16) from the inspector; None if it names none.

    A product's kernel is a MatrixMultiply or has "gemm" in its type or tactic (fused attention: "_gemm_mha_v2"). Its inputs say
    "Half" or "... FP16 ...": in version 10 in the field "Format/Datatype" (NVIDIA/TensorRT issue 4397 and pytorch pull 66683
    print examples), in version 11, and in the build log of TensorRT-RTX 1.7, in "Datatype" and "Format".
    """
    engine = made(lambda: trt.Runtime(log).deserialize_cuda_engine(plan), trt, log, "open the engine again")
    report = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    products = [layer for layer in report.get("Layers", []) if isinstance(layer, dict) and _is_product(layer)]
    types = [" ".join(map(_type_words, layer.get("Inputs", []))) for layer in products]
    return (len(products), sum("Half" in text or "FP16" in text for text in types)) if products else None


def _type_words(tensor: Mapping[str, object]) -> str:
    return " ".join(str(tensor.get(key, "")) for key in ("Format/Datatype", "Datatype", "Format"))


def _is_product(layer: Mapping[str, object]) -> bool:
    words = " ".join(str(layer.get(key, "")) for key in ("LayerType", "TacticName")).lower()
    return layer.get("LayerType") == "MatrixMultiply" or "gemm" in words


def use_timing_cache(trt: ModuleType, config: Any, path: Path | None) -> None:
    """Reuse the kernel timings of earlier builds. Raises BackendError for a cache of another GPU or version."""
    if path is None:
        return
    check_output(path)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise BackendError(
            f"{path} is not a timing cache of this GPU and {trt.__name__} {trt.__version__}. Delete it, or name another file."
        )
