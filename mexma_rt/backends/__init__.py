"""The seam between the pipeline and the engines: one abstract back end, one file per engine, and the choice among them.

A named device, back end or precision runs or raises BackendError; only "auto" chooses, and its choice carries a reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from mexma_rt.bundle import Bundle
from mexma_rt.errors import BackendError, MexmaError

BACKENDS = ("onnxruntime",)
DEVICES = ("cpu", "cuda")
PRECISIONS = ("fp32", "fp16", "int8", "mixed")


class Backend(ABC):
    """An engine with a model loaded on a device. `run` may be called from many threads."""

    name: str
    device: str
    precision: str
    reason: str  # why this engine, device and precision

    @abstractmethod
    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """int64 [B, L] twice, padded on the right -> raw sentence vectors, float32 [B, D]. Raises BackendError."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One combination of back end, device and precision: whether it runs here, and why (not)."""

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
) -> Backend:
    """Open the named engine, or the first usable one: cuda before cpu. Raises BackendError with what is missing."""
    _check_known("device", device, DEVICES)
    _check_known("backend", backend, BACKENDS)
    _check_known("precision", precision, PRECISIONS)
    if precision != "auto" and precision not in bundle.graphs:
        raise BackendError(
            f"precision={precision!r} is not in the bundle {bundle.name!r}, which has {', '.join(bundle.graphs)}. "
            "Name one of those, or export the bundle again with this precision."
        )
    if device != "auto":
        return _open(bundle, device, precision, threads, why=f"device={device!r} was named")
    try:
        return _open(bundle, "cuda", precision, threads, why="auto: CUDA works here")
    except BackendError as error:
        refused = str(error).partition("\n")[0]
    return _open(bundle, "cpu", precision, threads, why=f"auto: cuda was refused ({refused})")


def describe_choices(bundle: Bundle) -> tuple[Choice, ...]:
    """Try every combination on one empty sentence: what runs here and why the others do not."""
    choices = []
    for device in DEVICES:
        for precision in bundle.graphs:
            try:
                engine = open_backend(bundle, device=device, precision=precision)
                engine.run(np.array([[0, 2]]), np.array([[1, 1]]))
                usable, reason = True, "opened, and computed a vector"
            except MexmaError as error:
                usable, reason = False, str(error)
            choices.append(Choice(backend="onnxruntime", device=device, precision=precision, usable=usable, reason=reason))
    return tuple(choices)


def _open(bundle: Bundle, device: str, precision: str, threads: int | None, *, why: str) -> Backend:
    if precision == "auto":
        precision, chosen = _auto_precision(bundle, device)
        why = f"{why}; {chosen}"
    elif device == "cuda" and precision in ("int8", "mixed"):
        raise BackendError(
            f"The {precision} graph is made for the CPU; on cuda use precision='fp16' or 'fp32' "
            f"(this bundle has {', '.join(bundle.graphs)})."
        )
    else:
        why = f"{why}; precision={precision!r} was named"
    from mexma_rt.backends.onnxruntime import OnnxRuntime

    return OnnxRuntime(bundle, device=device, precision=precision, threads=threads, reason=why)


def _auto_precision(bundle: Bundle, device: str) -> tuple[str, str]:
    if device == "cpu":
        return bundle.default_precision, f"{bundle.default_precision} is the bundle's default precision"
    for precision in ("fp16", "fp32"):
        if precision in bundle.graphs:
            return precision, f"{precision} is the bundle's fastest graph for GPUs"
    raise BackendError(f"The bundle {bundle.name!r} has no fp16 or fp32 graph for cuda, only {', '.join(bundle.graphs)}.")


def _check_known(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in ("auto", *known):
        raise BackendError(f"There is no {what} {value!r}. Known: auto, {', '.join(known)}.")
