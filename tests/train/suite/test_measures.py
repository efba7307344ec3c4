"""Mining, paraphrases and aligned pieces. Expected values: by hand, by counting every case, or by `mine` call for call."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mexma_rt
from mexma_train.evaluate import TestSet
from mexma_train.suite import measures
from mexma_train.suite.model import Pieces

# Mining


def corpora(pairs: list[tuple[str, str]], noise: float) -> tuple[list[str], list[str], set[tuple[str, str]]]:
    """As benchmarks/mining_f1.py made them before the suite, so that its published figures can be compared."""
    rng = random.Random(0)
    pairs = rng.sample(pairs, len(pairs))
    cut = int(noise * len(pairs) / 2)
    source, target = [text for _, text in pairs[cut:]], [english for english, _ in pairs[: len(pairs) - cut]]
    rng.shuffle(source)
    rng.shuffle(target)
    return source, target, {(text, english) for english, text in pairs[cut : len(pairs) - cut]}


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_mining_is_that_of_mine_at_the_default_and_at_the_best_threshold(noise: float) -> None:
    rng = np.random.default_rng(3)
    english = [f"e{i % 57}" for i in range(60)]  # three lines stand twice
    text = [f"t{i}" for i in range(60)]
    y = rng.normal(size=(60, 12)).astype(np.float32)[[i % 57 for i in range(60)]]
    x = y + 0.7 * rng.normal(size=(60, 12)).astype(np.float32)
    found = measures.mining_f1(TestSet(name="toy", english=english, text=text), x, y, noise)

    source, target, truth = corpora(list(zip(english, text, strict=True)), noise)
    vectors = {**dict(zip(text, x, strict=True)), **dict(zip(english, y, strict=True))}

    def at(threshold: float | None) -> tuple[int, float, float, float]:
        pairs = mexma_rt.mine(
            source,
            target,
            source_vectors=np.stack([vectors[line] for line in source]),
            target_vectors=np.stack([vectors[line] for line in target]),
            threshold=threshold,
        )
        right = sum((pair.source, pair.target) in truth for pair in pairs)
        return len(pairs), 100 * right / len(pairs), 100 * right / len(truth), 200 * right / (len(pairs) + len(truth))

    assert (found["pairs"], found["precision"], found["recall"], found["f1"]) == pytest.approx(at(None), rel=1e-9)
    assert 0 < found["f1"] < 100
    each = {threshold: at(threshold)[3] for threshold in measures.THRESHOLDS}
    assert found["best_f1"] == pytest.approx(max(each.values()), rel=1e-9)
    assert each[found["best_threshold"]] == pytest.approx(max(each.values()), rel=1e-9)


def test_vectors_that_say_nothing_give_no_pairs_and_zero() -> None:
    """All cosines are 1, so every margin is 1: below the default threshold of 1.12."""
    test_set = TestSet(name="toy", english=[f"e{i}" for i in range(20)], text=[f"t{i}" for i in range(20)])
    ones = np.ones((20, 3), np.float32)
    found = measures.mining_f1(test_set, ones, ones, 0.0)
    assert (found["pairs"], found["precision"], found["recall"], found["f1"]) == (0, 0, 0, 0)


# Paraphrases


def test_fold_keeps_letters_marks_digits_and_questions() -> None:
    assert measures.fold("  “Don’t — go!”\t2 ") == "don t go 2"
    assert measures.fold("Ｇｏ？") == "go?"
    assert measures.fold("मिल।") == "मिल"  # the vowel sign is a mark, no letter
    assert measures.fold("Gehst du?") != measures.fold("Gehst du.")


def test_paraphrases_are_different_lines_of_one_translation() -> None:
    lines = [
        ("Los!", "Go!"),
        ("los", "Come on."),
        ("Los.", "go"),  # only punctuation differs from "Go!"
        ("Los!", "Let's go."),
        ("Los?", "Shall we?"),  # a question is another translation
        ("Baum", "tree"),
    ]
    found = measures.paraphrases(lines)
    assert {frozenset(pair) for pair in found} == {
        frozenset(pair) for pair in [("Go!", "Come on."), ("Go!", "Let's go."), ("Come on.", "Let's go.")]
    }
    assert len(found) == 3


def test_random_lines_are_like_the_second_text_in_length_and_no_paraphrase_of_the_first() -> None:
    texts = [f"{'x' * (5 + i % 300)}{i:04d}" for i in range(1200)]
    pairs = [(texts[3], texts[10]), (texts[3], texts[11]), (texts[500], texts[299])]
    like, unlike = measures.with_random_lines(pairs, texts)
    assert like.tolist() == [[3, 10], [3, 11], [500, 299]]
    assert unlike.shape == (60, 2)
    for i, (a, b) in enumerate(pairs):
        for first, other in unlike[20 * i : 20 * i + 20].tolist():
            assert texts[first] == a
            assert abs(len(texts[other]) - len(b)) <= 26  # 50 places on, four lines of each length: 13; at the ends of the list
        assert len({other for _, other in unlike[20 * i : 20 * i + 20].tolist()}) > 5
    assert not {3, 10, 11} & set(unlike[:40, 1].tolist())
    again = measures.with_random_lines(pairs, texts)
    np.testing.assert_array_equal(unlike, again[1])


def test_a_language_of_paraphrases_alone_has_no_random_lines() -> None:
    like, unlike = measures.with_random_lines([("a", "b")], ["a", "b"])
    assert like.shape == (1, 2) and unlike.shape == (0, 2)


def test_cosines_and_shared_trigrams_by_hand() -> None:
    unit = np.array([[1, 0], [0.6, 0.8], [0, -1]])
    np.testing.assert_allclose(measures.cosines(unit, np.array([[0, 1], [1, 2]])), [0.6, -0.8])
    # " go " has _go go_; " got " has _go got ot_: one of four is shared.
    np.testing.assert_allclose(measures.shared_trigrams(["Go!", "got", "go"], np.array([[0, 1], [0, 2]])), [0.25, 1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_auc_counts_every_pair_and_equals_as_half(like: list[int], unlike: list[int]) -> None:
    counted = [1.0 if a > b else 0.5 if a == b else 0.0 for a in like for b in unlike]
    assert measures.auc(np.array(like), np.array(unlike)) == pytest.approx(100 * sum(counted) / len(counted), rel=1e-12)


def test_the_auc_of_paraphrases_pools_languages_and_says_why_there_is_none() -> None:
    def part(like: list[float], unlike: list[float]) -> measures.Similarity:
        a, b = np.array(like), np.array(unlike)
        return measures.Similarity(like_P=a, unlike_Q=b, spelt_like_P=-a, spelt_unlike_Q=-b)

    found = measures.paraphrase_auc([part([1.0] * 6, [0.0, 0.0]), part([0.0] * 6, [-1.0, 0.5])])
    # Six likes of 1 beat all four; six of 0 beat -1, tie twice with 0 and lose to 0.5: (24 + 6 * 2) / 48.
    assert found == {"pairs": 12, "auc": pytest.approx(75), "auc_of_spelling": pytest.approx(25)}
    few = measures.paraphrase_auc([part([1.0] * 9, [0.0])])
    assert (few["pairs"], few["auc"]) == (9, None) and "pairs in this data: 9; a figure needs 10" in few["reason"]
    assert measures.paraphrase_auc([part([1.0] * 10, [])])["auc"] is None
    assert measures.paraphrase_auc([])["pairs"] == 0


def test_vectors_and_spelling_are_measured_on_the_same_pairs() -> None:
    lines = [(f"translation {i // 2}", f"{'ab' * (i % 5)} {i:03d}") for i in range(24)]
    rng = np.random.default_rng(0)
    points = rng.normal(size=(12, 8))
    vectors = {}
    for i, (_, text) in enumerate(lines):  # the two lines of a translation have one vector
        vectors[text] = points[i // 2] / np.linalg.norm(points[i // 2])
    found = measures.paraphrase_similarity(lines, vectors)
    np.testing.assert_allclose(found.like_P, 1)
    assert len(found.like_P) == len(found.spelt_like_P) == 12
    assert len(found.unlike_Q) == len(found.spelt_unlike_Q) == 240
    assert found.unlike_Q.max() < 0.999  # never the other line of the pair
    assert measures.paraphrase_auc([found])["auc"] == 100


# Aligned pieces


def sentence(pieces: list[str], states: np.ndarray) -> Pieces:
    return Pieces(pieces=pieces, states_LD=states.astype(np.float32))


def test_numbers_and_names_align_when_each_is_the_others_nearest() -> None:
    corner = np.eye(5)
    english = sentence(["In", "1998", "Nova", "was", "."], corner)
    # "Nova" has the state of English "was": it and "1998" stand once on both sides, only "1998" finds its own.
    text = sentence(["1998", "war", "Nova", "."], corner[[1, 2, 3, 4]] * 7)
    count, aligned, _ = measures.aligned_pieces([english], [text])
    assert (count, aligned) == (2, 1)


@pytest.mark.parametrize(
    ("a", "b", "count"),
    [
        (["word", ".", "x"], ["word", ".", "x"], 0),  # no numbers, no names
        (["A", "B2", "C"], ["A", "B2", "C"], 1),  # one capital letter is no name
        (["Ur", "Ur", "5"], ["Ur", "5", "5"], 0),  # twice on a side
        (["Ur", "5", "x"], ["ur", "6", "x"], 0),  # not equal
        (["Ur", "km5", "x"], ["5", "Ur", "km5"], 2),
    ],
)
def test_only_equal_numbers_and_names_that_stand_once_count(a: list[str], b: list[str], count: int) -> None:
    states = np.eye(3)
    assert measures.aligned_pieces([sentence(a, states)], [sentence(b, states)])[0] == count


def test_chance_is_the_mean_over_all_permutations() -> None:
    rng = np.random.default_rng(5)
    a, b = ["Ur", "7", "x", "y"], ["7", "q", "Ur", "p", "z"]
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    chance = measures.aligned_pieces([sentence(a, x)], [sentence(b, y)])[2]
    aligned = [
        measures.aligned_pieces([sentence(a, x)], [sentence(b, y[list(p)])])[1] for p in itertools.permutations(range(5))
    ]
    assert np.mean(aligned) > 0
    assert chance == pytest.approx(np.mean(aligned), rel=1e-9)
