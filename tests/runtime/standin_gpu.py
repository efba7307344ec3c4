"""A stand-in of a GPU: CUDA's functions, the two TensorRT modules, and a bundle with an engine for them.

It holds "device" memory at real addresses, does queued work only when the stream or an event is awaited, checks every address,
and its engine computes vectors that can be computed by hand: dimension d of a sentence is (d + 1) times the sum of its ids.

It is as strict as the real ones. A context takes a profile before addresses and shapes, and runs when every tensor has an
address, every input a shape and the kernels their memory. A capture may hold an execution only if the context has run in that
shape before, and its memory is the user's. Functions of CUDA answer tuples of the length that the real ones have.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mexma_rt.backends import tensorrt
from mexma_rt.bundle.opening import open_bundle

D, SM, VERSION = 3, 89, "11.4.0.106"
PROFILES = [(1, 16), (6, 32), (3, 96)]  # the first two run as CUDA graphs
LIMIT = 1 << 20  # bytes of the stand-in's device
# Functions that answer (error, value); the others answer (error,).
ANSWERING = {"cudaGetDevice", "cudaStreamCreateWithFlags", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaMalloc"}
ANSWERING |= {"cudaMallocHost", "cudaGetErrorString", "cudaEventCreateWithFlags"}


class Device:
    """What the stand-ins of cuda.bindings.runtime and of the TensorRT module share."""

    def __init__(self, dimensions: int = D) -> None:
        self.dimensions = dimensions
        self.blocks: dict[int, np.ndarray] = {}  # device memory
        self.pinned: dict[int, np.ndarray] = {}
        self.handles: set[Any] = set()  # streams, graphs
        self.queue: deque[Any] = deque()
        self.recorded: Counter[Any] = Counter()  # marks of each event that were put into the stream ...
        self.reached: Counter[Any] = Counter()  # ... and those that the stream has passed
        self.recording: list[Any] | None = None
        self.calls: list[str] = []
        self.current = 0  # GPU
        self.fail: dict[str, int] = {}  # function -> CUDA error
        self.refuse: set[str] = set()  # methods of a context that answer False
        self.gpu = 0  # where stream and memory are
        self.compiled = 0  # kernels that RTX had to compile
        self.running = threading.RLock()  # of the stream: whoever waits makes it go on
        self.entered = threading.Lock()
        self.opened: list[bytes] = []
        self.answer = lambda sums: sums

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While one thread gives work to the stream, no other may: contexts and captures are of one thread at a time."""
        assert self.entered.acquire(blocking=False), "two threads use the stream"
        try:
            time.sleep(0)  # lets another thread in, where nothing keeps it out
            yield
        finally:
            self.entered.release()

    def put(self, work: Any) -> None:
        (self.queue if self.recording is None else self.recording).append(work)

    def view(self, where: dict[int, np.ndarray], address: int, size: int) -> np.ndarray:
        """The bytes at an address, which must lie in one living block."""
        for start, block in where.items():
            if start <= address and address + size <= start + len(block):
                return block[address - start :][:size]
        raise AssertionError(f"{size} bytes at {address} are not allocated")


