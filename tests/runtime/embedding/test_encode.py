"""encode(), the sentence-transformers spelling: against that library on the same folder, and what it does not offer."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mexma_rt import Encoder, InputError, TruncationWarning, load
from mexma_rt.backends import Backend


@pytest.fixture(scope="module")
def texts(sentences: list[tuple[str, str]]) -> list[str]:
    return [*(text for _, text in sentences), "", "a"]


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Encoder:
    return load(tiny_bundle, device="cpu", precision="fp32", max_length=512)


def test_encode_of_one_and_of_many(encoder: Encoder, texts: list[str]) -> None:
    unit = encoder.embed(texts)
    np.testing.assert_allclose(encoder.encode(texts), unit, atol=1e-5)
    one = encoder.encode(texts[0])
    assert one.shape == (32,)
    np.testing.assert_allclose(one, unit[0], atol=1e-5)
    assert encoder.encode([]).shape == (0, 32)


@pytest.mark.peers
def test_encode_is_what_sentence_transformers_gives(encoder: Encoder, texts: list[str], tiny_bundle: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="the peer is not installed (pip: mexma-rt[bench])")
    peer = library.SentenceTransformer(str(tiny_bundle), device="cpu")
    for keywords in (
        {},
        {"normalize_embeddings": True},
        {"truncate_dim": 8},
        {"truncate_dim": 8, "normalize_embeddings": True, "batch_size": 3, "show_progress_bar": False},
        {"prompt": "query: "},
        {"precision": "binary"},
        {"precision": "ubinary", "truncate_dim": 16},
    ):
        theirs = peer.encode(texts, **keywords)
        np.testing.assert_allclose(encoder.encode(texts, **keywords), theirs, atol=1e-5, err_msg=str(keywords))
    assert peer.encode(texts[0]).shape == encoder.encode(texts[0]).shape


@pytest.mark.peers
def test_other_names_are_those_of_sentence_transformers(encoder: Encoder, texts: list[str], tiny_bundle: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="the peer is not installed (pip: mexma-rt[bench])")
    peer = library.SentenceTransformer(str(tiny_bundle), device="cpu")
    np.testing.assert_allclose(encoder.encode_query(texts[:3]), peer.encode_query(texts[:3]), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_document(texts[0]), peer.encode_document(texts[0]), atol=1e-5)
    x, y = peer.encode(texts[:3]), peer.encode(texts[3:6])
    np.testing.assert_allclose(encoder.similarity(x, y), peer.similarity(x, y).numpy(), atol=1e-5)
    np.testing.assert_allclose(encoder.similarity_pairwise(x, y), peer.similarity_pairwise(x, y).numpy(), atol=1e-5)
    assert encoder.get_sentence_embedding_dimension() == peer.get_sentence_embedding_dimension() == 32
    assert encoder.get_embedding_dimension() == 32
    assert load(tiny_bundle, device="cpu").max_seq_length == peer.max_seq_length


def test_a_cut_text_is_warned_of_at_the_callers_line(tiny_bundle: Path) -> None:
    short = load(tiny_bundle, device="cpu", max_length=4)
    with pytest.warns(TruncationWarning) as caught:
        short.encode("the quick brown fox jumps over the lazy dog")
    assert caught[0].filename == __file__


def test_batch_size_bounds_the_rows(encoder: Encoder, texts: list[str]) -> None:
    rows = []

    class Spy(Backend):
        name, device, precision, reason = "spy", "cpu", "fp32", "test"

        def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
            rows.append(len(input_ids))
            return encoder.backend.run(input_ids, attention_mask)

    dataclasses.replace(encoder, backend=Spy()).encode(texts, batch_size=3)
    assert max(rows) == 3
    with pytest.raises(InputError, match="batch_size=0 must be a whole number of at least 1"):
        encoder.encode(texts, batch_size=0)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"convert_to_tensor": True}, "For a tensor, type torch.from_numpy(encoder.encode(...))."),
        ({"convert_to_numpy": False}, "encode() returns numpy arrays."),
        ({"output_value": "token_embeddings"}, "output_value='token_embeddings' is not supported"),
        ({"precision": "int4"}, "precision='int4' is not a storage format. Type"),
        ({"prompt_name": "query"}, "prompt='query': this model has no prompts. Name one of its own, or leave it out"),
        ({"truncate_dim": 99}, "truncate_dim=99 is more than the 32 dimensions"),
    ],
)
def test_what_encode_does_not_offer_teaches(encoder: Encoder, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        encoder.encode(["a"], **keywords)


def test_prompts_for_asyncio(encoder: Encoder, texts: list[str]) -> None:
    asked = dataclasses.replace(encoder, bundle=dataclasses.replace(encoder.bundle, prompts={"query": "query: "}))
    queries = encoder.embed([f"query: {text}" for text in texts])
    np.testing.assert_array_equal(asyncio.run(asked.aembed(texts, prompt="query")), queries)
    with pytest.raises(InputError, match="prompt='title': this model has the prompts 'query'"):
        asyncio.run(asked.aembed(texts, prompt="title"))


def test_prompts_of_the_model(encoder: Encoder, texts: list[str]) -> None:
    plain = encoder
    prompts = {"query": "query: ", "passage": "passage: "}
    encoder = dataclasses.replace(plain, bundle=dataclasses.replace(plain.bundle, prompts=prompts))
    queries = plain.embed([f"query: {text}" for text in texts])
    np.testing.assert_array_equal(encoder.embed(texts, prompt="query"), queries)
    np.testing.assert_array_equal(encoder.encode(texts, prompt_name="query"), queries)
    np.testing.assert_array_equal(encoder.encode_query(texts), queries)
    np.testing.assert_array_equal(encoder.encode_document(texts), plain.embed(texts))  # as sentence-transformers does
    passages = plain.embed([f"passage: {text}" for text in texts])
    np.testing.assert_array_equal(encoder.encode(texts, prompt_name="passage"), passages)
    renamed = dataclasses.replace(plain, bundle=dataclasses.replace(plain.bundle, prompts={"document": "passage: "}))
    np.testing.assert_array_equal(renamed.encode_document(texts), passages)
    np.testing.assert_array_equal(
        encoder.encode_document(texts, prompt="own: "), plain.embed([f"own: {text}" for text in texts])
    )
    np.testing.assert_array_equal(encoder.encode_document(texts, prompt_name="query"), queries)
    np.testing.assert_array_equal(encoder.embed(texts), plain.embed(texts))  # no prompt unless one is named
    with pytest.raises(InputError, match="prompt='title': this model has the prompts 'query', 'passage'"):
        encoder.embed(texts, prompt="title")
    with pytest.raises(InputError, match="prompt='query': this model has no prompts"):
        plain.embed(texts, prompt="query")
