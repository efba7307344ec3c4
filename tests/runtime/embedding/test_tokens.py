"""Token vectors against the graph run by hand; offsets against what Unicode says, in many scripts and on random text."""

from __future__ import annotations

import unicodedata
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_rt import BackendError, Encoder, InputError, TruncationWarning, load
from mexma_rt.backends import Backend
from mexma_rt.embedding import tokens


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Encoder:
    return load(tiny_bundle, device="cpu", precision="fp32", max_length=512)


@pytest.fixture(scope="module")
def mini() -> Encoder:
    return load()


@pytest.mark.parametrize("batch_tokens", [1, 60, None])
def test_vectors_are_the_states_of_the_graph(
    tiny_bundle: Path,
    encoder: Encoder,
    sentences: list[tuple[str, str]],
    batch_tokens: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mexma_rt.embedding.tokenizer.SLAB_TEXTS", 7)
    texts = [*(text for _, text in sentences), "", "  ", sentences[0][1]]
    results = encoder.embed_tokens(texts, normalize=False, batch_tokens=batch_tokens)
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    session = onnxruntime.InferenceSession(tiny_bundle / "onnx/model.onnx")
    assert len(results) == len(texts)
    for text, result in zip(texts, results, strict=True):
        ids = tokenizer.encode(text).ids
        feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        expected = session.run(["last_hidden_state"], feed)[0][0][1:-1]
        assert result.vectors.dtype == np.float32 and result.offsets.shape == (len(ids) - 2, 2)
        assert result.pieces == tuple(tokenizer.id_to_token(number) for number in ids[1:-1])
        assert result.full_length == len(ids) and not result.truncated
        np.testing.assert_allclose(result.vectors, expected, atol=2e-5)
    assert results[0] is results[-1]
    for raw, unit in zip(results, encoder.embed_tokens(texts), strict=True):
        lengths = np.sqrt((raw.vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(unit.vectors, raw.vectors / lengths, atol=1e-5)


def test_results_do_not_keep_their_batch_alive(encoder: Encoder, sentences: list[tuple[str, str]]) -> None:
    for normalize in (True, False):
        assert all(r.vectors.base is None for r in encoder.embed_tokens([t for _, t in sentences], normalize=normalize))


# Text and the characters of each piece that is not the bare mark "▁", by hand; "|" separates pieces.
OFFSETS = [
    ("Hello  world", "Hello|world"),
    ("  lead \t and  ", "lead|and"),
    ("caf\u0065\u0301 \u0065\u0301t", "cafe\u0301|e\u0301t"),
    ("½ ㎏ …", "½|㎏|…"),
    ("①② ＡＢＣ", "①②|ＡＢＣ"),
    ("ｶﾞｷﾞ", "ｶ|ﾞ|ｷ|ﾞ"),
    ("👩\u200d👧 ok 🇩🇪", "👩|👧|ok|🇩|🇪"),
    ("a\u200bb \u00adc", "a|b|\u00ad|c"),
    ("𝔘𝔫𝔦", "𝔘𝔫𝔦"),
    ("한국어 조선", "한국어|조선"),
    ("นี้ แมว", "นี้|แมว"),
    ("नमस्ते", "नम|स्ते"),
    ("\u1100\u1161\u11a8", "\u1100|\u1161|\u11a8"),  # a Korean syllable in three letters
]


@pytest.mark.parametrize(("text", "expected"), OFFSETS)
def test_offsets_by_hand(mini: Encoder, text: str, expected: str) -> None:
    (result,) = mini.embed_tokens([text])
    spans = [(a, b) for piece, (a, b) in zip(result.pieces, result.offsets.tolist(), strict=True) if piece != "▁"]
    assert "|".join(text[a:b] for a, b in spans) == expected
    for piece, (a, b) in zip(result.pieces, result.offsets.tolist(), strict=True):
        assert piece != "▁" or a == b


def check_offsets(text: str, spans: list[tuple[int, int]]) -> None:
    """Spans ascend, lie in the text, normalise to their piece where that piece is alone, and leave out only what is blank."""
    assert spans == sorted(spans)
    assert all(0 <= a <= b <= len(text) for a, b in spans)
    covered = {index for a, b in spans for index in range(a, b)}
    left = [c for index, c in enumerate(text) if index not in covered]
    assert all(c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in left), (text, left)


@pytest.mark.parametrize("which", ["tiny", "mini"])
def test_every_visible_character_belongs_to_a_piece(
    which: str, encoder: Encoder, mini: Encoder, sentences: list[tuple[str, str]]
) -> None:
    texts = [text for _, text in sentences]
    texts += [unicodedata.normalize("NFD", text) for text in texts] + [text.replace(" ", "\u3000 ") for text in texts]
    used = encoder if which == "tiny" else mini
    for text, result in zip(texts, used.embed_tokens(texts), strict=True):
        check_offsets(text, [(a, b) for a, b in result.offsets.tolist()])
        for piece, (a, b) in zip(result.pieces, result.offsets.tolist(), strict=True):
            if piece not in ("▁", "<unk>"):
                assert unicodedata.normalize("NFKC", piece.strip("▁")) in unicodedata.normalize("NFKC", text[a:b])


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cn", "Co")), max_size=30))
def test_every_visible_character_of_any_text_belongs_to_a_piece(encoder: Encoder, text: str) -> None:
    (encoding,) = encoder.tokenizer.with_offsets([text])
    check_offsets(text, tokens.own_characters(text, encoding))


# Without what XLM-R's own normalisation removes or takes apart: behind that the library's spans are shifted ("\x080" -> "0"
# has the span of "\x08"), which nothing after it can tell.
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", categories=("L", "Nd", "P", "Sm", "Zs")), max_size=30))
def test_every_visible_character_belongs_to_a_piece_of_the_bundled_tokenizer(mini: Encoder, text: str) -> None:
    (encoding,) = mini.tokenizer.with_offsets([text])
    check_offsets(text, tokens.own_characters(text, encoding))


def test_a_cut_is_data_and_one_warning(tiny_bundle: Path, sentences: list[tuple[str, str]]) -> None:
    short = load(tiny_bundle, device="cpu", precision="fp32", max_length=8)
    long = sentences[0][1]
    with pytest.warns(TruncationWarning, match=r"1 of 2 texts were longer than max_length=8 .* has index 1 and ") as caught:
        brief, cut = short.embed_tokens(["a", long])
    assert len(caught) == 1 and caught[0].filename == __file__
    assert (brief.truncated, cut.truncated, len(cut.pieces)) == (False, True, 6)
    (whole,) = load(tiny_bundle, device="cpu", precision="fp32").embed_tokens([long])
    assert cut.full_length == whole.full_length and cut.pieces == whole.pieces[:6]
    np.testing.assert_array_equal(cut.offsets, whole.offsets[:6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short.embed_tokens(["a"])


def test_bad_input(encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"texts is a single str"):
        encoder.embed_tokens("a")
    with pytest.raises(InputError, match=r"texts\[1\] is of type NoneType"):
        encoder.embed_tokens(["a", None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="batch_tokens=0 must be a whole number of at least 1"):
        encoder.embed_tokens(["a"], batch_tokens=0)
    assert encoder.embed_tokens([]) == []


def test_an_engine_without_token_vectors_says_so() -> None:
    class Sentences(Backend):
        name = "tensorrt"

        def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
            return np.zeros((len(input_ids), 4), np.float32)

    with pytest.raises(
        BackendError, match=r"The tensorrt engine computes sentence vectors.*load\(..., backend='onnxruntime'\)"
    ):
        Sentences().run_tokens(np.array([[0, 2]]), np.array([[1, 1]]))


def test_a_graph_without_token_vectors_says_so(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = encoder.backend._session  # type: ignore[attr-defined]
    session = SimpleNamespace(get_outputs=lambda: real.get_outputs()[:1], run=real.run)
    monkeypatch.setattr(encoder.backend, "_session", session)
    with pytest.raises(BackendError, match="This bundle's fp32 graph has no output last_hidden_state"):
        encoder.embed_tokens(["a"])


def test_vectors_that_are_not_finite_are_an_error(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = encoder.backend.run_tokens

    def broken(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        states = real(ids, mask)
        states[:, 1, 0] = np.nan
        return states

    monkeypatch.setattr(encoder.backend, "run_tokens", broken)
    with pytest.raises(BackendError, match="not finite for the text 'Hello'"):
        encoder.embed_tokens(["Hello"])
    assert tokens.embed_tokens(encoder, [""], normalize=True, batch_tokens=None, progress=None)[0].pieces == ()
