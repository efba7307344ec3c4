"""The scan on devices, with torch's CPU and with numpy in cupy's place: the bytes of the CPU's search in any precision."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mexma_rt import BackendError, InputError, MissingExtraError
from mexma_rt.knn import blocks, gpu, search
from mexma_rt.knn.blocks import Device
from mexma_rt.knn.exact import lengths, rounded, rounding, scan_error
from mexma_rt.knn.search import mutual_neighbours, unit_rows

RANDOM = np.random.default_rng(8)
X, Y = unit_rows(RANDOM.standard_normal((500, 24))), unit_rows(RANDOM.standard_normal((700, 24)))


def torch_arrays(precision: str = "float16") -> Any:
    pytest.importorskip("torch", reason="torch's CPU is the device")
    return gpu.TorchArrays("cpu", precision)


def device(arrays: tuple[Any, ...], precision: str = "float16", spare: int = gpu.SPARE) -> Device:
    return Device(scan=gpu.scan_on(arrays), name="test", reason="test", precision=precision, spare=spare)


def use(monkeypatch: pytest.MonkeyPatch, where: Device) -> None:
    monkeypatch.setattr(search, "choose_device", lambda name: where)


def assert_same(x: np.ndarray, y: np.ndarray, k: int, expected: tuple[np.ndarray, ...], **keywords: Any) -> int:
    found = search.neighbours(x, y, k, device="cuda", **keywords)
    for array, true in zip((found.scores_xy, found.index_xy, found.scores_yx, found.index_yx), expected, strict=True):
        np.testing.assert_array_equal(array, true)
    return found.computed_anew


@pytest.mark.parametrize("memory", [1 << 22, 1 << 28])
@pytest.mark.parametrize("kind", ["torch", "bfloat16", "two devices", "numpy"])
def test_the_bytes_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch, kind: str, memory: int) -> None:
    expected = mutual_neighbours(X, Y, 5)
    if kind == "numpy":
        where = device((gpu.CupyArrays(np),))
    elif kind == "bfloat16":
        where = device((torch_arrays("bfloat16"),), "bfloat16")
    else:
        where = device((torch_arrays(),) * (2 if kind == "two devices" else 1))
    use(monkeypatch, where)
    anew = assert_same(X, Y, 5, expected, memory_bytes=memory)
    assert anew < 1200 if kind == "bfloat16" else anew < 60  # proved for nearly all rows, with candidates to spare


def test_rows_that_are_not_proved_are_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    x = X[:60].copy()
    y = unit_rows(np.repeat(X[:20], 30, axis=0) + 1e-3 * RANDOM.standard_normal((600, 24)))  # nearer than half precision sees
    expected = mutual_neighbours(x, y, 4)
    exact = np.argsort(-(x.astype(np.float64) @ y.astype(np.float64).T).astype(np.float32), axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(expected[1], exact)
    use(monkeypatch, device((torch_arrays(),)))
    assert assert_same(x, y, 4, expected) >= 20
    use(monkeypatch, device((torch_arrays(),), spare=1))
    assert assert_same(x, y, 4, expected) >= 20


def test_without_the_proof_half_precision_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above can fail: what the scan alone gives is not the truth."""
    y = unit_rows(np.repeat(X[:20], 30, axis=0) + 1e-3 * RANDOM.standard_normal((600, 24)))
    expected = mutual_neighbours(X[:60], y, 4)
    monkeypatch.setattr(blocks, "compute_anew", lambda *arguments: None)
    use(monkeypatch, device((torch_arrays(),)))
    found = search.neighbours(X[:60], y, 4, device="cuda")
    assert (found.index_xy != expected[1]).any()


def test_components_beyond_half_precision_and_equal_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, device((torch_arrays(),)))
    for x, y in ((X[:90] * 1e6, Y[:80]), (X[:90] * 1e3, Y[:80] * 1e3)):  # the vectors, or only their products
        assert assert_same(x, y, 3, mutual_neighbours(x, y, 3)) == 170
    y = Y[:80].copy()
    y[5:60] = y[5]
    y[70] = 0
    assert_same(X, y, 3, mutual_neighbours(X, y, 3))
    assert_same(X[:7], y, 7, mutual_neighbours(X[:7], y, 7))


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_bound_holds_and_is_not_idle(precision: str) -> None:
    x, y = (side * RANDOM.uniform(0.1, 9, (len(side), 1)).astype(np.float32) for side in (X, Y))
    x_error, y_error = scan_error(lengths(x), rounding(x, precision), lengths(y), rounding(y, precision), x.shape[1], precision)
    low_x, low_y = (side if precision == "float32" else rounded(side, precision) for side in (x, y))
    product = low_x @ low_y.T
    scanned = product if precision == "float32" else rounded(product, precision)
    off = np.abs(scanned.astype(np.float64) - x.astype(np.float64) @ y.astype(np.float64).T)
    assert (off <= x_error[:, None]).all() and (off <= y_error).all()
    assert off.max() > 0.02 * x_error.max()


def test_rounding_is_torchs() -> None:
    torch = pytest.importorskip("torch", reason="an independent rounding")
    values = (RANDOM.standard_normal((50, 60)) * 10.0 ** RANDOM.integers(-9, 4, (50, 60))).astype(np.float32)
    for precision in ("float16", "bfloat16"):
        true = torch.from_numpy(values).to(getattr(torch, precision)).float().numpy()
        np.testing.assert_array_equal(rounded(values, precision), true)


def test_torchs_settings_are_put_back() -> None:
    arrays = torch_arrays()
    torch = importlib.import_module("torch")
    before = torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    with arrays.running():
        assert torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction is False
    assert torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction == before


def test_which_device_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"device='gpu' is not known. Type one of: cpu, cuda, auto"):
        mutual_neighbours(X, Y, 1, device="gpu")
    assert search.neighbours(X, Y, 1).device == "cpu"
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    found = search.neighbours(X, Y, 1, device="auto")
    assert (found.device, found.reason) == ("cpu", "torch is not installed, cupy is not installed")
    with pytest.raises(MissingExtraError, match="needs torch or cupy, and neither is installed"):
        mutual_neighbours(X, Y, 1, device="cuda")
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name == "torch" or None)
    monkeypatch.setattr(gpu, "_torch_devices", lambda: ())
    with pytest.raises(BackendError, match="device='cuda' cannot be used: torch sees no GPU, cupy is not installed"):
        mutual_neighbours(X, Y, 1, device="cuda")
    monkeypatch.setattr(gpu, "_torch_devices", lambda: (gpu.CupyArrays(np),) * 2)
    found = search.neighbours(X, Y, 3, device="auto")
    assert (found.device, found.reason, found.precision) == ("2 x cuda (torch)", "torch sees a GPU", "float16")
    np.testing.assert_array_equal(found.index_xy, mutual_neighbours(X, Y, 3)[1])


@pytest.mark.gpu
def test_on_a_real_gpu() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    x, y = (unit_rows(RANDOM.standard_normal((rows, 384))) for rows in (30_000, 40_000))
    found = search.neighbours(x, y, 4, device="cuda")
    for array, true in zip((found.index_xy, found.index_yx), mutual_neighbours(x, y, 4)[1::2], strict=True):
        np.testing.assert_array_equal(array, true)
    assert found.computed_anew < 700 and replace(found, device="").reason == "torch sees a GPU"
