"""The int8 graph: rows rounded by the formula, the same in torch and onnxruntime, and sums that no CPU saturates."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exports need torch (pip: mexma-rt[export])")
onnx = pytest.importorskip("onnx", reason="reads the graphs with onnx (pip: mexma-rt[export])")
import onnxruntime  # noqa: E402

from mexma_export.blockwise import WORDS_WEIGHT, Form, product_names  # noqa: E402
from mexma_export.checkpoint import load_checkpoint  # noqa: E402
from mexma_export.precisions import torch_runner  # noqa: E402
from mexma_export.reopen import open_graph  # noqa: E402
from mexma_export.rows import FLOAT, ROWS, RowProduct, export_rows, row_product  # noqa: E402
from mexma_export.sensitivity import EXACT, GROUPS, calibration, choose_forms, rounded, row_products  # noqa: E402
from mexma_export.sentences import Sentence  # noqa: E402
from mexma_export.verdict import THRESHOLDS, Thresholds  # noqa: E402
from mexma_rt.bundle.rows import LOWEST_GELU  # noqa: E402


def weights_and_inputs(columns: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A weight [40, K] and inputs [9, K] of which two dimensions are far larger than the others."""
    rng = np.random.default_rng(3)
    inputs = rng.standard_normal((9, columns)).astype(np.float32)
    inputs[:, [4, 17]] *= 60
    return rng.standard_normal((40, columns)).astype(np.float32), inputs


def test_a_smoothed_product_follows_the_formula_in_float64() -> None:
    weight, inputs = weights_and_inputs()
    other = 3 * weight[::-1]
    product = row_product(weight, largest=np.abs(inputs).max(axis=0), weights=[weight, other], shift=0)
    peaks = np.maximum(np.abs(weight).max(axis=0), np.abs(other).max(axis=0)).astype(np.float64)
    smoothing = np.abs(inputs).max(axis=0).astype(np.float64) ** 0.6 / peaks**0.4
    assert product.smoothing is not None
    np.testing.assert_allclose(product.smoothing, smoothing, rtol=1e-5)
    steps = np.abs(weight * smoothing).max(axis=1, keepdims=True) / 127
    assert np.abs(product.divided - weight * smoothing).max() <= 0.501 * steps.max()
    divided = inputs / smoothing
    row_steps = np.abs(divided).max(axis=1, keepdims=True) / 127
    wanted = np.round(divided / row_steps) * row_steps * smoothing
    np.testing.assert_allclose(product.round_input(torch.from_numpy(inputs)), wanted, rtol=1e-4, atol=1e-5)


def test_smoothing_is_what_large_dimensions_need() -> None:
    weight, inputs = weights_and_inputs()
    exact = inputs.astype(np.float64) @ weight.T
    errors = []
    for largest in (None, np.abs(inputs).max(axis=0)):
        product = row_product(weight, largest=largest, weights=[weight], shift=0)
        got = product.round_input(torch.from_numpy(inputs)).numpy() @ product.numbers.T
        errors.append(float(np.sqrt(((got - exact) ** 2).mean())))
    assert errors[1] < 0.5 * errors[0]


def test_gelu_is_nowhere_below_the_shift_and_gains_a_bit_by_it() -> None:
    x = np.linspace(-6, 6, 200_001)
    gelu = np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])
    assert -LOWEST_GELU < gelu.min() < -LOWEST_GELU + 1e-3
    rng = np.random.default_rng(0)
    values = rng.choice(gelu, (50, 64)).astype(np.float32)
    weight = rng.standard_normal((8, 64)).astype(np.float32)
    errors = []
    for shift in (0.0, LOWEST_GELU):
        product = row_product(weight, largest=None, weights=[weight], shift=shift)
        errors.append(float(np.abs(product.round_input(torch.from_numpy(values)).numpy() - values).mean()))
    assert errors[1] < 0.6 * errors[0]


def test_the_imitation_in_torch_is_what_onnxruntime_computes(
    tiny_checkpoint: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    source = load_checkpoint(tiny_checkpoint)
    run = torch_runner(source)
    rows = row_products(source.model, run, calibration(source.tokenizer, [Sentence(lang=a, text=b) for a, b in sentences]))
    names = product_names(source.model)
    assert {name for name in names if rows[name].shift} == {name for name in names if name.endswith("output.dense.weight")} - {
        name for name in names if "attention" in name
    }
    forms = {WORDS_WEIGHT: EXACT} | dict.fromkeys(names, ROWS)
    export_rows(source.model, tmp_path / "int8.onnx", forms, rows)
    graph, held = open_graph(tmp_path / "int8.onnx"), {(name, ROWS): product for name, product in rows.items()}
    kinds = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert "MatMulIntegerToFloat" in kinds and "MatMul" not in kinds
    shares = []
    for _, text in sentences:
        ids = np.array([source.tokenizer.encode(text).ids])
        with rounded(source.model, forms, dict(held)):
            wanted = run(ids, ids * 0 + 1)[0].astype(np.float64)
        got, plain = graph(ids, ids * 0 + 1)[0].astype(np.float64), run(ids, ids * 0 + 1)[0].astype(np.float64)

        def apart(a: np.ndarray, b: np.ndarray) -> float:
            return 1 - float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))

        shares.append(apart(got, wanted) / apart(got, plain))
    assert np.median(shares) < 1e-4  # the same arithmetic
    assert np.mean(np.array(shares) < 0.05) > 0.7  # a tie of rounding may fall otherwise, and here moves a whole row of 32


def test_products_that_cost_too_much_stay_in_float(
    tiny_checkpoint: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    source = load_checkpoint(tiny_checkpoint)
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]

    def search(limits: Thresholds) -> tuple[dict[str, Form], dict[str, RowProduct]]:
        return choose_forms(source.model, torch_runner(source), source.tokenizer, rows, limits, precision="int8")

    lenient, products = search(Thresholds(min_cosine=0.9, mean_cosine=0.9))
    assert [lenient[name] for name in product_names(source.model)] == [ROWS] * 18 and len(products) == 18
    chosen, products = search(THRESHOLDS["int8"])
    assert {*chosen.values()} <= {ROWS, FLOAT, GROUPS}
    export_rows(source.model, tmp_path / "int8.onnx", chosen, products)
    graph, run = open_graph(tmp_path / "int8.onnx"), torch_runner(source)
    for _, text in sentences:
        ids = np.array([source.tokenizer.encode(text).ids])
        a, b = graph(ids, ids * 0 + 1)[0].astype(np.float64)[0], run(ids, ids * 0 + 1)[0].astype(np.float64)[0]
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.995


def test_weights_made_unsigned_for_cpus_without_vnni_give_the_same_bits(
    tiny_checkpoint: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    """What the runtime asks of onnxruntime there: signed weights would be summed in 16 bits, 255 * 127 * 2 > 32767."""
    source = load_checkpoint(tiny_checkpoint)
    rows = row_products(
        source.model, torch_runner(source), calibration(source.tokenizer, [Sentence(lang=a, text=b) for a, b in sentences])
    )
    forms = {WORDS_WEIGHT: GROUPS} | dict.fromkeys(product_names(source.model), ROWS)
    export_rows(source.model, tmp_path / "int8.onnx", forms, rows)
    vectors = []
    for setting in ("0", "1"):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", setting)
        options.optimized_model_filepath = str(tmp_path / f"{setting}.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", options, providers=["CPUExecutionProvider"])
        ids = np.array([source.tokenizer.encode(sentences[0][1]).ids])
        vectors.append(session.run(None, {"input_ids": ids, "attention_mask": ids * 0 + 1})[0])
    np.testing.assert_array_equal(*vectors)
