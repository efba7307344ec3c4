"""The torch back end against onnxruntime's fp32 graph of the same bundle, what it refuses, and when "auto" takes it.

No GPU here: `choose` and `flash` play CUDA's answers; what CUDA computes is compared below (gpu).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mexma_rt import BackendError, BundleError, InputError, MissingExtraError, load
from mexma_rt.backends import open_backend
from mexma_rt.backends import torch as module
from mexma_rt.bundle import Bundle, open_bundle

torch = pytest.importorskip("torch", reason="the torch back end needs torch: pip install 'mexma-rt[torch]'")


@pytest.fixture(scope="module")
def pair(tiny_bundle: Path) -> tuple[Any, Any]:
    return load(tiny_bundle, backend="torch", device="cpu"), load(tiny_bundle, device="cpu", precision="fp32")


def test_vectors_are_those_of_the_fp32_graph(pair: tuple[Any, Any], sentences: list[tuple[str, str]]) -> None:
    ours, graph = pair
    texts = [text for _, text in sentences] + ["", "a", " ".join(text for _, text in sentences) * 3]
    vectors = ours.embed_report(texts, normalize=False).vectors
    expected = graph.embed_report(texts, normalize=False).vectors
    assert vectors.dtype == np.float32 and np.abs(expected).max() > 0.5
    np.testing.assert_allclose(vectors, expected, atol=2e-5)
    cosines = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999999


def test_any_batch_gives_the_same_vectors_and_small_ones_too(pair: tuple[Any, Any], sentences: list[tuple[str, str]]) -> None:
    ours, _ = pair
    texts = [text for _, text in sentences]
    np.testing.assert_allclose(ours.embed(texts, batch_tokens=1), ours.embed(texts, batch_tokens=10_000), atol=1e-6)


def test_a_pad_inside_a_sentence_counts_as_in_the_graph(pair: tuple[Any, Any]) -> None:
    ours, graph = pair
    ids = np.array([[0, 9, 1, 12, 2], [0, 7, 2, 1, 1]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    np.testing.assert_allclose(ours.backend.run(ids, mask), graph.backend.run(ids, mask), atol=2e-5)


def test_token_states_are_those_of_the_fp32_graph(pair: tuple[Any, Any], sentences: list[tuple[str, str]]) -> None:
    ours, graph = pair
    texts = [text for _, text in sentences[:6]]
    for a, b in zip(ours.embed_tokens(texts), graph.embed_tokens(texts), strict=True):
        assert a.offsets.tolist() == b.offsets.tolist()
        np.testing.assert_allclose(a.vectors, b.vectors, atol=2e-5)


def test_what_runs_and_why(pair: tuple[Any, Any]) -> None:
    backend = pair[0].backend
    assert (backend.name, backend.device, backend.precision, backend.lanes) == ("torch", "cpu", "fp32", 1)
    assert backend.reason == (
        "backend='torch' was named; fp32, its precision on the cpu; 5 golden sentences: lowest cosine 1.000000, needed 0.99999"
    )


def test_auto_device_without_a_gpu(tiny_bundle: Path) -> None:
    backend = open_backend(open_bundle(tiny_bundle), backend="torch")
    assert backend.device == "cpu" and "torch sees no GPU" in backend.reason


# ---- what is refused


def test_what_cannot_run_says_what_to_type(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(tiny_bundle)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match=r"cannot run on cuda: torch \S+ (is built without|has) CUDA(?s:.*)nvidia-smi"):
        open_backend(bundle, backend="torch", device="cuda")
    with pytest.raises(BackendError, match=r"computes in fp32 on cpu, not in fp16\. Name that, or leave precision out"):
        open_backend(bundle, backend="torch", device="cpu", precision="fp16")
    with pytest.raises(BackendError, match="computes in fp32 on cpu, not in int8"):
        open_backend(bundle, backend="torch", device="cpu", precision="int8")
    with pytest.raises(InputError, match=r"type torch.set_num_threads\(3\) before loading"):
        open_backend(bundle, backend="torch", device="cpu", threads=3)
    files = {name: entry for name, entry in bundle.files.items() if name != "model.safetensors"}
    rebuild = re.escape(f"mexma-export rebuild {bundle.folder} tiny-checkpoint\n    mexma-export tiny-checkpoint")
    with pytest.raises(BackendError, match=rf"the bundle 'tiny' has none(?s:.*){rebuild}"):
        open_backend(dataclasses.replace(bundle, files=files), backend="torch")
    elsewhere = dataclasses.replace(bundle, folder=tmp_path, revision="0" * 40)
    with pytest.raises(BackendError, match=rf"was not fetched(?s:.*)hf download ORGANISATION/tiny --revision {'0' * 40}"):
        open_backend(elsewhere, backend="torch")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else found(name, *rest))
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'mexma-rt[torch]'")):
        open_backend(bundle, backend="torch")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model_type": "bert"}, BackendError, "computes encoders with model_type 'xlm-roberta', but 'tiny' has 'bert'"),
        ({"hidden_act": "relu"}, BackendError, "with hidden_act 'gelu', but 'tiny' has 'relu'"),
        ({"num_hidden_layers": 4}, BundleError, r"lacks 16 tensors.*first: encoder\.layer\.3\.attention"),
        ({"intermediate_size": 65}, BundleError, r"or has them in another shape \(first: encoder.layer.0.intermediate"),
        ({"num_attention_heads": "4"}, BundleError, "num_attention_heads is '4'"),
        ({"layer_norm_eps": 0}, BundleError, "layer_norm_eps is 0"),
    ],
)
def test_a_configuration_of_another_encoder(
    tiny_bundle: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    bundle = dataclasses.replace(open_bundle(tiny_bundle), folder=folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(error, match=words):
        open_backend(bundle, backend="torch", device="cpu")


def test_damaged_weights(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    bundle = dataclasses.replace(open_bundle(tiny_bundle), folder=tmp_path / "bundle")
    (tmp_path / "bundle" / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(BundleError, match=r"model\.safetensors cannot be read"):
        open_backend(bundle, backend="torch", device="cpu")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", "Type a smaller batch_tokens, or free the GPU"),
        (
            "CUDA error: no kernel image is available for execution on the device",
            "has no kernels for this GPU. Install a build",
        ),
        ("CUDA error: unspecified launch failure", "otherwise check the GPU: nvidia-smi"),
    ],
)
def test_errors_of_cuda_while_running_become_ours(tiny_bundle: Path, said: str, words: str) -> None:
    backend = open_backend(open_bundle(tiny_bundle), backend="torch", device="cpu")

    def fails(*arguments: Any) -> None:
        raise RuntimeError(said)

    backend._encoder = fails  # type: ignore[attr-defined]
    message = rf"failed on a batch of 2 sentences, 7 tokens, on cpu: {re.escape(said)}\n.*{re.escape(words)}"
    with pytest.raises(BackendError, match=message):
        backend.run(np.array([[0, 5, 6, 2], [0, 7, 2, 1]]), np.array([[1, 1, 1, 1], [1, 1, 1, 0]]))


# ---- what it takes on CUDA


def test_how_it_attends_on_cuda_and_why() -> None:
    def fake(capability: tuple[int, int]) -> Any:
        return SimpleNamespace(__version__="2.13.0", cuda=SimpleNamespace(get_device_capability=lambda where: capability))

    assert module._attention(fake((9, 0)), "cuda:0", "fp16", 64) == ("varlen", "flash attention without padding")
    assert module._attention(fake((9, 0)), "cuda:0", "fp32", 64)[0] == "padded"
    way, why = module._attention(fake((7, 5)), "cuda:0", "fp16", 64)
    assert way == "padded" and "compute capability 8.0 and this GPU has (7, 5)" in why
    assert (
        module._attention(fake((9, 0)), "cuda:0", "fp16", 20)[1]
        == "attention is padded, because flash attention has no heads of 20"
    )


def test_the_index_of_a_gpu_must_exist() -> None:
    two = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True, device_count=lambda: 2), __version__="2.13.0")
    assert module._device(two, "cuda") == ("cuda:0", "")
    assert module._device(two, "cuda:1") == ("cuda:1", "")
    with pytest.raises(BackendError, match="There is no cuda:2: torch sees 2 GPUs, counted from cuda:0"):
        module._device(two, "cuda:2")


# ---- when auto takes it


@pytest.fixture
def gpu_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with a GPU that torch can use (its work is done on the CPU) and onnxruntime cannot; gives what was opened."""
    opened = []

    class OnGpu(module.Torch):
        def __init__(self, bundle: Bundle, *, device: str, precision: str, threads: int | None, reason: str) -> None:
            super().__init__(bundle, device="cpu", precision="auto", threads=None, reason=reason)
            opened.append(device)

    monkeypatch.setattr(module, "device_sm", lambda: 90)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cu130")
    monkeypatch.setattr(module, "Torch", OnGpu)
    return opened


