"""The TensorRT back end on a machine without a GPU: what it computes, its buffers and graphs, and how it fails.

Every line of it runs here against the stand-in of standin_gpu.py, which proves our logic, not NVIDIA's libraries.
"""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_rt import BackendError, load
from mexma_rt.backends import GPU_RUN_CELLS, kernel_cache, open_backend, tensorrt
from mexma_rt.backends.tensorrt import TensorRT

from ..standin_gpu import D, Device, batch, by_hand, install, make_bundle, put_engine


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    stand_in = Device()
    install(monkeypatch, stand_in)
    return stand_in


def opened(folder: Path, engine: str = "tensorrt", **more: Any) -> TensorRT:
    return TensorRT(make_bundle(folder, engine, **more), engine=engine, reason="a test")


# ---- what it computes


@pytest.mark.parametrize("engine", ["tensorrt", "rtx"])
def test_a_vector_computed_by_hand(device: Device, tmp_path: Path, engine: str) -> None:
    backend = opened(tmp_path, engine)
    vectors = backend.run(np.array([[0, 5, 7, 2, 1]]), np.array([[1, 1, 1, 1, 0]]))
    assert vectors.dtype == np.float32 and vectors.tolist() == [[14, 28, 42]]
    assert (backend.name, backend.device, backend.precision, backend.reason) == (engine, "cuda", "fp16", "a test")
    assert device.opened == [f"the plan of {engine}".encode()]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One back end for all the examples of a property."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in = Device()
        install(patch, stand_in)
        yield opened(tmp_path_factory.mktemp("shared")), stand_in


