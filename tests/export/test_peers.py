"""sentence-transformers loads our bundle and gives the same ids and the same vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

pytestmark = pytest.mark.peers
sentence_transformers = pytest.importorskip("sentence_transformers", reason="the peer (pip: mexma-rt[bench])")

HARD = ["", "  ", "Hello   world", "tabs\tand\nlines", "a <mask> b", "ﬁ ①", "long " * 400, "🙂 emoji", " lead and trail "]


@pytest.fixture(scope="module")
def peer(tiny_bundle: Path) -> Any:
    return sentence_transformers.SentenceTransformer(str(tiny_bundle), device="cpu")


@pytest.fixture(scope="module")
def texts(sentences: list[tuple[str, str]]) -> list[str]:
    return [text for _, text in sentences] + HARD


def our_ids(bundle: Path, texts: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def test_ids_are_identical_truncation_included(peer: Any, tiny_bundle: Path, texts: list[str]) -> None:
    ours = our_ids(tiny_bundle, texts)
    theirs = peer.tokenizer(texts, truncation=True, max_length=peer.max_seq_length)["input_ids"]
    assert peer.max_seq_length == 128
    assert theirs == ours
    longest = max(ours, key=len)
    assert len(longest) == 128 and longest[0] == 0 and longest[-1] == 2


def test_vectors_are_those_of_onnxruntime_by_hand(peer: Any, tiny_bundle: Path, texts: list[str]) -> None:
    session = onnxruntime.InferenceSession(tiny_bundle / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    rows = [
        session.run(["sentence_embedding"], {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)})
        for ids in our_ids(tiny_bundle, texts)
    ]
    wanted = np.concatenate([row[0] for row in rows])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    got = peer.encode(texts)
    assert got.shape == (len(texts), 32)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    # the check can fail: the vectors of different sentences are far apart
    assert np.abs(wanted @ wanted.T - np.eye(len(wanted)))[:20, :20].max() < 0.99
