"""load(deterministic=True): the same text gives the same bits alone, in any company, in any order, and through a service."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mexma_rt
from mexma_rt.backends import Backend

PRECISIONS = ("fp32", "company")


class Company(Backend):
    """An engine in which every sentence feels its batch-mates, as where int8 takes the scale of activations from the batch."""

    name, device, precision, reason = "company", "cpu", "int8", "test"

    def __init__(self, engine: Backend) -> None:
        self.engine = engine

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        vectors = self.engine.run(input_ids, attention_mask)
        return vectors + np.float32(1e-3) * np.abs(vectors).max()


WORDS = st.sampled_from(["a", "cat", "Où", "猫は", "</s>", "stone " * 8, "Привет"])
SENTENCE = st.lists(WORDS, max_size=6).map(" ".join)


@pytest.fixture(scope="module")
def encoders(tiny_bundle: Path) -> dict[str, mexma_rt.Encoder]:
    encoder = mexma_rt.load(tiny_bundle, precision="fp32", threads=2, deterministic=True)
    return {"fp32": encoder, "company": dataclasses.replace(encoder, backend=Company(encoder.backend))}


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=15, deadline=None)
@given(text=SENTENCE | st.text(max_size=20), mates=st.lists(SENTENCE, max_size=8), data=st.data())
def test_equal_bits_whatever_the_company(
    encoders: dict[str, mexma_rt.Encoder], precision: str, text: str, mates: list[str], data: st.DataObject
) -> None:
    encoder = encoders[precision]
    alone = encoder.embed([text])[0].tobytes()
    place = data.draw(st.integers(0, len(mates)))
    company = [*mates[:place], text, *mates[place:]]
    order = data.draw(st.permutations(range(len(company))))
    shuffled = [company[i] for i in order]
    assert encoder.embed(company)[place].tobytes() == alone
    assert encoder.embed(shuffled, batch_tokens=64)[order.index(place)].tobytes() == alone
    assert asyncio.run(encoder.aembed(company))[place].tobytes() == alone
    assert encoder.encode(company, batch_size=3)[place].tobytes() == alone
    with encoder.service() as service:
        assert service.embed(company)[place].tobytes() == alone


def test_without_it_the_company_shows(encoders: dict[str, mexma_rt.Encoder], sentences: list[tuple[str, str]]) -> None:
    """Else the test above could not fail."""
    encoder = dataclasses.replace(encoders["company"], deterministic=False)
    texts = [text for _, text in sentences]
    alone = np.concatenate([encoder.embed([text]) for text in texts])
    assert not np.array_equal(alone, encoder.embed(texts))


def test_it_is_said(encoders: dict[str, mexma_rt.Encoder]) -> None:
    report = encoders["fp32"].embed_report(["a", "b c", "d e f"]).report
    assert report.deterministic and report.batches == 3 and report.padding == 1
    assert repr(encoders["fp32"]).endswith("by onnxruntime, deterministic>")
