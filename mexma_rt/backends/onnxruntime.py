"""The onnxruntime back end: always on the CPU, and on CUDA where `onnxruntime-gpu` and its libraries are installed."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np

from mexma_rt.backends import Backend
from mexma_rt.backends.external import check_external_files
from mexma_rt.backends.nvidia import gpu_number
from mexma_rt.backends.onnxruntime_packages import clash_of_packages, keep_gpu, whole_onnxruntime
from mexma_rt.backends.vnni import exact_int8_products
from mexma_rt.bundle.graphs import ATTENTION_MASK, INPUT_IDS, SENTENCE, TOKENS
from mexma_rt.bundle.manifest import Bundle
from mexma_rt.bundle.structure import built_graph
from mexma_rt.bundle.weights import holder
from mexma_rt.cores import usable_cores
from mexma_rt.errors import BackendError, BundleError, InputError

SWITCH = "token_states"  # optional bool input of the fused graphs: False omits the token states
CUDA = "CUDAExecutionProvider"

# Models up to this width run as many batches at a time as there are threads, one thread each, instead of one batch on all
# threads: their matrix products are too small to share. Measured on the bundled model (256 dimensions), two busy cores, 500
# mixed sentences, 7 interleaved rounds: 1.42 times the speed, with 27 % less CPU time.
NARROW = 384


class OnnxRuntime(Backend):
    """An inference session for the bundle's graph in one precision; many threads may run it."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, device: str, precision: str, threads: int | None, reason: str) -> None:
        if threads is not None and (type(threads) is not int or threads < 1):
            raise InputError(f"threads={threads!r} must be a whole number of at least 1, or None for all usable cores.")
        onnxruntime = whole_onnxruntime()
        self.device, self.precision, self.reason = device, precision, reason + _warn_of_clash()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal only: errors reach the caller as exceptions
        threads = threads or usable_cores()
        if device == "cpu" and bundle.dimensions <= NARROW:
            self.lanes, threads = threads, 1
        options.intra_op_num_threads = threads
        options.enable_mem_pattern = False  # it caches a plan per input shape, and our shapes vary
        # Threads may spin between the operators of a run, but not after it, when they would only take cores from others.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not exact_int8_products():  # slower weights of another kind, and the vectors of CPUs with VNNI to the bit
            options.add_session_config_entry("session.x64quantprecision", "1")
        if precision in bundle.graphs:
            path = bundle.folder / bundle.graphs[precision]
            check_external_files(bundle, bundle.graphs[precision])
        if device != "cpu":
            _require_cuda_provider(onnxruntime.get_available_providers())
            _load_cuda_libraries()
        if precision not in bundle.graphs:  # last, because the first use takes seconds
            path = built_graph(bundle, precision)
            self.reason += f"; built from the bundle's {holder(bundle)} graph: {path.parent}"
        # TF32 keeps 10 of a factor's 23 bits: an fp32 graph would not reproduce the CPU's vectors.
        on_cuda = [(CUDA, {"device_id": str(gpu_number(device)), "use_tf32": "0"}), "CPUExecutionProvider"]
        providers = ["CPUExecutionProvider"] if device == "cpu" else on_cuda
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BackendError(f"onnxruntime {onnxruntime.__version__} cannot open {path} on {device}: {error}") from error
        if device != "cpu" and self._session.get_providers()[0] != CUDA:
            raise BackendError(f"onnxruntime could not start CUDA: no GPU, no driver, or a library is missing.{_remedy()}")
        self._has_switch = SWITCH in [value.name for value in self._session.get_overridable_initializers()]
        dimensions = {output.name: output.shape[-1] for output in self._session.get_outputs()}.get(SENTENCE)
        if dimensions != bundle.dimensions:
            raise BundleError(
                f"{path}: the output {SENTENCE} has {dimensions} dimensions, but the manifest says {bundle.dimensions}. "
                "Export the bundle again with mexma-export."
            )

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return self._run(SENTENCE, input_ids, attention_mask)

    def run_tokens(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        if TOKENS not in [output.name for output in self._session.get_outputs()]:
            raise BackendError(
                f"This bundle's {self.precision} graph has no output {TOKENS}, so it cannot compute token vectors. Export the "
                "bundle again with mexma-export, or choose a graph that has it with precision=."
            )
        return self._run(TOKENS, input_ids, attention_mask)

    def _run(self, output: str, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        feed = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        if self._has_switch:
            feed[SWITCH] = np.array(output == TOKENS)
        try:
            (vectors,) = self._session.run([output], feed)
        except Exception as error:
            raise BackendError(
                f"onnxruntime failed on a batch of {input_ids.shape[0]} sentences x {input_ids.shape[1]} tokens on "
                f"{self.device}: {error}\nIf memory ran out, type a smaller batch_tokens."
            ) from error
        found: np.ndarray = vectors.astype(np.float32, copy=False)
        return found


def _remedy() -> str:
    return (
        "\nType:\n    pip install 'mexma-rt[cuda]'\nfor the torch back end, alongside this onnxruntime; or, to run onnxruntime "
        f"itself on CUDA:\n    {keep_gpu()}\n(pip will complain that mexma-rt lacks onnxruntime: onnxruntime-gpu replaces it, "
        "and only one can be installed, because they overwrite each other); or type device='cpu' or 'auto'."
    )


def _require_cuda_provider(available: list[str]) -> None:
    if CUDA not in available:
        raise BackendError(f"The installed onnxruntime has no CUDA (it has {', '.join(available)}).{_remedy()}")


def _load_cuda_libraries() -> None:
    """Load CUDA and cuDNN from their pip packages, or raise BackendError with what onnxruntime reports missing."""
    onnxruntime = whole_onnxruntime()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints; a library must not
        getattr(onnxruntime, "preload_dlls", lambda: None)()  # since onnxruntime 1.21
    if "Failed to load" in said.getvalue():  # opening a session would fail too, and fill stderr
        raise BackendError(f"onnxruntime cannot find some CUDA libraries.{_remedy()}\n{said.getvalue()}")


def _warn_of_clash() -> str:
    """Warn of a clash in full, and return its first line as a remark for `reason`."""
    clash = clash_of_packages()
    if not clash:
        return ""
    warnings.warn(clash, UserWarning, stacklevel=2)
    return f"; note: {clash.partition(chr(10))[0].removesuffix(' Type, for a GPU:')}"
