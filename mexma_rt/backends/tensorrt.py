"""The TensorRT back end: a bundle's engine of `tensorrt` or `tensorrt_rtx` on one GPU, without torch.

Built by `mexma-export engine BUNDLE tensorrt|rtx`. The sidecar beside the engine is read and checked before the engine is
opened. Each optimisation profile has its own execution context; all share one stream and the kernels' scratch memory. The
smallest profiles run as CUDA graphs; profiles.py decides what runs where. There are two sets of buffers, so one thread can
pack a batch or collect its vectors while another thread's batch is computed.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mexma_rt.backends import Backend
from mexma_rt.backends.buffers import Buffers, new_buffers
from mexma_rt.backends.cuda import Cuda, on_gpu
from mexma_rt.backends.kernel_cache import cache_path, read_cache, write_cache
from mexma_rt.backends.nvidia import MODULES, device_sm, gpu_name, load_cuda, load_library, made, new_logger
from mexma_rt.backends.profiles import Piece, pad, plan, runs_as_graph
from mexma_rt.backends.sidecar import Sidecar, check_sidecar, engine_path, manifest_graph_hash, read_sidecar
from mexma_rt.bundle.graphs import ATTENTION_MASK, INPUT_IDS, INPUTS, SENTENCE
from mexma_rt.bundle.manifest import Bundle
from mexma_rt.bundle.structure import runnable
from mexma_rt.errors import BackendError, BundleError, require_extra

PRECISION = "fp16"  # of the engines and of the graph that they are built from


class _NoGraphError(BackendError):
    """A profile cannot be captured; it runs without a graph."""


@dataclass(kw_only=True)
class _Lane:
    """The execution context of one profile, with its current input shape and buffers."""

    context: Any
    shape: tuple[int, int] | None = None
    buffers: Buffers | None = None


class TensorRT(Backend):
    """One engine. Threads may share it; their batches are computed one after the other."""

    precision = PRECISION
    lanes = 2  # one packs while the other's batch is computed

    def __init__(self, bundle: Bundle, *, engine: str, reason: str, gpu: int = 0) -> None:
        """`engine` is "tensorrt" or "rtx"; `gpu` counts the visible GPUs from 0.

        Raises MissingExtraError, BackendError (what is missing or does not fit this machine), BundleError (an engine of another
        graph, or damaged) and FileError.
        """
        self.name, self.reason, self.device, self._gpu = engine, reason, gpu_name(gpu), gpu
        require_extra(engine, MODULES[engine], "cuda")
        self._trt, self._cuda_runtime = load_library(engine), load_cuda(engine)
        sm = device_sm(gpu)
        path, sidecar = _checked_sidecar(bundle, engine, self._trt, sm)
        self._special = bundle.special_ids
        self._profiles, self._dimensions, self._lock = sidecar.profiles, bundle.dimensions, threading.Lock()
        self.longest, self.normalized = max(profile.length for profile in self._profiles), sidecar.normalized
        self._log = new_logger(self._trt)
        with on_gpu(self._cuda_runtime, gpu):
            self._open(path, sidecar, sm)
        weakref.finalize(self, self._cuda.release)

    def _open(self, path: Path, sidecar: Sidecar, sm: int) -> None:
        trt, log = self._trt, self._log
        self._runtime = made(lambda: trt.Runtime(log), trt, log, "start")
        self._engine = made(lambda: self._runtime.deserialize_cuda_engine(path.read_bytes()), trt, log, f"open {path}")
        _require_described(self._engine, sidecar, path)
        self._cuda = Cuda(self._cuda_runtime)
        try:
            buffers = [new_buffers(self._cuda, sidecar, self._dimensions) for _ in range(self.lanes)]
            self._scratch = self._new_scratch()
            kernels = self._engine.create_runtime_config().create_runtime_cache() if self.name == "rtx" else None
            known = kernels is not None and read_cache(kernels, cache_path(path, sm))
            self._lanes = [self._new_lane(index, kernels) for index in range(len(self._profiles))]
            self._warm_up(buffers)
            if kernels is not None and not known and (why := write_cache(kernels, cache_path(path, sm))):
                self.reason += f"; note: {why}"
        except BackendError as error:
            self._cuda.release()
            raise BackendError(
                f"{path} was opened, but could not be initialised: {error}\nIf memory ran out: nvidia-smi shows what uses it, "
                "and an engine with smaller --profiles needs less."
            ) from error
        except BaseException:
            self._cuda.release()
            raise

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        rows, length = input_ids.shape
        vectors = np.empty((rows, self._dimensions), dtype=np.float32)
        buffers = self._free.get()
        try:
            with on_gpu(self._cuda_runtime, self._gpu):
                for piece in plan(rows, length, self._profiles):
                    part = slice(piece.start, piece.stop)
                    try:
                        vectors[part] = self._execute(piece, buffers, input_ids[part], attention_mask[part])
                    except BackendError as error:
                        raise BackendError(
                            f"{self._trt.__name__} failed on a batch of {rows} sentences x {length} tokens, in its profile "
                            f"{self._profiles[piece.profile]}: {error}"
                        ) from error
        finally:
            self._free.put(buffers)
        return vectors

    def _execute(self, piece: Piece, buffers: Buffers, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return the vectors [b, D] of one piece: a view of the buffers, overwritten by the next piece."""
        host_ids, host_mask, host_vectors = buffers.views(piece.shape)
        pad(input_ids, into=host_ids, value=self._special.pad)
        pad(attention_mask, into=host_mask, value=0)
        with self._lock:  # all threads share the stream, the contexts and the logger
            if (graph := buffers.graphs.get(piece.profile)) is not None:
                self._cuda.launch(graph)
            else:
                self._enqueue(self._lanes[piece.profile], buffers, piece.shape)
            self._cuda.record(buffers.done)
        self._cuda.wait(buffers.done)
        return host_vectors[: len(input_ids)]

    def _enqueue(self, lane: _Lane, buffers: Buffers, shape: tuple[int, int]) -> None:
        """Enqueue the upload of the inputs, the execution and the download of the vectors, without waiting."""
        if lane.buffers is not buffers:
            lane.buffers = None  # stays None if only some addresses are accepted; likewise the shape
            for name, address in buffers.addresses.items():
                self._require(lane.context.set_tensor_address(name, address), f"refused a buffer for {name}")
            lane.buffers = buffers
        if lane.shape != shape:
            lane.shape = None
            for name in INPUTS:
                self._require(lane.context.set_input_shape(name, shape), f"refused the shape {shape[0]}x{shape[1]}")
            lane.shape = shape
        host_ids, host_mask, host_vectors = buffers.views(shape)
        self._cuda.upload(host_ids, buffers.addresses[INPUT_IDS])
        self._cuda.upload(host_mask, buffers.addresses[ATTENTION_MASK])
        self._require(lane.context.execute_async_v3(self._cuda.stream), "did not start")
        self._cuda.download(buffers.addresses[SENTENCE], host_vectors)

    def _new_scratch(self) -> tuple[int, int]:
        """Allocate the kernels' scratch memory; return (address, bytes). One for all profiles, since the stream is sequential.

        Allocated here, because a library that allocates during the capture of a graph cannot be captured.
        """
        sizes = (self._engine.get_device_memory_size_for_profile_v2(index) for index in range(len(self._profiles)))
        size = max(*sizes, 1)
        return self._cuda.memory(size), size

    def _new_lane(self, index: int, kernels: Any) -> _Lane:
        how = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if kernels is not None:
            strategy, how = how, self._engine.create_runtime_config()
            how.set_execution_context_allocation_strategy(strategy)
            how.set_runtime_cache(kernels)
            if runs_as_graph(self._profiles[index]):
                # The default compiles in the background and uses a general kernel meanwhile, which the graph would keep.
                how.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        what = f"make room for the profile {self._profiles[index]}"
        context = made(lambda: self._engine.create_execution_context(how), self._trt, self._log, what)
        self._require(context.set_optimization_profile_async(index, self._cuda.stream), f"could not {what}")
        self._cuda.synchronize()
        context.set_device_memory(*self._scratch)
        return _Lane(context=context)

    def _warm_up(self, sets: Sequence[Buffers]) -> None:
        """Run an empty text in every profile that runs as a CUDA graph, and capture it; if there is none, in the first profile.

        The first execution does what a capture must not contain (TensorRT's guide: enqueue once after a change of shape).
        Then makes the buffers available to `run`.
        """
        graphs = [index for index, profile in enumerate(self._profiles) if runs_as_graph(profile)]
        for index in graphs or [0]:
            profile = self._profiles[index]
            shape = (profile.batch, profile.length) if index in graphs else (1, min(8, profile.length))
            piece = Piece(profile=index, start=0, stop=1, shape=shape)
            self._check_empty_text(piece, sets[0])
            try:
                for buffers in sets if index in graphs else ():
                    self._check_empty_text(piece, buffers)
                    buffers.graphs[index] = self._captured(self._lanes[index], buffers, shape)
                    self._check_empty_text(piece, buffers)
            except _NoGraphError as error:
                for buffers in sets:
                    buffers.graphs.pop(index, None)
                self.reason += f"; note: profile {profile} runs without a CUDA graph, slower for small batches ({error})"
                self._check_empty_text(piece, sets[0])
        self._free: queue.SimpleQueue[Buffers] = queue.SimpleQueue()
        for buffers in sets:
            self._free.put(buffers)

    def _captured(self, lane: _Lane, buffers: Buffers, shape: tuple[int, int]) -> Any:
        try:
            self._require_capturable(lane.context)
            return self._cuda.capture(lambda: self._enqueue(lane, buffers, shape))
        except BackendError as error:
            raise _NoGraphError(str(error)) from error

    def _require_capturable(self, context: Any) -> None:
        """Raise BackendError if TensorRT-RTX says no: engines from before mexma-export used our memory are not capturable."""
        if self.name == "rtx" and not context.is_stream_capturable(self._cuda.stream):
            raise BackendError("this engine cannot be captured. Build it again: mexma-export engine BUNDLE rtx")

    def _check_empty_text(self, piece: Piece, buffers: Buffers) -> None:
        vector = self._execute(piece, buffers, np.array([[self._special.bos, self._special.eos]]), np.array([[1, 1]]))
        if not np.isfinite(vector).all():
            raise BackendError(
                f"The engine returned vectors that are not finite, in its profile {self._profiles[piece.profile]}. "
                "Build it again, or load with backend='onnxruntime'."
            )

    def _require(self, done: bool, what: str) -> None:
        """Raise BackendError if TensorRT returned False; it logs the reason."""
        if not done:
            reason = self._log.errors[-1][:400] if self._log.errors else "it gave no reason"
            self._log.errors.clear()
            raise BackendError(f"{self._trt.__name__} {what}: {reason}")


