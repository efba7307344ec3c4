"""Builds a TensorRT engine and its sidecar from the fp16 ONNX graph, in the same way for tensorrt 10 and 11 and tensorrt_rtx.

An engine returns only sentence vectors; serving.py removes from the graph what they do not need. The network is strongly typed:
its types are those of the graph. tensorrt 11 and tensorrt_rtx support nothing else.
"""

from __future__ import annotations

import hashlib
import re
import time
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

from mexma_export.serving import serving_graph
from mexma_export.sidecar import write_sidecar
from mexma_export.trt_compat import RTX_SM, architectures_for, count_in_engine, count_in_network, use_timing_cache
from mexma_rt.backends.nvidia import load_library, made, new_logger
from mexma_rt.backends.profiles import runs_as_graph
from mexma_rt.backends.sidecar import (
    Profile,
    Sidecar,
    TensorInfo,
    check_sidecar,
    engine_path,
    graph_hash,
    manifest_graph_hash,
    read_sidecar,
)
from mexma_rt.bundle.graphs import INPUTS, SENTENCE
from mexma_rt.bundle.opening import open_bundle
from mexma_rt.bundle.structure import built_graph, runnable
from mexma_rt.errors import BackendError, BundleError, FileError, InputError, require_extra
from mexma_rt.files.atomic import atomic_write, check_output

IO = {**dict.fromkeys(INPUTS, ("int64", 2)), SENTENCE: ("float32", 2)}  # name -> type, number of dimensions
DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32"}
LEAST_HALF = 0.95  # share of matrix products that must be in fp16; in our graph, all are
FP16 = "fp16"  # the graph's name in a bundle's manifest


def default_profiles(length_limit: int) -> tuple[Profile, ...]:
    """Return profiles for one query or passage, for a few of them, and for batches of 16,384 tokens in three lengths.

    The three large batches need about the same memory. 32 tokens hold most sentences (web sentences: median 25, mean 30), 128
    is a bundle's default length, and the position table ends at `length_limit`, so every input fits a profile. 16,384 tokens
    per batch is an initial guess, not measured.
    """
    wanted = [(1, 32), (1, 128), (8, 64), (512, 32), (128, 128), (32, length_limit)]
    return tuple(dict.fromkeys(Profile(batch=batch, length=min(length, length_limit)) for batch, length in wanted))


