"""`mexma-train eval --suite`: the whole quality evaluation of a model, from two test sets to a dict of figures.

FLORES (one file per language, line i of all the same sentence) gives the lead figure, xsim error X -> English by ratio margin
(k = 4), and equal pieces that align; Tatoeba (lines english<TAB>text) accuracy of the nearest neighbour both ways, xsim,
mined pairs and paraphrases. `measures.py` has the measures, `report.py` and `plot.py` show the result.
"""

from __future__ import annotations

import datetime
import math
import platform
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mexma_rt.evaluation.measures import retrieval_accuracy, xsim
from mexma_rt.mining import DEFAULT_THRESHOLD
from mexma_rt.progress import progress_bar
from mexma_train.evaluate import XSIM_K, TestSet
from mexma_train.suite import measures
from mexma_train.suite.data import Flores
from mexma_train.suite.model import NO_STATES, Pieces, SuiteModel

FORMAT, FORMAT_VERSION = "mexma-suite", 1

# The languages of XTREME's Tatoeba task (arXiv 2003.11080) in ISO 639-3, and those of the multilingual Universal Sentence
# Encoder besides English (arXiv 1907.04307).
XTREME = tuple(
    "ara heb vie ind jav tgl eus mal tam tel afr nld deu ell ben hin mar urd pes fra ita por spa bul rus jpn kat kor tha "  # noqa: SIM905
    "swh cmn kaz tur est fin hun".split()
)
USE = tuple("ara cmn deu fra ita jpn kor nld pol por rus spa tha tur".split())  # noqa: SIM905

# key in a language's figures: name in tables
FIGURES = {
    "flores_xsim": "FLORES xsim error %",
    "tatoeba_accuracy": "Tatoeba accuracy %",
    "tatoeba_to_english": "Tatoeba → eng %",
    "tatoeba_from_english": "eng → Tatoeba %",
    "tatoeba_xsim": "Tatoeba xsim error %",
    "aligned": "pieces aligned %",
    "aligned_by_chance": "by chance %",
}
STATE_SENTENCES = 200  # of FLORES, evenly spaced, whose token states are compared
MIN_PIECES = 20  # with fewer numbers and names there is no figure


