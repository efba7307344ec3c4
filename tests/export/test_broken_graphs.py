"""The gate, end to end: exports that are wrong in the ways exports go wrong fail and leave nothing behind."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="exports need torch (pip: mexma-rt[export])")

from mexma_export import ParityError, Sentence, export_bundle  # noqa: E402
from mexma_export.graphs import SentenceEncoder, export_traced  # noqa: E402


class MeanPooling(SentenceEncoder):
    """The commonest mistake: the mean of the tokens instead of `<s>`."""

    def forward(self, input_ids, attention_mask):
        _, states = super().forward(input_ids, attention_mask)
        weights = attention_mask.unsqueeze(-1).float()
        return (states * weights).sum(1) / weights.sum(1), states


class PositionsFromZero(SentenceEncoder):
    """BERT's positions instead of XLM-R's, which begin at padding id + 1 = 2."""

    def forward(self, input_ids, attention_mask):
        positions = torch.cumsum(attention_mask, dim=1) * attention_mask - attention_mask
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions).last_hidden_state
        return states[:, 0], states


class DroppedLayer(SentenceEncoder):
    def __init__(self, model):
        model = copy.deepcopy(model)
        del model.encoder.layer[1]
        super().__init__(model)


class SwappedLayers(SentenceEncoder):
    def __init__(self, model):
        model = copy.deepcopy(model)
        first, second, third = model.encoder.layer
        model.encoder.layer = torch.nn.ModuleList([second, first, third])
        super().__init__(model)


class NoMask(SentenceEncoder):
    """Attention over the padding: right for a sentence alone, wrong in a batch."""

    def forward(self, input_ids, attention_mask):
        return super().forward(input_ids, attention_mask * 0 + 1)


@pytest.mark.parametrize("broken", [MeanPooling, PositionsFromZero, DroppedLayer, SwappedLayers, NoMask])
def test_broken_export_fails_and_leaves_nothing(broken, tiny_checkpoint: Path, tmp_path: Path, monkeypatch, sentences) -> None:
    monkeypatch.setattr("mexma_export.compact.SentenceEncoder", broken)
    with pytest.raises(ParityError) as caught:
        export_bundle(
            tiny_checkpoint,
            tmp_path / "bundle",
            precisions=["int8"],
            sentences=[Sentence(lang=lang, text=text) for lang, text in sentences],
        )
    message = str(caught.value)
    assert message.startswith("The int8 graph does not give the checkpoint's vectors, so no bundle was written: ")
    assert "threshold 0.995" in message
    assert "Worst sentence: " in message
    assert list(tmp_path.iterdir()) == []  # neither the bundle nor a temporary folder


def test_broken_fp32_graph_fails_even_when_int8_is_right(tiny_checkpoint: Path, tmp_path: Path, monkeypatch, sentences) -> None:
    def export_broken(encoder, path, *, length_limit):
        export_traced(MeanPooling(encoder.model), path)  # the faster exporter: the gate does not care which

    monkeypatch.setattr("mexma_export.graphs.export_standard", export_broken)
    with pytest.raises(ParityError, match=r"The fp32 graph .* What to try: --precision int8 writes the bundle without"):
        export_bundle(
            tiny_checkpoint, tmp_path / "bundle", sentences=[Sentence(lang=lang, text=text) for lang, text in sentences]
        )
    assert list(tmp_path.iterdir()) == []


def test_force_keeps_the_old_bundle_when_the_gate_fails(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch, sentences
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "mexma.json").write_text("old", encoding="utf-8")
    monkeypatch.setattr("mexma_export.compact.SentenceEncoder", MeanPooling)
    with pytest.raises(ParityError):
        export_bundle(
            tiny_checkpoint,
            target,
            precisions=["int8"],
            force=True,
            sentences=[Sentence(lang=lang, text=text) for lang, text in sentences],
        )
    assert (target / "mexma.json").read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]
