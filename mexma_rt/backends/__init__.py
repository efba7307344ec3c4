"""Back ends: one abstract class, one file per engine, and the choice among them.

A named device, back end or precision runs or raises; only "auto" chooses, and it gives the reason for its choice. On a GPU, an
engine that mexma-export built into the bundle comes first.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mexma_rt.backends.nvidia import gpu_number
from mexma_rt.bundle.manifest import Bundle
from mexma_rt.bundle.structure import buildable, runnable
from mexma_rt.bundle.weights import holder
from mexma_rt.errors import BackendError, MexmaError

ENGINES = ("tensorrt", "rtx")  # TensorRT and TensorRT-RTX: cuda only, fp16 only
BACKENDS = ("onnxruntime", *ENGINES, "torch")
DEVICES = ("cpu", "cuda")
_GPU = re.compile(r"cuda:\d+", re.ASCII)  # one of several GPUs
FOR_CPU = ("fused", "int8", "mixed", "w8", "w4")  # graphs with operators that onnxruntime has for the CPU only
PRECISIONS = ("fp32", "fp16", *FOR_CPU)

# Fixed cost of a run, in cells that could be computed in the same time. Two AVX2 cores, onnxruntime, shapes from 1 x 16
# to 64 x 16: 17 cells for the bundled model (1.15 ms on one thread, which computes 14,900 cells/s), 5 for XLM-R-base.
RUN_CELLS = 16
BATCH_TOKENS, GPU_BATCH_TOKENS = 4096, 16384  # cells of a batch; engines are tuned for the GPU's, which is not measured
GPU_RUN_CELLS = 512  # assumed until benchmarks/GPU_TODO.md has measured it: about 0.5 ms of launches at 1 M cells/s


class Backend(ABC):
    """An engine with a model loaded on a device. `run` may be called from many threads."""

    name: str
    device: str
    precision: str
    reason: str  # why this engine, device and precision were chosen
    lanes: int = 1  # number of threads that should call `run` concurrently for the highest throughput
    longest: int | None = None  # longest sentence in tokens; None: the model's maximum
    normalized: bool = False  # whether `run` returns vectors of length 1 instead of raw ones

    @property
    def run_cells(self) -> int:
        """Fixed cost of a run, in cells that could be computed in the same time; `pack` weighs padding against it."""
        return RUN_CELLS if self.device == "cpu" else GPU_RUN_CELLS

    @property
    def batch_tokens(self) -> int:
        """Default size of a batch, in cells."""
        return BATCH_TOKENS if self.device == "cpu" else GPU_BATCH_TOKENS

    @abstractmethod
    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Compute sentence vectors, float32 [B, D] (raw, or see `normalized`), from int64 [B, L] twice, padded on the right.

        Raises BackendError.
        """

    def run_tokens(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Like `run`, but return raw token states, float32 [B, L, D], meaningless for padding. Raises BackendError."""
        raise BackendError(
            f"The {self.name} engine computes sentence vectors, not token vectors. For token vectors and word alignment, type "
            "load(..., backend='onnxruntime')."
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One combination of back end, device and precision: whether it runs here, and why or why not."""

    backend: str
    device: str
    precision: str
    usable: bool
    reason: str


def open_backend(
    bundle: Bundle,
    *,
    device: str = "auto",
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    prove: Callable[[Backend], str] | None = None,
) -> Backend:
    """Open the named engine, or the first usable one.

    The order is: the bundle's TensorRT engines, onnxruntime on cuda, torch on cuda, onnxruntime on the cpu. (On cuda, torch
    comes after onnxruntime until the two have been measured side by side.)

    `prove` checks what no parity gate has seen, every TensorRT engine (its numbers depend on the machine that built it) and
    torch: it returns its finding as text, or raises BackendError, upon which "auto" tries the next one.

    Raises BackendError or MissingExtraError naming what is missing, BundleError for an engine of another graph.
    """
    _check_known("device", device if _GPU.fullmatch(device) is None else "cuda", DEVICES)
    _check_known("backend", backend, BACKENDS)
    _check_known("precision", precision, PRECISIONS)
    if backend == "torch":
        return _open_torch(bundle, device, precision, threads, prove, why="backend='torch' was named")
    if precision != "auto" and precision not in runnable(bundle):
        raise BackendError(
            f"precision={precision!r} is not in the bundle {bundle.name!r}, which has {', '.join(bundle.graphs)}. "
            "Name one of those, or export the bundle again with this precision."
        )
    if backend in ENGINES:
        return _open_named_engine(bundle, backend, device, precision, prove)
    refused = ""
    if backend == "auto" and device != "cpu" and precision in ("auto", "fp16"):
        engine, refused = _first_engine(bundle, gpu_number(device), prove)
        if engine is not None:
            return engine
    so_far = f"{refused}; " if refused else ""
    if device != "auto":
        try:
            return _open(bundle, device, precision, threads, why=f"{so_far}device={device!r} was named")
        except BackendError as error:
            by_torch, no_torch = None, ""
            if backend == "auto" and device != "cpu":
                why = f"{so_far}device={device!r} was named; onnxruntime was refused ({_first_line(error)})"
                by_torch, no_torch = _torch_on_gpu(bundle, device, precision, prove, why=why)
            if by_torch is not None:
                return by_torch
            if not refused and not no_torch:
                raise
            tried = (f"Before that, {refused}." if refused else "", f"After that, {no_torch}." if no_torch else "")
            raise BackendError("\n".join([str(error), *filter(None, tried)])) from error
    try:
        return _open(bundle, "cuda", precision, threads, why=f"auto: {so_far}CUDA works here")
    except BackendError as error:
        so_far += f"cuda was refused ({_first_line(error)})"
    if backend == "auto":
        why = f"auto: {so_far}; torch works on cuda here"
        by_torch, no_torch = _torch_on_gpu(bundle, "cuda", precision, prove, why=why)
        if by_torch is not None:
            return by_torch
        so_far += f"; {no_torch}" if no_torch else ""
    return _open(bundle, "cpu", precision, threads, why=f"auto: {so_far}")


def describe_choices(bundle: Bundle, prove: Callable[[Backend], str]) -> tuple[Choice, ...]:
    """Try every combination and report which run here, and why the others do not. `prove` runs one and returns the result as
    text, or raises MexmaError.
    """
    combinations = [("onnxruntime", device, precision) for device in DEVICES for precision in bundle.graphs]
    combinations += [(engine, "cuda", "fp16") for engine in ENGINES]
    combinations += [("torch", "cpu", "fp32"), ("torch", "cuda", "fp16"), ("torch", "cuda", "fp32")]
    choices = []
    for backend, device, precision in combinations:
        try:
            named = "auto" if backend in ENGINES else precision  # a bundle without fp16 has no such graph to name
            engine = open_backend(bundle, device=device, backend=backend, precision=named)
            usable, reason = True, prove(engine)
        except MexmaError as error:
            usable, reason = False, str(error)
        choices.append(Choice(backend=backend, device=device, precision=precision, usable=usable, reason=reason))
    return tuple(choices)


def _open_named_engine(
    bundle: Bundle, backend: str, device: str, precision: str, prove: Callable[[Backend], str] | None
) -> Backend:
    if device == "cpu":
        raise BackendError(f"backend={backend!r} runs on cuda only. Leave device='cpu' out, or name backend='onnxruntime'.")
    if precision not in ("auto", "fp16"):
        raise BackendError(f"backend={backend!r} computes in fp16 only. Leave precision={precision!r} out, or name 'fp16'.")
    return _open_engine(
        bundle, backend, gpu_number(device), prove, why=f"backend={backend!r} was named; its engines are in fp16"
    )


def _open_engine(bundle: Bundle, name: str, gpu: int, prove: Callable[[Backend], str] | None, *, why: str) -> Backend:
    from mexma_rt.backends.tensorrt import TensorRT

    engine = TensorRT(bundle, engine=name, reason=why, gpu=gpu)
    if prove is not None:
        engine.reason += f"; {prove(engine)}"
    return engine


def _first_engine(bundle: Bundle, gpu: int, prove: Callable[[Backend], str] | None) -> tuple[Backend | None, str]:
    """Return (the bundle's first engine that runs here, "") or (None, why none of them does; "" if it has none)."""
    from mexma_rt.backends.sidecar import engine_path

    refused: list[str] = []
    for name in ENGINES:
        if not engine_path(bundle.folder, name).is_file():
            continue
        so_far = "".join(f"{words}; " for words in refused)
        try:
            return _open_engine(bundle, name, gpu, prove, why=f"auto: {so_far}the bundle has an engine for {name}, in fp16"), ""
        except MexmaError as error:
            refused.append(f"{name} was refused ({_first_line(error)})")
    return None, "; ".join(refused)


def _open_torch(
    bundle: Bundle, device: str, precision: str, threads: int | None, prove: Callable[[Backend], str] | None, *, why: str
) -> Backend:
    from mexma_rt.backends.torch import Torch

    opened = Torch(bundle, device=device, precision=precision, threads=threads, reason=why)
    if prove is not None:
        opened.reason += f"; {prove(opened)}"
    return opened


def _torch_on_gpu(
    bundle: Bundle, device: str, precision: str, prove: Callable[[Backend], str] | None, *, why: str
) -> tuple[Backend | None, str]:
    """Return (torch on a GPU, "") or (None, why not; "" without a GPU here, and for CPU-only precisions)."""
    if precision in FOR_CPU:
        return None, ""
    from mexma_rt.backends.torch import why_not_torch

    if (words := why_not_torch(bundle)) is not None:
        return None, words
    try:
        return _open_torch(bundle, device, precision, None, prove, why=why), ""
    except MexmaError as error:
        return None, f"torch was refused ({_first_line(error)})"


def _first_line(error: MexmaError) -> str:
    return str(error).partition("\n")[0].removesuffix(" Type:")


def _open(bundle: Bundle, device: str, precision: str, threads: int | None, *, why: str) -> Backend:
    if precision == "auto":
        precision, chosen = _auto_precision(bundle, device)
        why = f"{why}; {chosen}"
    elif device != "cpu" and precision in FOR_CPU:
        raise BackendError(
            f"The {precision} graph is for the CPU; on cuda, use precision='fp16' or 'fp32' "
            f"(this bundle has {', '.join(bundle.graphs)})."
        )
    else:
        why = f"{why}; precision={precision!r} was named"
    from mexma_rt.backends.onnxruntime import OnnxRuntime

    return OnnxRuntime(bundle, device=device, precision=precision, threads=threads, reason=why)


def _auto_precision(bundle: Bundle, device: str) -> tuple[str, str]:
    if device == "cpu":
        return _cpu_precision(bundle)
    for precision in ("fp16", "fp32"):
        if precision in bundle.graphs:
            return precision, f"{precision} is the bundle's fastest graph for GPUs"
    for precision in (name for name in buildable(bundle) if name not in FOR_CPU):
        return (
            precision,
            f"{precision} is the fastest for GPUs that can be built from the bundle's {holder(bundle)} graph",
        )
    raise BackendError(f"The bundle {bundle.name!r} has no fp16 or fp32 graph for cuda, only {', '.join(bundle.graphs)}.")


def _cpu_precision(bundle: Bundle) -> tuple[str, str]:
    """Return the bundle's default precision if its parity report passed; otherwise the manifest's first one that passed."""
    default = bundle.default_precision
    for precision in (default, *(name for name in bundle.graphs if name not in (default, "fp16"))):
        parity = bundle.parity.get(precision)
        if isinstance(parity, dict) and parity.get("passed") is True:
            lowest = parity.get("min_cosine")
            digits = f"{lowest:.6f}" if isinstance(lowest, float) else lowest
            why = f"its parity report passed: lowest cosine {digits} over {parity.get('sentences')} sentences"
            if precision == default:
                return precision, f"{precision} is the bundle's default precision, and {why}"
            return precision, f"{precision}, because {why}; the report of the default, {default}, is missing or did not pass"
    return default, f"{default} is the bundle's default precision; none of the bundle's parity reports passed"


def _check_known(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in ("auto", *known):
        more = " (one GPU of several: cuda:1)" if what == "device" else ""
        raise BackendError(f"There is no {what} {value!r}. Known: auto, {', '.join(known)}{more}.")
