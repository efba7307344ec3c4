"""The suite on a model that is a table of vectors: figures from the definitions in float64, averages by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mexma_train.evaluate import TestSet
from mexma_train.suite.data import Flores
from mexma_train.suite.model import Pieces, SuiteModel
from mexma_train.suite.run import USE, XTREME, averages, groups, measure

N, D = 30, 10
NOISE = {"eng": 0.0, "deu": 0.5, "jpn": 1.1, "tlh": 3.0}  # how far each language's vectors are from the English ones


class Table:
    """A model whose vector of "LANG i" is English point i and noise of that language."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.points = rng.normal(size=(100, D))
        self.noise = {lang: size * rng.normal(size=(100, D)) for lang, size in NOISE.items()}
        self.asked: list[str] = []

    def vector(self, text: str) -> np.ndarray:
        lang, number = text.split()
        raw = self.points[int(number)] + self.noise[lang][int(number)]
        return raw / np.linalg.norm(raw)

    def embed(self, texts: list[str]) -> tuple[np.ndarray, int]:
        self.asked += texts
        return np.stack([self.vector(text) for text in texts]).astype(np.float32), sum(text.endswith("7") for text in texts)

    def states(self, texts: list[str]) -> list[Pieces]:
        """The number of the sentence is a piece on both sides, in its own direction except in Klingon."""
        found = []
        for text in texts:
            lang, number = text.split()
            states = np.eye(3, dtype=np.float32)[[1, 0, 2] if lang == "tlh" else [0, 1, 2]]
            found.append(Pieces(pieces=[number, "und" if lang != "eng" else "and", lang], states_LD=states))
        return found

    def model(self, states: bool = False) -> SuiteModel:
        about = {"name": "table", "kind": "checkpoint", "dimensions": D}
        return SuiteModel(
            about=about, versions={"numpy": "2"}, languages=(), embed=self.embed, states=self.states if states else None
        )


def lines(lang: str, start: int = 0) -> list[str]:
    return [f"{lang} {i}" for i in range(start, start + N)]


FLORES = Flores(english=lines("eng"), texts={"deu": lines("deu"), "jpn": lines("jpn"), "tlh": lines("tlh")})
TATOEBA = {
    "deu": TestSet(name="deu", english=lines("eng", 20), text=lines("deu", 20)),  # ten English lines are in FLORES too
    "jpn": TestSet(name="jpn", english=lines("eng", 20), text=lines("jpn", 20)),
}


def xsim_error(x: np.ndarray, y: np.ndarray) -> float:
    """Ratio margin (Artetxe and Schwenk, ACL 2019): cosine over the mean of both sides' means of 4 neighbours, as LASER."""
    cosine = x @ y.T
    nearest_y, nearest_x = np.sort(cosine, 1)[:, -4:].mean(1), np.sort(cosine, 0)[-4:].mean(0)
    margin = cosine / ((nearest_y[:, None] + nearest_x[None]) / 2)
    candidates = np.argsort(-cosine, 1)[:, :4]
    found = [row[margin[i, row].argmax()] for i, row in enumerate(candidates)]
    return 100 * float(np.mean(np.array(found) != np.arange(len(x))))


def test_every_figure_of_every_language() -> None:
    table = Table()
    results = measure(table.model(), FLORES, TATOEBA, trained=["deu", "jpn", "fra"], mining=["deu"], progress=False)
    assert list(results["languages"]) == ["deu", "jpn", "tlh"]
    for lang in ("deu", "jpn", "tlh"):
        figures = results["languages"][lang]
        x, y = (np.stack([table.vector(f"{side} {i}") for i in range(N)]) for side in (lang, "eng"))
        assert figures["flores_xsim"] == pytest.approx(xsim_error(x, y))
        assert figures["trained"] is (lang != "tlh")
    for lang in ("deu", "jpn"):
        figures = results["languages"][lang]
        x, y = (np.stack([table.vector(f"{side} {i}") for i in range(20, 20 + N)]) for side in (lang, "eng"))
        cosine = x @ y.T
        to, back = (100 * np.mean(cosine.argmax(axis) == np.arange(N)) for axis in (1, 0))
        assert figures["tatoeba_to_english"] == pytest.approx(to)
        assert figures["tatoeba_from_english"] == pytest.approx(back)
        assert figures["tatoeba_accuracy"] == pytest.approx((to + back) / 2)
        assert figures["tatoeba_xsim"] == pytest.approx(xsim_error(x, y))
    assert 0 < results["languages"]["jpn"]["flores_xsim"] < results["languages"]["tlh"]["flores_xsim"]
    assert "tatoeba_xsim" not in results["languages"]["tlh"]
    assert set(results["mining"]) == {"deu"} and set(results["mining"]["deu"]) == {"0", "0.3"}


