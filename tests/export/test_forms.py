"""Encoders of every form, with the tokenizers, poolings and layers that people have: equal vectors in every graph."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="checkpoints are loaded with torch (pip: mexma-rt[export])")

import mexma_rt
from mexma_export import Sentence, export_bundle
from mexma_export.checkpoint import load_checkpoint

forms = sys.modules["forms"]  # tests/forms.py


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
    precisions = ["fp32", "fused", "mixed", "fp16"]
    gate = [Sentence(lang=lang, text=text) for lang, text in sentences]
    export_bundle(folder, tmp_path / "bundle", precisions=precisions, sentences=gate)
    for precision, allowed in {"fp32": 1e-6, "fused": 1e-6, "mixed": 0.05}.items():
        encoder = mexma_rt.load(tmp_path / "bundle", device="cpu", precision=precision)
        np.testing.assert_allclose(encoder.embed(texts), wanted, atol=allowed)
    torch_vectors = mexma_rt.load(tmp_path / "bundle", device="cpu", backend="torch").embed(texts)
    np.testing.assert_allclose(torch_vectors, wanted, atol=1e-6)
    again = load_checkpoint(tmp_path / "bundle")  # a bundle with weights is a checkpoint of XLM-R's form
    assert not again.rewritten and again.max_length_limit == 96
    reference = json.loads((tmp_path / "bundle/parity.json").read_text())["reference"]
    assert type(model).__name__ in reference["computed_by"]
