"""What is named runs there or raises; what auto chose says why. The CUDA provider is played by fakes: see each test."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mexma_rt import BackendError, BundleError, InputError, load
from mexma_rt.backends import GPU_RUN_CELLS, Backend, describe_choices, open_backend
from mexma_rt.backends.onnxruntime_packages import clash_of_packages
from mexma_rt.bundle import Bundle
from mexma_rt.bundle.opening import open_bundle
from mexma_rt.cores import _quota, usable_cores

IDS = np.array([[0, 5, 6, 2], [0, 7, 2, 1]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_output_is_that_of_the_graph(bundle: Bundle, precision: str) -> None:
    backend = open_backend(bundle, device="cpu", precision=precision)
    session = onnxruntime.InferenceSession(bundle.folder / bundle.graphs[precision])
    switch = {"token_states": np.array(False)} if precision == "int8" else {}  # fp32 has one branch
    (expected,) = session.run(["sentence_embedding"], {"input_ids": IDS, "attention_mask": MASK} | switch)
    vectors = backend.run(IDS, MASK)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert (backend.name, backend.device, backend.precision) == ("onnxruntime", "cpu", precision)
    assert backend.reason == f"device='cpu' was named; precision='{precision}' was named"


def test_auto_on_a_machine_without_cuda_says_why(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    backend = open_backend(bundle)
    default = bundle.default_precision
    assert (backend.device, backend.precision) == ("cpu", default)
    assert backend.reason == (
        "auto: cuda was refused (The installed onnxruntime has no CUDA (it has CPUExecutionProvider).); "
        f"{default} is the bundle's default precision, and its parity report passed: lowest cosine "
        f"{bundle.parity[default]['min_cosine']:.6f} over 20 sentences"
    )


def test_auto_leaves_a_precision_whose_parity_did_not_pass(bundle: Bundle) -> None:
    failed = {"int8": {"passed": False, "min_cosine": 0.9, "sentences": 20}}
    fine = {"fp32": {"passed": True, "min_cosine": 0.99999, "sentences": 20}}
    chosen = open_backend(dataclasses.replace(bundle, parity={**failed, **fine}), device="cpu")
    assert chosen.precision == "fp32"
    assert chosen.reason == (
        "device='cpu' was named; fp32, because its parity report passed: lowest cosine 0.999990 over 20 sentences; the "
        "report of the default, int8, is missing or did not pass"
    )
    unknown = open_backend(dataclasses.replace(bundle, parity={}), device="cpu")
    assert unknown.precision == "int8" and unknown.reason.endswith("none of the bundle's parity reports passed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "There is no device 'tpu'. Known: auto, cpu, cuda (one GPU of several: cuda:1)."),
        ({"backend": "tensorflow"}, "There is no backend 'tensorflow'. Known: auto, onnxruntime, tensorrt, rtx, torch."),
        ({"precision": "fp8"}, "There is no precision 'fp8'. Known: auto, fp32, fp16, fused, int8, mixed, w8, w4."),
        ({"precision": "fp16"}, "precision='fp16' is not in the bundle 'tiny', which has fp32, int8."),
        ({"device": "cuda", "precision": "int8"}, "The int8 graph is for the CPU; on cuda, use precision='fp16'"),
    ],
)
def test_what_does_not_exist_raises(tiny_bundle: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=re.escape(message)):
        load(tiny_bundle, **arguments)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_threads_must_be_a_count(bundle: Bundle, threads: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"threads={threads!r} must be a whole number of at least 1")):
        open_backend(bundle, device="cpu", threads=threads)


@pytest.mark.parametrize(("threads", "expected"), [(3, 3), (None, usable_cores())])
def test_threads_are_those_of_a_wide_models_session_or_lanes_of_a_narrow_one(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, threads: int | None, expected: int
) -> None:
    options, backend = opened(bundle, monkeypatch, threads)
    assert (options.intra_op_num_threads, backend.lanes) == (1, expected)
    monkeypatch.setattr("mexma_rt.backends.onnxruntime.NARROW", 31)  # the tiny bundle has 32 dimensions
    options, backend = opened(bundle, monkeypatch, threads)
    assert (options.intra_op_num_threads, backend.lanes) == (expected, 1)


def opened(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, threads: int | None) -> tuple[Any, Backend]:
    seen = []

    def spy(path: str | Path, options: Any, **keywords: Any) -> Any:
        seen.append(options)
        return real(path, options, **keywords)

    with monkeypatch.context() as patch:
        real = onnxruntime.InferenceSession
        patch.setattr(onnxruntime, "InferenceSession", spy)
        backend = open_backend(bundle, device="cpu", threads=threads)
    return seen[0], backend


def test_named_cuda_without_the_provider_gives_the_pip_line(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    message = (
        "The installed onnxruntime has no CUDA (it has CPUExecutionProvider).\nType:\n"
        "    pip install 'mexma-rt[cuda]'\n"
        "for the torch back end, alongside this onnxruntime; or, to run onnxruntime itself on CUDA:\n"
        "    pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'\n"
    )
    with pytest.raises(BackendError, match=re.escape(message)):
        open_backend(bundle, device="cuda")


class FakeSession:
    """Stands for onnxruntime-gpu's session: on a machine without CUDA libraries it runs on the CPU without an error."""

    provider, gpu = "CPUExecutionProvider", "0"

    def __init__(self, path: str | Path, options: Any, *, providers: Any, enable_fallback: int) -> None:
        on_cuda = {"device_id": self.gpu, "use_tf32": "0"}  # fp32 is fp32
        assert providers == [("CUDAExecutionProvider", on_cuda), "CPUExecutionProvider"]
        assert enable_fallback == 0  # or onnxruntime prints, and runs elsewhere
        self.real = onnxruntime.capi.onnxruntime_inference_collection.InferenceSession(path)

    def get_providers(self) -> list[str]:
        return [self.provider]

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def get_overridable_initializers(self) -> Any:
        return self.real.get_overridable_initializers()


