"""The gate's figures and phrases, on graphs made by hand (no export, no torch)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mexma_export.parity import check_parity
from mexma_export.reopen import Runner
from mexma_export.sentences import Sentence, load_sentences
from mexma_export.verdict import THRESHOLDS, Parity, ParityError, Thresholds, require_passed
from mexma_rt.errors import InputError

D = 8
TABLE = np.random.default_rng(0).standard_normal((50, D)).astype(np.float32)


class WordTokenizer:
    """Token id = 4 + length of the word: enough of a tokenizer for the gate."""

    class Encoding:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

    def encode_batch(self, texts: list[str]) -> list[Encoding]:
        return [self.Encoding([0, *(min(49, 4 + len(word)) for word in text.split()), 2]) for text in texts]


def reference(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bag of words: the sentence is the sum of its real tokens; token states are the table's rows plus that sum."""
    words = TABLE[ids] * mask[..., None]
    total = words.sum(axis=1)
    return total, TABLE[ids] + total[:, None]


WORDS: Any = WordTokenizer()  # has what the gate calls of a tokenizers.Tokenizer
SENTENCES = [
    Sentence(lang="eng", text="a quick brown fox jumps over the lazy dog"),
    Sentence(lang="eng", text="hello world"),
    Sentence(lang="deu", text="der schnelle braune Fuchs springt"),
    Sentence(lang="fin", text="lentokonesuihkuturbiinimoottoriapumekaanikkoaliupseerioppilas on pitkä sana"),
]


def check(graph: Runner, *, thresholds: Mapping[str, Thresholds] = THRESHOLDS, sentences: list[Sentence] = SENTENCES) -> Parity:
    found = check_parity({"fp32": graph}, reference, WORDS, sentences, max_length=16, length_limit=40, thresholds=thresholds)
    return found["fp32"]


def test_same_graph_passes_with_exact_figures() -> None:
    parity = check(reference)
    assert parity.passed and parity.failures == ()
    assert parity.min_cosine == pytest.approx(1.0, abs=1e-12)
    assert parity.max_abs_error == 0.0
    assert (parity.sentences, parity.languages) == (4, 3)
    assert list(parity.buckets) == [2, 8, 16, 32, 40]
    assert parity.summary() == {
        "sentences": 4,
        "languages": 3,
        "min_cosine": parity.min_cosine,
        "mean_cosine": parity.mean_cosine,
        "max_abs_error": 0.0,
        "passed": True,
    }


