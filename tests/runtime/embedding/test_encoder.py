"""The pipeline against the graph run by hand, one sentence at a time and without padding; then every option and error."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tokenizers

from mexma_rt import BackendError, Encoder, InputError, TruncationWarning, load
from mexma_rt.backends import Backend


@pytest.fixture(scope="module")
def texts(sentences: list[tuple[str, str]]) -> list[str]:
    """Sentences of many lengths, blank ones, and repetitions."""
    texts = [text for _, text in sentences]
    return [*texts, "", " ".join(texts[:4]), texts[3], "   ", "a", "nul\0byte", texts[0]]


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Encoder:
    return load(tiny_bundle, device="cpu", precision="fp32", max_length=512)


@pytest.fixture(scope="module")
def raw(tiny_bundle: Path, texts: list[str]) -> np.ndarray:
    """Raw vectors [n, D]: tokenizers and onnxruntime by hand, batches of one, no padding."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    session = onnxruntime.InferenceSession(tiny_bundle / "onnx/model.onnx")
    rows = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids])
        rows.append(session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0])
    return np.stack(rows)


@pytest.fixture(scope="module")
def unit(raw: np.ndarray) -> np.ndarray:
    return raw / np.sqrt((raw.astype(np.float64) ** 2).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_vectors_are_those_of_the_graph_in_the_order_of_the_texts(
    encoder: Encoder, texts: list[str], raw: np.ndarray, unit: np.ndarray, batch_tokens: int
) -> None:
    np.testing.assert_allclose(encoder.embed(texts, batch_tokens=batch_tokens), unit, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(texts, batch_tokens=batch_tokens, normalize=False), raw, atol=1e-5)
    assert np.abs(unit[0] - unit[1]).max() > 0.01  # else the order would not matter


def test_int8_is_near_to_fp32(tiny_bundle: Path, texts: list[str], unit: np.ndarray) -> None:
    vectors = load(tiny_bundle, device="cpu", precision="int8", max_length=512).embed(texts)
    assert (vectors * unit).sum(axis=1).min() > 0.95


def test_storage(encoder: Encoder, texts: list[str], unit: np.ndarray) -> None:
    vectors = encoder.embed(texts, precision="float16")
    assert vectors.dtype == np.float16
    np.testing.assert_allclose(vectors, unit, atol=1e-3)
    assert encoder.embed(texts).dtype == np.float32


def test_truncate_dim_cuts_then_normalizes(encoder: Encoder, texts: list[str], raw: np.ndarray) -> None:
    cut = raw[:, :8] / np.linalg.norm(raw[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.embed(texts, truncate_dim=8), cut, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(texts, truncate_dim=8, normalize=False), raw[:, :8], atol=1e-5)


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    empties: tuple[Iterable[str], ...] = ([], (), iter([]), np.array([], dtype=str))
    for empty in empties:
        vectors = encoder.embed(empty)
        assert (vectors.shape, vectors.dtype) == ((0, 32), np.float32)
    report = encoder.embed_report([], truncate_dim=8).report
    assert (report.sentences, report.tokens, report.batches, report.padding) == (0, 0, 0, 1.0)


@pytest.mark.parametrize("text", ["", " \t\n ", "\0", "a" * 1_000_000, "\n" * 100_000, "🇩🇪\u202e\u0301"])
def test_any_text_gives_a_finite_unit_vector(tiny_bundle: Path, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        vector = load(tiny_bundle).embed([text])[0]
    assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1, abs=1e-5)


def test_a_bad_text_is_named_before_any_work(encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"texts\[1\] is of type NoneType"):
        encoder.embed(["fine", None])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"Type \[text\] instead of text"):
        encoder.embed("fine")


# --- out ----------------------------------------------------------------------------------------------------------------


def test_out_receives_the_vectors(encoder: Encoder, texts: list[str], unit: np.ndarray, tmp_path: Path) -> None:
    out = np.lib.format.open_memmap(tmp_path / "v.npy", mode="w+", dtype=np.float32, shape=(len(texts), 32))
    assert encoder.embed(texts, out=out) is out
    out.flush()
    np.testing.assert_allclose(np.load(tmp_path / "v.npy", allow_pickle=False), unit, atol=1e-5)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            np.empty((3, 32), np.float32),
            "out is float32 (3, 32), but these texts at precision='float32' need an array float32 (2, 32)",
        ),
        (np.empty((2, 32), np.float64), "out is float64 (2, 32), but these texts"),
        ([[0.0] * 32] * 2, "out is list, but these texts"),
        (np.broadcast_to(np.float32(0), (2, 32)), "out is read-only. Open the memmap with mode 'r+' or 'w+'."),
    ],
)
def test_an_out_that_does_not_fit(encoder: Encoder, out: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        encoder.embed(["a", "b"], out=out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"precision": "fp32"},
            "precision='fp32' is not a storage format. Type one of: float32, float16, int8, uint8, binary, ubinary. (The prec",
        ),
        (
            {"precision": "ubinary", "normalize": False},
            "ubinary keeps directions only, so raw vectors would lose their lengths.",
        ),
        ({"truncate_dim": 33}, "truncate_dim=33 is more than the 32 dimensions of the model."),
        ({"truncate_dim": 0}, "truncate_dim=0 must be a whole number of at least 1."),
        ({"batch_tokens": 0}, "batch_tokens=0 must be a whole number of at least 1."),
        ({"batch_tokens": 1.5}, "batch_tokens=1.5 must be a whole number of at least 1."),
    ],
)
def test_arguments_that_cannot_be(encoder: Encoder, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        encoder.embed(["a"], **arguments)


def test_unknown_keywords_are_errors(encoder: Encoder, tiny_bundle: Path) -> None:
    calls: tuple[Callable[..., object], ...] = (encoder.embed, encoder.embed_report, encoder.encode)
    for call in calls:
        with pytest.raises(TypeError, match="normalise"):
            call(["a"], normalise=True)
    with pytest.raises(TypeError, match="max_seq_length"):
        load(tiny_bundle, max_seq_length=64)  # type: ignore[call-arg]


# --- the report ---------------------------------------------------------------------------------------------------------


def test_the_report_counts(encoder: Encoder, texts: list[str], tiny_bundle: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    tokens = sum(len(tokenizer.encode(text).ids) for text in set(texts))
    report = encoder.embed_report(texts).report
    assert (report.model, report.sentences, report.distinct, report.tokens) == ("tiny", len(texts), len(set(texts)), tokens)
    assert report.distinct < report.sentences
    assert (report.truncated, report.truncated_lengths, report.max_length) == ((), (), 512)
    assert (report.backend, report.device, report.precision) == ("onnxruntime", "cpu", "fp32")
    assert report.reason.startswith("device='cpu' was named")
    assert 1 <= report.padding == report.padded_tokens / tokens < 1.5
    assert report.seconds > 0 and report.sentences_per_second == len(texts) / report.seconds
    assert json.loads(json.dumps(dataclasses.asdict(report)))["sentences"] == len(texts)
    assert encoder.embed_report(texts, batch_tokens=1).report.padding == 1.0


def test_equal_texts_are_computed_once(encoder: Encoder, texts: list[str]) -> None:
    seen = []

    class Spy(Backend):
        name, device, precision, reason = "spy", "cpu", "fp32", "test"

        def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
            seen.extend(input_ids.tolist())
            return encoder.backend.run(input_ids, attention_mask)

    spied = dataclasses.replace(encoder, backend=Spy())
    vectors = spied.embed(["a", "b", "a", "c", "b", "a"])
    assert len(seen) == 3
    np.testing.assert_array_equal(vectors[[0, 1]], vectors[[2, 4]])
    np.testing.assert_array_equal(vectors[0], vectors[5])
    np.testing.assert_allclose(vectors, encoder.embed(["a", "b", "a", "c", "b", "a"]))


def test_cut_sentences_warn_once_and_are_listed(tiny_bundle: Path, texts: list[str]) -> None:
    encoder = load(tiny_bundle, max_length=12)
    tokenizer = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    lengths = [len(tokenizer.encode(text).ids) for text in texts]
    too_long = [index for index, length in enumerate(lengths) if length > 12]
    assert 0 < len(too_long) < len(texts)
    with pytest.warns(TruncationWarning) as caught:
        encoder.embed(texts)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert str(caught[0].message) == (
        f"{len(too_long)} of {len(texts)} texts were longer than max_length=12 tokens and were cut; the first has index "
        f"{too_long[0]} and {lengths[too_long[0]]} tokens; embed_report() lists them all. To keep more, type "
        f"load(..., max_length={max(lengths)})."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = encoder.embed_report(texts).report
    assert report.truncated == tuple(too_long)
    assert report.truncated_lengths == tuple(lengths[index] for index in too_long)


@pytest.mark.parametrize(
    ("max_length", "remedy"),
    [
        (12, "To keep more, type load(..., max_length=512). The model takes no more than 512 tokens: split longer texts"),
        (512, "lists them all. The model takes no more than 512 tokens: split longer texts into sentences."),
    ],
)
def test_beyond_the_limit_of_the_model_the_warning_says_to_split(tiny_bundle: Path, max_length: int, remedy: str) -> None:
    with pytest.warns(TruncationWarning, match=re.escape(remedy)):
        load(tiny_bundle, max_length=max_length).embed(["word " * 2000])


def test_a_cut_sentence_has_the_vector_of_its_kept_tokens(tiny_bundle: Path) -> None:
    text = "Please close the window before you leave; it may rain tonight."
    ids = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json")).encode(text).ids
    kept = np.array([[*ids[:7], 2]])
    session = onnxruntime.InferenceSession(tiny_bundle / "onnx/model.onnx")
    (expected,) = session.run(["sentence_embedding"], {"input_ids": kept, "attention_mask": np.ones_like(kept)})
    encoder = load(tiny_bundle, device="cpu", precision="fp32", max_length=8)
    np.testing.assert_allclose(encoder.embed_report([text], normalize=False).vectors, expected, atol=1e-5)


@pytest.mark.parametrize("max_length", [0, 2, 513, 12.0, "12", True])
def test_max_length_out_of_range(tiny_bundle: Path, max_length: Any) -> None:
    message = f"max_length={max_length!r} must be a whole number of tokens from 3 (<s>, one piece, </s>) to 512"
    with pytest.raises(InputError, match=re.escape(message)):
        load(tiny_bundle, max_length=max_length)


def test_the_bundle_gives_the_default_max_length(tiny_bundle: Path) -> None:
    assert load(tiny_bundle).max_length == json.loads((tiny_bundle / "mexma.json").read_bytes())["max_length"]


# --- vectors that no model should give ----------------------------------------------------------------------------------


class Constant(Backend):
    """An engine whose vectors hold one value; sentences of two tokens give `empty`."""

    name, device, precision, reason = "constant", "cpu", "fp32", "test"

    def __init__(self, value: float, empty: float) -> None:
        self.value, self.empty = value, empty

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        short = attention_mask.sum(axis=1, keepdims=True) == 2
        return np.where(short, self.empty, self.value).astype(np.float32) * np.ones((1, 32), np.float32)


def test_zero_vectors_stay_zero(encoder: Encoder) -> None:
    vectors = dataclasses.replace(encoder, backend=Constant(1.0, 0.0)).embed(["a", ""])
    np.testing.assert_allclose(vectors, [[32**-0.5] * 32, [0.0] * 32], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_raise(encoder: Encoder, value: float) -> None:
    broken = dataclasses.replace(encoder, backend=Constant(1.0, value))
    with pytest.raises(BackendError, match="returned a vector that is not finite for the sentence with index 2"):
        broken.embed(["a", "a", "", "b"])


# --- threads and progress -----------------------------------------------------------------------------------------------


def test_threads_share_an_encoder(encoder: Encoder, texts: list[str], unit: np.ndarray) -> None:
    wrong = []

    def work(shift: int) -> None:
        for _ in range(5):
            rolled = texts[shift:] + texts[:shift]
            if not np.allclose(encoder.embed(rolled), np.roll(unit, -shift, axis=0), atol=1e-5):
                wrong.append(shift)

    threads = [threading.Thread(target=work, args=(shift,)) for shift in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_progress_is_a_bar_on_stderr_when_asked(
    encoder: Encoder, texts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.embed(texts, progress=True)
    shown = capsys.readouterr()
    assert "embed: 100%" in shown.err and shown.out == ""
    encoder.embed(texts)  # no terminal here
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    encoder.embed(texts)  # a terminal, but less than a second
    encoder.embed(texts, progress=False)
    assert capsys.readouterr() == ("", "")


def test_repr_says_what_runs_where(encoder: Encoder) -> None:
    assert repr(encoder) == "<Encoder tiny: 32 dimensions, max_length 512, fp32 on cpu by onnxruntime>"
