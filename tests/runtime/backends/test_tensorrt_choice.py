"""A TensorRT engine is opened where it fits, or refused before it is opened; what auto chooses, and what the doctor says."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import inspect
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mexma_rt import BackendError, BundleError, FileError, MissingExtraError, load
from mexma_rt.backends import Backend, describe_choices, nvidia, open_backend, tensorrt
from mexma_rt.backends.nvidia import device_sm
from mexma_rt.bundle.opening import read_manifest

from ...signatures import assert_of_the_library
from ..standin_gpu import VERSION, D, Device, install, make_bundle, put_engine, write_manifest


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    stand_in = Device()
    install(monkeypatch, stand_in)
    return stand_in


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if these packages were not installed."""
    found = importlib.util.find_spec
    for name in modules:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in modules else found(name, *rest))


# ---- what is missing


@pytest.mark.parametrize(
    ("engine", "missing", "words"),
    [
        ("tensorrt", ["tensorrt"], "tensorrt is not installed, and this needs it. Type:\n    pip install 'mexma-rt[tensorrt]'"),
        ("rtx", ["tensorrt_rtx"], "tensorrt_rtx is not installed, and this needs it. Type:\n    pip install 'mexma-rt[rtx]'"),
        ("rtx", ["cuda"], "cuda is not installed, and this needs it. Type:\n    pip install 'mexma-rt[rtx]'"),
        ("rtx", ["tensorrt_rtx", "cuda"], "tensorrt_rtx and cuda are not installed, and this needs them. Type:\n    pip"),
    ],
)
def test_a_missing_library_is_the_pip_line(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str, missing: list[str], words: str
) -> None:
    bundle = make_bundle(tmp_path, engine)
    hide(monkeypatch, *missing)
    with pytest.raises(MissingExtraError, match=re.escape(words)):
        open_backend(bundle, backend=engine)


def test_another_package_named_cuda(device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)  # python's way to say that it cannot be imported
    with pytest.raises(
        BackendError,
        match=r"cuda\.bindings\.runtime does not load: import of(?s:.*)pip install --upgrade cuda-bindings ",
    ):
        open_backend(make_bundle(tmp_path), backend="tensorrt")


def test_a_machine_without_a_driver(device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_driver(name: str) -> None:
        raise OSError("libcuda: no such file")

    monkeypatch.setattr(tensorrt, "device_sm", device_sm)
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(BackendError, match=r"^This machine has no NVIDIA driver \(libcuda: no such file\), so no GPU"):
        open_backend(make_bundle(tmp_path), backend="tensorrt")


def test_the_compute_capability_comes_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def attribute(target: Any, number: int, device: Any) -> int:
        target._obj.value = {75: 12, 76: 0}[number]
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGet=lambda target, index: 0, cuDeviceGetAttribute=attribute)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert device_sm() == 120
    driver.cuInit = lambda flags: 100
    with pytest.raises(BackendError, match=r"no usable GPU \(CUDA error 100\)\. Type: nvidia-smi"):
        device_sm()


def test_missing_files_are_the_command(device: Device, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "tensorrt")
    command = re.escape(f"Type:\n    mexma-export engine {tmp_path} rtx --sm 89")
    with pytest.raises(BackendError, match=rf"no engine for rtx \(.*rtx\.engine is missing\)\. {command}$"):
        open_backend(bundle, backend="rtx")
    (tmp_path / "engines" / "tensorrt.engine.json").unlink()
    with pytest.raises(FileError, match=r"has no tensorrt\.engine\.json beside it"):
        open_backend(bundle, backend="tensorrt")


def test_a_bundle_without_the_graph_of_engines(device: Device, tiny_bundle: Path) -> None:
    with pytest.raises(
        BackendError, match=r"'tiny' has no fp16 graph.*\(it has fp32, \w+\)(?s:.*)--precision fp32,int8,fp16\n"
    ):
        load(tiny_bundle, backend="tensorrt")