def cuda_runtime(device: Device) -> Any:
    """The functions of cuda.bindings.runtime that we call: each answers (error, ...)."""

    def function(name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            assert device.current == device.gpu or name in anywhere, f"{name} on another GPU"
            device.calls.append(name)
            failed = (None,) if name in ANSWERING else ()
            if error := device.fail.get(name, 0):
                if name == "cudaStreamEndCapture":
                    device.recording = None
                return (error, *failed)
            if name == "cudaMalloc" and sum(map(len, device.blocks.values())) + arguments[0] > LIMIT:
                return (2, None)
            with device.alone() if name in giving else contextlib.nullcontext():
                result = work[name](*arguments)
            return (0, result) if name in ANSWERING else (0,)

        call.__signature__ = inspect.signature(work[name])  # type: ignore[attr-defined]  # any function may have one
        return call

    def allocate(where: dict[int, np.ndarray], size: int, fill: int) -> int:
        block = np.full(size, fill, dtype=np.uint8)  # never zeros, which would pass for padding
        where[block.ctypes.data] = block
        return block.ctypes.data

    def copy(target: int, source: int, size: int, kind: str, stream: int) -> None:
        up = kind == "up"
        assert kind in ("up", "down") and stream in device.handles
        destination = device.view(device.blocks if up else device.pinned, target, size)
        origin = device.view(device.pinned if up else device.blocks, source, size)
        device.put(lambda: destination.__setitem__(slice(None), origin))

    def begin(stream: int, mode: str) -> None:
        assert stream in device.handles and mode == "thread" and device.recording is None and not device.queue
        device.recording = []

    def end(stream: int) -> Any:
        recorded, device.recording = device.recording, None
        return new(("graph", tuple(recorded or ())))

    def new(handle: Any) -> Any:
        device.handles.add(handle)
        return handle

    def synchronize(stream: int) -> None:
        assert device.recording is None, "awaiting a stream that is being captured"
        with device.running:
            while device.queue:
                device.queue.popleft()()

    def record(event: Any, stream: int) -> None:
        assert event in device.handles and stream in device.handles and device.recording is None
        device.recorded[event] += 1
        number = device.recorded[event]
        device.put(lambda: device.reached.__setitem__(event, number))

    def wait(event: Any) -> None:
        assert event in device.handles
        wanted = device.recorded[event]
        with device.running:
            while device.reached[event] < wanted:
                device.queue.popleft()()
                time.sleep(0)

    def launch(graph: Any, stream: int) -> None:
        assert graph in device.handles and stream in device.handles and device.recording is None
        device.queue.extend(graph[1])

    def choose(gpu: int) -> None:
        device.current = gpu

    anywhere = {"cudaGetDevice", "cudaSetDevice", "cudaFree", "cudaFreeHost"}
    anywhere |= {"cudaStreamDestroy", "cudaGraphExecDestroy", "cudaEventDestroy"}
    giving = ("cudaMemcpyAsync", "cudaGraphLaunch", "cudaEventRecord")
    streams = iter(range(7, 100))
    work: dict[str, Callable[..., Any]] = {
        "cudaGetDevice": lambda: device.current,
        "cudaSetDevice": choose,
        "cudaStreamCreateWithFlags": lambda flags: new(next(streams)),
        "cudaStreamDestroy": lambda stream: device.handles.remove(stream),
        "cudaStreamSynchronize": synchronize,
        "cudaEventCreateWithFlags": lambda flags: new(("event", next(streams))),
        "cudaEventDestroy": lambda event: device.handles.remove(event),
        "cudaEventRecord": record,
        "cudaEventSynchronize": wait,
        "cudaStreamBeginCapture": begin,
        "cudaStreamEndCapture": end,
        "cudaGraphInstantiate": lambda graph, flags: new(("ready", graph[1])),
        "cudaGraphLaunch": launch,
        "cudaGraphDestroy": lambda graph: device.handles.remove(graph),
        "cudaGraphExecDestroy": lambda graph: device.handles.remove(graph),
        "cudaMalloc": lambda size: allocate(device.blocks, size, 0xAB),
        "cudaFree": lambda address: device.blocks.__delitem__(address),
        "cudaMallocHost": lambda size: allocate(device.pinned, size, 0xCD),
        "cudaFreeHost": lambda address: device.pinned.__delitem__(address),
        "cudaMemcpyAsync": copy,
    }
    return SimpleNamespace(
        **{name: function(name) for name in work},
        cudaGetErrorString=lambda error: (0, {2: b"out of memory", 700: b"an illegal memory access"}.get(error, b"words")),
        cudaStreamNonBlocking=1,
        cudaEventDisableTiming=2,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down"),
        cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread"),
    )


def library(device: Device, name: str, version: str, profiles: list[tuple[int, int]]) -> Any:
    """A module `tensorrt` or `tensorrt_rtx`: logger, runtime, engine, context."""

    def scratch(profile: int) -> int:
        """Bytes that the kernels of a profile work in."""
        return profiles[profile][0] * profiles[profile][1]

    class Logger:
        INTERNAL_ERROR, ERROR, WARNING = "internal", "error", "warning"

    class Context:
        def __init__(self, log: Any, kernels: Any) -> None:
            self.log: Any = log
            self.profile: int | None = None
            self.shapes: dict[str, tuple[int, int]] = {}
            self.addresses: dict[str, int] = {}
            self.kernels, self.memory = kernels, 0
            self.ran: tuple[int, int] | None = None

        def allowed(self, name: str) -> bool:
            if name in device.refuse:
                self.log.log("error", f"Error Code 3: {name} says no")
            return name not in device.refuse

        def set_optimization_profile_async(self, index: int, stream: int) -> bool:
            assert stream in device.handles and index < len(profiles)
            self.profile, self.shapes, self.ran = index, {}, None
            return self.allowed("set_optimization_profile_async")

        def set_device_memory(self, memory: int, size: int) -> None:
            assert self.profile is not None and size >= scratch(self.profile), (
                "less than get_device_memory_size_for_profile_v2 says"
            )
            device.view(device.blocks, memory, size)
            self.memory = memory

        def set_tensor_address(self, name: str, memory: int) -> bool:
            assert self.profile is not None, "an address before the profile"
            self.addresses[name] = memory
            return self.allowed("set_tensor_address")

        def is_stream_capturable(self, stream: int) -> bool:
            assert name == "tensorrt_rtx", "TensorRT-RTX alone has it"
            return stream in device.handles and "is_stream_capturable" not in device.refuse

        def set_input_shape(self, name: str, shape: tuple[int, int]) -> bool:
            assert self.profile is not None, "a shape before the profile"
            batch, length = profiles[self.profile]
            assert 1 <= shape[0] <= batch and 2 <= shape[1] <= length, f"{shape} is outside the profile"
            if name != "input_ids" and not self.allowed("set_input_shape"):
                return False
            self.shapes[name] = shape
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert device.current == device.gpu and stream_handle in device.handles
            device.calls.append("execute")
            assert set(self.addresses) == set(Engine.names) and self.memory, "an address or the kernels' memory is missing"
            assert len(self.shapes) == 2
            (shape,) = set(self.shapes.values())  # both inputs have one
            if device.recording is not None:
                assert self.ran == shape, "a capture without an execution in that shape before"
            self.ran = shape
            if self.kernels is not None:
                self.kernels.need(self.profile, shape)
            rows, cells, width = shape[0], shape[0] * shape[1], device.dimensions

            def tensor(name: str, size: int, dtype: type) -> np.ndarray:
                return device.view(device.blocks, self.addresses[name], size * np.dtype(dtype).itemsize).view(dtype)

            ids, mask = (tensor(name, cells, np.int64) for name in ("input_ids", "attention_mask"))
            vectors = tensor("sentence_embedding", rows * width, np.float32)

            def compute() -> None:
                assert (ids[mask == 0] == 1).all() and set(np.unique(mask)) <= {0, 1}  # <pad> where the mask says so
                sums = (ids * mask).reshape(shape).sum(1)
                vectors[:] = device.answer(sums[:, None] * (np.arange(width) + 1.0)).ravel()

            with device.alone():
                device.put(compute)
            return self.allowed("execute_async_v3")

    class Engine:
        names = ("input_ids", "attention_mask", "sentence_embedding")
        num_io_tensors, num_optimization_profiles = 3, len(profiles)
        get_tensor_name = names.__getitem__

        def __init__(self, log: Any) -> None:
            self.log = log

        def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, int]]:
            return [(1, 2), profiles[index], profiles[index]]

        def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
            return scratch(profile_index)

        def create_runtime_config(self) -> Any:
            assert name == "tensorrt_rtx"
            return Config()

        def create_execution_context(self, how: Any) -> Any:
            kernels = None
            if name == "tensorrt_rtx":
                assert isinstance(how, Config)
                how, kernels = how.strategy, how.cache
            assert how == "user managed"
            return Context(self.log, kernels) if "create_execution_context" not in device.refuse else None

    class Cache:
        """Kernels by profile and shape."""

        def __init__(self) -> None:
            self.known: set[str] = set()

        def need(self, profile: int, shape: tuple[int, int]) -> None:
            device.compiled += f"{profile} {shape}" not in self.known
            self.known.add(f"{profile} {shape}")

        def serialize(self) -> bytes:
            return json.dumps([version, sorted(self.known)]).encode()

        def deserialize(self, blob: bytes) -> bool:
            try:
                written_by, known = json.loads(blob)
            except ValueError:
                return False
            if written_by != version:
                return False
            self.known |= set(known)
            return True

    class Config:
        strategy, cache, dynamic_shapes_kernel_specialization_strategy = "static", None, "lazy"

        def create_runtime_cache(self) -> Cache:
            return Cache()

        def set_runtime_cache(self, cache: Cache) -> bool:
            self.cache = cache
            return True

        def set_execution_context_allocation_strategy(self, strategy: str) -> None:
            self.strategy = strategy

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            device.opened.append(plan)
            return Engine(self.log)

    module: Any = ModuleType(name)
    module.__spec__, module.__version__ = ModuleSpec(name, None), version
    module.ILogger, module.Runtime = Logger, Runtime
    module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    return module