def parse_profiles(text: str) -> tuple[Profile, ...]:
    """Parse "1x16,32x64": a profile for 1 row of up to 16 tokens, and one for up to 32 rows of up to 64. Raises InputError."""
    found = [re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", part.strip(), re.ASCII) for part in text.split(",")]
    profiles = [Profile(batch=int(match[1]), length=int(match[2])) for match in found if match]
    if len(profiles) < len(found) or len(set(profiles)) < len(profiles):
        raise InputError(
            f"{text!r} is not a list of profiles: each must be ROWSxTOKENS, the largest batch and length, without duplicates. "
            "For example, for single queries and for batches of up to 32 rows: --profiles 1x16,32x64"
        )
    return tuple(profiles)


def parse_sm(text: str) -> tuple[int, ...]:
    """Parse "80,86" into (80, 86). Raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{2,3}", part, re.ASCII) for part in parts) or len(set(parts)) < len(parts):
        raise InputError(
            f"{text!r} is not a list of GPU architectures: each must be a compute capability without its point (89 for 8.9), "
            f"without duplicates. For example: --sm {','.join(map(str, RTX_SM))}"
        )
    return tuple(int(part) for part in parts)


def build_bundle_engine(
    bundle: str | Path,
    *,
    engine: str,
    sm: Sequence[int] | None = None,
    profiles: Sequence[Profile] | None = None,
    timing_cache: Path | None = None,
) -> tuple[Path, Sidecar]:
    """Build the engine of a bundle into its folder `engines`, replacing an older one; returns its path and sidecar.

    `bundle` is a folder or a name, as for `open_bundle`, which verifies its bytes. It must have an fp16 graph, or the structure
    of one, from which the graph is built in the cache; otherwise raises InputError. Other arguments and errors are those of
    `build_engine`.
    """
    opened = open_bundle(bundle)
    if FP16 not in runnable(opened):
        raise InputError(
            f"{bundle} has no fp16 graph (its graphs: {', '.join(opened.graphs)}), which engines are built from. "
            "Export it: mexma-export CHECKPOINT BUNDLE --precision fp32,int8,fp16"
        )
    load_library(engine)  # before the folder is created: it may be unknown or missing
    graph = opened.folder / opened.graphs[FP16] if FP16 in opened.graphs else built_graph(opened, FP16)
    target = engine_path(opened.folder, engine)
    try:
        target.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise FileError(
            f"{target.parent} cannot be created: {error.strerror}. Copy the bundle to a folder where you can write."
        ) from error
    sidecar = build_engine(
        graph,
        target,
        engine=engine,
        length_limit=opened.max_length_limit,
        normalize=opened.normalize,
        sm=sm,
        profiles=profiles,
        timing_cache=timing_cache,
        graph_sha256=manifest_graph_hash(opened, FP16),
    )
    return target, sidecar


def build_engine(
    graph: Path,
    target: Path,
    *,
    engine: str,
    length_limit: int,
    normalize: bool = True,
    sm: Sequence[int] | None = None,
    profiles: Sequence[Profile] | None = None,
    timing_cache: Path | None = None,
    graph_sha256: str | None = None,
) -> Sidecar:
    """Build the engine file `target` and its sidecar `<target>.json` from an fp16 graph; returns the sidecar.

    It takes minutes for large models. engine: "tensorrt" (for this machine's GPU) or "rtx" (for the architectures `sm`, without
    a GPU; None: 80, 86, 89, 120). normalize: the engine's vectors have length 1. profiles: None means `default_profiles`.
    timing_cache: for tensorrt only; a file that is read if it exists, and rewritten, so that the next build on the same GPU
    need not time kernels again. graph_sha256: the graph's hash in the sidecar; None: `graph_hash`.

    Raises InputError (an argument), MissingExtraError (the library), BackendError (it cannot build here, or the build failed),
    BundleError (a graph that it cannot parse, not one of ours, or with too few products in fp16), FileError. `target` is not
    touched until the engine has passed; a crash between the two files leaves a pair that `check_sidecar` refuses.
    """
    profiles = _checked(profiles if profiles is not None else default_profiles(length_limit), length_limit)
    if not graph.is_file():
        raise FileError(f"{graph}: no such graph. Export it: mexma-export CHECKPOINT BUNDLE --precision fp32,int8,fp16")
    check_output(target, [graph])
    trt = load_library(engine)
    require_extra(engine, "onnx")
    architectures = architectures_for(trt, engine, sm)
    if engine == "rtx" and timing_cache is not None:
        raise InputError("rtx has no timing cache (the library would ignore it). Omit --timing-cache.")

    log, started = new_logger(trt), time.perf_counter()
    serving = serving_graph(graph, normalize=normalize)
    builder = made(lambda: trt.Builder(log), trt, log, "make a builder")
    network, parser = _parse(trt, builder, log, serving, graph)
    matmuls, half = count_in_network(trt, network)
    counted_in = "network"
    _require_half(graph, matmuls, half, counted_in)
    inputs, outputs = _tensors(graph, network)

    config = builder.create_builder_config()
    for profile in profiles:
        _add_profile(builder, config, profile, inputs)
    if engine == "rtx":
        config.num_compute_capabilities = len(architectures)
        for index, number in enumerate(architectures):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{number}"), index):
                raise BackendError(f"{trt.__name__} {trt.__version__} refused SM {number}. Omit it from --sm.")
        if any(map(runs_as_graph, profiles)):
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # otherwise its executions cannot be captured
    else:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # otherwise the inspector gives only names
        use_timing_cache(trt, config, timing_cache)
    plan = made(lambda: builder.build_serialized_network(network, config), trt, log, f"build {graph}")
    del parser, serving  # not earlier: they may own weights that the network refers to

    if engine == "tensorrt" and (counts := count_in_engine(trt, log, plan)) is not None:
        (matmuls, half), counted_in = counts, "engine"
        if half < LEAST_HALF * matmuls:  # the strongly typed network passed, so the inspector's report is doubtful
            warnings.warn(
                f"{target}: according to {trt.__name__} {trt.__version__}'s inspector, only {half} of {matmuls} kernels with "
                "matrix products read fp16. The network's types are fixed and correct, so this is probably a miscount, and the "
                "engine was kept. To check its vectors: mexma doctor --model BUNDLE --backend tensorrt; its speed: mexma bench "
                "embed.",
                stacklevel=2,
            )
    if timing_cache is not None:
        with atomic_write(timing_cache) as stream:
            stream.write(memoryview(config.get_timing_cache().serialize()))
    with atomic_write(target) as stream:
        stream.write(memoryview(plan))
    sidecar = Sidecar(
        library=trt.__name__,
        version=trt.__version__,
        sm=tuple(architectures),
        precision=FP16,
        matmuls=matmuls,
        half_matmuls=half,
        counted_in=counted_in,
        profiles=tuple(profiles),
        inputs=inputs,
        outputs=outputs,
        normalized=normalize,
        graph_sha256=graph_sha256 or graph_hash(graph),
        engine_sha256=hashlib.sha256(memoryview(plan)).hexdigest(),
        engine_bytes=memoryview(plan).nbytes,
        build_seconds=round(time.perf_counter() - started, 2),
        built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    write_sidecar(target, sidecar)
    check_sidecar(  # what is on disk now
        read_sidecar(target),
        target,
        library=sidecar.library,
        version=sidecar.version,
        sm=sidecar.sm[0],
        graph_sha256=sidecar.graph_sha256,
    )
    return sidecar


def _checked(profiles: Sequence[Profile], length_limit: int) -> Sequence[Profile]:
    if not profiles:
        raise InputError("An engine needs at least one profile, for example --profiles 1x16,32x64")
    for profile in profiles:
        if profile.batch < 1 or not 2 <= profile.length <= length_limit:
            raise InputError(
                f"Profile {profile}: the batch must be at least 1 and the length between 2 (an empty text is <s> </s>) and "
                f"{length_limit}, where the position table ends."
            )
    return profiles


def _parse(trt: ModuleType, builder: Any, log: Any, serving: bytes, graph: Path) -> tuple[Any, Any]:
    # Needed for tensorrt 10; since 11, every network is strongly typed.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(serving, str(graph)):  # weights in a second file are looked up beside this path
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        words = "; ".join(f"{error.node_name() or 'the file'}: {error.desc()}" for error in errors[:3]) or "no reason given"
        raise BundleError(
            f"{graph}: {trt.__name__} {trt.__version__} cannot read this graph: {words}. It reads only standard operators, but "
            "the int8 and mixed graphs have onnxruntime's own. Give the fp16 graph; if it is damaged, export it again."
        )
    return network, parser


def _require_half(graph: Path, matmuls: int, half: int, counted_in: str) -> None:
    if not matmuls or half < LEAST_HALF * matmuls:
        raise BundleError(
            f"{graph}: {half} of {matmuls} matrix products are in fp16 (counted in the {counted_in}), but {LEAST_HALF:.0%} are "
            "needed: the engine would run at half the speed or less. Its types are those of the graph, so give the fp16 graph "
            "(mexma-export CHECKPOINT BUNDLE --precision fp32,int8,fp16)."
        )


def _tensors(graph: Path, network: Any) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    def describe(tensor: Any) -> TensorInfo:
        name = DTYPES.get(tensor.dtype.name, tensor.dtype.name)
        return TensorInfo(name=tensor.name, dtype=name, shape=tuple(int(size) for size in tensor.shape))

    inputs = tuple(describe(network.get_input(index)) for index in range(network.num_inputs))
    outputs = tuple(describe(network.get_output(index)) for index in range(network.num_outputs))
    found = {tensor.name: (tensor.dtype, len(tensor.shape)) for tensor in (*inputs, *outputs)}
    free = all(-1 in tensor.shape[:2] and tensor.shape[0] == -1 for tensor in (*inputs, *outputs))
    if found != IO or not free:
        listed = ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in (*inputs, *outputs))
        raise BundleError(
            f"{graph}: inputs and outputs are {listed}, but a graph of mexma-export has {', '.join(IO)} with "
            "dynamic batch and length. Give onnx/model_fp16.onnx of a bundle."
        )
    return inputs, outputs


def _add_profile(builder: Any, config: Any, profile: Profile, inputs: Sequence[TensorInfo]) -> None:
    shapes = builder.create_optimization_profile()
    largest = (profile.batch, profile.length)
    for tensor in inputs:
        shapes.set_shape(tensor.name, (1, 2), largest, largest)
    if config.add_optimization_profile(shapes) < 0:
        raise BackendError(f"The library refused profile {profile}. Try smaller --profiles.")
