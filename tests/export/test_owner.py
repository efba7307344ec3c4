"""A checkpoint that this export reads differently from its owner's code is refused before any graph is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="checkpoints are loaded with torch (pip: mexma-rt[export])")

from mexma_export import ParityError, Sentence, export_bundle
from mexma_export.checkpoint import Checkpoint, load_checkpoint
from mexma_export.owner import compare_with_owner
from mexma_rt.errors import BundleError

from .. import forms

CLS, MEAN, sentence_transformers = forms.CLS, forms.MEAN, forms.sentence_transformers


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.fixture(scope="module")
def gate(sentences: list[tuple[str, str]]) -> list[Sentence]:
    return [Sentence(lang=lang, text=text) for lang, text in sentences]


def test_a_plain_checkpoint_is_compared_with_transformers(tiny_checkpoint: Path, gate: list[Sentence]) -> None:
    reference = compare_with_owner(load_checkpoint(tiny_checkpoint), gate, 32)
    assert "XLMRobertaModel, the last state of the first token" in reference.computed_by
    assert reference.sentences == len(gate) + 1  # and one text that is cut
    assert 0 <= reference.largest_error < 1e-5 and reference.lowest_cosine > 0.999999


@pytest.mark.parametrize("installed", [True, False])
def test_a_folder_of_sentence_transformers(
    installed: bool, folder: Path, gate: list[Sentence], monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence_transformers(folder, CLS, "Normalize")
    if installed:
        pytest.importorskip("sentence_transformers", reason="the owner's code (pip: mexma-rt[bench])")
    else:
        monkeypatch.setattr("mexma_export.owner.importlib.util.find_spec", lambda name: None)
    reference = compare_with_owner(load_checkpoint(folder), gate, 16)
    said = (
        ", encode"
        if installed
        else "XLMRobertaModel, pooling cls as modules.json says (sentence-transformers is not installed)"
    )
    assert reference.computed_by.endswith(said)
    assert reference.largest_error < 1e-5


def without_a_layer(checkpoint: Checkpoint) -> Checkpoint:
    checkpoint.model.encoder.layer = checkpoint.model.encoder.layer[:-1]
    return checkpoint


def with_positions_moved(checkpoint: Checkpoint) -> Checkpoint:
    table = checkpoint.model.embeddings.position_embeddings.weight.data
    table[2:] = table[2:].roll(1, 0)
    return checkpoint


def not_normalised(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, pipeline=replace(checkpoint.pipeline, normalize=False))


@pytest.mark.parametrize("misread", [without_a_layer, with_positions_moved, not_normalised])
def test_a_misread_checkpoint_is_refused(
    misread: Callable[[Checkpoint], Checkpoint], folder: Path, gate: list[Sentence]
) -> None:
    pytest.importorskip("sentence_transformers", reason="the owner's code (pip: mexma-rt[bench])")
    sentence_transformers(folder, CLS, "Normalize")
    checkpoint = misread(load_checkpoint(folder))
    with pytest.raises(
        ParityError, match=r"and the model owner's code, sentence-transformers .*, compute different vectors: .*the cosi"
    ):
        compare_with_owner(checkpoint, gate, 128)


def test_a_pooling_that_the_loader_misreads(
    folder: Path, tmp_path: Path, gate: list[Sentence], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sentence_transformers", reason="the owner's code (pip: mexma-rt[bench])")
    sentence_transformers(folder, MEAN, "Normalize")
    monkeypatch.setattr("mexma_export.pipeline._poolings", lambda config: ("cls",))
    with pytest.raises(ParityError, match=r"this export and the model owner's code, .*, compute different vectors"):
        export_bundle(folder, tmp_path / "bundle", sentences=gate)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_another_tokenizer_than_that_of_tokenizer_json(folder: Path, gate: list[Sentence]) -> None:
    pytest.importorskip("sentence_transformers", reason="the owner's code (pip: mexma-rt[bench])")
    sentence_transformers(folder, CLS, "Normalize")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "XLMRobertaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ParityError, match=r"into other pieces than tokenizer\.json does, first .*PreTrainedTokenizerFast"):
        compare_with_owner(load_checkpoint(folder), gate, 128)


def test_a_folder_that_its_owners_code_cannot_load(folder: Path, gate: list[Sentence]) -> None:
    checkpoint = load_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"transformers .* cannot load this folder .*nothing to check the export against"):
        compare_with_owner(checkpoint, gate, 128)
