"""What TensorRT-RTX makes of the fp16 graph: its layer list says whether attention became one kernel. No GPU is needed.

ONNX has an operator `Attention` since opset 23. It is built here too, as the yardstick: when it needs fewer kernels than the
graph that mexma-export writes, its time has come, and this test fails. (Its softmax has the precision of its inputs, fp16: the
parser of version 1.7 refuses to be told another one.)
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="part of mexma-rt[export]")
onnx = pytest.importorskip("onnx", reason="part of mexma-rt[export]")
transformers = pytest.importorskip("transformers", reason="part of mexma-rt[export]")
pytest.importorskip("tensorrt_rtx", reason="builds engines with tensorrt_rtx: pip install 'mexma-rt[rtx]'")

import tensorrt_rtx as trt  # noqa: E402

from mexma_export import engines  # noqa: E402
from mexma_export.engines import build_engine, parse_profiles  # noqa: E402
from mexma_export.fused import save_graph  # noqa: E402
from mexma_export.graphs import StandardWriter  # noqa: E402

LAYERS, PROFILES = 4, "1x32,8x64,512x32,32x512"
NO_WORK = ("shape_call", "signal", "wait")


class WithAttention(StandardWriter):
    """The same graph, but attention is one operator."""

    def layer(self, layer: str, states: str, padding: str) -> str:
        if "keep" not in self.tensors and not any(node.output[0] == "keep" for node in self.nodes):
            self.node("Not", [padding], "keep")
        self.mixed = f"{layer}/mixed"
        return super().layer(layer, states, padding)

    def node(self, kind: str, inputs: Any, output: str, **more: Any) -> str:
        if output == getattr(self, "mixed", None):
            name = output.removesuffix("/mixed") + ".attention.self."
            turned = self.node("Transpose", [f"{name}key/heads"], f"{name}key/rows", perm=[0, 2, 1, 3])
            inputs = [f"{name}query/turned", turned, f"{name}value/turned", "keep"]
            return super().node("Attention", inputs, output)
        return super().node(kind, inputs, output, **more)


class Listening(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.kernels: dict[str, list[str]] = defaultdict(list)  # profile -> names

    def log(self, severity: Any, message: str) -> None:
        for name, kind in re.findall(r"^Name: (.*?), LayerType: (\w+),", message, re.MULTILINE):
            if kind not in NO_WORK:
                self.kernels[re.findall(r"_myl(\d+)_\d+$", name)[0]].append(name)


def kernels(
    writer: type[StandardWriter], opset: int, folder: Path, sm: int, monkeypatch: pytest.MonkeyPatch
) -> list[list[str]]:
    """The kernels of each profile of an engine for one architecture."""
    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(
        vocab_size=400,
        hidden_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,  # heads of 64, as XLM-R has them
        intermediate_size=1024,
        max_position_embeddings=514,
        type_vocab_size=1,
    )
    model = transformers.XLMRobertaModel(config, add_pooling_layer=False).eval()
    save_graph(writer(model, half=True, opset=opset), folder / "model_fp16.onnx")
    log, add_profile = Listening(), engines._add_profile

    def in_detail(builder: Any, config: Any, *rest: Any) -> None:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else there is no list
        add_profile(builder, config, *rest)

    monkeypatch.setattr(engines, "new_logger", lambda module: log)
    monkeypatch.setattr(engines, "_add_profile", in_detail)
    profiles = parse_profiles(PROFILES)
    build_engine(folder / "model_fp16.onnx", folder / "e", engine="rtx", length_limit=512, sm=[sm], profiles=profiles)
    assert len(log.kernels) == len(profiles)
    return list(log.kernels.values())


@pytest.mark.engines
@pytest.mark.parametrize("sm", [80, 86, 89, 120])
def test_attention_is_one_kernel_in_every_layer_and_profile(tmp_path: Path, sm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = kernels(StandardWriter, 18, tmp_path, sm, monkeypatch)
    assert [sum("mha" in name for name in names) for names in found] == [LAYERS] * 4
    assert not [name for names in found for name in names if re.search(r"Exp|Softmax", name)]  # of a softmax by itself


@pytest.mark.engines
def test_the_attention_operator_needs_more_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    ours = kernels(StandardWriter, 18, tmp_path / "ours", 89, monkeypatch)
    theirs = kernels(WithAttention, 23, tmp_path / "theirs", 89, monkeypatch)
    assert [sum("mha" in name for name in names) for names in theirs] == [LAYERS] * 4
    assert np.less([len(names) for names in ours], [len(names) for names in theirs]).all()
