"""The graphs w4 and w8: exact where weights lie on the grid, forms chosen by what they cost, no row disturbed by its mates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exports need torch (pip: mexma-rt[export])")
onnx = pytest.importorskip("onnx", reason="reads the graphs with onnx (pip: mexma-rt[export])")

from safetensors.numpy import load_file, save_file  # noqa: E402

from mexma_export import Sentence, export_bundle  # noqa: E402
from mexma_export.blockwise import WORDS_WEIGHT, Form, export_blocks, product_names  # noqa: E402
from mexma_export.checkpoint import load_checkpoint  # noqa: E402
from mexma_export.precisions import torch_runner  # noqa: E402
from mexma_export.rebuild import rebuild_checkpoint  # noqa: E402
from mexma_export.sensitivity import COARSE, EXACT, choose_forms, rounded  # noqa: E402
from mexma_rt import load  # noqa: E402


@pytest.fixture(scope="module")
def grid_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with words and products on a grid of ggml's Q4_0, as an encoder taken from a 4-bit file has them."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("grid") / "grid"))
    weights = load_file(folder / "model.safetensors")
    for name, array in weights.items():
        if name == WORDS_WEIGHT or (name.startswith("encoder.") and array.ndim == 2):
            blocks = array.reshape(-1, 32)
            top = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)]
            scale = (top / -8).astype(np.float16).astype(np.float32)[:, None]
            steps = np.clip(np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)), -8, 7)
            weights[name] = (steps * scale).reshape(array.shape)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def grid_bundle(grid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    target = tmp_path_factory.mktemp("grid-bundle") / "grid"
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    export_bundle(grid_checkpoint, target, precisions=["w4"], weights=False, sentences=rows)
    return target


def nodes(graph: Any) -> Iterator:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes(attribute.g) if attribute.HasField("g") else ()


def test_weights_on_a_grid_are_held_bit_for_bit_in_four_bits(grid_checkpoint: Path, grid_bundle: Path, tmp_path: Path) -> None:
    source = load_file(grid_checkpoint / "model.safetensors")
    again = load_file(rebuild_checkpoint(grid_bundle, tmp_path / "again") / "model.safetensors")
    assert again.keys() == source.keys()
    for name, array in source.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    graph = onnx.load(grid_bundle / "onnx/model_w4.onnx").graph
    held = {t.name: t for t in graph.initializer}
    products = [name for name, array in source.items() if name.startswith("encoder.") and array.ndim == 2]
    for name in products:
        assert 2 * len(held[f"{name}.steps4"].raw_data) == source[name].size
    assert 2 * len(held[f"{WORDS_WEIGHT}.steps4"].raw_data) == source[WORDS_WEIGHT].size
    kinds = [node.op_type for node in nodes(graph)]
    # q, k, v, out, up, down of two layers; of the last one k, v, and in each branch q, out, up, down
    assert kinds.count("MatMulNBits") == 2 * 6 + 2 + 2 * 4 and kinds.count("GatherBlockQuantized") == 1
    assert "MatMul" not in kinds and kinds.count("MultiHeadAttention") == 4


def test_vectors_of_the_rebuilt_checkpoint_are_the_graphs_but_for_the_rounding_of_inputs(
    grid_bundle: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    texts = [text for _, text in sentences]
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    rebuilt = rebuild_checkpoint(grid_bundle, tmp_path / "again")
    source = load_checkpoint(rebuilt)
    names = product_names(source.model)
    wanted = load(grid_bundle).embed(texts)
    # level 0 rounds no input: nothing is left to differ
    forms = dict.fromkeys([WORDS_WEIGHT, *names], EXACT)
    export_blocks(source.model, tmp_path / "exact.onnx", forms)
    from mexma_export.reopen import open_graph

    run, exact = torch_runner(source), open_graph(tmp_path / "exact.onnx")
    encodings = [np.array([e.ids]) for e in source.tokenizer.encode_batch(texts)]
    for ids in encodings:
        np.testing.assert_allclose(exact(ids, ids * 0 + 1)[0], run(ids, ids * 0 + 1)[0], atol=2e-5)
    export_bundle(rebuilt, tmp_path / "bundle", precisions=["w4"], sentences=rows, weights=False)
    np.testing.assert_allclose(load(tmp_path / "bundle").embed(texts), wanted, atol=1e-6)


@pytest.mark.parametrize("precision", ["w4", "w8"])
def test_a_checkpoint_off_the_grid_gets_the_forms_that_its_gate_needs(
    precision: str, tiny_checkpoint: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    report = export_bundle(tiny_checkpoint, tmp_path / "bundle", precisions=[precision], weights=False, sentences=rows)
    assert report.default_precision == precision and report.parity[precision].passed
    products = json.loads((tmp_path / "bundle/parity.json").read_text())["products"][precision]
    names = {name for part in products.values() for name in part}
    assert sum(map(len, products.values())) == len(names) == 1 + 3 * 6
    assert any(form.startswith("8 bits") for form in products)  # 4 bits alone gave 0.986


def test_the_search_leaves_cheap_what_costs_nothing(grid_checkpoint: Path, sentences: list[tuple[str, str]]) -> None:
    from mexma_export.verdict import THRESHOLDS, Thresholds

    source = load_checkpoint(grid_checkpoint)
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    before = {name: parameter.detach().clone() for name, parameter in source.model.named_parameters()}

    def search(limits: Thresholds) -> dict[str, Form]:
        return choose_forms(source.model, torch_runner(source), source.tokenizer, rows, limits, precision="w4")[0]

    names = product_names(source.model)
    assert search(THRESHOLDS["w4"]) == {WORDS_WEIGHT: EXACT} | dict.fromkeys(names, COARSE)
    stricter = search(Thresholds(min_cosine=0.99999, mean_cosine=0.999996))
    kinds = [stricter[name] for name in names]
    assert 0 < kinds.count(EXACT) < len(names)  # some inputs stay rounded, and some may not be
    assert search(Thresholds(min_cosine=1.0, mean_cosine=1.0)) == dict.fromkeys([WORDS_WEIGHT, *names], EXACT)
    for name, parameter in source.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_the_imitation_in_torch_is_what_onnxruntime_computes(
    tiny_checkpoint: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    from mexma_export.reopen import open_graph

    source = load_checkpoint(tiny_checkpoint)
    forms = {WORDS_WEIGHT: EXACT} | dict.fromkeys(product_names(source.model), COARSE)
    export_blocks(source.model, tmp_path / "w4.onnx", forms)
    run, graph = torch_runner(source), open_graph(tmp_path / "w4.onnx")
    for _, text in sentences:
        ids = np.array([source.tokenizer.encode(text).ids])
        with rounded(source.model, forms):
            wanted = run(ids, ids * 0 + 1)[0].astype(np.float64)
        got, plain = graph(ids, ids * 0 + 1)[0].astype(np.float64), run(ids, ids * 0 + 1)[0].astype(np.float64)

        def apart(a: np.ndarray, b: np.ndarray) -> float:
            return 1 - float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))

        assert apart(got, wanted) < 0.05 * apart(got, plain)  # a tie of rounding may fall otherwise


@pytest.mark.parametrize("precision", ["w4", "w8", "int8"])
def test_equal_texts_get_equal_vectors_whatever_their_batch_mates(
    precision: str, grid_checkpoint: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    """To the last digits: scales are taken by row, so nothing of another text enters; sums may be in another order."""
    texts = [text for _, text in sentences]
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    export_bundle(grid_checkpoint, tmp_path / "bundle", precisions=[precision], weights=False, sentences=rows)
    encoder = load(tmp_path / "bundle", threads=1)
    loud = "!? " * 40  # a mate with other activations and more padding
    together = encoder.embed([*texts, loud])[: len(texts)]
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_allclose(encoder.embed([text])[0], row, atol=1e-6)
        np.testing.assert_allclose(encoder.embed([loud, text])[1], row, atol=1e-6)


def test_int8_is_built_from_weights_on_a_grid(
    grid_checkpoint: Path, grid_bundle: Path, tmp_path: Path, sentences: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime's int8 graph of a w4 bundle gives the vectors of the one that mexma-export writes of the checkpoint."""
    monkeypatch.setenv("MEXMA_RT_CACHE", str(tmp_path / "cache"))
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    report = export_bundle(grid_checkpoint, tmp_path / "int8", precisions=["int8"], weights=False, sentences=rows)
    texts = [text for _, text in sentences]
    wanted = load(tmp_path / "int8", device="cpu").embed(texts)
    encoder = load(grid_bundle, precision="int8", device="cpu")
    assert "built from the bundle's w4 graph" in encoder.backend.reason
    assert ((encoder.embed(texts) * wanted).sum(axis=1) > 0.9999).all()
    parity = json.loads((grid_bundle / "parity.json").read_text())
    assert parity["int8 built from w4"]["passed"] and report.parity["int8"].passed
    assert parity["int8 built from w4"]["min_cosine"] > 0.995
    assert (grid_bundle / "structure/int8.onnx").stat().st_size < 60_000


def test_int8_is_not_built_from_weights_that_w4_rounds(
    tiny_checkpoint: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    export_bundle(tiny_checkpoint, tmp_path / "bundle", precisions=["w4"], weights=False, sentences=rows)
    assert not (tmp_path / "bundle/structure/int8.onnx").exists() and (tmp_path / "bundle/structure/fp16.onnx").exists()