def test_a_session_that_silently_fell_back_to_the_cpu_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    with pytest.raises(BackendError, match="onnxruntime could not start CUDA: no GPU, no driver, or a library") as caught:
        open_backend(bundle, device="cuda")
    assert "pip install 'mexma-rt[cuda]'" in str(caught.value)


def test_the_second_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(FakeSession, "provider", "CUDAExecutionProvider")
    monkeypatch.setattr(FakeSession, "gpu", "1")
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    backend = open_backend(bundle, device="cuda:1")
    assert (backend.name, backend.device, backend.run_cells) == ("onnxruntime", "cuda:1", GPU_RUN_CELLS)
    assert backend.reason.startswith("device='cuda:1' was named")
    for wrong in ("cuda:", "cuda:x", "cuda:-1", "cpu:1"):
        with pytest.raises(BackendError, match="There is no device"):
            open_backend(bundle, device=wrong)


def test_missing_cuda_libraries_are_named_and_not_printed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    said = "Failed to load libcublas.so.13: no such file"  # as onnxruntime-gpu 1.31 prints on a machine without CUDA
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write(said), raising=False)
    with pytest.raises(BackendError, match=r"onnxruntime cannot find some CUDA libraries\.") as caught:
        open_backend(bundle, device="cuda")
    assert said in str(caught.value) and "pip install 'mexma-rt[cuda]'" in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_on_cuda_auto_takes_a_graph_made_for_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(FakeSession, "provider", "CUDAExecutionProvider")
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    backend = open_backend(bundle)
    assert (backend.device, backend.precision) == ("cuda", "fp32")
    assert backend.reason == "auto: CUDA works here; fp32 is the bundle's fastest graph for GPUs"


def fake_wheel(site: Path, name: str, version: str, size: int, installer: str = "pip") -> None:
    """A distribution as pip leaves it: its files, written over those of another one, and the RECORD with their sizes."""
    (site / "onnxruntime/capi").mkdir(parents=True, exist_ok=True)
    (site / "onnxruntime/capi/state.so").write_bytes(b"x" * size)
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "INSTALLER").write_text(f"{installer}\n")
    (folder / "RECORD").write_text(f"onnxruntime/capi/state.so,sha256=x,{size}\n{folder.name}/RECORD,,\n")


@pytest.mark.parametrize(
    ("order", "found"),
    [
        (["onnxruntime-gpu", "onnxruntime"], "those of onnxruntime"),
        (["onnxruntime", "onnxruntime-gpu"], "those of onnxruntime-gpu"),
        (None, "a mixture"),
    ],
)
def test_both_onnxruntimes_installed_is_said_loudly_with_the_repair(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, order: list[str] | None, found: str
) -> None:
    for name in order or ["onnxruntime", "onnxruntime-gpu"]:
        fake_wheel(tmp_path, name, "1.2", 5 if name == "onnxruntime" else 7)
    if order is None:
        (tmp_path / "onnxruntime/capi/state.so").write_bytes(b"half")
    here = {d.metadata["Name"]: d for d in importlib.metadata.distributions(path=[str(tmp_path)])}
    monkeypatch.setattr(importlib.metadata, "distribution", here.__getitem__)
    repair = r"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu\[cuda,cudnn\]'"
    with pytest.warns(UserWarning, match=rf"the files on the disk are {found}\. Keep one(?s:.*){repair}\n"):
        backend = open_backend(bundle, device="cpu")
    both = "onnxruntime 1.2 and onnxruntime-gpu 1.2 are both installed and overwrite each other"
    assert f"note: {both}: the files on the disk are {found}. Keep one." in backend.reason


