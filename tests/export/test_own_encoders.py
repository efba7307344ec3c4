"""What follows for an encoder of one's own: token vectors, word alignment, compact graphs, Triton and engines."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="checkpoints are loaded with torch (pip: mexma-rt[export])")

import mexma_rt
from mexma_export import Sentence, export_bundle
from mexma_export.verdict import THRESHOLDS

from .. import forms

TANH = "torch.nn.modules.activation.Tanh"
PRECISIONS = ["fp16", "int8", "mixed", "w8", "w4"]
MARKS = ["don't stop, ok?", "a  b\tc", "xq zz qx", "", " ", "über-groß"]  # of which some have no piece


def states_of(model: Any, folder: Path, text: str) -> np.ndarray:
    """[L, D]: the last states of a text by the model's own class and the tokenizer's own ids, [CLS] and [SEP] left out."""
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0, 1:-1].numpy()


@pytest.fixture(scope="module", params=["bert", "labse", "distilbert"])
def word_piece(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]
) -> tuple[mexma_rt.Encoder, object, Path]:
    """(the exported encoder, the model's own class, its folder) of BERT, of LaBSE's form (cls, Dense, Normalize), of
    DistilBERT with a mean and no Normalize; all with WordPiece."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    model = forms.make_model(folder, "distilbert" if request.param == "distilbert" else "bert", word_piece=True)
    if request.param == "labse":
        forms.sentence_transformers(folder, forms.CLS, "Dense", "Normalize")
        forms.add_dense(folder, "2_Dense", 32, 16, TANH)
    if request.param == "distilbert":
        forms.sentence_transformers(folder, forms.MEAN)
    gate = [Sentence(lang=lang, text=text) for lang, text in sentences]
    export_bundle(folder, folder.parent / "bundle", precisions=["fused"], sentences=gate, weights=False)
    return mexma_rt.load(folder.parent / "bundle", device="cpu"), model, folder


def test_token_vectors_are_the_states_of_the_models_own_class(
    word_piece: tuple[mexma_rt.Encoder, object, Path], sentences: list[tuple[str, str]]
) -> None:
    from tokenizers import Tokenizer

    encoder, model, folder = word_piece
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = [text for _, text in sentences] + MARKS
    for text, result in zip(texts, encoder.embed_tokens(texts, normalize=False), strict=True):
        own = tokenizer.encode(text)
        assert result.pieces == tuple(own.tokens[1:-1])
        np.testing.assert_allclose(result.vectors, states_of(model, folder, text), atol=1e-5)
        for piece, (start, end), (first, last) in zip(result.pieces, result.offsets.tolist(), own.offsets[1:-1], strict=True):
            assert (start, end) == (first, last) and (piece in ("[UNK]", text[start:end]) or piece == "##" + text[start:end])


@pytest.mark.parametrize("unit", ["word", "piece"])
def test_words_are_aligned(word_piece: tuple[mexma_rt.Encoder, object, Path], unit: str) -> None:
    encoder, _, _ = word_piece
    text = "The cat sleeps on the warm stone."
    (same,) = mexma_rt.align_words([text], [text], encoder=encoder, unit=unit)
    assert same.source_words == tuple(text.split())
    assert {(i, i) for i in range(7)} <= set(same.links)
    assert all(
        score == pytest.approx(1, abs=1e-5) for link, score in zip(same.links, same.scores, strict=True) if len(set(link)) == 1
    )


@pytest.fixture(scope="module")
def distiluse(tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> tuple[Path, Path]:
    """(folder, bundle) of distiluse's form: WordPiece, mean of the tokens, a Dense layer of 16, no Normalize."""
    folder = tmp_path_factory.mktemp("distiluse") / "model"
    forms.make_model(folder, "distilbert", word_piece=True, layers=3)  # an engine wants 95 % of its products in fp16
    forms.sentence_transformers(folder, forms.MEAN, "Dense")
    forms.add_dense(folder, "2_Dense", 32, 16, TANH)
    gate = [Sentence(lang=lang, text=text) for lang, text in sentences]
    # Random weights of 32 numbers suffer more from coarse numbers than trained ones: the vectors are judged below.
    loose = {
        name: replace(limits, min_cosine=0.98, mean_cosine=0.98, min_token_cosine=None) for name, limits in THRESHOLDS.items()
    }
    export_bundle(folder, folder.parent / "bundle", precisions=PRECISIONS, sentences=gate, thresholds=loose)
    return folder, folder.parent / "bundle"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_compact_graphs_give_the_owners_raw_vectors(
    precision: str, distiluse: tuple[Path, Path], sentences: list[tuple[str, str]]
) -> None:
    peer = pytest.importorskip("sentence_transformers", reason="the owner's code (pip: mexma-rt[bench])")
    folder, bundle = distiluse
    texts = [text for _, text in sentences]
    wanted = peer.SentenceTransformer(str(folder), device="cpu").encode(texts)
    lengths = np.linalg.norm(wanted, axis=1)
    assert lengths.std() > 0.01  # no Normalize: vectors of any length
    encoder = mexma_rt.load(bundle, device="cpu", precision=precision)
    ours = encoder.encode(texts)
    assert ours.shape == (20, 16) and encoder.backend.precision == precision
    errors = np.linalg.norm(ours - wanted, axis=1) / lengths
    assert errors.max() < {"fp16": 0.01, "mixed": 0.02}.get(precision, 0.2), errors.max()
    np.testing.assert_allclose(np.linalg.norm(encoder.embed(texts), axis=1), 1, atol=1e-5)
    assert encoder.embed_tokens(texts[:1])[0].vectors.shape[1] == 32


def test_a_triton_repository_says_the_width_of_each_output(distiluse: tuple[Path, Path], tmp_path: Path) -> None:
    from mexma_export.triton import write_triton

    _, bundle = distiluse
    report = write_triton(bundle, tmp_path / "models", precisions=["fp16", "mixed"])
    assert len(report.models) == 2
    for name in report.models:
        config = (tmp_path / "models" / name / "config.pbtxt").read_text()
        outputs = config.partition("output")[2]
        assert outputs.index("sentence_embedding") < outputs.index("16") < outputs.index("last_hidden_state")
        assert "32" in outputs.partition("last_hidden_state")[2].partition("}")[0]


@pytest.mark.engines
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'mexma-rt[rtx]'"
)
def test_an_rtx_engine_is_built_of_a_mean_and_a_dense_layer(distiluse: tuple[Path, Path]) -> None:
    from mexma_export.engines import build_bundle_engine, parse_profiles

    _, bundle = distiluse
    path, sidecar = build_bundle_engine(bundle, engine="rtx", sm=[89], profiles=parse_profiles("4x32"))
    assert path.stat().st_size == sidecar.engine_bytes > 0
    outputs = {tensor.name: tensor.shape for tensor in sidecar.outputs}
    assert outputs == {"sentence_embedding": (-1, 16)}  # token states are not computed by an engine that serves
    assert (sidecar.matmuls, sidecar.half_matmuls) == (25, 24)  # eight a layer; that of the head is in fp32
    assert json.loads(path.with_name(path.name + ".json").read_text())["outputs"]
