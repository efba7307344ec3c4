"""The gate, end to end: exports that are wrong in the ways exports go wrong fail and leave nothing behind."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="exports need torch (pip: mexma-rt[export])")
pytest.importorskip("onnx", reason="breaks graphs with onnx (pip: mexma-rt[export])")

import onnx
import torch

from mexma_export import ParityError, Sentence, Thresholds, export_bundle
from mexma_export.compact import MixedWriter
from mexma_export.fused import Writer, save_graph
from mexma_export.half import HalfEncoder
from mexma_rt.bundle.graphs import INPUTS, OUTPUTS

States = tuple[torch.Tensor, torch.Tensor]  # sentence vectors [B, D], token states [B, L, D]


def export_traced(encoder: torch.nn.Module, path: Path) -> None:
    """The older exporter, which takes a tenth of the time: the gate does not care which made a graph."""
    axes = {name: {0: "batch", 1: "length"} for name in [*INPUTS, OUTPUTS[1]]} | {OUTPUTS[0]: {0: "batch"}}
    ids = torch.tensor([[0, 4, 5, 6, 7, 2], [0, 4, 5, 2, 1, 1], [0, 6, 2, 1, 1, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            (ids, (ids != 1).long()),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_axes=axes,
        )


class SentenceEncoder(torch.nn.Module):
    """A right encoder in torch, which the classes below break."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> States:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states[:, 0], states


class MeanPooling(SentenceEncoder):
    """The commonest mistake: the mean of the tokens instead of `<s>`."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> States:
        _, states = super().forward(input_ids, attention_mask)
        weights = attention_mask.unsqueeze(-1).float()
        return (states * weights).sum(1) / weights.sum(1), states


class PositionsFromZero(SentenceEncoder):
    """BERT's positions instead of XLM-R's, which begin at padding id + 1 = 2."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> States:
        positions = torch.cumsum(attention_mask, dim=1) * attention_mask - attention_mask
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions).last_hidden_state
        return states[:, 0], states


class DroppedLayer(SentenceEncoder):
    def __init__(self, model: Any) -> None:
        model = copy.deepcopy(model)
        del model.encoder.layer[1]
        super().__init__(model)


class SwappedLayers(SentenceEncoder):
    def __init__(self, model: Any) -> None:
        model = copy.deepcopy(model)
        first, second, third = model.encoder.layer
        model.encoder.layer = torch.nn.ModuleList([second, first, third])
        super().__init__(model)


class SwappedWeights(SentenceEncoder):
    """Two matrices of one layer under each other's name: every shape still fits."""

    def __init__(self, model: Any) -> None:
        model = copy.deepcopy(model)
        attention = model.encoder.layer[1].attention.self
        attention.query, attention.value = attention.value, attention.query
        super().__init__(model)


class ShortPositionTable(SentenceEncoder):
    """Positions that end at 100: right for every sentence of the set, wrong for what is longer."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> States:
        positions = (torch.cumsum(attention_mask, dim=1) * attention_mask + 1).clamp(max=101)
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions).last_hidden_state
        return states[:, 0], states


class NoMask(SentenceEncoder):
    """Attention over the padding: right for a sentence alone, wrong in a batch."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> States:
        return super().forward(input_ids, attention_mask * 0 + 1)


@pytest.mark.parametrize("broken", [MeanPooling, PositionsFromZero, DroppedLayer, SwappedLayers, SwappedWeights, NoMask])
def test_broken_export_fails_and_leaves_nothing(
    broken: type[SentenceEncoder],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sentences: list[tuple[str, str]],
) -> None:
    monkeypatch.setattr(
        "mexma_export.rows.export_rows", lambda model, path, forms, rows, head: export_traced(broken(model), path)
    )
    with pytest.raises(ParityError) as caught:
        export_bundle(
            tiny_checkpoint,
            tmp_path / "bundle",
            precisions=["int8"],
            sentences=[Sentence(lang=lang, text=text) for lang, text in sentences],
        )
    message = str(caught.value)
    assert message.startswith("The int8 graph does not reproduce the checkpoint's vectors, so no bundle was written: ")
    assert "threshold 0.995" in message
    assert "Worst sentence: " in message
    assert list(tmp_path.iterdir()) == []  # neither the bundle nor a temporary folder


