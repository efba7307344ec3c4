"""The queue before an encoder: the vectors of embed(), merging, order, limits, errors to the right call, the end, asyncio."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import mexma_rt
from mexma_rt import BackendError, InputError, ServiceBusyError, ServiceError, TruncationWarning
from mexma_rt.backends import Backend

TEXTS = [
    f"Hello world, the {word} is sleeping {i} times." for i in range(8) for word in ("cat", "stone", "child near the river")
]


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> mexma_rt.Encoder:
    return mexma_rt.load(tiny_bundle, device="cpu", precision="fp32", threads=1)


class Gate(Backend):
    """The real engine behind a door: `entered` is set when a batch is there, which is computed when `door` is open.

    A batch in which a sentence has `poison` as its number of tokens fails.
    """

    name, device, precision, reason = "gate", "cpu", "fp32", "test"

    def __init__(self, engine: Backend, poison: int = 0) -> None:
        self.engine, self.poison = engine, poison
        self.door, self.entered = threading.Event(), threading.Event()
        self.came: list[int] = []  # rows of the batches that came to the door
        self.rows: list[int] = []

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        self.came.append(len(input_ids))
        self.entered.set()
        assert self.door.wait(60)
        self.rows.append(len(input_ids))
        if self.poison and (attention_mask.sum(axis=1) == self.poison).any():
            raise BackendError("poisoned")
        return self.engine.run(input_ids, attention_mask)


@pytest.fixture
def gate(encoder: mexma_rt.Encoder) -> Gate:
    return Gate(encoder.backend)


def behind(encoder: mexma_rt.Encoder, gate: Gate) -> mexma_rt.Encoder:
    return dataclasses.replace(encoder, backend=gate)


def start(function: Callable[..., object], *arguments: object, **keywords: object) -> tuple[threading.Thread, list]:
    """A thread that calls `function`; its result, or its error, will be in the list."""
    results: list = []

    def call() -> None:
        try:
            results.append(function(*arguments, **keywords))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, results


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_sixteen_threads_get_the_vectors_of_embed_in_fewer_batches(encoder: mexma_rt.Encoder) -> None:
    expected = {text: encoder.embed([text])[0] for text in TEXTS}
    with encoder.service() as service, ThreadPoolExecutor(16) as pool:

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(20):
                texts = [TEXTS[i] for i in rng.integers(0, len(TEXTS), rng.integers(1, 5))]
                np.testing.assert_allclose(service.embed(texts), [expected[text] for text in texts], atol=1e-5)

        list(pool.map(work, range(16)))
        report = service.report()
    assert report.calls == 320 and report.waiting == 0
    assert report.sentences_per_batch > 4  # 2.5 is a call of its own


def test_each_call_has_its_own_settings(encoder: mexma_rt.Encoder) -> None:
    with encoder.service() as service:
        for settings in ({"normalize": False}, {"truncate_dim": 8}, {"precision": "float16"}, {}):
            theirs, ours = encoder.embed(TEXTS, **settings), service.embed(TEXTS, **settings)
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, atol=1e-3 if theirs.dtype == np.float16 else 1e-5)
        assert service.embed([]).shape == (0, 32) and service.embed([], truncate_dim=3).shape == (0, 3)
        assert service.embed(iter(TEXTS)).shape == (len(TEXTS), 32)


def test_calls_of_other_prompts_share_a_batch(encoder: mexma_rt.Encoder, gate: Gate) -> None:
    prompts = {"query": "query: ", "passage": "passage: "}
    asked = dataclasses.replace(behind(encoder, gate), bundle=dataclasses.replace(encoder.bundle, prompts=prompts))
    with asked.service() as service:
        calls = [start(service.embed, TEXTS[:1])]
        assert gate.entered.wait(30)
        calls += [start(service.embed, TEXTS, prompt=name) for name in ("query", "passage")]
        until(lambda: service.report().waiting == 2 * len(TEXTS))
        gate.door.set()
        for thread, _ in calls:
            thread.join(60)
        assert service.report().batches == 2
        for (_, results), name in zip(calls[1:], ("query", "passage"), strict=True):
            np.testing.assert_allclose(results[0], encoder.embed([f"{name}: {text}" for text in TEXTS]), atol=1e-5)
        queries = asyncio.run(service.aembed(TEXTS[:2], prompt="query"))
        np.testing.assert_allclose(queries, encoder.embed([f"query: {text}" for text in TEXTS[:2]]), atol=1e-5)
        with pytest.raises(InputError, match="prompt='title': this model has the prompts 'query', 'passage'"):
            service.embed(TEXTS, prompt="title")


def test_calls_that_wait_are_merged_up_to_the_bound(encoder: mexma_rt.Encoder, gate: Gate) -> None:
    with behind(encoder, gate).service(batch_texts=5) as service:
        calls = [start(service.embed, [TEXTS[0]])]
        assert gate.entered.wait(30)
        for text in TEXTS[:7]:
            calls.append(start(service.embed, [text, text + "!"]))
        until(lambda: service.report().waiting == 14)
        gate.door.set()
        for thread, _ in calls:
            thread.join(60)
        assert service.report().batches == 1 + 3  # 14 texts in batches of 5
        for (_, results), text in zip(calls[1:], TEXTS, strict=False):
            np.testing.assert_allclose(results[0], encoder.embed([text, text + "!"]), atol=1e-5)


def test_every_lane_of_the_back_end_has_a_batch_and_a_fair_share(encoder: mexma_rt.Encoder, gate: Gate) -> None:
    gate.lanes = 2
    with behind(encoder, gate).service() as service:
        calls = [start(service.embed, [TEXTS[0]]) for _ in range(2)]
        until(lambda: gate.came == [1, 1])  # both are computed at a time
        calls += [start(service.embed, [f"Hello world {i}"]) for i in range(6)]  # of the same length: they share a run
        until(lambda: service.report().waiting == 6)
        gate.door.set()
        for thread, _ in calls:
            thread.join(60)
        assert max(gate.rows) == 3  # half of the six for the first lane that is free
        assert sum(gate.rows) == 8 and service.report().batches == len(gate.rows) >= 4


def test_a_long_call_does_not_hold_up_a_short_one(encoder: mexma_rt.Encoder, gate: Gate) -> None:
    with behind(encoder, gate).service(batch_texts=32) as service:
        first, _ = start(service.embed, ["first"])
        assert gate.entered.wait(30)
        long, long_result = start(service.embed, [f"{TEXTS[i % 24]} {i}" for i in range(2000)])
        until(lambda: service.report().waiting == 2000)
        short, short_result = start(service.embed, ["short"])
        until(lambda: service.report().waiting == 2001)
        gate.door.set()
        short.join(60)
        assert short_result and service.report().sentences < 500 and not long_result
        long.join(60)
        first.join(60)
        assert long_result[0].shape == (2000, 32)


# --- limits -------------------------------------------------------------------------------------------------------------


def test_a_full_queue_blocks_or_refuses(encoder: mexma_rt.Encoder, gate: Gate) -> None:
    with behind(encoder, gate).service(queue_texts=3, queue_timeout=0.05) as service:
        calls = [start(service.embed, ["at work"])]
        assert gate.entered.wait(30)
        calls.append(start(service.embed, ["a", "b", "c"]))
        until(lambda: service.report().waiting == 3)
        message = (
            "The queue of the service is full: 3 of 3 texts wait, and there was no room for 1 more within 0.05 s. Calls "
            "arrive faster than they are computed: try again later, send less, or let calls wait longer with "
            "encoder.service(queue_timeout=...)."
        )
        with pytest.raises(ServiceBusyError, match=re.escape(message)):
            service.embed(["d"])
        with pytest.raises(ServiceBusyError, match="The queue of the service is full"):
            asyncio.run(service.aembed(["d"]))
        gate.door.set()
        for thread, results in calls:
            thread.join(60)
            assert isinstance(results[0], np.ndarray)
        assert service.embed(["d"]).shape == (1, 32)  # there is room again


def test_a_call_larger_than_the_queue_comes_in_when_it_is_empty_and_is_not_overtaken(
    encoder: mexma_rt.Encoder, gate: Gate
) -> None:
    with behind(encoder, gate).service(queue_texts=4) as service:
        calls = [start(service.embed, ["at work"])]
        assert gate.entered.wait(30)
        calls.append(start(service.embed, ["a"]))
        until(lambda: service.report().waiting == 1)
        calls.append(start(service.embed, TEXTS))
        until(lambda: len(service._queue.line) == 1)
        calls.append(start(service.embed, ["behind"]))
        until(lambda: len(service._queue.line) == 2)
        assert service.report().waiting == 1
        gate.door.set()
        for thread, results in calls:
            thread.join(60)
            assert isinstance(results[0], np.ndarray)
        assert calls[2][1][0].shape == (24, 32)


def test_a_timeout_drops_what_is_missing(encoder: mexma_rt.Encoder, gate: Gate) -> None:
    with behind(encoder, gate).service() as service:
        first, _ = start(service.embed, ["at work"])
        assert gate.entered.wait(30)
        with pytest.raises(ServiceBusyError, match=re.escape("The 24 texts of this call were not ready within timeout=0.05 s")):
            service.embed(TEXTS, timeout=0.05)
        with pytest.raises(ServiceBusyError, match="were not ready within timeout=0"):
            asyncio.run(service.aembed(TEXTS, timeout=0))
        assert service.report().waiting == 0
        gate.door.set()
        first.join(60)
    assert service.report().sentences == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_texts": 0}, "batch_texts=0 must be a whole number of at least 1."),
        ({"queue_texts": 2.5}, "queue_texts=2.5 must be a whole number of at least 1."),
        ({"queue_timeout": -1}, "queue_timeout=-1 must be a number of seconds of at least 0, or None to wait forever."),
        ({"queue_timeout": float("nan")}, "queue_timeout=nan must be"),
    ],
)
def test_settings_that_cannot_be(encoder: mexma_rt.Encoder, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        encoder.service(**settings)


# --- errors -------------------------------------------------------------------------------------------------------------


def test_a_bad_call_fails_alone(encoder: mexma_rt.Encoder, gate: Gate) -> None:
    poison = "stone " * 11
    gate.poison = int(encoder.tokenizer.encode([poison], 128).lengths[0])
    assert gate.poison not in encoder.tokenizer.encode(TEXTS, 128).lengths
    with behind(encoder, gate).service() as service:
        first, _ = start(service.embed, ["at work"])
        assert gate.entered.wait(30)
        good = [start(service.embed, [text]) for text in TEXTS]
        bad = start(service.embed, ["fine", poison])
        late = start(service.embed, [*TEXTS, poison])  # fails in its second part
        until(lambda: service.report().waiting == 24 + 2 + 25)
        with pytest.raises(InputError, match=r"texts\[1\] is of type NoneType"):
            service.embed(["fine", None])  # type: ignore[list-item]
        with pytest.raises(InputError, match="truncate_dim=99 is more than the 32 dimensions"):
            service.embed(["fine"], truncate_dim=99)
        with pytest.raises(InputError, match="timeout='1' must be"):
            service.embed(["fine"], timeout="1")  # type: ignore[arg-type]
        gate.door.set()
        for thread, _ in (*good, bad, late):
            thread.join(60)
        assert isinstance(bad[1][0], BackendError) and str(bad[1][0]) == "poisoned"
        assert str(late[1][0]) == "In the part of the call that begins with the text of index 16: poisoned"
        for (_, results), text in zip(good, TEXTS, strict=True):
            np.testing.assert_allclose(results[0], encoder.embed([text]), atol=1e-5)
        first.join(60)
        assert service.embed(["goes on"]).shape == (1, 32) and service.report().waiting == 0


def test_cut_texts_warn_in_their_call_only(tiny_bundle: Path, gate: Gate) -> None:
    encoder = mexma_rt.load(tiny_bundle, precision="fp32", max_length=12, threads=1)
    with encoder.service() as service:
        with pytest.warns(TruncationWarning) as caught:
            service.embed(["a"] * 20 + ["word " * 100])
        assert len(caught) == 1 and caught[0].filename == __file__
        assert str(caught[0].message).startswith("1 of 21 texts were longer than max_length=12 tokens and were cut; the first ")
        assert "the first has index 20 and " in str(caught[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            service.embed(["a"] * 20)


# --- the end ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 2])
def test_close_finishes_what_waits(encoder: mexma_rt.Encoder, gate: Gate, lanes: int) -> None:
    gate.lanes = lanes
    service = behind(encoder, gate).service(queue_texts=24)
    calls = [start(service.embed, ["at work"]) for _ in range(lanes)]
    until(lambda: len(gate.came) == lanes)
    calls += [start(service.embed, TEXTS)]
    until(lambda: service.report().waiting == 24)
    calls += [start(service.embed, ["in line"])]
    until(lambda: len(service._queue.line) == 1)
    closing, _ = start(service.close)
    until(lambda: service._closed)
    with pytest.raises(ServiceError, match=re.escape("The service is closed. Make another one: encoder.service().")):
        service.embed(["late"])
    gate.door.set()
    for thread, results in calls:
        thread.join(60)
        assert isinstance(results[0], np.ndarray)
    closing.join(60)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mexma-service")]
    service.close()  # twice is no error


def test_a_closed_service_finishes_a_call_in_line_though_a_lane_is_free(encoder: mexma_rt.Encoder, gate: Gate) -> None:
    gate.lanes = 2
    service = behind(encoder, gate).service(queue_texts=24, batch_texts=12)
    calls = [start(service.embed, TEXTS)]  # one worker has half of it, the other half fills the queue
    until(lambda: service.report().waiting == 12 and gate.entered.is_set())
    calls += [start(service.embed, TEXTS[:20])]
    until(lambda: len(service._queue.line) == 1)
    closing, _ = start(service.close)
    until(lambda: service._closed)
    gate.door.set()
    for thread, results in calls:
        thread.join(60)
        assert isinstance(results[0], np.ndarray)
    closing.join(60)


def test_a_lone_call_is_not_cut_for_lanes_that_nobody_works_in(encoder: mexma_rt.Encoder, gate: Gate) -> None:
    gate.lanes = 2
    gate.door.set()
    with behind(encoder, gate).service() as service:
        service.embed(TEXTS)
        assert service.report().batches == 1


def test_close_without_finishing_fails_what_waits(encoder: mexma_rt.Encoder, gate: Gate) -> None:
    calls = []
    with pytest.raises(KeyboardInterrupt), behind(encoder, gate).service(queue_texts=24) as service:
        calls += [start(service.embed, ["at work"])]
        assert gate.entered.wait(30)
        calls += [start(service.embed, TEXTS)]
        until(lambda: service.report().waiting == 24)
        calls += [start(service.embed, ["in line"])]
        until(lambda: len(service._queue.line) == 1)
        threading.Timer(0.1, gate.door.set).start()
        raise KeyboardInterrupt
    for thread, _ in calls:
        thread.join(60)
    assert isinstance(calls[0][1][0], np.ndarray)  # was at work
    for _, results in calls[1:]:
        assert isinstance(results[0], ServiceError) and "was closed before this call had its turn" in str(results[0])


def test_a_forgotten_service_neither_holds_up_the_end_nor_works_all_the_time(encoder: mexma_rt.Encoder) -> None:
    service = encoder.service()
    service.embed(TEXTS)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1  # nothing polls
    del service
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("mexma-service")])


@pytest.mark.skipif(not hasattr(os, "fork") or sys.version_info >= (3, 14), reason="needs fork")
def test_a_service_of_another_process_says_so(encoder: mexma_rt.Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    with encoder.service() as service:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(ServiceError, match="This service was made before the process was forked"):
            service.embed(["a"])


# --- asyncio ------------------------------------------------------------------------------------------------------------


def test_tasks_share_batches(encoder: mexma_rt.Encoder) -> None:
    async def many() -> list[np.ndarray]:
        with encoder.service() as service:
            vectors = await asyncio.gather(*(service.aembed([text]) for text in TEXTS * 10))
            assert service.report().sentences_per_batch > 10
            return vectors

    expected = encoder.embed(TEXTS)
    for index, vector in enumerate(asyncio.run(many())):
        np.testing.assert_allclose(vector[0], expected[index % 24], atol=1e-5)


def test_a_cancelled_task_leaves_the_queue_and_others_go_on(encoder: mexma_rt.Encoder, gate: Gate) -> None:
    async def session() -> None:
        service = behind(encoder, gate).service(queue_texts=24)
        first = asyncio.create_task(service.aembed(["at work"]))
        while not gate.entered.is_set():
            await asyncio.sleep(0.001)
        queued = asyncio.create_task(service.aembed(TEXTS))
        in_line = asyncio.create_task(service.aembed(["b"]))
        last = asyncio.create_task(service.aembed(["c"]))
        await asyncio.sleep(0.01)  # the loop is free while the engine is held up
        assert service.report().waiting == 24 and len(service._queue.line) == 2
        in_line.cancel()
        queued.cancel()
        first.cancel()  # its batch is at work, and nobody waits for it
        for task in (first, queued, in_line):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert service.report().waiting == 1 and not service._queue.line
        gate.door.set()
        np.testing.assert_allclose(await last, encoder.embed(["c"]), atol=1e-5)
        service.close()
        assert service.report().sentences == 2

    asyncio.run(session())


def test_errors_reach_the_task(encoder: mexma_rt.Encoder, caplog: pytest.LogCaptureFixture) -> None:
    async def session() -> None:
        with encoder.service() as service:
            with pytest.raises(InputError, match=r"texts\[0\] is of type int"):
                await service.aembed([3])  # type: ignore[list-item]
            broken = behind(encoder, Gate(encoder.backend, poison=2))
            broken.backend.door.set()  # type: ignore[attr-defined]
            with broken.service() as other, pytest.raises(BackendError, match="poisoned"):
                await other.aembed([""])

    asyncio.run(session())
    assert caplog.records == []  # no exception that "was never retrieved"


def test_aembed_of_an_encoder(encoder: mexma_rt.Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mexma_rt.embedding.aembed.SLICE", 7)
    for settings in ({}, {"normalize": False, "truncate_dim": 5}, {"precision": "float16"}):
        vectors = asyncio.run(encoder.aembed(TEXTS, **settings))
        expected = encoder.embed(TEXTS, **settings)
        assert vectors.dtype == expected.dtype
        np.testing.assert_allclose(vectors, expected, atol=1e-3 if vectors.dtype == np.float16 else 1e-5)
    assert asyncio.run(encoder.aembed([])).shape == (0, 32)
    with pytest.raises(InputError, match=r"texts\[8\] is of type NoneType"):
        asyncio.run(encoder.aembed([*TEXTS[:8], None]))  # type: ignore[list-item]


def test_aembed_warns_once_with_the_indices_of_the_call(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mexma_rt.embedding.aembed.SLICE", 2)
    encoder = mexma_rt.load(tiny_bundle, precision="fp32", max_length=12, threads=1)

    async def session() -> None:
        with pytest.warns(TruncationWarning) as caught:
            await encoder.aembed(["a", "b", "c", "word " * 100, "e", "word " * 90])
        assert [str(each.message)[:90] for each in caught] == [
            "2 of 6 texts were longer than max_length=12 tokens and were cut; the first has index 3 and 101 tokens"[:90]
        ]
        assert caught[0].filename == __file__

    asyncio.run(session())


def test_a_cancelled_aembed_stops_after_its_slice(
    encoder: mexma_rt.Encoder, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mexma_rt.embedding.aembed.SLICE", 2)

    async def session() -> None:
        task = asyncio.create_task(behind(encoder, gate).aembed(TEXTS))
        while not gate.entered.is_set():  # the loop runs beside the engine
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.door.set()

    asyncio.run(session())  # waits for the thread
    assert sum(gate.rows) <= 2