def _checked_sidecar(bundle: Bundle, engine: str, trt: Any, sm: int) -> tuple[Path, Sidecar]:
    """Return a bundle's engine file and its sidecar, after every check that is possible without opening the engine."""
    path = engine_path(bundle.folder, engine)
    target = f" --sm {sm}" if engine == "rtx" else ""
    build = f"mexma-export engine {bundle.folder} {engine}{target}"
    if PRECISION not in runnable(bundle):
        raise BackendError(
            f"The bundle {bundle.name!r} has no fp16 graph, which engines are built from (it has {', '.join(bundle.graphs)}). "
            f"Type:\n    mexma-export CHECKPOINT BUNDLE --precision fp32,int8,fp16\nand on the new one:\n"
            f"    mexma-export engine BUNDLE {engine}"
        )
    if not path.is_file():
        raise BackendError(f"The bundle {bundle.name!r} has no engine for {engine} ({path} is missing). Type:\n    {build}")
    sidecar = read_sidecar(path)
    check_sidecar(
        sidecar,
        path,
        library=trt.__name__,
        version=trt.__version__,
        sm=sm,
        graph_sha256=manifest_graph_hash(bundle, PRECISION),
    )
    inputs = {tensor.name: tensor.dtype for tensor in sidecar.inputs}
    outputs = {tensor.name: (tensor.dtype, tensor.shape) for tensor in sidecar.outputs}
    known = all(dtype == "float32" for dtype, _ in outputs.values())  # as mexma-export ensures; sizes depend on it
    if inputs != dict.fromkeys(INPUTS, "int64") or outputs.get(SENTENCE) != ("float32", (-1, bundle.dimensions)) or not known:
        raise BundleError(
            f"{path}: its inputs {inputs} and outputs {outputs} are not those of a bundle with {bundle.dimensions} dimensions. "
            f"Build it again:\n    {build}"
        )
    return path, sidecar


def _require_described(engine: Any, sidecar: Sidecar, path: Path) -> None:
    """Raise BundleError unless the opened engine matches its sidecar, from which all buffer sizes come."""
    names = sorted(engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
    largest = [
        tuple(int(size) for size in engine.get_tensor_profile_shape(name, index)[2])
        for index in range(engine.num_optimization_profiles)
        for name in INPUTS
    ]
    expected = [(profile.batch, profile.length) for profile in sidecar.profiles for _ in INPUTS]
    described = sorted(tensor.name for tensor in (*sidecar.inputs, *sidecar.outputs))
    if (names, largest) != (described, expected):
        raise BundleError(
            f"{path} has the tensors {names} and the largest shapes {largest}, but its sidecar says {described} and "
            f"{expected}. Build it again: mexma-export engine BUNDLE {path.stem}"
        )