# ---- what is refused before the engine is opened


def output(name: str, dtype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"version": "10.16.1"}, BackendError, rf"built by tensorrt 10\.16\.1, but {re.escape(VERSION)} is installed"),
        ({"sm": [80, 90]}, BackendError, "built for SM 80, 90, but this GPU has SM 89"),
        ({"library": "tensorrt_rtx"}, BackendError, "an engine of tensorrt_rtx, but was given to tensorrt"),
        ({"graph_sha256": "ab" * 32}, BundleError, f"SHA-256 {'ab' * 32}, but the graph here has [0-9a-f]{{64}}: it holds"),
        ({"engine_sha256": "ab" * 32}, BundleError, f"has SHA-256 [0-9a-f]{{64}}, but .* says {'ab' * 32}"),
        ({"inputs": [output("input_ids", "int32", -1, -1)]}, BundleError, "int32.* are not those of a bundle"),
        ({"outputs": [output("sentence_embedding", "float32", -1, 9)]}, BundleError, r"\(-1, 9\).*a bundle with 3 dimensions"),
        (
            {"outputs": [output("sentence_embedding", "float32", -1, D), output("last_hidden_state", "float16", -1, -1, D)]},
            BundleError,
            "float16.* are not those of a bundle",
        ),
    ],
)
def test_an_engine_that_does_not_fit_is_never_opened(
    device: Device, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        open_backend(make_bundle(tmp_path, **changes), backend="tensorrt")
    assert device.opened == [] and device.calls == []


def test_an_engine_that_is_not_as_described_gets_no_memory(device: Device, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, profiles=[{"batch": rows, "length": length} for rows, length in [(1, 16), (6, 32), (3, 95)]])
    with pytest.raises(
        BundleError, match=r"largest shapes .*\(3, 96\).* but its sidecar says .*\(3, 95\).*engine BUNDLE tensorrt"
    ):
        open_backend(bundle, backend="tensorrt")
    outputs = [output("sentence_embedding", "float32", -1, D), output("last_hidden_state", "float32", -1, -1, D)]
    bundle = make_bundle(tmp_path, outputs=outputs)
    with pytest.raises(
        BundleError, match=r"the tensors \['attention_mask', 'input_ids', 'sentence_embedding'\] and .* says \["
    ):
        open_backend(bundle, backend="tensorrt")
    assert set(device.calls) == {"cudaGetDevice"}


# ---- the choice


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "cpu"}, "backend='tensorrt' runs on cuda only. Leave device='cpu' out, or name backend='onnxruntime'."),
        ({"precision": "fp32"}, "backend='tensorrt' computes in fp16 only. Leave precision='fp32' out, or name 'fp16'."),
    ],
)
def test_what_an_engine_cannot_do_raises(device: Device, mixed_bundle: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BackendError, match=f"^{re.escape(words)}$"):
        open_backend(read_manifest(mixed_bundle), backend="tensorrt", **arguments)


@pytest.fixture
def mixed_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Opens in onnxruntime and, as far as the stand-in sees, in both engines; its "fp16" graph is its fp32 one."""
    folder = tmp_path / "mixed"
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / "mexma.json").read_text())
    manifest["graphs"]["fp16"] = manifest["graphs"]["fp32"]
    (folder / "mexma.json").write_text(json.dumps(manifest))
    sha = manifest["files"][manifest["graphs"]["fp32"]]["sha256"]
    outputs = [output("sentence_embedding", "float32", -1, 32)]
    for engine in ("tensorrt", "rtx"):
        put_engine(folder, engine, graph_sha256=sha, outputs=outputs)
    return folder


def spoil(folder: Path, engine: str, version: str) -> None:
    path = folder / "engines" / f"{engine}.engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A GPU whose engines have the 32 dimensions of the tiny bundle, and an onnxruntime without CUDA."""
    stand_in = Device(dimensions=32)
    install(monkeypatch, stand_in)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    return stand_in


