"""The mteb wrapper: tasks made in memory, evaluated by the installed mteb, with sockets blocked."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mexma_rt

pytestmark = pytest.mark.peers
ENG = ["Hello world.", "The cat is sleeping.", "Where is the station?", "It may rain tonight.", "The stone is warm."]
FRA = ["Bonjour le monde.", "Le chat dort.", "Où est la gare ?", "Il pleuvra peut-être ce soir.", "La pierre est chaude."]


@pytest.fixture(scope="module")
def mteb() -> Any:
    pytest.importorskip("datasets", reason="part of mteb")
    return pytest.importorskip("mteb", reason="the peer is not installed (pip: mexma-rt[bench])")


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def encoder() -> mexma_rt.Encoder:
    return mexma_rt.load()


def task_of(mteb: Any, kind: type, name: str, data: dict[str, list], **metadata: Any) -> Any:
    import datasets
    from mteb.abstasks.task_metadata import TaskMetadata

    class Task(kind):
        def load_data(self, num_proc: int | None = None, **keywords: Any) -> None:
            self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_dict(data)})
            self.data_loaded = True

    Task.metadata = TaskMetadata(
        name=name,
        dataset={"path": "in/memory", "revision": "1"},
        description="made in a test",
        reference=None,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn", "fra-Latn"],
        date=("2020-01-01", "2020-01-02"),
        domains=[],
        task_subtypes=[],
        license="mit",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation="",
        **metadata,
    )
    return Task()


def example_bitext() -> tuple[list[str], list[str]]:
    """The lines of examples/noisy.* that translate each other: the first ten, and those after the block that slipped."""
    folder = Path(__file__).parents[2] / "examples"
    sides = [(folder / f"noisy.{language}").read_text(encoding="utf-8").splitlines() for language in ("en", "fr")]
    english, french = ([*lines[:10], *lines[16:25]] for lines in sides)
    return english, french


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(("name", "sides"), [("InMemoryBitext", (ENG, FRA)), ("ExampleBitext", example_bitext())])
def test_bitext_mining_is_evaluated(
    mteb: Any, encoder: mexma_rt.Encoder, name: str, sides: tuple[list[str], list[str]]
) -> None:
    from mteb.abstasks import AbsTaskBitextMining

    from mexma_rt.mteb import MtebEncoder

    source, target = sides
    data = {"sentence1": source, "sentence2": target}
    task = task_of(mteb, AbsTaskBitextMining, name, data, type="BitextMining", main_score="f1")
    model = MtebEncoder(encoder, name="org/mini", revision="r1")
    assert isinstance(model, mteb.EncoderProtocol)
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, encode_kwargs={"batch_size": 2})
    assert (result.model_name, result.model_revision) == ("org/mini", "r1")
    scores = result.task_results[0].scores["test"][0]
    nearest = (encoder.embed(source) @ encoder.embed(target).T).argmax(axis=1)
    assert scores["accuracy"] == pytest.approx((nearest == np.arange(len(source))).mean()) and scores["accuracy"] >= 0.8


@pytest.mark.usefixtures("_no_network")
def test_sts_is_evaluated(mteb: Any, encoder: mexma_rt.Encoder) -> None:
    from mteb.abstasks import AbsTaskSTS
    from scipy.stats import spearmanr

    from mexma_rt.mteb import MtebEncoder

    data: dict[str, list[Any]] = {"sentence1": ENG, "sentence2": [*FRA[:3], FRA[0], FRA[1]], "score": [5.0, 4.8, 4.6, 0.5, 0.2]}
    kind = type("STS", (AbsTaskSTS,), {"min_score": 0, "max_score": 5})
    task = task_of(mteb, kind, "InMemorySTS", data, type="STS", main_score="cosine_spearman")
    result = mteb.evaluate(MtebEncoder(encoder), task, cache=None, show_progress_bar=False)
    scores = result.task_results[0].scores["test"][0]
    cosine = (encoder.embed(data["sentence1"]) * encoder.embed(data["sentence2"])).sum(axis=1)
    assert scores["cosine_spearman"] == pytest.approx(spearmanr(cosine, data["score"])[0])
    assert scores["spearman"] == pytest.approx(scores["cosine_spearman"])  # by our similarity_pairwise
    assert result.model_name == f"mexma-rt/{encoder.bundle.name}" and len(result.model_revision) == 16


def test_calls_as_mteb_makes_them(mteb: Any, encoder: mexma_rt.Encoder, tmp_path: Path) -> None:
    from mexma_rt.mteb import MtebEncoder

    model = MtebEncoder(encoder)
    place: dict[str, Any] = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
    batches = [{"text": ENG[:2]}, {"text": ENG[2:]}]
    vectors = model.encode(batches, **place, prompt_type=None, batch_size=1, show_progress_bar=False, unknown=1)
    np.testing.assert_allclose(vectors, encoder.embed(ENG), atol=1e-5)
    assert model.encode(batches, **place, precision="ubinary").dtype == np.uint8
    import torch

    both = model.similarity(torch.from_numpy(vectors), vectors[:2])
    assert both.shape == (5, 2)
    np.testing.assert_allclose(model.similarity_pairwise(vectors, vectors), 1, atol=1e-5)
    with pytest.raises(mexma_rt.InputError, match="has image, and this model reads text"):
        model.encode([{"image": []}], **place)
    assert model.mteb_model_meta.embed_dim == encoder.dimensions