@settings(deadline=None, max_examples=60)
@given(lengths=st.lists(st.integers(1, 96), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_any_batch_comes_back_in_its_order(shared: Any, lengths: list[int], seed: int) -> None:
    ids, mask = batch(lengths, seed)
    before = ids.copy(), mask.copy()
    np.testing.assert_array_equal(shared[0].run(ids, mask), by_hand(ids, mask))
    np.testing.assert_array_equal((ids, mask), before)


def test_results_are_the_callers_own(device: Device, tmp_path: Path) -> None:
    backend = opened(tmp_path)
    first = backend.run(*batch([5], seed=1))
    kept = first.copy()
    backend.run(*batch([5], seed=2))
    np.testing.assert_array_equal(first, kept)
    assert backend.run(np.empty((0, 4), np.int64), np.empty((0, 4), np.int64)).shape == (0, D)


def test_a_batch_is_packed_while_another_is_computed(device: Device, tmp_path: Path) -> None:
    """Two threads have a batch on the way at a time, in buffers of their own; a third waits for one of them."""
    backend, batches = opened(tmp_path), [batch([40 + seed, 7], seed) for seed in range(3)]
    device.calls.clear()
    with ThreadPoolExecutor(3) as pool:
        with device.running:  # the GPU stands still
            coming = [pool.submit(backend.run, *one) for one in batches]
            deadline = time.monotonic() + 10
            while device.calls.count("cudaEventRecord") < 2 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.05)
            assert device.calls.count("execute") == 2 and not any(one.done() for one in coming)
        for one, (ids, mask) in zip(coming, batches, strict=True):
            np.testing.assert_array_equal(one.result(timeout=10), by_hand(ids, mask))
    assert device.calls.count("execute") == 3 and backend.lanes == 2


def test_threads_take_turns(device: Device, tmp_path: Path) -> None:
    backend, finished = opened(tmp_path), []

    def work(seed: int) -> None:
        for index in range(20):
            ids, mask = batch([seed + 3, 40, 2][: 1 + index % 3], seed=100 * seed + index)
            np.testing.assert_array_equal(backend.run(ids, mask), by_hand(ids, mask))
        finished.append(seed)  # not reached by a thread that failed

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(finished) == list(range(6))


def test_the_whole_pipeline_on_an_engine(device: Device, tiny_bundle: Path, tmp_path: Path) -> None:
    """Texts in, the tokenizer's ids through the engine, vectors out, and a report that names the place."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / "mexma.json").read_text())
    manifest["graphs"]["fp16"] = manifest["graphs"]["fp32"]
    del manifest["golden"], manifest["ranges"]  # of other dimensions
    (folder / "mexma.json").write_text(json.dumps(manifest | {"dimensions": D}))
    put_engine(folder, "tensorrt", graph_sha256=manifest["files"][manifest["graphs"]["fp32"]]["sha256"])
    encoder = load(folder, backend="tensorrt", max_length=64)
    texts = ["Hello world", "", "Bonjour le monde", "a b c d e f g h i"] * 5
    result = encoder.embed_report(texts, normalize=False)
    ids = [encoder.tokenizer.encode([text], 64).ids.sum() for text in texts]
    np.testing.assert_array_equal(result.vectors, np.array(ids)[:, None] * [1, 2, 3])
    report = result.report
    assert (report.backend, report.device, report.precision) == ("tensorrt", "cuda", "fp16")
    assert report.reason.startswith("backend='tensorrt' was named; its engines are in fp16; computed a vector, which could not")


def test_an_engine_that_normalises_gives_no_raw_vectors(device: Device, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / "mexma.json").read_text())
    manifest["graphs"]["fp16"] = manifest["graphs"]["fp32"]
    del manifest["golden"], manifest["ranges"]
    (folder / "mexma.json").write_text(json.dumps(manifest | {"dimensions": D}))
    hashed = manifest["files"][manifest["graphs"]["fp32"]]["sha256"]
    put_engine(folder, "tensorrt", graph_sha256=hashed, normalized=True)
    device.answer = lambda sums: sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-30)
    encoder, unit = load(folder, backend="tensorrt", max_length=64), np.array([1, 2, 3]) / 14**0.5
    texts = ["Hello world", "Bonjour le monde"]
    np.testing.assert_allclose(encoder.embed(texts), [unit, unit], rtol=1e-6)
    np.testing.assert_allclose(encoder.embed(texts, truncate_dim=2), [[0.2**0.5, 0.8**0.5]] * 2, rtol=1e-6)
    wanted = r"normalize=False: the tensorrt engine returns vectors of length 1, .* load\(\.\.\., backend='onnxruntime'\)"
    with pytest.raises(BackendError, match=wanted):
        encoder.embed(texts, normalize=False)
    with encoder.service() as service:
        np.testing.assert_allclose(service.embed(texts), [unit, unit], rtol=1e-6)
        with pytest.raises(BackendError, match=wanted):
            service.embed(texts, normalize=False)


def test_an_engine_on_the_second_gpu(device: Device, tmp_path: Path) -> None:
    """Every call is made there, and the thread has its own GPU back afterwards."""
    device.gpu = 1
    backend = open_backend(make_bundle(tmp_path), backend="tensorrt", device="cuda:1")
    ids, mask = batch([7, 50])
    np.testing.assert_array_equal(backend.run(ids, mask), by_hand(ids, mask))
    assert (backend.device, device.current) == ("cuda:1", 0)
    assert (backend.run_cells, backend.batch_tokens) == (GPU_RUN_CELLS, 16384)


def test_another_current_gpu_of_the_process_stays_current(device: Device, tmp_path: Path) -> None:
    device.current = 1  # as after torch.cuda.set_device(1)
    backend = opened(tmp_path)
    ids, mask = batch([7, 50])
    np.testing.assert_array_equal(backend.run(ids, mask), by_hand(ids, mask))
    assert device.current == 1
    device.fail["cudaEventSynchronize"] = 700
    with pytest.raises(BackendError, match="illegal memory"):
        backend.run(ids, mask)
    assert device.current == 1


# ---- buffers and graphs


def test_small_profiles_run_as_graphs_and_others_do_not(device: Device, tmp_path: Path) -> None:
    backend = opened(tmp_path)
    assert device.calls.count("cudaGraphInstantiate") == 4  # two profiles, two sets of buffers
    kinds = sorted(handle[0] for handle in device.handles if handle != 7)
    assert kinds == ["event"] * 2 + ["ready"] * 4  # the recordings are gone
    device.calls.clear()
    for lengths in ([3], [16], [9, 4], [30] * 6):
        ids, mask = batch(lengths)
        np.testing.assert_array_equal(backend.run(ids, mask), by_hand(ids, mask))
    assert device.calls == ["cudaGetDevice", "cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize"] * 4
    device.calls.clear()
    backend.run(*batch([40, 50]))
    copies = ["cudaMemcpyAsync"] * 2
    back = ["cudaMemcpyAsync", "cudaEventRecord", "cudaEventSynchronize"]
    assert device.calls == ["cudaGetDevice", *copies, "execute", *back]


@pytest.mark.parametrize("function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_graph_that_cannot_be_captured_is_said(device: Device, tmp_path: Path, function: str) -> None:
    device.fail[function] = 900
    backend = opened(tmp_path)
    assert backend.reason.startswith(
        f"a test; note: profile 1x16 runs without a CUDA graph, slower for small batches (CUDA's {function} failed: words"
    )
    assert backend.reason.count("without a CUDA graph") == 2
    ids, mask = batch([7])
    np.testing.assert_array_equal(backend.run(ids, mask), by_hand(ids, mask))
    assert {handle[0] for handle in device.handles if handle != 7} == {"event"}


def test_an_engine_that_cannot_be_captured_leaves_the_capture(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_stream = tensorrt.TensorRT._enqueue

    def refuse_in_capture(self: Any, lane: Any, buffers: Any, shape: Any) -> None:
        with monkeypatch.context() as patch:
            if device.recording is not None:
                patch.setattr(device, "refuse", {"execute_async_v3"})
            run_in_stream(self, lane, buffers, shape)

    monkeypatch.setattr(tensorrt.TensorRT, "_enqueue", refuse_in_capture)
    backend = opened(tmp_path)
    assert "without a CUDA graph, slower for small batches (tensorrt did not start: Error Code 3" in backend.reason
    assert device.recording is None
    ids, mask = batch([7])
    np.testing.assert_array_equal(backend.run(ids, mask), by_hand(ids, mask))


def test_without_small_profiles_nothing_is_captured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in = Device()
    install(monkeypatch, stand_in, [(5, 60)])
    backend = opened(tmp_path, shapes=[(5, 60)])
    assert "cudaStreamBeginCapture" not in stand_in.calls and stand_in.calls.count("execute") == 1
    ids, mask = batch([58, 59, 60])
    np.testing.assert_array_equal(backend.run(ids, mask), by_hand(ids, mask))


def test_buffers_are_made_once_and_freed_with_the_back_end(device: Device, tmp_path: Path) -> None:
    backend = opened(tmp_path)
    # two sets: input_ids and attention_mask for 3x96 tokens, vectors for 6 rows; and what the kernels work in
    assert sorted(map(len, device.blocks.values())) == sorted([288 * 8, 288 * 8, 6 * D * 4] * 2 + [288])
    assert sorted(map(len, device.pinned.values())) == sorted([288 * 8, 288 * 8, 6 * D * 4] * 2)
    for lengths in ([96] * 7, [2], [32] * 6):
        backend.run(*batch(lengths))
    assert device.calls.count("cudaMalloc") == 7 and device.calls.count("cudaMallocHost") == 6
    del backend
    gc.collect()
    assert (device.blocks, device.pinned, device.handles) == ({}, {}, set())


# ---- TensorRT-RTX


def test_rtx_compiles_its_kernels_once(device: Device, tmp_path: Path) -> None:
    opened(tmp_path, "rtx")
    assert device.compiled == 2  # of the two profiles that were warmed up
    kept = tmp_path / "engines" / "rtx.engine.sm89.kernels"
    backend = opened(tmp_path, "rtx")
    assert device.compiled == 2 and backend.reason == "a test"
    kept.write_bytes(b"of another version, or damaged")
    opened(tmp_path, "rtx")
    assert device.compiled == 4
    opened(tmp_path, "rtx")
    assert device.compiled == 4  # they were written anew


def test_where_kernels_cannot_be_kept_it_is_said(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernel_cache, "atomic_write", full)
    backend = opened(tmp_path, "rtx")
    assert "note: its kernels are compiled on every load, because they cannot be saved: [Errno 28] No space" in backend.reason
    ids, mask = batch([7])
    np.testing.assert_array_equal(backend.run(ids, mask), by_hand(ids, mask))


def test_an_rtx_engine_that_cannot_be_captured_runs_without_graphs(device: Device, tmp_path: Path) -> None:
    device.refuse.add("is_stream_capturable")
    backend = opened(tmp_path, "rtx")
    assert "cudaStreamBeginCapture" not in device.calls
    assert "1x16 runs without a CUDA graph, slower for small batches (this engine cannot be" in backend.reason
    ids, mask = batch([7])
    np.testing.assert_array_equal(backend.run(ids, mask), by_hand(ids, mask))


# ---- failures while it opens


def assert_all_free(device: Device) -> None:
    assert (device.blocks, device.pinned, device.handles) == ({}, {}, set())


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in = Device()
    install(monkeypatch, stand_in, [(1, 16), (512, 128)])
    with pytest.raises(BackendError, match=r"initialised: CUDA's cudaMalloc failed: out of memory \(error 2\)\nIf.*--profiles"):
        opened(tmp_path, shapes=[(1, 16), (512, 128)])
    assert_all_free(stand_in)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("create_execution_context", r"could not make room for the profile 1x16: it gave no reason"),
        ("set_optimization_profile_async", r"tensorrt could not make room for the profile 1x16: Error Code 3: set_opt"),
        ("set_tensor_address", "tensorrt refused a buffer for input_ids: Error Code 3"),
        ("set_input_shape", "tensorrt refused the shape 1x16: Error Code 3"),
        ("execute_async_v3", "tensorrt did not start: Error Code 3: execute_async_v3 says no"),
    ],
)
def test_the_library_refuses(device: Device, tmp_path: Path, method: str, words: str) -> None:
    device.refuse.add(method)
    with pytest.raises(BackendError, match=words):
        opened(tmp_path)
    assert_all_free(device)


def test_vectors_that_are_not_finite_are_found_at_once(device: Device, tmp_path: Path) -> None:
    device.answer = lambda sums: sums * np.nan
    with pytest.raises(BackendError, match=r"not finite, in its profile 1x16\. Build it again, or load with backend='onnx"):
        opened(tmp_path)
    assert_all_free(device)


def test_an_interrupt_while_it_opens_frees_everything(device: Device, tmp_path: Path) -> None:
    def interrupt(sums: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    device.answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path)
    assert_all_free(device)


# ---- failures while it runs


def test_a_failing_run_names_batch_and_profile_and_the_next_run_is_right(device: Device, tmp_path: Path) -> None:
    backend = opened(tmp_path)
    ids, mask = batch([40, 50])
    backend.run(ids, mask)
    device.refuse.add("set_input_shape")  # of the second input only: the first has taken the new shape
    with pytest.raises(BackendError, match=r"batch of 2 sentences x 60 tokens, in its profile 3x96: .* refused the shape 2x60"):
        backend.run(*batch([60, 20]))
    device.refuse.clear()
    np.testing.assert_array_equal(backend.run(ids, mask), by_hand(ids, mask))
    device.fail["cudaEventSynchronize"] = 700
    with pytest.raises(BackendError, match=r"in its profile 1x16: CUDA's cudaEventSynchronize failed: an illegal memory"):
        backend.run(*batch([3]))


def test_a_sentence_longer_than_every_profile(device: Device, tmp_path: Path) -> None:
    with pytest.raises(
        BackendError,
        match=r"Sentences of 97 tokens are longer.*1x16, 6x32, 3x96\. Load with max_length=96.*--profiles 1x16,6x32,3x96,32x97",
    ):
        opened(tmp_path).run(*batch([97, 3]))