def install(monkeypatch: pytest.MonkeyPatch, device: Device, profiles: list[tuple[int, int]] = PROFILES) -> None:
    """Install both libraries, CUDA's bindings, and a GPU of SM 89."""
    package: Any = ModuleType("cuda")
    package.__spec__ = ModuleSpec("cuda", None)
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda_runtime(device))
    monkeypatch.setitem(sys.modules, "tensorrt", library(device, "tensorrt", VERSION, profiles))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library(device, "tensorrt_rtx", "1.7.1.116", profiles))
    monkeypatch.setattr(tensorrt, "device_sm", lambda number=0: SM)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_bundle(folder: Path, engine: str = "tensorrt", shapes: list[tuple[int, int]] = PROFILES, **sidecar: Any) -> Any:
    """A bundle with an fp16 graph and an engine, as far as the manifest and the sidecar (with these changes) tell."""
    files = {"onnx/model_fp16.onnx": b"a graph", "onnx/model_fp16.onnx.data": b"its weights", "tokenizer.json": b"{}"}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder, list(files), D)
    put_engine(folder, engine, shapes, **sidecar)
    return open_bundle(folder)


def write_manifest(folder: Path, files: list[str], dimensions: int) -> None:
    contents = {name: (folder / name).read_bytes() for name in files}
    manifest = {
        **{"format": "mexma-bundle", "format_version": 1, "name": "toy", "dimensions": dimensions, "max_length": 32},
        **{"max_length_limit": 96, "pooling": "cls", "default_precision": "fp16", "source": {}, "parity": {}},
        "graphs": {"fp16": "onnx/model_fp16.onnx"},
        "files": {name: {"sha256": sha(content), "bytes": len(content)} for name, content in contents.items()},
    }
    (folder / "mexma.json").write_text(json.dumps(manifest))


