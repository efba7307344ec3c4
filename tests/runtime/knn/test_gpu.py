"""The scan on devices, with torch's CPU and with numpy in cupy's place: the bytes of the CPU's search in any precision."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mexma_rt import BackendError, InputError, MissingExtraError
from mexma_rt.knn import blocks, gpu, gpu_vectors, search
from mexma_rt.knn.blocks import Block, SearchDevice
from mexma_rt.knn.exact import hashes_of, lengths, rounded, rounding, scan_error
from mexma_rt.knn.gpu_arrays import CupyArrays, TorchArrays
from mexma_rt.knn.gpu_copies import Staging
from mexma_rt.knn.gpu_errors import explained
from mexma_rt.knn.keys import EMPTY, neighbours_of
from mexma_rt.knn.search import mutual_neighbours, unit_rows

RANDOM = np.random.default_rng(8)
X, Y = unit_rows(RANDOM.standard_normal((500, 24))), unit_rows(RANDOM.standard_normal((700, 24)))


def torch_arrays(precision: str = "float16", memory: int = 256 << 20) -> Any:
    pytest.importorskip("torch", reason="torch's CPU is the device")
    return TorchArrays("cpu", precision, memory)


def device(
    arrays: tuple[Any, ...], precision: str = "float16", spare: int = gpu.SPARE, *, prepared: bool = True
) -> SearchDevice:
    prepare = gpu_vectors.prepare_on(arrays) if prepared else None
    return SearchDevice(scan=gpu.scan_on(arrays), name="test", reason="test", precision=precision, spare=spare, prepare=prepare)


def use(monkeypatch: pytest.MonkeyPatch, where: SearchDevice) -> None:
    chosen = {"cpu": blocks.CPU, "cuda": where}  # the yardstick stays the CPU's
    monkeypatch.setattr(search, "choose_device", chosen.__getitem__)


def assert_same(x: np.ndarray, y: np.ndarray, k: int, expected: tuple[np.ndarray, ...], **keywords: Any) -> int:
    found = search.neighbours(x, y, k, device="cuda", **keywords)
    for array, true in zip((found.scores_xy, found.index_xy, found.scores_yx, found.index_yx), expected, strict=True):
        np.testing.assert_array_equal(array, true)
    return found.computed_anew


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "arrays"])
@pytest.mark.parametrize("memory", [110_000, 1 << 28], ids=["small tiles", "one tile"])
@pytest.mark.parametrize("kind", ["torch", "bfloat16", "two devices", "numpy"])
def test_the_bytes_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch, kind: str, memory: int, prepared: bool) -> None:
    expected = mutual_neighbours(X, Y, 5)
    if kind == "numpy":
        where = device((CupyArrays(np, memory=memory),), prepared=prepared)
    elif kind == "bfloat16":
        where = device((torch_arrays("bfloat16", memory),), "bfloat16", prepared=prepared)
    else:
        arrays = tuple(torch_arrays(memory=memory) for _ in range(2 if kind == "two devices" else 1))
        where = device(arrays, prepared=prepared)
    assert gpu_vectors.tile_side((torch_arrays(memory=memory),), 24) == (64 if memory == 110_000 else 5792)
    use(monkeypatch, where)
    anew = assert_same(X, Y, 5, expected)
    assert anew < 1200 if kind == "bfloat16" else anew < 60  # proved for nearly all rows, with candidates to spare


# ---- what the scan is asked, and what it looks at


def scan_all(arrays: Any, x: Any, y: Any, k: int, x_floor: Any = None, y_floor: Any = None) -> tuple[np.ndarray, np.ndarray]:
    floors = [
        np.full(n, -np.inf, np.float32) if floor is None else floor for n, floor in ((len(X), x_floor), (len(Y), y_floor))
    ]
    return gpu.scan_on((arrays,))(x, y, k, *floors, memory_bytes=0, advance=lambda cells: None)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("memory", [110_000, 1 << 28], ids=["small tiles", "one tile"])
def test_scan_scores_are_the_best_of_the_rounded_product(kind: str, memory: int) -> None:
    arrays = torch_arrays(memory=memory) if kind == "torch" else CupyArrays(np, memory=memory)
    by_x, by_y = scan_all(arrays, X, Y, 9)
    product = X.astype(np.float16).astype(np.float64) @ Y.astype(np.float16).astype(np.float64).T
    for keys, cells in ((by_x, product), (by_y, product.T)):
        scores, index = neighbours_of(keys)
        np.testing.assert_allclose(scores, -np.sort(-cells, axis=1)[:, :9], atol=6e-4)  # half of the last place of 0.9
        np.testing.assert_allclose(np.take_along_axis(cells, index, axis=1), scores, atol=6e-4)
        assert all(len(set(row)) == 9 for row in index)


@pytest.mark.parametrize("memory", [110_000, 1 << 28], ids=["small tiles", "one tile"])
def test_floors_leave_out_what_is_below_and_keep_what_reaches_them(memory: int) -> None:
    """A cell that equals its floor, to the bit, is a neighbour; the next float above it as a floor leaves it out."""
    arrays = torch_arrays(memory=memory)
    product = (torch_of(X) @ torch_of(Y).T).float().numpy()
    best = np.sort(product, axis=1)[:, -3].copy()
    found = neighbours_of(scan_all(arrays, X, Y, 9, best, best_of(product.T))[0])[0]
    assert (np.isfinite(found).sum(axis=1) >= 3).all()
    above = np.nextafter(best, np.float32(np.inf))
    index = neighbours_of(scan_all(arrays, X, Y, 9, above, best_of(product.T))[0])[1]
    expected = [set(np.flatnonzero(row >= floor)) for row, floor in zip(product, above, strict=True)]
    assert all(wanted <= set(row[row >= 0]) for row, wanted in zip(index, expected, strict=True))
    assert np.mean([len(wanted) for wanted in expected]) < 2.5  # and the floors do cut
    if memory == 110_000:  # where floors are known, tiles are pruned: nothing far below a floor comes back
        assert (index >= 0).sum() == sum(map(len, expected))


def torch_of(side: np.ndarray) -> Any:
    torch = pytest.importorskip("torch")
    return torch.from_numpy(side).half()


def best_of(product: np.ndarray) -> np.ndarray:
    return np.sort(product, axis=1)[:, -3].copy()


class Watched(TorchArrays):
    """Counts the cells that are looked into, the axes of which maxima are taken, and what is sent."""

    def __init__(self, memory: int) -> None:
        super().__init__("cpu", memory=memory)
        self.looked = self.rows_sent = 0
        self.axes: list[int] = []

    def top(self, cells: Any, k: int) -> tuple[Any, Any]:
        self.looked += cells.numel()
        return super().top(cells, k)

    def maxima(self, cells: Any, axis: int) -> Any:
        self.axes.append(axis)
        return super().maxima(cells, axis)

    def rows_first(self, cells: Any) -> Any:
        laid = super().rows_first(cells)
        assert laid.is_contiguous()
        return laid

    def send(self, rows: np.ndarray) -> Any:
        self.rows_sent += len(rows)
        return super().send(rows)


@pytest.fixture
def watched() -> Watched:
    pytest.importorskip("torch", reason="torch's CPU is the device")
    return Watched(110_000)


def test_what_is_known_already_prunes_the_scan(watched: Watched) -> None:
    by_x, by_y = scan_all(watched, X, Y, 9)
    first, watched.looked = watched.looked, 0
    known = [neighbours_of(keys[:, -1])[0] for keys in (by_x, by_y)]
    again = scan_all(watched, X, Y, 9, *known)
    assert watched.looked < first / 2
    for keys, before in zip(again, (by_x, by_y), strict=True):
        np.testing.assert_array_equal(neighbours_of(keys)[0], neighbours_of(before)[0])


def test_running_floors_prune_later_tiles(watched: Watched) -> None:
    """96 tiles with 9 of 64 columns each: were each looked at as the first is, that would be 96 times its cells."""
    scan_all(watched, X, Y, 9)
    whole, watched.looked = watched.looked, 0
    scan_all(watched, X[:64], Y[:64], 9)
    tiles = -(-len(X) // 64) * -(-len(Y) // 64)
    assert whole < 0.5 * tiles * watched.looked


def test_columns_are_looked_at_only_where_they_are_sought(watched: Watched) -> None:
    by_x, by_y = scan_all(watched, X, Y, 9, None, np.full(len(Y), np.inf, np.float32))
    assert set(watched.axes) == {2} and (by_y == EMPTY).all()
    np.testing.assert_array_equal(by_x, scan_all(torch_arrays(memory=110_000), X, Y, 9)[0])


def test_blocks_are_sent_once_and_held_across_pairs(watched: Watched) -> None:
    where = device((watched,))
    x, y = Block.of(X, 5, 0, where=where), Block.of(Y, 5, 0, where=where)
    assert watched.rows_sent == len(X) + len(Y)
    by_x, by_y = blocks.no_neighbours(len(X), 5), blocks.no_neighbours(len(Y), 5)
    for _ in range(2):
        blocks.absorb_blocks(by_x, by_y, x, y, where=where)
    assert watched.rows_sent == len(X) + len(Y)
    expected = blocks.block_neighbours(X, Y, 5)
    np.testing.assert_array_equal(by_x, expected[0])
    np.testing.assert_array_equal(by_y, expected[1])


def test_a_block_that_does_not_fit_is_sent_again(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "free_bytes", lambda: watched.total_bytes // 2)
    where = device((watched,))
    use(monkeypatch, where)
    assert_same(X, Y, 5, mutual_neighbours(X, Y, 5))
    tiles = -(-len(X) // 64)
    assert watched.rows_sent == len(X) + len(Y) + len(X) + tiles * len(Y)  # measured, then the scan


# ---- what is measured on a device


@pytest.mark.parametrize("kind", ["torch", "bfloat16", "numpy", "two devices"])
def test_lengths_losses_and_hashes_of_a_device(kind: str) -> None:
    """The numbers that the proofs rest on: no smaller than those of the CPU, and larger by 2e-9 at most."""
    rows = (RANDOM.standard_normal((300, 40)) * 10.0 ** RANDOM.integers(-30, 4, (300, 1))).astype(np.float32)
    rows[7], rows[8], rows[9] = 0, 1e-42, 7e4  # nothing, the smallest numbers of float32, and beyond half precision
    precision = "bfloat16" if kind == "bfloat16" else "float16"
    one = CupyArrays(np, memory=110_000) if kind == "numpy" else torch_arrays(precision, 110_000)
    found = gpu_vectors.prepare_on((one, one) if kind == "two devices" else (one,))(rows)
    assert found.sent.side < 150  # several pieces
    with np.errstate(invalid="ignore", over="ignore"):
        for ours, true in ((found.lengths, lengths(rows)), (found.rounding, rounding(rows, precision))):
            assert (ours >= true).all() and np.allclose(ours, true, rtol=2e-9, atol=0)
    assert np.isinf(found.rounding[9]) == (precision == "float16") and found.lengths[7] == 0 < found.lengths[8]
    np.testing.assert_array_equal(found.hashes, hashes_of(rows))


def test_cupys_top_is_a_sort() -> None:
    cells = RANDOM.integers(0, 9, (50, 37)).astype(np.float16)
    cells[3] = -np.inf
    values, index = CupyArrays(np).top(cells, 7)
    np.testing.assert_array_equal(values, -np.sort(-cells, axis=1)[:, :7])
    np.testing.assert_array_equal(np.take_along_axis(cells, index, axis=1), values)


class LateCopies:
    """A device that copies when it is waited for, as late as CUDA may: a buffer that is refilled too early shows."""

    def __init__(self) -> None:
        self.queue: list[Any] = []

    def pinned(self, size: int) -> np.ndarray:
        return np.full(size, 0xFF, np.uint8)  # NaN of either type

    def copy(self, target: np.ndarray, buffer: np.ndarray) -> Any:
        assert target.nbytes == len(buffer)

        def work() -> None:
            target[:] = buffer.view(target.dtype).reshape(target.shape)

        self.queue.append(work)
        return work

    def wait(self, event: Any) -> None:
        while event in self.queue:
            self.queue.pop(0)()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rows", [0, 1, 4, 5, 9, 40])
def test_staging_never_overwrites_what_is_on_its_way(rows: int, dtype: Any) -> None:
    copies = LateCopies()
    sent = np.float16 if dtype == np.float16 else np.float32  # half precision is not widened on the way
    staging = Staging(copies, bytes_at_once=4 * 24 * np.dtype(sent).itemsize)  # four rows
    source = X[:rows].astype(dtype)
    targets = [np.full((rows, 24), 7, sent) for _ in range(2)]
    for target in targets:
        staging.send(source, target)
    assert len(copies.queue) <= 2  # the host was never more than two pieces ahead, and did not wait without need
    assert len(copies.queue) == min(2 * -(-rows // 4), 2)
    while copies.queue:
        copies.queue.pop(0)()
    for target in targets:
        np.testing.assert_array_equal(target, source.astype(sent))


# ---- errors


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB",
            "The GPU's memory ran out. nvidia-smi lists what uses it; CUDA",
        ),
        (
            "CUDA error: no kernel image is available for execution on the device",
            "has no kernels for this GPU(?s:.*)pytorch",
        ),
        ("CUDA error: an illegal memory access was encountered", "Check the GPU: nvidia-smi. device='cpu' gives"),
    ],
)
@pytest.mark.parametrize("method", ["maxima", "send"])
def test_errors_of_a_device_say_what_to_type(monkeypatch: pytest.MonkeyPatch, said: str, words: str, method: str) -> None:
    arrays = torch_arrays()

    def fails(*arguments: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(arrays, method, fails)
    use(monkeypatch, device((arrays,)))
    with pytest.raises(BackendError, match=f"torch failed on cpu: {said}\n.*{words}"):
        search.neighbours(X, Y, 3, device="cuda")


def test_errors_of_cupy_and_errors_of_ours() -> None:
    out_of_memory = type("OutOfMemoryError", (MemoryError,), {"__module__": "cupy.cuda.memory"})
    compiling = type("CompileException", (Exception,), {"__module__": "cupy.cuda.compiler"})
    for error, words in ((out_of_memory("1 GB"), "memory ran out"), (compiling("nvrtc: no header"), r"docs\.cupy\.dev")):
        with pytest.raises(BackendError, match=f"cupy failed on cuda:0(?s:.*){words}"), explained("cupy", "cuda:0"):
            raise error
    with pytest.raises(KeyError), explained("cupy", "cuda:0"):  # a mistake in this code is not the GPU's
        raise KeyError("mistake")


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
    assert before is True  # torch's default
    other = torch_arrays()
    with other.precise():
        with arrays.precise():  # two devices: the first to end must not give the setting back while the other makes products
            assert torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction is False
        assert torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction is False
    assert torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction == before


def test_which_device_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"device='gpu' is not known. Type one of: cpu, cuda, auto, or cuda:1 for one GPU"):
        mutual_neighbours(X, Y, 1, device="gpu")
    assert search.neighbours(X, Y, 1).device == "cpu"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = search.neighbours(X, Y, 1, device="auto")
    assert (found.device, found.reason) == ("cpu", "torch is not installed, cupy is not installed")
    with pytest.raises(MissingExtraError, match="needs torch or cupy, but neither is installed"):
        mutual_neighbours(X, Y, 1, device="cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "torch" or None)
    monkeypatch.setattr(gpu, "_torch_devices", lambda: ())
    with pytest.raises(BackendError, match="device='cuda' cannot be used: torch sees no GPU, cupy is not installed"):
        mutual_neighbours(X, Y, 1, device="cuda")
    monkeypatch.setattr(gpu, "_torch_devices", lambda: (CupyArrays(np),) * 2)
    found = search.neighbours(X, Y, 3, device="auto")
    assert (found.device, found.reason, found.precision) == ("2 x cuda (torch)", "torch sees a GPU", "float16")
    np.testing.assert_array_equal(found.index_xy, mutual_neighbours(X, Y, 3)[1])
    found = search.neighbours(X, Y, 3, device="cuda:1")
    assert (found.device, found.reason) == ("cuda:1 (torch)", "cuda:1 was named")
    with pytest.raises(BackendError, match="There is no cuda:2: torch sees 2 GPUs, counted from cuda:0"):
        mutual_neighbours(X, Y, 1, device="cuda:2")
    with pytest.raises(InputError, match="device='cpu:1' is not known"):
        mutual_neighbours(X, Y, 1, device="cpu:1")


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
