"""Windows, lanes and the tokeniser's thread: nothing of them shows in the vectors, and an error or Ctrl-C ends them all."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mexma_rt import Encoder, load
from mexma_rt.backends import Backend
from mexma_rt.embedding import compute
from mexma_rt.embedding.compute import in_lanes
from mexma_rt.embedding.tokenizer import Tokens


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Encoder:
    return load(tiny_bundle, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def texts(sentences: list[tuple[str, str]]) -> list[str]:
    return [f"{text} {number}" for number in range(5) for _, text in sentences]


class Spy(Backend):
    """An engine that remembers how many threads were in it at a time, and the shapes it got."""

    name, device, precision, reason = "spy", "cpu", "fp32", "test"

    def __init__(self, inner: Backend, lanes: int) -> None:
        self.inner, self.lanes = inner, lanes
        self.inside = self.most = 0
        self.cells: list[int] = []
        self.lock = threading.Lock()

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.cells.append(input_ids.size)
        try:
            time.sleep(0.002)
            return self.inner.run(input_ids, attention_mask)
        finally:
            with self.lock:
                self.inside -= 1


@pytest.mark.parametrize("window", [1, 7, 8192])
@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_windows_and_lanes_do_not_show(
    encoder: Encoder, texts: list[str], monkeypatch: pytest.MonkeyPatch, window: int, lanes: int
) -> None:
    expected = encoder.embed_report(texts)
    monkeypatch.setattr(compute, "WINDOW_TEXTS", window)
    spy = Spy(encoder.backend, lanes)
    found = dataclasses.replace(encoder, backend=spy).embed_report(texts, batch_tokens=256)
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-6)
    assert (found.report.tokens, found.report.padded_tokens) == (expected.report.tokens, sum(spy.cells))
    assert found.report.batches == len(spy.cells)
    assert spy.most == (1 if window == 1 else lanes) or (window == 7 and 1 < spy.most <= lanes)
    assert not [t for t in threading.enumerate() if t.name.startswith(("mexma-lane", "mexma-tokenize"))]


def test_a_list_for_one_batch_is_shared_among_the_lanes(encoder: Encoder, texts: list[str]) -> None:
    spy = Spy(encoder.backend, 2)
    report = dataclasses.replace(encoder, backend=spy).embed_report(texts).report
    assert 512 < report.tokens < 4096 and len(spy.cells) >= 2
    alone = Spy(encoder.backend, 2)
    dataclasses.replace(encoder, backend=alone).embed_report(["Hello", "world"])
    assert len(alone.cells) == 1  # too little to share


def test_a_list_for_one_batch_is_not_divided_among_the_lanes_of_a_gpu(encoder: Encoder, texts: list[str]) -> None:
    """They take turns on it: a second batch would only start its kernels once more."""
    batches = []
    for lanes in (1, 2):
        spy = Spy(encoder.backend, lanes)
        spy.device = "cuda"
        dataclasses.replace(encoder, backend=spy).embed_report(texts, batch_tokens=1 << 20)
        batches.append(sorted(spy.cells))
    assert batches[0] == batches[1]


def test_cuts_are_counted_over_all_windows(tiny_bundle: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    short = load(tiny_bundle, device="cpu", max_length=40)
    expected = short.embed_report(texts).report
    monkeypatch.setattr(compute, "WINDOW_TEXTS", 7)
    report = short.embed_report(texts).report
    assert (report.truncated, report.truncated_lengths) == (expected.truncated, expected.truncated_lengths)
    assert 0 < len(report.truncated) < len(texts)


def test_the_next_window_is_tokenised_while_the_engine_works(
    encoder: Encoder, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "WINDOW_TEXTS", 50)
    seen, second = [], threading.Event()

    class Watched:
        def encode(self, window: list[str], max_length: int) -> Tokens:
            seen.append(len(window))
            if len(seen) == 2:
                second.set()
            return encoder.tokenizer.encode(window, max_length)

    class Waiting(Spy):
        def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
            assert second.wait(10)  # comes only if another thread tokenises meanwhile
            assert len(seen) <= 2  # and no further ahead than that
            return self.inner.run(input_ids, attention_mask)

    watched: Any = Watched()
    dataclasses.replace(encoder, tokenizer=watched, backend=Waiting(encoder.backend, 1)).embed(texts[:100])
    assert seen == [50, 50]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_the_first_error_ends_all_lanes(error: BaseException) -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        if item == 3:
            raise error
        return item

    with pytest.raises(type(error)):
        in_lanes(work, range(1000), 4)
    assert len(begun) < 20 and not [t for t in threading.enumerate() if t.name.startswith(("mexma-lane", "mexma-tokenize"))]


def test_every_item_once() -> None:
    assert sorted(in_lanes(lambda item: item, range(100), 7)) == list(range(100))
    assert in_lanes(lambda item: item, [], 3) == []