def test_figures_equal_a_calculation_by_hand() -> None:
    shift = np.arange(D, dtype=np.float32) / 10

    def shifted(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total, tokens = reference(ids, mask)
        return total + shift, tokens

    parity = check(shifted, thresholds={"fp32": Thresholds(min_cosine=0.0, mean_cosine=0.0)})
    rows = [np.array([row.ids]) for row in WordTokenizer().encode_batch([s.text for s in SENTENCES])]
    wanted = np.concatenate([TABLE[row].astype(np.float64).sum(axis=1) for row in rows])
    got = wanted + shift
    norm = np.linalg.norm
    cosine = [float(a @ b / norm(a) / norm(b)) for a, b in zip(wanted, got, strict=True)]
    centre = wanted.mean(axis=0)
    centred = [float(a @ b / norm(a) / norm(b)) for a, b in zip(wanted - centre, got - centre, strict=True)]
    assert parity.min_cosine == pytest.approx(min(cosine), abs=1e-6)
    assert parity.mean_cosine == pytest.approx(np.mean(cosine), abs=1e-6)
    assert parity.min_centred_cosine == pytest.approx(min(centred), abs=1e-6)
    assert parity.mean_centred_cosine == pytest.approx(np.mean(centred), abs=1e-6)
    assert parity.max_abs_error == pytest.approx(0.7, abs=1e-5)
    assert parity.by_language["eng"] == pytest.approx(min(cosine[:2]), abs=1e-6)
    assert parity.worst["text"] == SENTENCES[int(np.argmin(cosine))].text
    assert parity.min_token_cosine == pytest.approx(1.0, abs=1e-6)


def test_an_error_that_vectors_in_a_narrow_cone_hide_is_caught_by_the_centred_cosine() -> None:
    cone = np.full(D, 200, np.float32)  # beside the sums of some words, whose numbers are below 10

    def narrow(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total, tokens = reference(ids, mask)
        return total + cone, tokens + cone

    def disturbed(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total, tokens = narrow(ids, mask)
        return total + 0.3 * np.roll(total - cone, 1, axis=1), tokens

    def failures(*, centred: bool, sentences: list[Sentence] = SENTENCES) -> tuple[str, ...]:
        limits = {"fp32": Thresholds(min_cosine=0.99, mean_cosine=0.995, centred=centred)}
        return check_parity(
            {"fp32": disturbed},
            narrow,
            WORDS,
            sentences,
            max_length=16,
            length_limit=40,
            thresholds=limits,
            plain=False,
        )["fp32"].failures

    assert failures(centred=False) == ()
    assert [failure.split(" 0.")[0] for failure in failures(centred=True)] == ["lowest centred cosine", "mean centred cosine"]
    assert failures(centred=True, sentences=SENTENCES[:1]) == ()  # one sentence is its own mean
    assert {name for name, limits in THRESHOLDS.items() if limits.centred} == {"mixed", "int8", "w8", "w4"}


def test_a_graph_that_fails_only_on_long_inputs_is_caught_by_its_bucket() -> None:
    def short_memory(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return reference(ids[:, :33], mask[:, :33])

    parity = check(short_memory)
    assert parity.min_cosine > 0.99999  # no sentence is that long
    assert [failure.split(" 0.")[0] for failure in parity.failures] == ["lowest cosine at 40 tokens"]


def test_a_graph_that_minds_padding_is_caught() -> None:
    def counts_padding(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total, tokens = reference(ids, mask)
        return total + (mask == 0).sum(axis=1, keepdims=True) * TABLE[3], tokens

    failures = " ".join(check(counts_padding).failures)
    assert "lowest cosine of a sentence without padding to itself with padding" in failures
    assert "lowest cosine of a sentence alone to itself in a batch" in failures


def test_nan_for_a_row_of_padding_is_caught() -> None:
    def divides(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total, tokens = reference(ids, mask)
        with np.errstate(invalid="ignore"):
            return total * mask.any(axis=1, keepdims=True) / mask.any(axis=1, keepdims=True), tokens

    assert check(divides).failures == ("a row of padding alone gives NaN or infinite numbers",)


def test_nan_vectors_fail_and_name_the_sentence() -> None:
    def nan_for_finnish(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total, tokens = reference(ids, mask)
        return np.where((ids == 49).any(axis=1, keepdims=True), np.nan, total), tokens

    parity = check(nan_for_finnish)
    assert parity.failures[0] == "lowest cosine nan, threshold 0.99999"
    assert parity.worst["lang"] == "fin"


def test_wrong_token_states_fail_in_fp32() -> None:
    def blurred(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total, tokens = reference(ids, mask)
        return total, tokens + 1

    assert [failure.partition(" 0.")[0] for failure in check(blurred).failures] == [
        "lowest cosine of <s> among the token states",
        "mean cosine of <s> among the token states",
        "lowest cosine of a token state",
    ]


def test_another_dimension_is_an_error_not_a_broadcast() -> None:
    def wide(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total, tokens = reference(ids, mask)
        return total[:, :1], tokens[:, :, :1]

    with pytest.raises(ParityError, match=r"The fp32 graph returns shapes \(4, 1\) and \(4, 11, 1\), the checkpoint \(4, 8\)"):
        check(wide)


def test_the_error_names_figure_threshold_sentence_and_remedy() -> None:
    def negative(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        total, tokens = reference(ids, mask)
        return -total, tokens

    graphs = {"fp32": reference, "int8": negative}
    found = check_parity(graphs, reference, WORDS, SENTENCES, max_length=16, length_limit=40)
    with pytest.raises(ParityError) as caught:
        require_passed(found)
    message = str(caught.value)
    assert "The int8 graph does not reproduce the checkpoint's vectors" in message
    assert "lowest cosine -1.000000, threshold 0.995" in message
    assert "mean cosine -1.000000, threshold 0.999" in message
    assert "at cosine -1.000000" in message
    assert message.endswith("What to try: --precision fp32,mixed writes the bundle without this graph.")
    require_passed({"fp32": found["fp32"]})


def test_long_sentences_are_cut_and_close_with_the_end_token() -> None:
    seen: list[np.ndarray] = []

    def spy(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(ids)
        return reference(ids, mask)

    check(spy, sentences=[Sentence(lang="eng", text="word " * 100)])
    assert seen[0].tolist() == [[0] + [8] * 14 + [2]]


def test_shipped_sentences_cover_languages_and_scripts() -> None:
    shipped = load_sentences()
    languages = {sentence.lang for sentence in shipped}
    assert len(shipped) >= 520 and len(languages) >= 45
    assert len({sentence.text for sentence in shipped}) == len(shipped)
    text = "".join(sentence.text for sentence in shipped)
    for letter in "éжλאب가あ国აհअআதతമกក":
        assert letter in text


def test_a_gate_without_sentences_is_an_error() -> None:
    with pytest.raises(InputError, match="needs at least one sentence"):
        check(reference, sentences=[])


def test_sentence_files_are_checked_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text("# mine\neng\tHello there\n\nno tab here\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"own\.tsv, line 4: not 'language<TAB>text': 'no tab here'"):
        load_sentences(path)
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"own\.tsv: no sentences"):
        load_sentences(path)
    path.write_bytes("# ok\nfra\tété\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"own\.tsv, line 2: not UTF-8"):
        load_sentences(path)
    path.write_text("eng\tHello there\r\n", encoding="utf-8")
    assert load_sentences(path) == [Sentence(lang="eng", text="Hello there")]


def test_one_sentence_alone_cannot_be_centred_and_is_still_json() -> None:
    parity = check(reference, sentences=SENTENCES[:1])
    assert parity.passed and np.isnan(parity.min_centred_cosine)
    written = json.loads(json.dumps(parity.full(), allow_nan=False))
    assert written["min_centred_cosine"] is None and written["mean_centred_cosine"] is None
    assert written["min_cosine"] == pytest.approx(1.0, abs=1e-12) and written["buckets"]["40"] == parity.buckets[40]
    assert written["thresholds"]["min_cosine"] == THRESHOLDS["fp32"].min_cosine
