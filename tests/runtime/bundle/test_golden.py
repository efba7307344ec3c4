"""`mexma doctor` proves what runs by the golden vectors of the bundle, and says it when they are wrong or missing."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import tokenizers
from click.testing import CliRunner, Result

from mexma_rt.cli import main

from ..embedding.test_vectors import with_manifest

TEXTS = ["Hello world.", "Où est la gare ?", "猫は暖かい石の上で眠っています。"]


@pytest.fixture(scope="module")
def golden(tiny_bundle: Path) -> dict:
    """By hand: the fp32 graph, one sentence at a time."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    session = onnxruntime.InferenceSession(tiny_bundle / "onnx/model.onnx")
    rows = []
    for text in TEXTS:
        ids = np.array([tokenizer.encode(text).ids])
        row = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
        rows.append((row / np.linalg.norm(row)).tolist())
    return {"texts": TEXTS, "vectors": rows, "source": "test"}


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


def test_right_vectors_are_said_and_shown(tiny_bundle: Path, tmp_path: Path, golden: dict) -> None:
    folder = with_manifest(tiny_bundle, tmp_path / "b", golden=golden)
    result = doctor("--model", folder, "--precision", "fp32", "--max-length", 4)  # the golden ones are not cut by it
    assert result.exit_code == 0, result.output
    assert "\n  3 golden sentences: lowest cosine 1.000000, needed 0.99999\n" in result.output
    assert "works  onnxruntime cpu  fp32  3 golden sentences: lowest cosine 1.000000" in result.output
    report = json.loads(doctor("--model", folder, "--precision", "fp32", "--json").output)
    assert report["runs"]["proved"] is True and report["runs"]["proof"].startswith("3 golden sentences")


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_wrong_vectors_fail(tiny_bundle: Path, tmp_path: Path, golden: dict, as_json: list[str]) -> None:
    turned = golden | {"vectors": [*golden["vectors"][:2], golden["vectors"][0]]}
    folder = with_manifest(tiny_bundle, tmp_path / "b", golden=turned)
    result = doctor("--model", folder, "--precision", "fp32", *as_json)
    assert result.exit_code == 1
    wanted = "onnxruntime computes wrong vectors in fp32 on cpu: over 3 golden sentences of the bundle the lowest"
    assert wanted in result.stderr
    if as_json:
        report = json.loads(result.stdout)
        assert report["runs"]["proved"] is False
        assert not [choice for choice in report["choices"] if choice["usable"]]
    else:
        assert "no     onnxruntime cpu fp32: onnxruntime computes wrong vectors" in result.stdout


def test_a_bundle_without_golden_vectors_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = with_manifest(tiny_bundle, tmp_path / "b")
    manifest = json.loads((folder / "mexma.json").read_bytes())
    manifest.pop("golden", None)
    (folder / "mexma.json").write_text(json.dumps(manifest))
    result = doctor("--model", folder)
    assert result.exit_code == 0 and "could not be compared: the bundle has no golden vectors" in result.output
    assert json.loads(doctor("--model", folder, "--json").output)["runs"]["proved"] is False


def test_two_onnxruntimes_are_explained(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.distribution
    gpu = SimpleNamespace(
        version="9.9", files=[], locate_file=Path, read_text=lambda name: None
    )  # nothing on the disk is its own
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: gpu if name == "onnxruntime-gpu" else real(name))
    output = doctor("--model", tiny_bundle).output
    assert "and onnxruntime-gpu 9.9 are both installed and overwrite each other: the files on the disk are those of" in output
    assert output.count("pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime\n") == 1
    assert "onnxruntime-gpu 9.9" in json.loads(doctor("--model", tiny_bundle, "--json").output)["clash"]