def put_engine(folder: Path, engine: str, shapes: list[tuple[int, int]] = PROFILES, **changes: Any) -> None:
    """Write an engine and its sidecar into a bundle folder."""
    plan = f"the plan of {engine}".encode()
    (folder / "engines").mkdir(exist_ok=True)
    (folder / "engines" / f"{engine}.engine").write_bytes(plan)
    rtx = engine == "rtx"
    sidecar = {
        **{"format": "mexma-engine", "format_version": 2, "library": "tensorrt_rtx" if rtx else "tensorrt"},
        **{"version": "1.7.1.116" if rtx else VERSION, "sm": [86, SM], "precision": "fp16", "matmuls": 2, "half_matmuls": 2},
        **{"counted_in": "network", "build_seconds": 1, "built": "2026-11-22T18:00:00+00:00"},
        "profiles": [{"batch": batch, "length": length} for batch, length in shapes],
        "inputs": [{"name": name, "dtype": "int64", "shape": [-1, -1]} for name in ("input_ids", "attention_mask")],
        "outputs": [{"name": "sentence_embedding", "dtype": "float32", "shape": [-1, D]}],
        "normalized": False,
        "graph_sha256": sha(f"{sha(b'a graph')} {sha(b'its weights')}".encode()),
        **{"engine_sha256": sha(plan), "engine_bytes": len(plan)},
    }
    (folder / "engines" / f"{engine}.engine.json").write_text(json.dumps(sidecar | changes))


def batch(lengths: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random sentences of these lengths, padded: int64 [B, L] and its mask."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(4, 1000, mask.shape)
    return np.where(mask == 1, ids, 1), mask


def by_hand(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return (ids * mask).sum(1)[:, None] * np.array([1, 2, 3])