def test_auto_takes_the_bundles_engine_and_says_so(wide: Device, mixed_bundle: Path) -> None:
    asked: list[dict[str, Any]] = [{}, {"device": "cuda"}, {"precision": "fp16"}]
    for arguments in asked:
        backend = open_backend(read_manifest(mixed_bundle), **arguments)
        assert (backend.name, backend.reason) == ("tensorrt", "auto: the bundle has an engine for tensorrt, in fp16")
    spoil(mixed_bundle, "tensorrt", "10.14.1")
    backend = open_backend(read_manifest(mixed_bundle))
    assert backend.name == "rtx"
    assert backend.reason == (
        f"auto: tensorrt was refused ({mixed_bundle}/engines/tensorrt.engine was built by tensorrt 10.14.1, but {VERSION} is "
        "installed: an engine works with one version only. Build it again: mexma-export engine BUNDLE tensorrt); "
        "the bundle has an engine for rtx, in fp16"
    )
    assert wide.opened == [b"the plan of tensorrt"] * 3 + [b"the plan of rtx"]


@pytest.mark.parametrize("arguments", [{"device": "cpu"}, {"precision": "fp32"}, {"backend": "onnxruntime"}])
def test_what_is_named_leaves_engines_alone(wide: Device, mixed_bundle: Path, arguments: dict[str, Any]) -> None:
    backend = open_backend(read_manifest(mixed_bundle), **arguments)
    assert (backend.name, backend.device) == ("onnxruntime", "cpu") and "tensorrt" not in backend.reason
    assert wide.opened == []


def test_auto_says_why_engines_were_refused(wide: Device, monkeypatch: pytest.MonkeyPatch, mixed_bundle: Path) -> None:
    hide(monkeypatch, "tensorrt")
    spoil(mixed_bundle, "rtx", "1.6.0")
    bundle = read_manifest(mixed_bundle)
    backend = open_backend(bundle)
    assert (backend.name, backend.device, backend.precision) == ("onnxruntime", "cpu", bundle.default_precision)
    assert re.fullmatch(
        r"auto: tensorrt was refused \(tensorrt is not installed, and this needs it\.\); "
        r"rtx was refused \(.* was built by tensorrt_rtx 1\.6\.0, but 1\.7\.1\.116 is installed.*\); "
        r"cuda was refused \(.* has no CUDA .*\); \w+ is the bundle's default precision, .*",
        backend.reason,
    )
    with pytest.raises(BackendError, match=r"has no CUDA(?s:.*)\nBefore that, tensorrt was refused \(.*\); rtx was refused"):
        open_backend(read_manifest(mixed_bundle), device="cuda")
    assert wide.opened == []


# ---- numbers decide


def with_golden(folder: Path, vectors: np.ndarray) -> Path:
    """The bundle, as if its checkpoint had given these vectors [5, 32] for its five golden sentences."""
    manifest = json.loads((folder / "mexma.json").read_text())
    manifest["golden"]["vectors"] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).tolist()
    (folder / "mexma.json").write_text(json.dumps(manifest))
    return folder


def test_an_engine_that_computes_the_bundles_vectors_is_opened_and_says_so(wide: Device, mixed_bundle: Path) -> None:
    with_golden(mixed_bundle, np.tile(np.arange(1, 33.0), (5, 1)))  # the stand-in's vectors all point there
    assert load(mixed_bundle).backend.reason == (
        "auto: the bundle has an engine for tensorrt, in fp16; 5 golden sentences: lowest cosine 1.000000, needed 0.9999"
    )


