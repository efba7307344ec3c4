"""mexma-export doctor: says what is true, and for what does not work what to type."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from mexma_export import doctor
from mexma_export.cli import main
from mexma_rt.errors import BackendError

CUDA = "CUDAExecutionProvider"


def ability(what: str, abilities: tuple[doctor.Ability, ...]) -> doctor.Ability:
    (found,) = [ability for ability in abilities if ability.what == what]
    return found


@pytest.fixture
def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """No NVIDIA driver, whatever this machine has, and onnxruntime from PyPI."""

    def no_driver() -> int:
        raise BackendError("This machine has no NVIDIA driver (libcuda.so.1), so no GPU to run on.")

    monkeypatch.setattr("mexma_export.doctor.device_sm", no_driver)
    monkeypatch.setattr("mexma_export.trt_compat.device_sm", no_driver)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setenv("PATH", "")


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in modules else found(name, *rest))


def test_json_of_a_machine_without_gpu(without_driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="graphs can be built only with pip: mexma-rt[export]")
    hide(monkeypatch, "tensorrt")
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["versions"]["onnxruntime"] == version("onnxruntime")
    assert report["versions"]["torch"] == version("torch")
    assert report["gpus"] == [] and "nvidia-smi is not on the path" in report["gpu_remark"]
    build = {row["what"]: row for row in report["build"]}
    run = {row["what"]: row for row in report["run"]}
    assert list(build) == ["ONNX graphs", "engine tensorrt", "engine rtx"]
    assert list(run) == ["onnxruntime cpu", "onnxruntime cuda", "engine tensorrt", "engine rtx"]
    assert build["ONNX graphs"]["works"] and build["ONNX graphs"]["detail"].startswith(
        "fp32, fused, int8, mixed, w8, w4, fp16;"
    )
    assert run["onnxruntime cpu"]["works"]
    for rows in (build, run):
        assert not rows["engine tensorrt"]["works"]
        assert "pip install 'mexma-rt[tensorrt]'" in rows["engine tensorrt"]["detail"]
    assert (
        not run["onnxruntime cuda"]["works"]
        and "pip install 'onnxruntime-gpu[cuda,cudnn]'" in run["onnxruntime cuda"]["detail"]
    )
    assert not run["engine rtx"]["works"]


def test_an_rtx_engine_can_be_built_but_not_run_without_gpu(without_driver: None) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the library itself is asked: pip install 'mexma-rt[rtx]'")
    build, run = (doctor._try("engine rtx", check, "rtx") for check in (doctor._build_engine, doctor._run_engine))
    assert build.works and build.detail == "for SM 80, 86, 89, 120 (or as in --sm), with or without a GPU"
    assert not run.works and run.detail.startswith("This machine has no NVIDIA driver")


@pytest.mark.parametrize(("sm", "works", "words"), [(89, True, "fp16, on SM 89"), (90, False, "An H100 or H200 needs")])
def test_an_rtx_engine_runs_where_the_library_knows_the_gpu(
    sm: int, works: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the library itself is asked: pip install 'mexma-rt[rtx]'")
    monkeypatch.setattr("mexma_export.doctor.device_sm", lambda: sm)
    monkeypatch.setattr("mexma_export.doctor.load_cuda", lambda engine: None)
    run = doctor._try("engine rtx", doctor._run_engine, "rtx")
    assert run.works is works and words in run.detail


def test_missing_and_broken_packages_have_a_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        hide(patch, "onnx", "onnxscript")
        graphs = doctor._try("ONNX graphs", doctor._build_graphs)
    assert not graphs.works and "onnx and onnxscript are not installed" in graphs.detail
    assert graphs.detail.endswith("pip install 'mexma-rt[export]'")
    pytest.importorskip("onnxscript", reason="a package can be broken only where all are there: pip: mexma-rt[export]")

    def broken(name: str) -> Any:
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    graphs = doctor._try("ONNX graphs", doctor._build_graphs)
    assert not graphs.works
    assert graphs.detail == (
        "torch is installed but does not load: libtorch_cpu.so: cannot open shared object file. Type:\n"
        "    pip install --force-reinstall 'mexma-rt[export]'"
    )


def stub_session(monkeypatch: pytest.MonkeyPatch, providers: list[str], error: Exception | None = None) -> None:
    """onnxruntime as it is with CUDA: the provider is listed, and the session tells whether it started."""

    def run(outputs: Any, feed: Any) -> None:
        if error:
            raise error

    session = SimpleNamespace(run=run, get_providers=lambda: providers)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *arguments, **keywords: session)
    said = "Failed to load libcudnn.so.9\n"
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: sys.stdout.write(said), raising=False)
    monkeypatch.setattr("mexma_export.doctor.device_sm", lambda: 89)


@pytest.mark.parametrize(
    ("providers", "error", "works", "words"),
    [
        ([CUDA, "CPUExecutionProvider"], None, True, "fp32, fp16"),
        (["CPUExecutionProvider"], None, False, "could not start CUDA: a library is missing"),
        ([CUDA], RuntimeError("no kernel image"), False, "cannot compute on cuda: no kernel image"),
    ],
)
def test_cuda_works_where_it_computes(
    providers: list[str],
    error: Exception | None,
    works: bool,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub_session(monkeypatch, providers, error)
    cuda = doctor._try("onnxruntime cuda", doctor._run_onnxruntime, CUDA)
    assert cuda.works is works and words in cuda.detail
    assert works or "pip uninstall -y onnxruntime onnxruntime-gpu && pip install" in cuda.detail
    assert capsys.readouterr().out == ""  # --json stays JSON


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in of nvidia-smi is a shell script")
@pytest.mark.parametrize(
    ("script", "gpus", "remark"),
    [
        ("echo 'NVIDIA L4, 580.65.06, 8.9, 23034'", [("NVIDIA L4", "580.65.06", "8.9", "23034")], ""),
        ("echo 'No devices were found'; exit 6", [], "nvidia-smi lists none: No devices were found"),
        ("exit 9", [], "nvidia-smi lists none: exit code 9"),
    ],
)
def test_the_driver_is_asked(
    script: str, gpus: list[tuple[str, ...]], remark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found, said = doctor._gpus()
    assert [(gpu.name, gpu.driver, gpu.compute_capability, gpu.memory_mib) for gpu in found] == gpus
    assert said == remark


def test_the_text_names_everything() -> None:
    examination = doctor.Examination(
        versions={"torch": "2.13.0", "tensorrt": None},
        platform="Linux",
        gpus=(doctor.Gpu(name="NVIDIA L4", driver="580.65.06", compute_capability="8.9", memory_mib="23034"),),
        gpu_remark="",
        build=(doctor.Ability(what="ONNX graphs", works=True, detail="fp32"),),
        run=(doctor.Ability(what="engine rtx", works=False, detail="missing. Type:\n    pip install x"),),
    )
    assert examination.as_text().splitlines() == [
        "torch 2.13.0  tensorrt missing",
        "Linux",
        "NVIDIA L4: driver 580.65.06, SM 89, 23034 MiB",
        "Build",
        "  works  ONNX graphs        fp32",
        "Run",
        "  no     engine rtx         missing. Type:",
        "                                pip install x",
    ]


def test_a_folder_named_doctor_is_still_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "doctor").mkdir()
    result = CliRunner().invoke(main, ["./doctor", "b"])
    assert result.exit_code == 1 and "config.json is missing" in result.stderr
    result = CliRunner().invoke(main, ["export", "doctor", "b"])
    assert result.exit_code == 1 and "config.json is missing" in result.stderr