def measure(
    model: SuiteModel,
    flores: Flores,
    tatoeba: dict[str, TestSet],
    *,
    trained: Iterable[str],
    mining: Sequence[str],
    progress: bool | None = None,
) -> dict[str, Any]:
    """Return every figure of the suite, ready for JSON; train/README.md lists them, `report.py` shows them.

    trained: the model's languages. mining: those in tatoeba to mine. progress: bars on stderr; None shows them on a terminal.
    Each distinct English sentence is embedded once. Raises InputError if the model gives NaN.
    """
    row: dict[str, int] = {}  # English sentence -> its row in english_ND
    for sentence in [*flores.english, *(line for test_set in tatoeba.values() for line in test_set.english)]:
        row.setdefault(sentence, len(row))
    cut = {"english": 0, "flores": 0, "tatoeba": 0}

    def embed(texts: list[str], where: str) -> np.ndarray:
        vectors, shortened = model.embed(texts)
        cut[where] += shortened
        return vectors

    trained = list(trained)
    languages: dict[str, dict[str, Any]] = {lang: {"trained": lang in trained} for lang in sorted({*flores.texts, *tatoeba})}
    steps = 1 + len(flores.texts) + len(tatoeba)
    with progress_bar(progress, total=steps, desc="suite", unit="file") as advance:
        english_ND = embed(list(row), "english")
        advance(1)
        flores_ND = english_ND[[row[sentence] for sentence in flores.english]]
        picked = np.linspace(0, len(flores.english) - 1, min(STATE_SENTENCES, len(flores.english))).astype(int).tolist()
        english_states = model.states([flores.english[i] for i in picked]) if model.states else []
        for lang, texts in flores.texts.items():
            error = xsim(embed(texts, "flores"), flores_ND, margin="ratio", k=XSIM_K).error_rate
            languages[lang] |= {"flores_sentences": len(texts), "flores_xsim": error}
            if model.states:
                languages[lang] |= _aligned(english_states, model.states([texts[i] for i in picked]))
            advance(1)
        mined, like = {}, {}
        for lang, test_set in tatoeba.items():
            x_ND, y_ND = embed(test_set.text, "tatoeba"), english_ND[[row[sentence] for sentence in test_set.english]]
            to, back = retrieval_accuracy(x_ND, y_ND)
            languages[lang] |= {
                "tatoeba_pairs": len(test_set.text),
                "tatoeba_accuracy": (to + back) / 2,
                "tatoeba_to_english": to,
                "tatoeba_from_english": back,
                "tatoeba_xsim": xsim(x_ND, y_ND, margin="ratio", k=XSIM_K).error_rate,
            }
            if lang in mining:
                mined[lang] = {f"{noise:g}": measures.mining_f1(test_set, x_ND, y_ND, noise) for noise in measures.NOISE}
            lines = list(zip(test_set.english, test_set.text, strict=True))
            like[lang] = measures.paraphrase_similarity(lines, dict(zip(test_set.text, x_ND, strict=True)))
            advance(1)
    # Over all files together, because a text that two languages share has an English translation in each.
    lines = [pair for test_set in tatoeba.values() for pair in zip(test_set.text, test_set.english, strict=True)]
    like_english = measures.paraphrase_similarity(lines, {line: english_ND[row[line]] for _, line in lines})
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "date": datetime.date.today().isoformat(),
        "model": model.about,
        "versions": model.versions,
        "machine": platform.machine(),
        "settings": {
            "margin": "ratio",
            "k": XSIM_K,
            "mining_threshold": DEFAULT_THRESHOLD["ratio"],
            "mining_retrieval": "max",
            "mining_noise": list(measures.NOISE),
            "seed": measures.SEED,
            "state_sentences": len(picked),
            "random_lines_per_paraphrase": measures.RANDOM_LINES,
        },
        "trained": trained,
        "truncated": cut,
        "languages": languages,
        "averages": averages(languages, groups(languages, trained)),
        "mining": mined,
        "paraphrases": {
            "english": measures.paraphrase_auc([like_english]),
            "trained": measures.paraphrase_auc([like[lang] for lang in like if lang in trained]),
            "all": measures.paraphrase_auc(list(like.values())),
        },
        "word_alignment": {"measured": True} if model.states else {"measured": None, "reason": NO_STATES},
    }


def groups(languages: Iterable[str], trained: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The groups of languages that averages are taken over: {group: its languages}."""
    return {"trained": tuple(trained), "xtreme": XTREME, "use": USE, "all": tuple(languages)}


def averages(
    languages: dict[str, dict[str, Any]], groups: dict[str, tuple[str, ...]]
) -> dict[str, dict[str, dict[str, Any] | None]]:
    """Return {figure: {group: {"mean": ..., "languages": count}}} over the languages that have the figure; None if none has.

    Every language has the same weight.
    """
    table: dict[str, dict[str, dict[str, Any] | None]] = {}
    for figure in FIGURES:
        table[figure] = {}
        for group, members in groups.items():
            found = {lang: languages[lang][figure] for lang in members if languages.get(lang, {}).get(figure) is not None}
            mean = math.fsum(found.values()) / max(1, len(found))
            table[figure][group] = {"mean": mean, "languages": len(found)} if found else None
    return table


def _aligned(english: list[Pieces], texts: list[Pieces]) -> dict[str, Any]:
    count, aligned, chance = measures.aligned_pieces(english, texts)
    if count < MIN_PIECES:
        return {"aligned_pieces": count, "aligned": None, "aligned_by_chance": None}
    return {"aligned_pieces": count, "aligned": 100 * aligned / count, "aligned_by_chance": 100 * chance / count}