def test_an_engine_with_wrong_numbers_is_refused(wide: Device, mixed_bundle: Path) -> None:
    """The golden vectors are those of the model, and the stand-in computes others."""
    with pytest.raises(
        BackendError,
        match=r"tensorrt computes wrong vectors in fp16 on cuda: over 5 golden sentences of the bundle the lowest cosine is "
        r"-?0\.\d+, but 0\.9999 is needed\. Do not use it: build the engine again \(mexma-export engine .* tensorrt\)",
    ):
        load(mixed_bundle, backend="tensorrt")
    backend = load(mixed_bundle).backend
    assert (backend.name, backend.device) == ("onnxruntime", "cpu")
    assert "tensorrt was refused (tensorrt computes wrong vectors" in backend.reason
    assert "rtx was refused (rtx computes wrong vectors" in backend.reason


@pytest.mark.parametrize("wrong", ["alone", "together"])
def test_every_size_of_batch_is_looked_at(wide: Device, mixed_bundle: Path, wrong: str) -> None:
    """Profiles have kernels of their own: one sentence may be right and a batch wrong, or the other way round."""
    with_golden(mixed_bundle, np.tile(np.arange(1, 33.0), (5, 1)))
    wide.answer = lambda sums: -sums if (len(sums) == 1) == (wrong == "alone") else sums
    with pytest.raises(BackendError, match=r"the lowest cosine is -1\.0"):
        load(mixed_bundle, backend="tensorrt")


def test_an_engine_for_shorter_sentences_is_compared_by_those_it_takes(
    monkeypatch: pytest.MonkeyPatch, mixed_bundle: Path
) -> None:
    stand_in = Device(dimensions=32)
    install(monkeypatch, stand_in, [(8, 4)])
    folder = with_golden(mixed_bundle, np.tile(np.arange(1, 33.0), (5, 1)))
    put_engine(
        folder,
        "tensorrt",
        [(8, 4)],
        graph_sha256=json.loads((folder / "mexma.json").read_text())["files"]["onnx/model.onnx"]["sha256"],
        outputs=[output("sentence_embedding", "float32", -1, 32)],
    )
    reason = load(folder, backend="tensorrt").backend.reason
    assert reason.endswith("not compared: every golden sentence of the bundle is longer than 4 tokens")


def run_once(engine: Backend) -> str:
    engine.run(np.array([[0, 2]]), np.array([[1, 1]]))
    return "ran"


def test_the_doctor_tries_engines_too(device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    hide(monkeypatch, "tensorrt_rtx")
    choices = {(choice.backend, choice.device, choice.precision): choice for choice in describe_choices(bundle, run_once)}
    assert choices["tensorrt", "cuda", "fp16"].usable
    assert not choices["rtx", "cuda", "fp16"].usable
    assert choices["rtx", "cuda", "fp16"].reason.endswith("Type:\n    pip install 'mexma-rt[rtx]'")


# ---- the real libraries

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs tensorrt_rtx: pip install 'mexma-rt[rtx]' (or tensorrt-rtx-cu13)",
)


def test_the_stand_in_has_the_names_of_cuda_python() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings: pip install 'mexma-rt[rtx]'")
    from ..standin_gpu import cuda_runtime

    played = vars(cuda_runtime(Device()))
    assert [name for name in played if not hasattr(real, name)] == []
    for name in (name for name in played if inspect.isfunction(played[name]) and name != "cudaGetErrorString"):
        taken, real_ones = (inspect.signature(function).parameters for function in (played[name], getattr(real, name)))
        assert len(taken) == len(real_ones), name
    for enum in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        assert [name for name in vars(played[enum]) if not hasattr(getattr(real, enum), name)] == []


@needs_rtx
def test_the_stand_in_has_the_names_of_the_library() -> None:
    import tensorrt_rtx

    from ..standin_gpu import library

    played = library(Device(), "tensorrt_rtx", "1", [(1, 16)])
    engine = played.Runtime(None).deserialize_cuda_engine(b"")
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy("user managed")
    context = engine.create_execution_context(config)
    pairs = [(played.Runtime, tensorrt_rtx.Runtime), (type(engine), tensorrt_rtx.ICudaEngine)]
    pairs += [(type(context), tensorrt_rtx.IExecutionContext), (type(config), tensorrt_rtx.IRuntimeConfig)]
    pairs += [(type(config.create_runtime_cache()), tensorrt_rtx.IRuntimeCache)]
    for stand_in, real in pairs:
        assert_of_the_library(stand_in, real, "names", "allowed", "need", "strategy", "cache")
    assert tensorrt_rtx.ExecutionContextAllocationStrategy.USER_MANAGED
    assert tensorrt_rtx.DynamicShapesKernelSpecializationStrategy.EAGER
    assert tensorrt_rtx.BuilderFlag.REQUIRE_USER_ALLOCATION