@pytest.mark.parametrize("arguments", [{}, {"device": "cuda"}])
def test_auto_takes_torch_on_a_gpu_where_onnxruntime_has_no_cuda(
    tiny_bundle: Path, gpu_here: list[str], arguments: dict[str, Any]
) -> None:
    backend = open_backend(open_bundle(tiny_bundle), **arguments)
    assert backend.name == "torch" and gpu_here == ["cuda"]
    assert "The installed onnxruntime has no CUDA" in backend.reason


def test_auto_tries_torch_for_the_bundled_model_too(gpu_here: list[str]) -> None:
    """It has no model.safetensors, but a graph with all weights: with torch alone as CUDA it would run on the CPU otherwise."""
    bundle = open_bundle("mexma-small")
    assert "model.safetensors" not in bundle.files and module.why_not_torch(bundle) is None


def test_auto_takes_onnxruntime_on_cuda_before_torch(
    tiny_bundle: Path, gpu_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = SimpleNamespace(name="onnxruntime")
    monkeypatch.setattr("mexma_rt.backends._open", lambda *arguments, **keywords: opened)
    assert open_backend(open_bundle(tiny_bundle)) is opened and not gpu_here


def test_auto_leaves_a_torch_that_computes_other_vectors_than_the_bundles(
    tiny_bundle: Path, tmp_path: Path, gpu_here: list[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / "mexma.json").read_text(encoding="utf-8"))
    manifest["golden"]["vectors"][2] = (-np.array(manifest["golden"]["vectors"][2])).tolist()
    (folder / "mexma.json").write_text(json.dumps(manifest), encoding="utf-8")
    backend = load(folder).backend
    assert gpu_here == ["cuda"] and (backend.name, backend.device) == ("onnxruntime", "cpu")
    assert "torch was refused (torch computes wrong vectors in fp32 on cpu: over 5 golden sentences" in backend.reason
    with pytest.raises(BackendError, match=r"lowest cosine is -1\.0\d+, but 0\.99999 is needed"):
        load(folder, backend="torch", device="cpu")


def test_auto_says_why_torch_is_left_out(tiny_bundle: Path, gpu_here: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(tiny_bundle)
    files = {name: entry for name, entry in bundle.files.items() if name != "model.safetensors"}
    backend = open_backend(dataclasses.replace(bundle, files=files))
    assert backend.name == "onnxruntime" and "torch was refused (backend='torch' reads model.safetensors, but" in backend.reason
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cpu")
    assert "torch was refused (torch 2.13.0+cpu is built without CUDA)" in open_backend(bundle).reason
    with pytest.raises(BackendError, match="built without CUDA"):
        open_backend(bundle, device="cuda")
    assert not gpu_here


def test_named_onnxruntime_or_precisions_of_the_cpu_never_try_torch(tiny_bundle: Path, gpu_here: list[str]) -> None:
    bundle = open_bundle(tiny_bundle)
    assert open_backend(bundle, backend="onnxruntime").device == "cpu"
    assert open_backend(bundle, precision="int8").device == "cpu"
    with pytest.raises(BackendError, match="has no CUDA"):
        open_backend(bundle, backend="onnxruntime", device="cuda")
    assert not gpu_here


def test_a_machine_without_a_driver_does_not_hear_of_torch(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise BackendError("no driver")

    monkeypatch.setattr(module, "device_sm", none)
    assert "torch" not in open_backend(open_bundle(tiny_bundle)).reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("precision", "lowest"), [("fp16", 0.9999), ("fp32", 0.99999)])
def test_vectors_on_a_real_gpu(tiny_bundle: Path, sentences: list[tuple[str, str]], precision: str, lowest: float) -> None:
    texts = [text for _, text in sentences] * 50
    gpu = load(tiny_bundle, backend="torch", device="cuda", precision=precision)
    expected = load(tiny_bundle, device="cpu", precision="fp32").embed(texts)
    assert (gpu.embed(texts) * expected).sum(axis=1).min() > lowest


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_auto_runs_the_bundled_model_on_a_real_gpu(sentences: list[tuple[str, str]]) -> None:
    texts = [text for _, text in sentences]
    encoder = load()
    assert encoder.backend.device == "cuda", encoder.backend.reason
    assert (encoder.embed(texts) * load(device="cpu").embed(texts)).sum(axis=1).min() > 0.99  # w4 rounds inputs of products
