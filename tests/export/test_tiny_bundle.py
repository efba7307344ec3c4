"""The bundle kept in tests/tiny_bundle is what mexma-export writes today; else `python tests/tiny.py` makes it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from .. import tiny

onnxruntime = pytest.importorskip("onnxruntime")
AGAIN = "run `python tests/tiny.py` and commit tests/tiny_bundle"
KEPT = Path(__file__).parents[1] / "tiny_bundle"
MEASURED = {"min_cosine", "mean_cosine", "max_abs_error", "sha256", "bytes", "size"}  # may differ from one machine to another


def shape(value: object) -> object:
    """Keys, and values that are not measured or floats."""
    if isinstance(value, dict):
        return {name: None if name in MEASURED else shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return None if isinstance(value, float) else value


def test_same_files_weights_and_manifest(tiny_bundle: Path) -> None:
    names = [sorted(str(p.relative_to(each)) for p in each.rglob("*") if p.is_file()) for each in (tiny_bundle, KEPT)]
    assert names[0] == names[1], AGAIN
    for name in ("model.safetensors", "tokenizer.json", "modules.json"):
        assert (tiny_bundle / name).read_bytes() == (KEPT / name).read_bytes(), f"{name}: {AGAIN}"
    new, old = (json.loads((each / "mexma.json").read_bytes()) for each in (tiny_bundle, KEPT))
    for each in (new, old):
        each.pop("created")  # versions of the libraries that wrote it
    assert shape(new) == shape(old), AGAIN


@pytest.mark.parametrize(("graph", "lowest"), [("model.onnx", 0.999999), ("model_int8.onnx", 0.99)])
def test_the_graphs_give_the_same_vectors(tiny_bundle: Path, graph: str, lowest: float) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(KEPT / "tokenizer.json"))
    new, old = (onnxruntime.InferenceSession(each / "onnx" / graph) for each in (tiny_bundle, KEPT))
    shown = [
        [(each.name, each.shape, each.type) for each in [*graph.get_inputs(), *graph.get_outputs()]] for graph in (new, old)
    ]
    assert shown[0] == shown[1], AGAIN
    for _, text in tiny.SENTENCES:
        ids = np.array([tokenizer.encode(text).ids])
        a, b = (
            each.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
            for each in (new, old)
        )
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= lowest, AGAIN