CALLS = {  # every function of CUDA that cuda.py calls, with arguments of the types that it gives
    "cudaGetDevice": lambda real: (),
    "cudaSetDevice": lambda real: (0,),
    "cudaMalloc": lambda real: (16,),
    "cudaFree": lambda real: (1 << 20,),
    "cudaMallocHost": lambda real: (16,),
    "cudaFreeHost": lambda real: (1 << 20,),
    "cudaMemcpyAsync": lambda real: (
        1 << 20,
        np.zeros(4).ctypes.data,
        np.zeros(4).nbytes,
        real.cudaMemcpyKind.cudaMemcpyHostToDevice,
        real.cudaStream_t(0),
    ),
    "cudaStreamCreateWithFlags": lambda real: (real.cudaStreamNonBlocking,),
    "cudaStreamDestroy": lambda real: (real.cudaStream_t(0),),
    "cudaStreamSynchronize": lambda real: (real.cudaStream_t(0),),
    "cudaStreamBeginCapture": lambda real: (
        real.cudaStream_t(0),
        real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
    ),
    "cudaStreamEndCapture": lambda real: (real.cudaStream_t(0),),
    "cudaEventCreateWithFlags": lambda real: (real.cudaEventDisableTiming,),
    "cudaEventDestroy": lambda real: (real.cudaEvent_t(0),),
    "cudaEventRecord": lambda real: (real.cudaEvent_t(0), real.cudaStream_t(0)),
    "cudaEventSynchronize": lambda real: (real.cudaEvent_t(0),),
    "cudaGraphInstantiate": lambda real: (real.cudaGraph_t(0), 0),
    "cudaGraphLaunch": lambda real: (real.cudaGraphExec_t(0), real.cudaStream_t(0)),
    "cudaGraphDestroy": lambda real: (real.cudaGraph_t(0),),
    "cudaGraphExecDestroy": lambda real: (real.cudaGraphExec_t(0),),
}


@pytest.mark.parametrize("name", CALLS)
def test_failed_calls_answer_as_many_values_as_those_of_cuda_python(name: str) -> None:
    """And they take the arguments: a wrong type is a TypeError before CUDA is asked."""
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings: pip install 'mexma-rt[rtx]'")
    from ..standin_gpu import cuda_runtime

    without_gpu()
    device, arguments = Device(), CALLS[name](real)
    device.fail[name] = 35  # what a machine without a driver says
    played = getattr(cuda_runtime(device), name)(*arguments)
    answered = getattr(real, name)(*arguments)
    assert int(answered[0]) != 0 and answered[1:] == played[1:]


def test_every_function_of_the_stand_in_is_compared() -> None:
    from ..standin_gpu import cuda_runtime

    played = vars(cuda_runtime(Device()))
    assert set(CALLS) == {name for name in played if inspect.isfunction(played[name])} - {"cudaGetErrorString"}
    source = inspect.getsource(sys.modules["mexma_rt.backends.cuda"])
    assert set(re.findall(r'"(cuda[A-Z]\w+)"', source)) == set(CALLS)


def without_gpu() -> None:
    try:
        sm = device_sm()
    except BackendError:
        return
    pytest.skip(f"needs a machine without a GPU; this one has SM {sm}")


