"""`mexma-export doctor`: reports what is installed, what can be built and run here, and what to type for the rest.

Nothing is inferred from version numbers: packages are imported, the driver is queried, and onnxruntime runs a graph.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mexma_export.bundle import installed_version
from mexma_export.graph_format import GRAPHS
from mexma_rt.backends.nvidia import MODULES, device_sm, load_cuda, load_library
from mexma_rt.backends.onnxruntime import CUDA
from mexma_rt.backends.onnxruntime_packages import keep_gpu, whole_onnxruntime
from mexma_rt.errors import BackendError, MexmaError, require_extra

PACKAGES = ["mexma-rt", "torch", "transformers", "safetensors", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"]
PACKAGES += ["tensorrt", "tensorrt-cu13", "tensorrt-rtx-cu13", "cuda-bindings"]
ONNX_MODULES = ("torch", "transformers", "safetensors", "onnx", "onnxscript")
# y = Identity(x), float32 [1], opset 13: onnx.helper.make_model(...).SerializeToString()
IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a0808011204"
    "0a02080142040a00100d"
)
_ASK = "name,driver_version,compute_cap,memory.total"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A line of nvidia-smi."""

    name: str
    driver: str
    compute_capability: str  # "8.9" is SM 89
    memory_mib: str


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Something that works here or not; `detail` says for what, or why not and what to type."""

    what: str
    works: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What `mexma-export doctor` prints."""

    versions: dict[str, str | None]  # None: not installed
    platform: str
    gpus: tuple[Gpu, ...]
    gpu_remark: str  # why `gpus` is empty, else ""
    build: tuple[Ability, ...]
    run: tuple[Ability, ...]

    def as_text(self) -> str:
        """Return readable text: versions, GPUs, then a line per ability, with what to type if it says "no"."""
        lines = ["  ".join(f"{name} {number or 'missing'}" for name, number in self.versions.items()), self.platform]
        lines += [f"{gpu.name}: driver {gpu.driver}, SM {_sm(gpu)}, {gpu.memory_mib} MiB" for gpu in self.gpus]
        lines += [f"no GPU: {self.gpu_remark}"] if not self.gpus else []
        for title, abilities in (("Build", self.build), ("Run", self.run)):
            lines.append(title)
            for ability in abilities:
                detail = ability.detail.replace("\n", "\n" + " " * 28)
                lines.append(f"  {'works' if ability.works else 'no   '}  {ability.what:<17}  {detail}")
        return "\n".join(lines)


def examine() -> Examination:
    """Try everything once and record what fails. Takes a few seconds, since torch is imported."""
    gpus, remark = _gpus()
    return Examination(
        versions={"python": platform.python_version(), **{name: installed_version(name) for name in PACKAGES}},
        platform=platform.platform(),
        gpus=gpus,
        gpu_remark=remark,
        build=(_try("ONNX graphs", _build_graphs), *(_try(f"engine {name}", _build_engine, name) for name in MODULES)),
        run=(
            _try("onnxruntime cpu", _run_onnxruntime, "CPUExecutionProvider"),
            _try("onnxruntime cuda", _run_onnxruntime, CUDA),
            *(_try(f"engine {name}", _run_engine, name) for name in MODULES),
        ),
    )


def _try(what: str, check: Callable[..., str], *arguments: str) -> Ability:
    try:
        return Ability(what=what, works=True, detail=check(*arguments))
    except MexmaError as error:
        return Ability(what=what, works=False, detail=str(error))


def _build_graphs() -> str:
    require_extra("export", *ONNX_MODULES)
    for name in ONNX_MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # an ImportError or OSError of the loader, or the package's own
            raise BackendError(
                f"{name} is installed but does not load: {str(error).strip() or type(error).__name__}. Type:\n"
                "    pip install --force-reinstall 'mexma-rt[export]'"
            ) from error
    return f"{', '.join(GRAPHS)}; the parity gate checks each export"


def _build_engine(engine: str) -> str:
    from mexma_export.trt_compat import architectures_for

    targets = architectures_for(load_library(engine), engine, None)
    numbers = f"for SM {', '.join(map(str, targets))}"
    return f"{numbers}, this machine's GPU" if engine == "tensorrt" else f"{numbers} (or as in --sm), with or without a GPU"


def _run_onnxruntime(provider: str) -> str:
    onnxruntime = whole_onnxruntime()
    where = "cuda" if provider == CUDA else "cpu"
    available = onnxruntime.get_available_providers()
    remedy = f"\nType:\n    {keep_gpu()}\n(onnxruntime and onnxruntime-gpu overwrite each other: keep only the second)"
    if provider not in available:
        raise BackendError(f"the installed onnxruntime has only {', '.join(available)}.{remedy if where == 'cuda' else ''}")
    if where == "cuda":
        device_sm()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, and the session's error says so too
            getattr(onnxruntime, "preload_dlls", lambda: None)()  # CUDA and cuDNN of the pip packages
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors reach us as exceptions
    try:
        session = onnxruntime.InferenceSession(IDENTITY, options, providers=[provider], enable_fallback=0)
        session.run(None, {"x": [1.0]})
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BackendError(f"onnxruntime cannot compute on {where}: {error}{remedy}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(f"onnxruntime could not start CUDA: a library is missing.{remedy}")
    return "fp32, fp16" if where == "cuda" else "fp32, int8, mixed; fp16 too, but slower than fp32"


def _run_engine(engine: str) -> str:
    from mexma_export.trt_compat import architectures_for

    trt = load_library(engine)
    load_cuda(engine)
    here = device_sm()
    architectures_for(trt, engine, [here])  # rtx does not support every GPU
    return f"fp16, on SM {here}"


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return (the GPUs that nvidia-smi lists, "") or ((), why there are none)."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), "nvidia-smi is not on the path, so there is no NVIDIA driver"
    command = [program, f"--query-gpu={_ASK}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi does not answer: {error}"
    found = tuple(_parse_gpus(done.stdout)) if done.returncode == 0 else ()
    said = " ".join((done.stdout + done.stderr).split())[:200]
    return found, "" if found else f"nvidia-smi lists none: {said or f'exit code {done.returncode}'}"


def _parse_gpus(table: str) -> Iterator[Gpu]:
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 4:
            yield Gpu(name=cells[0], driver=cells[1], compute_capability=cells[2], memory_mib=cells[3])


def _sm(gpu: Gpu) -> str:
    return gpu.compute_capability.replace(".", "")