def test_in_an_environment_of_uv_the_repair_is_uvs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There `pip` is that of another Python, which it would change instead."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        fake_wheel(tmp_path, name, "1.2", 5, "uv")
    here = {d.metadata["Name"]: d for d in importlib.metadata.distributions(path=[str(tmp_path)])}
    monkeypatch.setattr(importlib.metadata, "distribution", here.__getitem__)
    assert clash_of_packages().endswith(
        "Type, for a GPU:\n    uv pip uninstall onnxruntime onnxruntime-gpu && uv pip install 'onnxruntime-gpu[cuda,cudnn]'\n"
        "or, for the CPU:\n    uv pip uninstall onnxruntime onnxruntime-gpu && uv pip install onnxruntime"
    )


def test_what_uninstalling_one_of_two_onnxruntimes_leaves_says_what_to_type(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other's files went with it, and a folder without them imports as an empty module."""
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    words = (
        r"onnxruntime does not load: .*no attribute 'InferenceSession'.*uninstalling one of them deletes the other's\. Type:\n"
    )
    with pytest.raises(
        BackendError, match=words + "    pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime\n"
    ):
        open_backend(bundle)


def test_no_extra_brings_a_second_onnxruntime() -> None:
    """pip takes the dependencies of mexma-rt with every extra, and onnxruntime-gpu writes over onnxruntime's files."""
    project = Path(__file__).parents[3] / "pyproject.toml"
    text = "\n".join(line.partition("#")[0] for line in project.read_text(encoding="utf-8").splitlines())
    assert set(re.findall(r'"(onnxruntime[a-z-]*)[\[>=<]', text)) == {"onnxruntime", "onnxruntime-extensions"}


def test_choices_are_tried_and_explained(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    described = describe_choices(bundle, lambda engine: f"proved {engine.precision}")
    assert [(choice.backend, choice.device, choice.precision) for choice in described[4:]] == [
        ("tensorrt", "cuda", "fp16"),
        ("rtx", "cuda", "fp16"),
        ("torch", "cpu", "fp32"),
        ("torch", "cuda", "fp16"),
        ("torch", "cuda", "fp32"),
    ]
    choices = {(choice.device, choice.precision): choice for choice in described[:4]}
    assert {choice.backend for choice in described[:4]} == {"onnxruntime"}
    assert set(choices) == {("cpu", "fp32"), ("cpu", "int8"), ("cuda", "fp32"), ("cuda", "int8")}
    assert choices["cpu", "int8"].usable and choices["cpu", "int8"].reason == "proved int8"
    assert not choices["cuda", "fp32"].usable and "has no CUDA" in choices["cuda", "fp32"].reason
    assert not choices["cuda", "int8"].usable and "for the CPU" in choices["cuda", "int8"].reason


def test_a_graph_that_onnxruntime_cannot_open(bundle: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    (folder / "onnx/model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"model\.onnx is not an ONNX file"):
        open_backend(edited(folder, files={"onnx/model.onnx": b"no graph"}), device="cpu", precision="fp32")
    (folder / "onnx/model.onnx").write_bytes(b"\x08\x08")  # an ONNX file of format 8, and nothing else in it
    with pytest.raises(BackendError, match=r"onnxruntime .* cannot open .*model\.onnx on cpu"):
        open_backend(edited(folder, files={"onnx/model.onnx": b"\x08\x08"}), device="cpu", precision="fp32")


def test_a_graph_of_other_dimensions(bundle: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle.folder, tmp_path / "bundle")
    with pytest.raises(BundleError, match="sentence_embedding has 32 dimensions, but the manifest says 16"):
        open_backend(edited(folder, dimensions=16, golden=None, ranges=None), device="cpu")


def edited(folder: Path, files: object = None, **fields: object) -> Bundle:
    """The bundle of a folder whose manifest was changed (and not verified again)."""
    from mexma_rt.bundle.opening import read_manifest

    manifest = json.loads((folder / "mexma.json").read_bytes()) | fields
    kept = {key: value for key, value in manifest.items() if value is not None}
    (folder / "mexma.json").write_text(json.dumps(kept))
    return read_manifest(folder)


def test_a_failing_run_names_the_batch(bundle: Bundle) -> None:
    backend = open_backend(bundle, device="cpu", precision="fp32")
    with pytest.raises(BackendError, match="onnxruntime failed on a batch of 1 sentences x 3 tokens on cpu"):
        backend.run(np.array([[0, 10**9, 2]]), np.ones((1, 3), dtype=np.int64))


@pytest.mark.parametrize(
    ("text", "cores"), [("200000 100000\n", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000\n", None), ("", None)]
)
def test_a_container_quota_is_respected(tmp_path: Path, text: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert _quota(tmp_path / "cpu.max") == cores
    assert _quota(tmp_path / "missing") is None
