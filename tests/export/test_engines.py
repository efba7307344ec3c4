"""Engines: real ones for four GPU architectures without a GPU (where tensorrt_rtx is installed), and every refusal.

What only a GPU machine can do (tensorrt itself: device, timing cache, inspector) runs against a stand-in of its API that
records calls; it proves our logic, not NVIDIA's library.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import importlib.util
import json
import operator
import shutil
import sys
import warnings
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mexma_export import engines, trt_compat
from mexma_export.engines import build_bundle_engine, build_engine, default_profiles, parse_profiles, parse_sm
from mexma_rt.backends import nvidia
from mexma_rt.backends.sidecar import Profile, TensorInfo, check_sidecar, graph_hash, read_sidecar
from mexma_rt.backends.tensorrt import _checked_sidecar
from mexma_rt.bundle.manifest import FileEntry
from mexma_rt.bundle.opening import open_bundle
from mexma_rt.errors import BackendError, BundleError, FileError, InputError, MissingExtraError
from mexma_rt.files.atomic import sha256_of

from ..signatures import assert_of_the_library

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="builds engines with tensorrt_rtx: pip install 'mexma-rt[rtx]' (or tensorrt-rtx-cu13)",
)
SMALL = parse_profiles("1x16,8x64")


# ---- profiles and architectures


def test_profiles_are_parsed() -> None:
    assert parse_profiles("1x16, 32x64") == (Profile(batch=1, length=16), Profile(batch=32, length=64))
    assert [str(profile) for profile in SMALL] == ["1x16", "8x64"]


@pytest.mark.parametrize(
    "text", ["", "16", "1x", "x16", "0x16", "1x0", "1x16,", "1x16;2x8", "-1x16", "1x16,1x16", "1x16x2", "１x16"]
)
def test_bad_profiles(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a list of profiles: each must be ROWSxTOKENS.*--profiles 1x16,32x64"):
        parse_profiles(text)


def test_architectures_are_parsed() -> None:
    assert parse_sm("80, 86,120") == (80, 86, 120)
    for text in ["", "8.9", "sm_80", "80,80", "80,", "8"]:
        with pytest.raises(InputError, match=r"is not a list of GPU architectures.*89 for 8\.9.*--sm 80,86,89,120"):
            parse_sm(text)


def test_default_profiles_reach_the_end_of_the_position_table() -> None:
    assert [str(profile) for profile in default_profiles(512)] == ["1x32", "1x128", "8x64", "512x32", "128x128", "32x512"]
    for limit in (8, 32, 128, 200, 512, 8192):
        profiles = default_profiles(limit)
        assert max(profile.length for profile in profiles) == limit and len(set(profiles)) == len(profiles)


# ---- a stand-in for the library


class Type(enum.Enum):
    HALF, FLOAT, INT64, BOOL = range(4)


Capability = enum.Enum("Capability", ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120"])


class Tensor(SimpleNamespace):
    name: str
    dtype: Type
    shape: tuple[int, ...]


def io(name: str, kind: Type, *shape: int) -> Tensor:
    return Tensor(name=name, dtype=kind, shape=shape)


INPUTS = [io("input_ids", Type.INT64, -1, -1), io("attention_mask", Type.INT64, -1, -1)]
OUTPUTS = [io("sentence_embedding", Type.FLOAT, -1, 32)]


def fake_library(monkeypatch: pytest.MonkeyPatch, name: str = "tensorrt", version: str = "11.4.0.106", **knobs: Any) -> Any:
    """Install a module of that name. Knobs: products (types of each product's three tensors), inputs, outputs, parse_error,
    plan (None: the build fails), reports (the inspector's layers), accepts_cache."""
    calls: list[tuple[Any, ...]] = []
    get: dict[str, Any] = {"products": [[Type.HALF] * 3] * 20, "inputs": INPUTS, "outputs": OUTPUTS, "parse_error": None}
    get |= {"plan": b"plan" * 99, "reports": [], "accepts_cache": True} | knobs

    class Logger:
        INTERNAL_ERROR, ERROR, WARNING = "internal", "error", "warning"

    def product(types: list[Type]) -> Any:
        return SimpleNamespace(
            type="product",
            get_input=lambda i: SimpleNamespace(dtype=types[i]),
            get_output=lambda i: SimpleNamespace(dtype=types[2]),
        )

    class Config(SimpleNamespace):
        def add_optimization_profile(self, profile: Any) -> int:
            calls.append(("profile", profile.shapes))
            return 0

        def set_compute_capability(self, capability: str, index: int) -> bool:
            calls.append(("sm", capability, index, self.num_compute_capabilities))
            return True

        def set_flag(self, flag: str) -> None:
            calls.append(("flag", flag))

        def create_timing_cache(self, blob: bytes) -> Any:
            calls.append(("cache", blob))
            return SimpleNamespace(blob=blob)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert ignore_mismatch is False
            return get["accepts_cache"]

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: b"new timings")

    class Shapes(SimpleNamespace):
        def set_shape(self, name: str, *shapes: tuple[int, int]) -> None:
            self.shapes = (getattr(self, "shapes", {})) | {name: shapes}

    class Builder:
        def __init__(self, log: Any) -> None:
            self.log = log
            if knobs.get("no_builder"):
                log.log("error", "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int) -> Any:
            calls.append(("network", flags))
            layers = [SimpleNamespace(type="other"), *map(product, get["products"])]
            return SimpleNamespace(
                num_layers=len(layers),
                get_layer=layers.__getitem__,
                num_inputs=len(get["inputs"]),
                get_input=get["inputs"].__getitem__,
                num_outputs=len(get["outputs"]),
                get_output=get["outputs"].__getitem__,
            )

        create_builder_config, create_optimization_profile = staticmethod(Config), staticmethod(Shapes)

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            calls.append(("build", getattr(config, "profiling_verbosity", None)))
            if get["plan"] is None:
                self.log.log("warning", "not this one")
                self.log.log("error", "Error Code 10: no implementation for node_softmax\nmore")
            return get["plan"]

    class Parser:
        num_errors = 1

        def __init__(self, network: Any, log: Any) -> None: ...

        def parse(self, model: bytes, path: str) -> bool:
            calls.append(("parse", model, Path(path).name))
            return get["parse_error"] is None

        def get_error(self, index: int) -> Any:
            node, words = get["parse_error"]
            return SimpleNamespace(node_name=lambda: node, desc=lambda: words)

    class Runtime:
        def __init__(self, log: Any) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            text = json.dumps({"Layers": get["reports"], "Bindings": []})
            return SimpleNamespace(create_engine_inspector=lambda: SimpleNamespace(get_engine_information=lambda form: text))

    module: Any = ModuleType(name)
    module.__spec__, module.__version__ = ModuleSpec(name, None), version
    module.ILogger, module.Builder, module.OnnxParser, module.Runtime = Logger, Builder, Parser, Runtime
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    module.LayerType, module.DataType = SimpleNamespace(MATRIX_MULTIPLY="product"), Type
    module.ProfilingVerbosity, module.LayerInformationFormat = SimpleNamespace(DETAILED="detailed"), SimpleNamespace(JSON=1)
    module.ComputeCapability = Capability
    module.BuilderFlag = SimpleNamespace(REQUIRE_USER_ALLOCATION="user allocation")
    module.calls = calls
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(trt_compat, "device_sm", lambda: 90)
    monkeypatch.setattr(engines, "serving_graph", lambda path, normalize: f"served, {normalize}".encode())
    return module


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "model_fp16.onnx"
    path.write_bytes(b"a graph that only the stand-in reads")
    return path


def build(graph: Path, engine: str = "tensorrt", **more: Any) -> Any:
    return build_engine(
        graph, graph.with_name(f"{engine}.engine"), engine=engine, length_limit=512, **({"profiles": SMALL} | more)
    )


def assert_nothing_written(graph: Path) -> None:
    assert [path.name for path in graph.parent.iterdir()] == [graph.name]


@needs_rtx
def test_the_stand_in_has_the_names_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt_rtx as real

    played = fake_library(monkeypatch)
    builder = played.Builder(None)
    assert_of_the_library(played.Builder, real.Builder)
    assert_of_the_library(type(builder.create_builder_config()), real.IBuilderConfig)
    assert_of_the_library(type(builder.create_optimization_profile()), real.IOptimizationProfile)
    assert_of_the_library(played.OnnxParser, real.OnnxParser)
    assert_of_the_library(played.Runtime, real.Runtime)
    engine = played.Runtime(None).deserialize_cuda_engine(b"")
    instances = {real.INetworkDefinition: builder.create_network(2), real.ICudaEngine: engine}
    instances |= {real.EngineInspector: engine.create_engine_inspector()}
    for kind, instance in instances.items():
        assert [name for name in vars(instance) if not hasattr(kind, name)] == []
    for path in (
        "ILogger.INTERNAL_ERROR",
        "ILogger.ERROR",
        "ILayer.type",
        "ILayer.get_input",
        "ILayer.get_output",
        "ITensor.dtype",
        "ITensor.shape",
        "ParserError.node_name",
        "ParserError.desc",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "LayerType.MATRIX_MULTIPLY",
        "DataType.HALF",
        "ProfilingVerbosity.DETAILED",
        "LayerInformationFormat.JSON",
        "ComputeCapability.SM89",
        "BuilderFlag.REQUIRE_USER_ALLOCATION",
        "IBuilderConfig.num_compute_capabilities",
        "IBuilderConfig.profiling_verbosity",
        "IHostMemory.nbytes",
    ):
        operator.attrgetter(path)(real)


# ---- tensorrt 10 and 11, against the stand-in

GEMM = {"LayerType": "gemm", "Name": "q_myl0_1", "TacticName": "sm90_xmma_gemm_f16", "Inputs": [{"Format/Datatype": "Half"}]}
MHA = {
    "LayerType": "kgen",
    "TacticName": "_gemm_mha_v2_0x1",
    "Inputs": [{"Format/Datatype": "Half"}, {"Format/Datatype": "Bool"}],
}
OLD = {"LayerType": "MatrixMultiply", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]}
# Version 11 has the two apart, as TensorRT-RTX 1.7.1 writes them into its build log.
HALF_11 = {"Datatype": "Half", "Format": "(Linear) Row major linear format"}
GEMM_11 = {"LayerType": "gemm", "TacticName": "__myelin_CASK_STUB", "Inputs": [HALF_11]}
MHA_11 = {"LayerType": "kgen", "TacticName": "_gemm_mha_v2_0xe7", "Inputs": [HALF_11, HALF_11 | {"Datatype": "Bool"}]}
SLOW = GEMM | {"Inputs": [{"Format/Datatype": "Float"}]}
NORM = {"LayerType": "kgen", "TacticName": "__myl_MeanSubMul", "Inputs": [{"Format/Datatype": "Float"}]}


@pytest.mark.parametrize(
    ("version", "reports"),
    [("10.0.1", [GEMM, MHA, OLD]), ("10.16.1.11", [GEMM, MHA, OLD]), ("11.4.0.106", [GEMM_11, MHA_11, GEMM_11])],
)
def test_tensorrt_builds_for_this_gpu_and_is_inspected(
    monkeypatch: pytest.MonkeyPatch, graph: Path, version: str, reports: list[Any]
) -> None:
    trt = fake_library(monkeypatch, version=version, reports=[*reports, NORM, "a name only"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no doubt about the types
        sidecar = build(graph)
    assert (sidecar.library, sidecar.version, sidecar.sm) == ("tensorrt", version, (90,))
    assert (sidecar.matmuls, sidecar.half_matmuls, sidecar.counted_in) == (3, 3, "engine")
    assert read_sidecar(graph.with_name("tensorrt.engine")) == sidecar
    assert graph.with_name("tensorrt.engine").read_bytes() == b"plan" * 99
    both = dict.fromkeys(("input_ids", "attention_mask"), ((1, 2), (8, 64), (8, 64)))
    assert trt.calls[0] == ("network", 2)  # 1 << STRONGLY_TYPED
    assert trt.calls[1] == ("parse", b"served, True", graph.name) and sidecar.normalized
    assert trt.calls[3] == ("profile", both)
    assert trt.calls[-1] == ("build", "detailed") and not any(call[0] in ("sm", "cache") for call in trt.calls)


def test_an_inspector_that_names_no_product_leaves_the_count_of_the_network(
    monkeypatch: pytest.MonkeyPatch, graph: Path
) -> None:
    fake_library(monkeypatch, reports=[NORM])
    sidecar = build(graph)
    assert (sidecar.matmuls, sidecar.half_matmuls, sidecar.counted_in) == (20, 20, "network")


def test_kernels_that_seem_slow_are_a_warning_since_the_types_of_the_network_are_fixed(
    monkeypatch: pytest.MonkeyPatch, graph: Path
) -> None:
    fake_library(monkeypatch, reports=[GEMM] * 18 + [SLOW] * 2)
    with pytest.warns(UserWarning, match=r"inspector, only 18 of 20 kernels with matrix products read fp16.*mexma doctor"):
        sidecar = build(graph)
    assert (sidecar.matmuls, sidecar.half_matmuls, sidecar.counted_in) == (20, 18, "engine")


@pytest.mark.parametrize(("half", "passes"), [(20, True), (19, True), (18, False), (0, False)])
def test_95_percent_of_the_products_are_needed(monkeypatch: pytest.MonkeyPatch, graph: Path, half: int, passes: bool) -> None:
    full = [[Type.HALF, Type.FLOAT, Type.HALF], [Type.FLOAT] * 3, [Type.HALF, Type.HALF, Type.FLOAT]]
    trt = fake_library(monkeypatch, products=[[Type.HALF] * 3] * half + [full[i % 3] for i in range(20 - half)])
    if passes:
        assert build(graph).half_matmuls == half
        return
    with pytest.raises(
        BundleError, match=rf"{half} of 20 matrix products are in fp16 \(counted in the network\).*give the fp16 graph"
    ):
        build(graph)
    assert_nothing_written(graph)
    assert not any(call[0] == "build" for call in trt.calls)  # it ends before the minutes of the build


def test_a_graph_without_products_is_refused(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    fake_library(monkeypatch, products=[])
    with pytest.raises(BundleError, match="0 of 0 matrix products"):
        build(graph)


def test_the_timing_cache_is_read_and_rewritten(monkeypatch: pytest.MonkeyPatch, graph: Path, tmp_path: Path) -> None:
    trt, cache = fake_library(monkeypatch), tmp_path / "timing.cache"
    build(graph, timing_cache=cache)
    assert ("cache", b"") in trt.calls and cache.read_bytes() == b"new timings"
    build(graph, timing_cache=cache)
    assert ("cache", b"new timings") in trt.calls


def test_a_timing_cache_of_another_gpu(monkeypatch: pytest.MonkeyPatch, graph: Path, tmp_path: Path) -> None:
    fake_library(monkeypatch, accepts_cache=False)
    (tmp_path / "timing.cache").write_bytes(b"old")
    with pytest.raises(
        BackendError, match=r"timing\.cache is not a timing cache of this GPU and tensorrt 11\.4\.0\.106\. Delete"
    ):
        build(graph, timing_cache=tmp_path / "timing.cache")
    assert (tmp_path / "timing.cache").read_bytes() == b"old"


def test_tensorrt_builds_for_no_other_gpu(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    fake_library(monkeypatch)
    assert build(graph, sm=(90,)).sm == (90,)
    with pytest.raises(
        InputError, match=r"only for this machine's GPU \(SM 90\), not for SM 80, 86\..*mexma-export engine BUNDLE rtx"
    ):
        build(graph, sm=(80, 86))


def test_tensorrt_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    fake_library(monkeypatch)
    monkeypatch.setattr(trt_compat, "device_sm", nvidia.device_sm)
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(BackendError, match=r"no NVIDIA driver \(libcuda: no such file\).*Without one: .* engine BUNDLE rtx"):
        build(graph)
    assert_nothing_written(graph)


# ---- what can go wrong with either library


def test_a_parser_error_names_the_node(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    fake_library(monkeypatch, parse_error=("Attention_0", "no importer for com.microsoft Attention"))
    with pytest.raises(
        BundleError, match=r"tensorrt 11\.4\.0\.106 cannot read this graph: Attention_0: no importer.*Give the fp16 graph"
    ):
        build(graph)
    assert_nothing_written(graph)


def test_a_failed_build_says_the_librarys_reason(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    fake_library(monkeypatch, plan=None)
    with pytest.raises(
        BackendError, match=r"could not build .*: Error Code 10: no implementation for node_softmax(?s:.*)smaller"
    ):
        build(graph)
    assert_nothing_written(graph)


def test_a_library_without_a_builder(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    fake_library(monkeypatch, no_builder=True)
    with pytest.raises(BackendError, match="could not make a builder: CUDA initialization failure with error: 35"):
        build(graph)


def test_another_graph_is_refused(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    fake_library(monkeypatch, outputs=[io("sentence_embedding", Type.HALF, -1, 32)])
    with pytest.raises(
        BundleError, match=r"input_ids int64 \[-1, -1\].*sentence_embedding float16.*a graph of mexma-export has"
    ):
        build(graph)
    fixed = [io("input_ids", Type.INT64, 1, 128), io("attention_mask", Type.INT64, 1, 128)]
    fake_library(monkeypatch, inputs=fixed)
    with pytest.raises(BundleError, match=r"input_ids int64 \[1, 128\].*with dynamic batch and length"):
        build(graph)


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "12.0.0.1"])
def test_an_unknown_version(monkeypatch: pytest.MonkeyPatch, graph: Path, version: str) -> None:
    fake_library(monkeypatch, version=version)
    with pytest.raises(
        BackendError, match=rf"tensorrt {version} is installed, but this needs 10 or 11\. Type:\n    pip install"
    ):
        build(graph)


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    fake_library(monkeypatch)

    def fail(name: str) -> None:
        raise ImportError("libnvonnxparser.so.11: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(
        BackendError, match=r"does not load: libnvonnxparser\.so\.11(?s:.*)--extra-index-url https://pypi\.nvidia\.com"
    ):
        build(graph)


@pytest.mark.parametrize(("engine", "module"), [("tensorrt", "tensorrt"), ("rtx", "tensorrt_rtx")])
def test_a_missing_library_is_the_pip_line(monkeypatch: pytest.MonkeyPatch, graph: Path, engine: str, module: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else found(name, *rest))
    with pytest.raises(MissingExtraError, match=rf"{module} is not installed.*\n    pip install 'mexma-rt\[{engine}\]'"):
        build(graph, engine)


def test_arguments_are_checked_before_anything_is_loaded(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown engine 'onnx'\. Known: tensorrt, rtx\."):
        build(graph, "onnx")
    with pytest.raises(InputError, match=r"Profile 1x513: .* between 2 \(an empty text is <s> </s>\) and 512"):
        build(graph, profiles=parse_profiles("1x513"))
    with pytest.raises(InputError, match="at least one profile"):
        build(graph, profiles=[])
    with pytest.raises(FileError, match=r"none\.onnx: no such graph\. Export it"):
        build(tmp_path / "none.onnx")
    with pytest.raises(FileError, match="mkdir -p"):
        build_engine(graph, tmp_path / "no" / "x.engine", engine="rtx", length_limit=512)
    with pytest.raises(InputError, match="is both an input and the output"):
        build_engine(graph, graph, engine="rtx", length_limit=512)


@pytest.mark.parametrize(
    ("engine", "version", "profiles", "flags"),
    [
        ("rtx", "1.7.1.116", "1x32,64x64", [("flag", "user allocation")]),
        ("rtx", "1.7.1.116", "64x64", []),  # nothing is captured
        ("tensorrt", "11.4.0.106", "1x32,64x64", []),  # it needs no flag for that
    ],
)
def test_memory_is_the_users_where_rtx_is_captured(
    monkeypatch: pytest.MonkeyPatch, graph: Path, engine: str, version: str, profiles: str, flags: list[tuple[str, str]]
) -> None:
    trt = fake_library(monkeypatch, "tensorrt_rtx" if engine == "rtx" else "tensorrt", version)
    build(graph, engine, profiles=parse_profiles(profiles))
    assert [call for call in trt.calls if call[0] == "flag"] == flags


def test_rtx_architectures_and_its_missing_timing_cache(monkeypatch: pytest.MonkeyPatch, graph: Path, tmp_path: Path) -> None:
    trt = fake_library(monkeypatch, "tensorrt_rtx", "1.7.1.116")
    assert build(graph, "rtx").sm == (80, 86, 89, 120)
    assert [call[1:] for call in trt.calls if call[0] == "sm"] == [
        (trt.ComputeCapability[f"SM{number}"], index, 4) for index, number in enumerate((80, 86, 89, 120))
    ]
    with pytest.raises(
        InputError, match=r"tensorrt_rtx 1\.7\.1\.116 does not build for SM 70, 90: it supports 75, 80, 86, 89, 120\. An H100"
    ):
        build(graph, "rtx", sm=(70, 86, 90))
    for none_or_twice in ([], [80, 80]):
        with pytest.raises(InputError, match="at least one, without duplicates"):
            build(graph, "rtx", sm=none_or_twice)
    with pytest.raises(InputError, match="rtx has no timing cache"):
        build(graph, "rtx", timing_cache=tmp_path / "cache")


def no_driver(name: str) -> None:
    raise OSError("libcuda: no such file")


# ---- real engines


@pytest.fixture(scope="module")
def half_graph(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mexma_export.checkpoint import load_checkpoint
    from mexma_export.half import export_half

    path = tmp_path_factory.mktemp("half") / "model_fp16.onnx"
    export_half(load_checkpoint(tiny_checkpoint).model, path)
    return path


@pytest.mark.engines
@needs_rtx
def test_a_real_engine_for_four_architectures(half_graph: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import tensorrt_rtx

    target = tmp_path / "rtx.engine"
    sidecar = build_engine(half_graph, target, engine="rtx", length_limit=512, profiles=SMALL)
    assert sidecar == read_sidecar(target)
    assert (sidecar.library, sidecar.version, sidecar.sm) == ("tensorrt_rtx", tensorrt_rtx.__version__, (80, 86, 89, 120))
    assert sidecar.inputs == tuple(TensorInfo(name=n, dtype="int64", shape=(-1, -1)) for n in ("input_ids", "attention_mask"))
    assert sidecar.outputs == (TensorInfo(name="sentence_embedding", dtype="float32", shape=(-1, 32)),) and sidecar.normalized
    assert sidecar.profiles == SMALL
    assert (sidecar.precision, sidecar.matmuls, sidecar.half_matmuls, sidecar.counted_in) == ("fp16", 24, 24, "network")
    assert sidecar.graph_sha256 == graph_hash(half_graph)
    assert target.stat().st_size == sidecar.engine_bytes > 100_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rtx.engine", "rtx.engine.json"]
    assert capfd.readouterr() == ("", "")  # the library's remarks stay inside
    check_sidecar(sidecar, target, library="tensorrt_rtx", version=tensorrt_rtx.__version__, sm=120)
    with pytest.raises(BackendError, match="built for SM 80, 86, 89, 120, but this GPU has SM 90"):
        check_sidecar(sidecar, target, library="tensorrt_rtx", version=tensorrt_rtx.__version__, sm=90)


@pytest.mark.engines
@needs_rtx
@pytest.mark.parametrize("sm", [80, 86, 89, 120])
def test_a_real_engine_for_each_architecture_alone(half_graph: Path, tmp_path: Path, sm: int) -> None:
    sidecar = build_engine(half_graph, tmp_path / "e", engine="rtx", length_limit=512, sm=[sm], profiles=parse_profiles("4x32"))
    assert sidecar.sm == (sm,) and sidecar.engine_bytes == (tmp_path / "e").stat().st_size


@needs_rtx
def test_the_real_parser_refuses_other_graphs(tiny_bundle: Path, half_graph: Path, tmp_path: Path) -> None:
    target = tmp_path / "rtx.engine"
    with pytest.raises(BundleError, match=r"model\.onnx: 0 of 24 matrix products are in fp16"):
        build_engine(tiny_bundle / "onnx/model.onnx", target, engine="rtx", length_limit=512)
    with pytest.raises(BundleError, match=r"model_int8\.onnx: inputs and outputs are .*token_states.*Give onnx/model_fp16"):
        build_engine(tiny_bundle / "onnx/model_int8.onnx", target, engine="rtx", length_limit=512)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(half_graph.read_bytes()[:-1000])
    with pytest.raises(
        BundleError, match=r"cut\.onnx: not an ONNX graph \(.*\): truncated or damaged\. Export the bundle again"
    ):
        build_engine(cut, target, engine="rtx", length_limit=512)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.onnx"]


@pytest.mark.engines
@needs_rtx
def test_the_real_library_tells_its_reasons(half_graph: Path, tmp_path: Path) -> None:
    """Without a GPU no engine opens: the logger must catch the words, for None is all that the call returns."""
    import tensorrt_rtx

    with contextlib.suppress(BackendError):
        pytest.skip(f"needs a machine without a GPU; this one has SM {nvidia.device_sm()}")
    build_engine(half_graph, tmp_path / "e", engine="rtx", length_limit=512, sm=[86], profiles=parse_profiles("1x8"))
    with pytest.raises(BackendError, match=r"could not open the engine again: .*(?i:cuda)"):
        trt_compat.count_in_engine(tensorrt_rtx, nvidia.new_logger(tensorrt_rtx), (tmp_path / "e").read_bytes())


@needs_rtx
def test_the_real_library_lacks_sm_90(half_graph: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not build for SM 90: it supports 75, .*H200 needs .*engine BUNDLE tensorrt"):
        build_engine(half_graph, tmp_path / "e", engine="rtx", length_limit=512, sm=[90])


@pytest.mark.engines
@needs_rtx
def test_real_engines_of_the_bundled_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It has no fp16 graph but the structure of one: the graph is built in the cache, the engine of four architectures from it,
    and the back end that opens it finds it to be of this bundle.
    """
    import tensorrt_rtx

    monkeypatch.setenv("MEXMA_RT_CACHE", str(tmp_path / "cache"))
    bundle = open_bundle(shutil.copytree(open_bundle("mexma-small").folder, tmp_path / "bundle"))
    assert "fp16" not in bundle.graphs
    path, sidecar = build_bundle_engine(bundle.folder, engine="rtx", profiles=SMALL)
    assert sidecar == read_sidecar(path) and sidecar.sm == (80, 86, 89, 120) and sidecar.profiles == SMALL
    assert [(t.name, t.dtype, t.shape) for t in (*sidecar.inputs, *sidecar.outputs)] == [
        ("input_ids", "int64", (-1, -1)),
        ("attention_mask", "int64", (-1, -1)),
        ("sentence_embedding", "float32", (-1, bundle.dimensions)),
    ]
    assert sidecar.matmuls == sidecar.half_matmuls == 8 * 12  # products of a layer, layers
    (weights,) = (tmp_path / "cache").glob("*/weights.data")
    assert sidecar.engine_bytes > weights.stat().st_size / 2
    assert _checked_sidecar(bundle, "rtx", tensorrt_rtx, 89) == (path, sidecar)
    others = {**bundle.files, bundle.graphs["w4"]: FileEntry(sha256="0" * 64, bytes=1)}  # the weights of another model
    with pytest.raises(BundleError, match=r"it holds another model's weights\. Build it again"):
        _checked_sidecar(replace(bundle, files=others), "rtx", tensorrt_rtx, 89)


# ---- the engine of a bundle


@pytest.fixture
def bundle(graph: Path, tmp_path: Path) -> Path:
    """A bundle with an fp16 graph, as far as its manifest tells."""
    folder = tmp_path / "bundle"
    (folder / "onnx").mkdir(parents=True)
    graph.rename(folder / "onnx" / "model_fp16.onnx")
    (folder / "tokenizer.json").write_bytes(b"{}")
    files = ["onnx/model_fp16.onnx", "tokenizer.json"]
    manifest = {
        "format": "mexma-bundle",
        "format_version": 1,
        "name": "toy",
        "dimensions": 32,
        "max_length": 128,
        "max_length_limit": 256,
        "pooling": "cls",
        "default_precision": "fp16",
        "source": {},
        "graphs": {"fp16": "onnx/model_fp16.onnx"},
        "parity": {},
        "files": {name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size} for name in files},
    }
    (folder / "mexma.json").write_text(json.dumps(manifest))
    return folder


def test_a_bundle_gets_an_engine_of_its_fp16_graph(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    fake_library(monkeypatch, "tensorrt_rtx", "1.7.1.116")
    path, sidecar = build_bundle_engine(bundle, engine="rtx")
    assert path == bundle / "engines" / "rtx.engine" and read_sidecar(path) == sidecar
    assert [str(profile) for profile in sidecar.profiles] == ["1x32", "1x128", "8x64", "512x32", "128x128", "32x256"]
    again, _ = build_bundle_engine(bundle, engine="rtx", sm=[86], profiles=SMALL)
    assert again == path and read_sidecar(path).sm == (86,)


def test_a_damaged_or_missing_graph_builds_nothing(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    fake_library(monkeypatch, "tensorrt_rtx", "1.7.1.116")
    graph = bundle / "onnx" / "model_fp16.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[::-1])
    with pytest.raises(BundleError, match=r"model_fp16\.onnx has SHA-256"):
        build_bundle_engine(bundle, engine="rtx")
    graph.write_bytes(whole)
    manifest = json.loads((bundle / "mexma.json").read_text())
    manifest |= {"graphs": {"fp32": "onnx/model_fp16.onnx"}, "default_precision": "fp32"}
    (bundle / "mexma.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"no fp16 graph \(its graphs: fp32\).*--precision fp32,int8,fp16"):
        build_bundle_engine(bundle, engine="rtx")
    assert not (bundle / "engines").exists()


def test_an_unknown_or_missing_engine_makes_no_folder(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(InputError, match="Unknown engine"):
        build_bundle_engine(bundle, engine="../x")
    with pytest.raises(MissingExtraError, match="tensorrt_rtx is not installed"):
        build_bundle_engine(bundle, engine="rtx")
    assert not (bundle / "engines").exists()


def test_a_graph_of_mexma_export_is_what_engines_expect() -> None:
    assert list(engines.IO) == ["input_ids", "attention_mask", "sentence_embedding"]
