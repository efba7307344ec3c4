"""Vectors and ranges in the manifest, against transformers' own model and against formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mexma_rt.bundle.opening import MODELS

torch = pytest.importorskip("torch", reason="the source model is torch's (pip: mexma-rt[export])")

from mexma_export.golden import GOLDEN, golden_vectors, vector_ranges  # noqa: E402


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "mexma.json").read_text(encoding="utf-8"))


def source_vectors(checkpoint: Path, texts: list[str]) -> np.ndarray:
    """Normalised in float64, one text at a time, by the transformers model with its own attention."""
    from tokenizers import Tokenizer
    from transformers import XLMRobertaModel

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    model = XLMRobertaModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    with torch.inference_mode():
        rows = [model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0, 0].numpy() for text in texts]
    wide = np.array(rows, np.float64)
    return wide / np.sqrt((wide * wide).sum(axis=1))[:, None]


def test_golden_vectors_are_the_source_models(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    golden = manifest_of(tiny_bundle)["golden"]
    assert golden["texts"] == list(GOLDEN) and len(set(GOLDEN)) == 5
    np.testing.assert_allclose(golden["vectors"], source_vectors(tiny_checkpoint, golden["texts"]), atol=1e-6)
    assert "fp32" in golden["precision_note"]


def test_ranges_are_those_of_the_gates_sentences(
    tiny_bundle: Path, tiny_checkpoint: Path, sentences: list[tuple[str, str]]
) -> None:
    ranges = manifest_of(tiny_bundle)["ranges"]
    vectors = source_vectors(tiny_checkpoint, [text for _, text in sentences])
    np.testing.assert_allclose(ranges["minimum"], vectors.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(ranges["maximum"], vectors.max(axis=0), atol=1e-6)
    assert ranges["source"] == "the source checkpoint's normalised vectors of the 20 sentences of --verify"


def test_golden_texts_are_cut_as_in_use_and_a_zero_vector_stays_zero() -> None:
    class Letters:
        def encode(self, text: str) -> Any:
            return type("Encoding", (), {"ids": [0, *range(4, 4 + len(text)), 2]})

    seen = []

    def reference(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(ids.tolist())
        assert mask.tolist() == [[1] * ids.shape[1]]
        return np.zeros((1, 3), np.float32), np.zeros((1, ids.shape[1], 3), np.float32)

    golden = golden_vectors(reference, Letters(), 5)  # type: ignore[arg-type]
    assert seen == [[[0, 4, 5, 6, 2]]] * 5 and golden.vectors == ((0.0,) * 3,) * 5


def test_ranges_by_hand() -> None:
    ranges = vector_ranges(np.array([[3, 4], [-5, 0], [0, -2]], np.float32), "here")
    assert ranges.to_json() == {"minimum": [-1.0, -1.0], "maximum": [0.6, 0.8], "source": "here"}


@pytest.mark.parametrize("name", ["mexma-small"])
def test_the_bundled_model_gives_its_golden_vectors_and_has_ranges(name: str) -> None:
    import mexma_rt

    manifest = manifest_of(MODELS / name)
    golden, ranges = manifest["golden"], manifest["ranges"]
    wanted = np.array(golden["vectors"])
    got = mexma_rt.load(name).embed(golden["texts"])
    precision = manifest["default_precision"]
    assert ((wanted * got).sum(axis=1) >= manifest["parity"][precision]["min_cosine"] - 1e-4).all()
    low, high = np.array(ranges["minimum"]), np.array(ranges["maximum"])
    assert low.shape == high.shape == (manifest["dimensions"],) and (low < high).all()
    # sentences like those of the ranges lie within them, but for a margin
    assert ((got > low - 0.15) & (got < high + 0.15)).all()
