"""Word alignment: matching by hand on small matrices and against simalign's description, words by hand, whole sentences."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mexma_rt
from mexma_rt import InputError, MissingExtraError, TokenVectors, align_words
from mexma_rt.align.links import ENTROPY, METHODS, find_links, inter, itermax, sinkhorn
from mexma_rt.align.words import UNITS
from mexma_rt.align.wordsplit import join_words, split_words
from mexma_rt.embedding.loading import shared_encoder


def links(matrix: np.ndarray) -> list[tuple[int, int]]:
    return [(row, column) for row, column in np.argwhere(matrix).tolist()]


# --- matching -----------------------------------------------------------------------------------------------------------

TABLE = np.array(
    [
        [0.9, 0.8, 0.1, 0.2],
        [0.85, 0.3, 0.2, 0.1],
        [0.2, 0.1, 0.7, 0.65],
    ]
)


def test_inter_by_hand() -> None:
    # rows choose 0, 0, 2; columns choose 0, 0, 2, 2: mutual are (0, 0) and (2, 2)
    assert links(inter(TABLE)) == [(0, 0), (2, 2)]


def test_itermax_by_hand() -> None:
    # second round: free are row 1, columns 1 and 3. Row 0: .8 * .9 at column 1; row 1: .85 * .9 = .765 at column 0; row 2:
    # .65 * .9 at column 3. Columns 0, 1, 3 choose rows 1, 0, 2: all three are new.
    assert links(itermax(TABLE)) == [(0, 0), (0, 1), (1, 0), (2, 2), (2, 3)]


def test_itermax_discounts_what_is_half_linked() -> None:
    # Row 1 is free, and its best after the discount is column 1 (free, .7), not column 0 (.75 * .9 = .675).
    table = np.array([[0.9, 0.1, 0.1], [0.75, 0.7, 0.1], [0.1, 0.1, 0.8]])
    assert links(inter(table)) == [(0, 0), (2, 2)]
    assert links(itermax(table)) == [(0, 0), (1, 1), (2, 2)]
    table[1, 0] = 0.8  # now .72 at column 0, above .7
    assert links(itermax(table)) == [(0, 0), (1, 0), (2, 2)]
    table[1] = [0.75, 0.1, 0.7]  # now .675 at column 0, .1 at column 1, .63 at column 2
    assert links(itermax(table)) == [(0, 0), (1, 0), (2, 2)]


def test_itermax_never_links_what_is_linked_on_both_sides() -> None:
    # The second round sees only zeros, whose first is (0, 0): row 0 and column 0 are both linked already.
    assert links(itermax(np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.0], [0.0, 0.0, 0.0]]))) == [(0, 1), (1, 0)]


def test_match_is_the_best_of_all_one_to_one_matchings() -> None:
    pytest.importorskip("scipy", reason="match needs mexma-rt[align]")
    rng = np.random.default_rng(0)
    for n, m in [(1, 1), (2, 4), (4, 4), (5, 3)]:
        table = rng.random((n, m))
        found = find_links(table, "match")
        tall = table if n <= m else table.T
        best = max(
            sum(tall[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(max(n, m)), min(n, m))
        )
        assert table[found].sum() == pytest.approx(best) and found.sum() == min(n, m)
        assert found.sum(axis=0).max() == found.sum(axis=1).max() == 1


def test_match_without_scipy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'mexma-rt[align]'")):
        find_links(TABLE, "match")


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 12), m=st.integers(1, 12), seed=st.integers(0, 999))
def test_sinkhorn_moves_the_weights_and_is_the_entropic_optimum(n: int, m: int, seed: int) -> None:
    table = np.random.default_rng(seed).random((n, m))
    plan = sinkhorn(table, 0.2)
    np.testing.assert_allclose(plan.sum(axis=0), 1 / m, rtol=1e-6)
    np.testing.assert_allclose(plan.sum(axis=1), 1 / n, rtol=2e-3)
    # the optimum has the form u_i exp(s_ij / entropy) v_j: every 2 x 2 ratio is that of the kernel
    ratio = np.log(plan) - table / 0.2
    np.testing.assert_allclose(ratio - ratio[:1] - ratio[:, :1] + ratio[:1, :1], 0, atol=1e-8)


def test_ot_by_hand() -> None:
    # Two clear pairs: the plan is close to 1/2 on the diagonal, and each holds nearly all of its row and column.
    plan = sinkhorn(np.array([[0.9, 0.1], [0.1, 0.9]]))
    x = 0.5 / (1 + np.exp(-0.8 / ENTROPY))
    np.testing.assert_allclose(plan, [[x, 0.5 - x], [0.5 - x, x]], atol=1e-12)
    assert links(find_links(np.array([[0.9, 0.1], [0.1, 0.9]]), "ot")) == [(0, 0), (1, 1)]
    # A word that looks like both of two: they share it. Three columns of 1/3, of which row 1 takes two.
    assert links(find_links(np.array([[0.9, 0.1, 0.1], [0.1, 0.8, 0.8]]), "ot")) == [(0, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("method", METHODS)
def test_small_sides(method: str) -> None:
    for shape in [(0, 0), (0, 3), (3, 0)]:
        assert find_links(np.zeros(shape), method).shape == shape
    assert links(find_links(np.array([[0.3]]), method)) == [(0, 0)]


# --- words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  The cat,  sat\tdown.\n", "The|cat,|sat|down."),
        ("猫在睡觉。", "猫|在|睡|觉|。"),
        ("我用Python写 2024年 test", "我|用|Python|写|2024|年|test"),
        ("コーヒーｶﾞ", "コ|ー|ヒ|ー|ｶﾞ"),
        ("น้ำเย็น ที่นี่", "น้ำ|เย็|น|ที่|นี่"),
        ("ខ្ញុំ", "ខ្ញុំ"),
        ("ភាសាខ្មែរ", "ភា|សា|ខ្មែ|រ"),
        ("๑๒๓ คน", "๑๒๓|ค|น"),
        ("한국어 조선", "한국어|조선"),
        ("नमस्ते दुनिया", "नमस्ते|दुनिया"),
        ("", ""),
    ],
)
def test_words_by_hand(text: str, words: str) -> None:
    spans = split_words(text)
    assert "|".join(text[a:b] for a, b in spans) == words


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("ab ，猫ก้ำเខ្\t9"), max_size=15))
def test_words_are_all_that_is_not_white_space(text: str) -> None:
    spans = split_words(text)
    assert "".join(text[a:b] for a, b in spans) == "".join(text.split())
    assert all(b <= c for (_, b), (c, _) in itertools.pairwise(spans)) and all(a < b for a, b in spans)


def test_given_words_are_found_in_the_joined_text() -> None:
    for words, text in [
        (["New York", "is"], "New York is"),
        (["我们", "喜欢", "Python", "。"], "我们喜欢 Python 。"),
        ([], ""),
    ]:
        joined, spans = join_words(words)
        assert joined == text and [joined[a:b] for a, b in spans] == words


# --- sentences ----------------------------------------------------------------------------------------------------------

ENGLISH = "The black cat is sleeping on the warm stone."
GERMAN = "Die schwarze Katze schläft auf dem warmen Stein."


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("method", METHODS)
def test_clear_words_are_linked(method: str, unit: str) -> None:
    (result,) = align_words([ENGLISH], [GERMAN], method=method, unit=unit)
    clear = {(2, 2), (7, 6)} if (method, unit) == ("ot", "piece") else {(0, 0), (2, 2), (7, 6)}
    assert clear <= set(result.links)  # The-Die, cat-Katze, warm-warmen; transport over pieces leaves out The
    assert result.source_words == tuple(ENGLISH.split()) and result.target_words == tuple(GERMAN.split())
    assert result.pharaoh == " ".join(f"{i}-{j}" for i, j in result.links) and list(result.links) == sorted(result.links)
    assert len(result.scores) == len(result.links) and all(-1 <= score <= 1.001 for score in result.scores)
    strict = align_words([ENGLISH], [GERMAN], method=method, unit=unit, threshold=0.6)[0]
    assert strict.links == tuple(link for link, score in zip(result.links, result.scores, strict=True) if score >= 0.6)


def test_scores_are_the_cosines_of_mean_vectors() -> None:
    encoder = shared_encoder()
    (result,) = align_words([ENGLISH], [GERMAN], unit="word", encoder=encoder)

    def means(text: str, tokens: TokenVectors) -> np.ndarray:
        ends = np.cumsum([len(word) + 1 for word in text.split()])
        word = np.searchsorted(ends, tokens.offsets[:, 0], side="right")
        seen = tokens.offsets[:, 0] < tokens.offsets[:, 1]
        return np.stack([tokens.vectors[(word == w) & seen].mean(axis=0) for w in range(len(ends))])

    # in one call, as they are aligned: rounded products differ with the shape of the batch
    x, y = map(means, (ENGLISH, GERMAN), encoder.embed_tokens([ENGLISH, GERMAN]))
    for (i, j), score in zip(result.links, result.scores, strict=True):
        assert score == pytest.approx(float(x[i] @ y[j] / np.linalg.norm(x[i]) / np.linalg.norm(y[j])), abs=1e-4)


def test_a_permuted_copy_is_aligned_to_itself() -> None:
    words = ["red", "elephant", "station", "Monday", "music", "seven", "coffee"]
    order = [4, 0, 6, 2, 5, 1, 3]
    (result,) = align_words([words], [[words[k] for k in order]], method="inter")
    assert set(result.links) == {(k, place) for place, k in enumerate(order)}


def test_scripts_without_spaces_and_pieces_of_several_words() -> None:
    (result,) = align_words(["Where can I buy a ticket?"], ["我在哪里买票？"], unit="piece", method="inter")
    found = {(result.source_words[i], result.target_words[j]) for i, j in result.links}
    assert {("buy", "买"), ("Where", "哪")} <= found
    words = ["我", "在", "哪里", "买", "票", "？"]
    (given,) = align_words(["Where can I buy a ticket?"], [words], method="inter")
    assert given.target_words == tuple(words) and ("buy", "买") in {(given.source_words[i], words[j]) for i, j in given.links}


def test_slabs_and_order_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [ENGLISH, "", "Yes.", ENGLISH, "Good morning, my friend."]
    targets = [GERMAN, "Nein.", "Ja.", "Ja.", "Guten Morgen, mein Freund."]
    whole = align_words(sources, targets)
    assert whole[1].links == () and whole[1].pharaoh == "" and whole[2].links == ((0, 0),)
    monkeypatch.setattr("mexma_rt.align.words.SLAB_PAIRS", 2)
    assert [r.links for r in align_words(iter(sources), tuple(targets))] == [r.links for r in whole]
    assert align_words([], []) == []


def test_a_cut_pair_is_data_and_one_warning() -> None:
    encoder = mexma_rt.load(max_length=6)
    with pytest.warns(mexma_rt.TruncationWarning, match=r"1 of 2 sentence pairs .* the first has index 1") as caught:
        brief, cut = align_words(["Yes.", ENGLISH], ["Ja.", GERMAN], encoder=encoder)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert (brief.truncated, cut.truncated) == (False, True)
    assert max(i for i, _ in cut.links) < 5 and len(cut.source_words) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", ["b"]), "src is a single str, but a list of sentences is needed"),
        ((["a"], None), "tgt is of type NoneType"),
        ((["a", "b"], ["c"]), "src has 2 sentences and tgt 1, but word alignment needs pairs"),
        ((["a", 3], ["c", "d"]), "src[1] is of type int, but each sentence must be a str"),
        ((["a"], [["c", None]]), "tgt[0][1] is of type NoneType"),
        ((["a\ud800"], ["b"]), "src[0] contains a lone surrogate"),
    ],
)
def test_bad_texts(arguments: tuple[Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        align_words(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "mwmf"}, "method='mwmf' is not known. Type one of: inter, itermax, match, ot."),
        ({"unit": "bpe"}, "unit='bpe' is not known. Type one of: piece, word."),
        ({"threshold": float("nan")}, "threshold=nan, but a number is needed"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        align_words(["a"], ["b"], **arguments)