def test_what_is_wrong_in_long_inputs_only_is_caught_by_its_length(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr(
        "mexma_export.compact.export_mixed", lambda model, path, head: export_traced(ShortPositionTable(model), path)
    )
    with pytest.raises(ParityError) as caught:
        export_bundle(
            tiny_checkpoint,
            tmp_path / "bundle",
            precisions=["mixed"],
            thresholds={"mixed": Thresholds(min_cosine=0.99, mean_cosine=0.99)},
            sentences=[Sentence(lang=lang, text=text) for lang, text in sentences],
        )
    failures = str(caught.value).partition("no bundle was written: ")[2].partition(". Worst sentence")[0].split("; ")
    assert [failure.rpartition(" tokens")[0] for failure in failures] == [
        f"lowest cosine at {length}" for length in (128, 256, 512)
    ]
    assert list(tmp_path.iterdir()) == []


class SecondRow(Writer):
    """The short branch reads the row after `<s>`; the branch for token states is right."""

    def model(self) -> Any:
        proto = super().model()
        self.arrays["zero"] = np.array([1])
        ends = onnx.numpy_helper.from_array(np.array([2]), "two")
        proto.graph.initializer.append(ends)
        (short,) = [a.g for a in proto.graph.node[-1].attribute if a.name == "else_branch"]
        short.node[0].input[2] = "two"
        return proto


class WrongTokenStates(MixedWriter):
    """The branch for token states leaves out the last layer's feed-forward part; the short branch is right."""

    def model(self) -> Any:
        proto = super().model()
        (long,) = [a.g for a in proto.graph.node[-1].attribute if a.name == "then_branch"]
        attended = next(node.output[0] for node in long.node if node.output[0].endswith("/attended"))
        (pick,) = [node for node in long.node if node.op_type == "Gather"]
        pick.input[0] = attended
        long.output[1].name = attended
        return proto


def test_each_branch_of_a_fused_graph_is_compared(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[tuple[str, str]]
) -> None:
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    broken = {
        "fused": (SecondRow, "lowest cosine -?0"),
        "mixed": (WrongTokenStates, "lowest cosine of <s> among the token states"),
    }
    for precision, (writer, phrase) in broken.items():
        with monkeypatch.context() as patch:
            name = f"mexma_export.compact.export_{precision}"
            patch.setattr(name, lambda model, path, head, writer=writer: save_graph(writer(model), path))
            with pytest.raises(ParityError, match=f"The {precision} graph does not reproduce .*: {phrase}"):
                export_bundle(tiny_checkpoint, tmp_path / "bundle", precisions=[precision], sentences=rows)
    assert list(tmp_path.iterdir()) == []


class PlainHalf(HalfEncoder):
    """What HalfEncoder is there to avoid: all numbers in fp16, the residual sums too."""

    def __init__(self, model: Any, head: Any) -> None:
        super().__init__(model, head)
        self.model.half()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> States:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        return states[:, 0], states


def residual_sum_of_90000(weights: dict[str, np.ndarray]) -> None:
    """30,000 and 60,000 meet in one dimension of the residual stream: only a graph whose sums are fp16 overflows."""
    weights["encoder.layer.0.attention.output.LayerNorm.bias"][5] = 30000
    weights["encoder.layer.0.intermediate.dense.weight"][:, 5] = 0
    weights["encoder.layer.0.output.dense.weight"][5] = 0
    weights["encoder.layer.0.output.dense.bias"][5] = 60000


def product_of_90000(weights: dict[str, np.ndarray]) -> None:
    """300 times 300 inside a matrix product: beyond 65504 in any fp16 graph, ours too."""
    weights["encoder.layer.0.intermediate.dense.weight"][7] = 0
    weights["encoder.layer.0.intermediate.dense.bias"][7] = 300
    weights["encoder.layer.0.output.dense.weight"][5, 7] = 300


@pytest.mark.parametrize(("change", "encoder"), [(residual_sum_of_90000, PlainHalf), (product_of_90000, HalfEncoder)])
def test_an_fp16_overflow_fails_and_leaves_nothing(
    change: Callable[[dict[str, np.ndarray]], None],
    encoder: type[HalfEncoder],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sentences: list[tuple[str, str]],
) -> None:
    from safetensors.numpy import load_file, save_file

    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    weights = load_file(source / "model.safetensors")
    change(weights)
    assert max(float(np.abs(array).max()) for array in weights.values()) < 65504  # each weight is an fp16 number
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("mexma_export.half.HalfEncoder", encoder)
    monkeypatch.setattr(
        "mexma_export.half.export_standard",
        lambda model, path, head, *, half, opset: export_traced(encoder(model, head), path),
    )
    with pytest.raises(ParityError) as caught:
        export_bundle(
            source,
            tmp_path / "bundle",
            precisions=["fp16"],
            sentences=[Sentence(lang=lang, text=text) for lang, text in sentences],
        )
    assert str(caught.value).startswith("The fp16 ") and "lowest cosine nan, threshold 0.9999;" in str(caught.value)
    assert "a row of padding alone gives NaN or infinite numbers" in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


def test_broken_fp32_graph_fails_even_when_int8_is_right(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[tuple[str, str]]
) -> None:
    def export_broken(model: Any, path: Path, head: Any, *, opset: int) -> None:
        export_traced(MeanPooling(model), path)

    monkeypatch.setattr("mexma_export.graphs.export_standard", export_broken)
    with pytest.raises(ParityError, match=r"The fp32 graph .* What to try: --precision int8 writes the bundle without"):
        export_bundle(
            tiny_checkpoint, tmp_path / "bundle", sentences=[Sentence(lang=lang, text=text) for lang, text in sentences]
        )
    assert list(tmp_path.iterdir()) == []


def test_force_keeps_the_old_bundle_when_the_gate_fails(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[tuple[str, str]]
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "mexma.json").write_text("old", encoding="utf-8")
    monkeypatch.setattr(
        "mexma_export.rows.export_rows", lambda model, path, forms, rows, head: export_traced(MeanPooling(model), path)
    )
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
