"""Text to ragged arrays: against the tokenizers library one text at a time, and cuts as data."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from mexma_rt import BundleError
from mexma_rt.embedding import tokenizer
from mexma_rt.embedding.tokenizer import Tokenizer, Tokens


@pytest.fixture(scope="module")
def path(tiny_bundle: Path) -> Path:
    return tiny_bundle / "tokenizer.json"


@pytest.fixture(scope="module")
def texts(sentences: list[tuple[str, str]]) -> list[str]:
    return [text for _, text in sentences] + ["", "  \n ", "nul\0byte", "</s> in a text"]


def rows(tokens: Tokens) -> list[list[int]]:
    return [tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)]


def test_same_ids_as_the_library_one_text_at_a_time(path: Path, texts: list[str]) -> None:
    library = tokenizers.Tokenizer.from_file(str(path))
    tokens = Tokenizer(path).encode(texts, max_length=512)
    assert rows(tokens) == [library.encode(text).ids for text in texts]
    assert tokens.ids.dtype == np.int32
    assert not tokens.truncated.any()


def test_a_cut_keeps_the_first_tokens_and_the_end_and_is_reported(path: Path, texts: list[str]) -> None:
    library = tokenizers.Tokenizer.from_file(str(path))
    full = [library.encode(text).ids for text in texts]
    tokens = Tokenizer(path).encode(texts, max_length=8)
    for row, ids, cut, length in zip(rows(tokens), full, tokens.truncated, tokens.full_lengths, strict=True):
        assert length == len(ids)
        assert cut == (len(ids) > 8)
        assert row == (ids if len(ids) <= 8 else [*ids[:7], 2])
    assert 0 < tokens.truncated.sum() < len(texts)


def test_settings_saved_in_the_file_do_not_cut_or_pad(path: Path, texts: list[str], tmp_path: Path) -> None:
    other = tokenizers.Tokenizer.from_file(str(path))
    other.enable_truncation(5)
    other.enable_padding(length=64, pad_id=1, pad_token="<pad>")
    other.save(str(tmp_path / "tokenizer.json"))
    assert rows(Tokenizer(tmp_path / "tokenizer.json").encode(texts, 512)) == rows(Tokenizer(path).encode(texts, 512))


@pytest.mark.parametrize(("slab_texts", "slab_characters"), [(1, 4_000_000), (3, 100), (7, 1)])
def test_slabs_do_not_show(
    path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, slab_texts: int, slab_characters: int
) -> None:
    whole = Tokenizer(path).encode(texts, 32)
    monkeypatch.setattr(tokenizer, "SLAB_TEXTS", slab_texts)
    monkeypatch.setattr(tokenizer, "SLAB_CHARACTERS", slab_characters)
    slabs = list(tokenizer.slabs(texts))
    assert [text for slab in slabs for text in slab] == texts
    assert all(len(slab) == 1 or sum(map(len, slab)) <= slab_characters for slab in slabs)
    assert max(map(len, slabs)) <= slab_texts
    np.testing.assert_array_equal(Tokenizer(path).encode(texts, 32).ids, whole.ids)


def test_no_text_gives_no_tokens(path: Path) -> None:
    tokens = Tokenizer(path).encode([], 32)
    assert (len(tokens.ids), tokens.offsets.tolist(), len(tokens.lengths), len(tokens.truncated)) == (0, [0], 0, 0)


def test_a_batch_is_padded_on_the_right_with_1_and_masked(path: Path, texts: list[str]) -> None:
    tokens = Tokenizer(path).encode(texts, 512)
    chosen = np.array([5, 0, 20])
    input_ids, attention_mask = tokens.batch(chosen)
    longest = max(len(rows(tokens)[i]) for i in chosen)
    assert input_ids.dtype == attention_mask.dtype == np.int64
    assert input_ids.tolist() == [rows(tokens)[i] + [1] * (longest - len(rows(tokens)[i])) for i in chosen]
    assert attention_mask.sum(axis=1).tolist() == [len(rows(tokens)[i]) for i in chosen]
    assert (np.diff(attention_mask, axis=1) <= 0).all()


@pytest.mark.parametrize("text", ["a" * 1_000_000, "\n" * 100_000, "ab " * 300_000, "e" + "\u0301" * 300_000])
def test_monstrous_texts_take_linear_time(path: Path, text: str) -> None:
    started = time.perf_counter()
    tokens = Tokenizer(path).encode([text], 16)
    assert time.perf_counter() - started < 30  # about one second; anything quadratic takes hours
    assert 2 <= tokens.lengths[0] <= 16
    assert tokens.truncated[0] == (tokens.full_lengths[0] > 16)


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer that can be loaded"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_of_another_family(tmp_path: Path) -> None:
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    other.save(str(tmp_path / "tokenizer.json"))
    message = "encodes an empty sentence as [], not as [0, 2] (<s> </s>): it is not an XLM-R tokenizer"
    with pytest.raises(BundleError, match=re.escape(message)):
        Tokenizer(tmp_path / "tokenizer.json")