def test_english_is_embedded_once_and_cuts_are_counted() -> None:
    table = Table()
    results = measure(table.model(), FLORES, TATOEBA, trained=["deu"], mining=[], progress=False)
    assert sorted(text for text in table.asked if text.startswith("eng")) == sorted(f"eng {i}" for i in range(50))
    assert len(table.asked) == 50 + 3 * N + 2 * N
    assert results["truncated"] == {"english": 5, "flores": 9, "tatoeba": 6}  # those that end in 7


def test_averages_are_over_languages_that_have_the_figure() -> None:
    languages: dict[str, dict[str, Any]] = {
        "deu": {"flores_xsim": 1.0, "tatoeba_accuracy": 90.0},
        "jpn": {"flores_xsim": 4.0},
        "fin": {"flores_xsim": 10.0, "aligned": None},  # of XTREME, not of USE
        "tlh": {"flores_xsim": 85.0},
    }
    found = averages(languages, groups(languages, ["jpn", "tlh", "xyz"]))
    assert found["flores_xsim"] == {
        "trained": {"mean": 44.5, "languages": 2},
        "xtreme": {"mean": 5.0, "languages": 3},
        "use": {"mean": 2.5, "languages": 2},
        "all": {"mean": 25.0, "languages": 4},
    }
    assert found["tatoeba_accuracy"]["trained"] is None
    assert found["tatoeba_accuracy"]["use"] == {"mean": 90.0, "languages": 1}
    assert found["aligned"]["all"] is None


def test_the_groups_are_those_of_the_papers() -> None:
    assert len(set(XTREME)) == len(XTREME) == 36
    assert len(set(USE)) == len(USE) == 14
    assert set(USE) - set(XTREME) == {"pol"}


def test_pieces_are_aligned_where_the_model_has_token_states() -> None:
    results = measure(Table().model(states=True), FLORES, TATOEBA, trained=["deu"], mining=[], progress=False)
    assert results["word_alignment"] == {"measured": True}
    german = results["languages"]["deu"]
    assert (german["aligned_pieces"], german["aligned"]) == (N, 100)
    assert german["aligned_by_chance"] == pytest.approx(100 / 3)
    assert results["languages"]["tlh"]["aligned"] == 0
    few = Flores(english=FLORES.english[:10], texts={"deu": FLORES.texts["deu"][:10]})
    results = measure(Table().model(states=True), few, TATOEBA, trained=["deu"], mining=[], progress=False)
    assert (results["languages"]["deu"]["aligned_pieces"], results["languages"]["deu"]["aligned"]) == (10, None)


def test_without_token_states_alignment_is_null_with_the_reason() -> None:
    results = measure(Table().model(), FLORES, TATOEBA, trained=["deu"], mining=[], progress=False)
    assert results["word_alignment"]["measured"] is None
    assert "sentence vectors only; measure the bundle with onnxruntime" in results["word_alignment"]["reason"]
    assert "aligned" not in results["languages"]["deu"]


def test_paraphrases_of_english_come_from_all_files_and_those_of_a_language_from_its_own() -> None:
    """Twelve German lines each have two English translations; Japanese gives one of these German texts a third."""
    german = [f"deu {i // 2}" for i in range(24)]
    english = [f"eng {i}" for i in range(24)]
    tatoeba = {
        "deu": TestSet(name="deu", english=english, text=german),
        "jpn": TestSet(name="jpn", english=["eng 50", *lines("eng", 60)[:9]], text=["deu 0", *lines("jpn", 60)[:9]]),
    }
    results = measure(Table().model(), FLORES, tatoeba, trained=["deu"], mining=[], progress=False)
    assert results["paraphrases"]["english"]["pairs"] == 12 + 2
    assert 0 <= results["paraphrases"]["english"]["auc"] <= 100
    assert results["paraphrases"]["all"]["pairs"] == 0 and results["paraphrases"]["all"]["auc"] is None

    swapped = {"deu": TestSet(name="deu", english=german, text=english)}  # now the other side is rich: its texts are "deu i"
    results = measure(Table().model(), FLORES, swapped, trained=["deu"], mining=[], progress=False)
    assert results["paraphrases"]["trained"]["pairs"] == results["paraphrases"]["all"]["pairs"] == 12
