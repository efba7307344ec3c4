"""mexma-export: exit codes, messages, JSON."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mexma_export.cli import main


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def sentence_file(tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    path = tmp_path_factory.mktemp("sentences") / "own.tsv"
    path.write_text("".join(f"{lang}\t{text}\n" for lang, text in sentences), encoding="utf-8")
    return path


def test_a_good_export_prints_the_figures(tiny_checkpoint: Path, tmp_path: Path, sentence_file: Path) -> None:
    result = run(
        tiny_checkpoint, tmp_path / "b", "--precision", "int8", "--no-weights", "--name", "n", "--verify", sentence_file
    )
    assert result.exit_code == 0, result.output
    assert "int8: 20 sentences in 14 languages, cosine to the checkpoint: mean 0.999" in result.output
    assert "default on CPU: int8 (fastest on CPU, and its parity gate passed)" in result.output
    assert json.loads((tmp_path / "b" / "mexma.json").read_text(encoding="utf-8"))["name"] == "n"


def test_json_is_the_only_thing_on_standard_output(tiny_checkpoint: Path, tmp_path: Path, sentence_file: Path) -> None:
    result = run(tiny_checkpoint, tmp_path / "b", "--precision", "int8", "--verify", sentence_file, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["default_precision"] == "int8" and report["parity"]["int8"]["passed"] is True
    assert report["bytes"]["onnx/model_int8.onnx"] == (tmp_path / "b/onnx/model_int8.onnx").stat().st_size


def test_a_failed_gate_exits_with_1(
    tiny_checkpoint: Path, tmp_path: Path, sentence_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mexma_export import THRESHOLDS, Thresholds

    monkeypatch.setitem(THRESHOLDS, "int8", Thresholds(min_cosine=1.0, mean_cosine=1.0))
    result = run(tiny_checkpoint, tmp_path / "b", "--precision", "int8", "--verify", sentence_file, "--json")
    assert result.exit_code == 1
    assert "The int8 graph does not reproduce the checkpoint's vectors" in result.stderr
    assert json.loads(result.stdout)["error"] == "ParityError"
    assert list(tmp_path.iterdir()) == []


def test_a_bad_checkpoint_exits_with_1(tmp_path: Path) -> None:
    result = run(tmp_path, tmp_path / "b")
    assert result.exit_code == 1
    assert "Error: " in result.stderr and "config.json is missing" in result.stderr


def test_bad_arguments_exit_with_2(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert run(tiny_checkpoint, tmp_path / "b", "--precision", "int4").exit_code == 2
    assert run(tiny_checkpoint, tmp_path / "b", "--no-such-option").exit_code == 2
    existing = tmp_path / "old"
    existing.mkdir()
    result = run(tiny_checkpoint, existing)
    assert result.exit_code == 2 and "already exists. Type --force" in result.stderr


def test_a_missing_extra_exits_with_2_and_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else found(name, *rest))
    result = run(tmp_path, tmp_path / "b")
    assert result.exit_code == 2
    assert "onnxscript is not installed, and this needs it. Type:\n    pip install 'mexma-rt[export]'" in result.stderr


@pytest.mark.engines
def test_an_engine_is_made_of_a_bundle_with_an_fp16_graph(tiny_checkpoint: Path, tmp_path: Path, sentence_file: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="builds an engine: pip install 'mexma-rt[rtx]'")
    bundle = tmp_path / "b"
    result = run(tiny_checkpoint, bundle, "--precision", "fp16", "--no-weights", "--verify", sentence_file)
    assert result.exit_code == 0, result.output
    assert "fp16 in torch: 20 sentences in 14 languages" in result.output
    result = run("engine", bundle, "rtx", "--sm", "86,120", "--profiles", "1x16,8x64", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["engine"] == str(bundle / "engines" / "rtx.engine") and report["sm"] == [86, 120]
    assert report["profiles"] == [{"batch": 1, "length": 16}, {"batch": 8, "length": 64}]
    result = run("engine", bundle, "rtx", "--sm", "86")
    assert "24 of 24 matrix products in fp16 (counted in the network)" in result.output
    result = run("engine", bundle, "rtx", "--sm", "90")
    assert result.exit_code == 2 and "does not build for SM 90" in result.stderr


def test_bad_engine_arguments_exit_with_2(tiny_bundle: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[str | Path], str]] = [
        ([tiny_bundle], "Missing argument 'BUNDLE'"),
        (["engine", tiny_bundle], "Missing argument"),
        ([tiny_bundle, tmp_path / "b", "--sm", "86"], "No such option"),
        (["engine", tiny_bundle, "onnx"], "is not one of 'tensorrt', 'rtx'"),
        (["engine", tiny_bundle, "rtx"], "has no fp16 graph (its graphs: fp32, int8)"),
        (["engine", tiny_bundle, "rtx", "--profiles", "16"], "is not a list of profiles"),
        (["engine", tiny_bundle, "rtx", "--sm", "8.9"], "is not a list of GPU architectures"),
    ]
    for arguments, words in cases:
        result = run(*arguments)
        assert result.exit_code == 2 and words in result.stderr, result.output


def test_export_is_the_default_command(tiny_checkpoint: Path, tmp_path: Path, sentence_file: Path) -> None:
    """Its name may be left out, also where options come first."""
    options: list[str | Path] = ["--precision", "fp32", "--no-weights", "--verify", sentence_file, "--json"]
    for number, words in enumerate((("export",), ())):
        result = run(*words, *options, tiny_checkpoint, tmp_path / f"b{number}", "--name", "n")
        assert result.exit_code == 0, result.output
    manifests = [json.loads((tmp_path / f"b{number}" / "mexma.json").read_text(encoding="utf-8")) for number in range(2)]
    assert manifests[0]["files"] == manifests[1]["files"]


def test_help_names_every_command() -> None:
    for arguments in (["--help"], []):
        text = run(*arguments).output
        assert all(f"\n  {name} " in text for name in ("export", "engine", "triton", "rebuild", "trim", "doctor"))
    assert "--precision" in run("export", "--help").output and "--pieces" in run("trim", "-h").output