def test_real_cuda_without_a_driver_raises_its_words() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings: pip install 'mexma-rt[rtx]'")
    from mexma_rt.backends.cuda import Cuda

    without_gpu()
    with pytest.raises(BackendError, match=r"CUDA's cudaStreamCreateWithFlags failed: \w.* \(error \d+\)$"):
        Cuda(runtime)


@pytest.mark.engines
@needs_rtx
def test_a_real_engine_is_refused_where_there_is_no_gpu(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real library, an engine of its own, and every step up to the one that needs a GPU."""
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings: pip install 'mexma-rt[rtx]'")
    from mexma_export.checkpoint import load_checkpoint
    from mexma_export.engines import build_bundle_engine, parse_profiles
    from mexma_export.half import export_half

    without_gpu()
    (tmp_path / "onnx").mkdir()
    export_half(load_checkpoint(tiny_checkpoint).model, tmp_path / "onnx" / "model_fp16.onnx")
    shutil.copyfile(tiny_checkpoint / "tokenizer.json", tmp_path / "tokenizer.json")
    write_manifest(tmp_path, ["onnx/model_fp16.onnx", "tokenizer.json"], 32)
    build_bundle_engine(tmp_path, engine="rtx", sm=[86], profiles=parse_profiles("1x16"))
    with pytest.raises(BackendError, match=r"no NVIDIA driver|no usable GPU"):
        load(tmp_path, backend="rtx")
    monkeypatch.setattr(tensorrt, "device_sm", lambda number=0: 89)
    with pytest.raises(BackendError, match=r"built for SM 86, but this GPU has SM 89\. .*mexma-export engine .* rtx --sm 89$"):
        load(tmp_path, backend="rtx")
    monkeypatch.setattr(tensorrt, "device_sm", lambda number=0: 86)
    monkeypatch.setattr(tensorrt, "on_gpu", lambda runtime, number: contextlib.nullcontext())  # it would tell the same, earlier
    with pytest.raises(BackendError, match=r"tensorrt_rtx .* could not open .*rtx\.engine: .*(?i:cuda)"):
        load(tmp_path, backend="rtx")


@pytest.fixture(scope="module")
def half_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mexma_export import export_bundle, load_sentences

    target = tmp_path_factory.mktemp("half") / "bundle"
    export_bundle(tiny_checkpoint, target, precisions=["fp32", "fp16"], weights=False, sentences=load_sentences()[::20])
    return target


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["tensorrt", "rtx"])
def test_a_real_engine_gives_the_vectors_of_the_cpu(request: pytest.FixtureRequest, engine: str) -> None:
    try:
        sm = device_sm()
        nvidia.load_library(engine)
        nvidia.load_cuda(engine)
    except (BackendError, MissingExtraError) as error:
        pytest.skip(str(error).partition("\n")[0])
    if engine == "rtx" and sm == 90:
        pytest.skip("tensorrt_rtx has no SM 90 (H100, H200)")
    from mexma_export import load_sentences
    from mexma_export.engines import build_bundle_engine, parse_profiles

    half_bundle = request.getfixturevalue("half_bundle")  # made only where the test can run
    profiles = parse_profiles("1x32,8x16,64x32,16x512")
    build_bundle_engine(half_bundle, engine=engine, sm=[sm] if engine == "rtx" else None, profiles=profiles)
    texts = ["", *(sentence.text for sentence in load_sentences()), " ".join(["word"] * 600)]
    on_gpu = load(half_bundle, max_length=512, backend=engine)
    on_cpu = load(half_bundle, max_length=512, device="cpu", precision="fp32")
    assert "without a CUDA graph" not in on_gpu.backend.reason
    expected = on_cpu.embed_report(texts).vectors
    for batch_tokens in (64, 512, 100_000):
        vectors = on_gpu.embed_report(texts, batch_tokens=batch_tokens).vectors
        assert (vectors * expected).sum(1).min() > 0.9999
    alone = np.concatenate([on_gpu.embed_report([text]).vectors for text in texts[:40]])
    assert (alone * expected[:40]).sum(1).min() > 0.9999
