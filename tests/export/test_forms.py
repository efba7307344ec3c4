"""Encoders of every form, with the tokenizers, poolings and layers that people have: equal vectors in every graph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="checkpoints are loaded with torch (pip: mexma-rt[export])")

import mexma_rt
from mexma_export import Sentence, export_bundle
from mexma_export.checkpoint import load_checkpoint
from mexma_rt.errors import BundleError

from .. import forms


def states_of(model: Any, folder: Path, texts: list[str]) -> list[np.ndarray]:
    """The last states [L, D] of each text by the model's own class, one text at a time."""
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([e.ids])).last_hidden_state[0].numpy() for e in tokenizer.encode_batch(texts)]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_another_form_gives_its_own_vectors(kind: str, tmp_path: Path, sentences: list[tuple[str, str]]) -> None:
    folder, texts = tmp_path / kind, [text for _, text in sentences]
    model = forms.make_model(folder, kind)
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.max_length_limit, checkpoint.dimensions, checkpoint.rewritten) == (96, 32, True)
    wanted = unit(np.stack([states[0] for states in states_of(model, folder, texts)]))
    allowed = {"fp32": 1e-6, "fused": 1e-6, "mixed": 0.05} if kind == "bert" else {"fused": 1e-6}
    gate = [Sentence(lang=lang, text=text) for lang, text in sentences]
    export_bundle(folder, tmp_path / "bundle", precisions=list(allowed), sentences=gate)
    for precision, most in allowed.items():
        encoder = mexma_rt.load(tmp_path / "bundle", device="cpu", precision=precision)
        np.testing.assert_allclose(encoder.embed(texts), wanted, atol=most)
    torch_vectors = mexma_rt.load(tmp_path / "bundle", device="cpu", backend="torch").embed(texts)
    np.testing.assert_allclose(torch_vectors, wanted, atol=1e-6)
    again = load_checkpoint(tmp_path / "bundle")  # a bundle with weights is a checkpoint of XLM-R's form
    assert not again.rewritten and again.max_length_limit == 96
    reference = json.loads((tmp_path / "bundle/parity.json").read_text())["reference"]
    assert type(model).__name__ in reference["computed_by"]


TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
PIPELINES = {  # pooling, modules behind it, dense layers (place, D, activation, bias)
    "e5": (forms.MEAN, ["Normalize"], []),
    "labse": (forms.CLS, ["Dense", "Normalize"], [("2_Dense", 32, TANH, True)]),
    "distiluse": (forms.MEAN, ["Dense"], [("2_Dense", 16, TANH, True)]),
    "mpnet": (forms.MEAN, [], []),
    "two": (forms.CLS, ["Dense", "Dense"], [("2_Dense", 24, IDENTITY, False), ("3_Dense", 20, TANH, True)]),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_gives_its_owners_vectors(name: str, tmp_path: Path, sentences: list[tuple[str, str]]) -> None:
    peer = pytest.importorskip("sentence_transformers", reason="the owner's code (pip: mexma-rt[bench])")
    pooling, modules, layers = PIPELINES[name]
    folder, texts, width = tmp_path / name, [text for _, text in sentences], 32
    kind = {"labse": "bert", "distiluse": "distilbert"}.get(name, "xlm-roberta")
    forms.make_model(folder, kind, word_piece=kind != "xlm-roberta")
    forms.sentence_transformers(folder, pooling, *modules)
    for place, dimensions, activation, bias in layers:
        forms.add_dense(folder, place, width, dimensions, activation, bias=bias)
        width = dimensions
    wanted = peer.SentenceTransformer(str(folder), device="cpu").encode(texts)

    gate = [Sentence(lang=lang, text=text) for lang, text in sentences]
    precisions = ["fp32", "fused", "mixed", "w8", "fp16"] if name == "distiluse" else ["fused"]  # tracing takes seconds
    report = export_bundle(folder, tmp_path / "bundle", precisions=precisions, sentences=gate)
    assert all(parity.passed for parity in report.parity.values())
    manifest = json.loads((tmp_path / "bundle/mexma.json").read_text())
    assert (manifest["dimensions"], manifest["pooling"]) == (width, "cls" if pooling is forms.CLS else "mean")
    assert manifest.get("special_ids") == (None if kind == "xlm-roberta" else {"bos": 2, "pad": 0, "eos": 3})
    assert manifest.get("normalize", True) is ("Normalize" in modules) and manifest["format_version"] == 2
    reference = json.loads((tmp_path / "bundle/parity.json").read_text())["reference"]
    assert reference["computed_by"].startswith("sentence-transformers") and reference["largest_error"] < 1e-5

    for precision in {"fp32", "fused"}.intersection(precisions):
        encoder = mexma_rt.load(tmp_path / "bundle", device="cpu", precision=precision)
        np.testing.assert_allclose(encoder.encode(texts), wanted, atol=1e-5)
        np.testing.assert_allclose(encoder.embed(texts), unit(wanted), atol=1e-5)
        assert encoder.embed_tokens(texts[:2])[0].vectors.shape[1] == 32
    with_torch = mexma_rt.load(tmp_path / "bundle", device="cpu", backend="torch")
    np.testing.assert_allclose(with_torch.encode(texts), wanted, atol=1e-5)
    np.testing.assert_allclose(
        peer.SentenceTransformer(str(tmp_path / "bundle"), device="cpu").encode(texts), wanted, atol=1e-5
    )


def test_a_compact_graph_alone_builds_graphs_with_the_head(
    tmp_path: Path, sentences: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, texts = tmp_path / "model", [text for _, text in sentences]
    forms.make_model(folder, "xlm-roberta")
    forms.sentence_transformers(folder, forms.MEAN, "Dense")
    forms.add_dense(folder, "2_Dense", 32, 16, TANH)
    gate = [Sentence(lang=lang, text=text) for lang, text in sentences]
    export_bundle(folder, tmp_path / "bundle", precisions=["w8"], sentences=gate, weights=False)
    monkeypatch.setenv("MEXMA_RT_CACHE", str(tmp_path / "cache"))
    built = mexma_rt.load(tmp_path / "bundle", device="cpu", precision="fp32").embed(texts)
    compact = mexma_rt.load(tmp_path / "bundle", device="cpu", precision="w8").embed(texts)
    assert built.shape == (20, 16) and (built * compact).sum(axis=1).min() > 0.995


def _of_another_width(layer: Path) -> None:
    shutil.rmtree(layer)
    forms.add_dense(layer.parent, layer.name, 24, 16, TANH)


def _without_numbers(layer: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(layer / "model.safetensors")
    tensors["linear.weight"][3, 4] = np.nan
    save_file(tensors, layer / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda layer: (layer / "model.safetensors").unlink(), r"2_Dense: model\.safetensors of this dense layer is missing"),
        (
            lambda layer: (layer / "model.safetensors").rename(layer / "pytorch_model.bin"),
            r"is missing \(there is only pytorch_model\.bin, a pickle, which can run any code",
        ),
        (
            lambda layer: (layer / "config.json").write_text('{"activation_function": "torch.nn.modules.activation.ReLU"}'),
            "its activation is ReLU, but this export supports only Tanh, Identity",
        ),
        (
            lambda layer: (layer / "config.json").write_text('{"in_features": 32, "out_features": 8}'),
            r"weight \(16, 32\), a bias \(16,\) and other tensors \[\], but its config\.json says \(out, in\) = \(8, 32\)",
        ),
        (_of_another_width, "2_Dense takes vectors of 24 numbers, but the step before it returns 32"),
        (_without_numbers, r"2_Dense/model\.safetensors: NaN or infinite numbers"),
    ],
)
def test_a_dense_layer_that_cannot_be_taken(spoil: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    forms.make_model(folder, "xlm-roberta")
    forms.sentence_transformers(folder, forms.CLS, "Dense", "Normalize")
    forms.add_dense(folder, "2_Dense", 32, 16, TANH)
    spoil(folder / "2_Dense")
    with pytest.raises(BundleError, match=message):
        load_checkpoint(folder)
