"""What arms of the bundled model are compared by: English segments that no arm trains on, and three figures.

dev      % of texts whose nearest vector by cosine, among the English sides of all dev pairs, is not their translation; mean
         over languages. Arms are chosen by it
flores   xsim error in % on FLORES-200 devtest (ratio, k=4, text -> English), mean over the languages trained on that it has
tatoeba  accuracy in % on LASER's Tatoeba test, mean of both directions and of XTREME's 36 languages

E English segments of a shard folder, n sentences, D dimensions.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mexma_rt.backends.packed_encoder import Encoder
from mexma_rt.errors import InputError
from mexma_rt.evaluation.measures import retrieval_accuracy, xsim
from mexma_train.data.shards import Ragged, Shards
from mexma_train.data.tokenizer import load_tokenizer
from mexma_train.probe import embed_sentences, ragged, tokenise
from mexma_train.suite.data import read_flores, read_tatoeba
from mexma_train.suite.run import XTREME
from mexma_train.warmup import bag_vectors, make_bags

HELD_OUT = 0.01  # of the English segments: 8,460 of the corpus's 849,364, with 9,220 dev pairs in 49 languages
NATURAL = ("tatoeba", "wmt", "stories", "seed", "bible", "help", "udhr")  # the rest are messages of programs and their manuals
MIN_DEV, MAX_DEV = 20, 300  # pairs of a language: fewer make no figure, more no better choice of an arm
CHOICE_SEED = 8  # of which dev pairs are taken where there are more
MAX_TOKENS = 128
UNKNOWN = 3  # <unk>
SAMPLED = 300  # texts of a language that a tokenizer is judged by
UNSPACED = ("CJK", "THAI", "KHMER")  # scripts that put no spaces between words

FEW = ("ara", "deu", "fin", "hin", "jpn", "rus", "tur", "vie")  # of a small measurement of whole encoders
FEW_DEV = 100  # dev pairs of each of them

Embed = Callable[[Ragged], np.ndarray]  # sentences -> vectors of length 1, float32 [n, D]


def dev_pairs(shards: Shards, held: np.ndarray) -> dict[str, np.ndarray]:
    """Pair numbers of each language: of the natural sources and held-out segments only, no English line twice.

    At most MAX_DEV of a language; one with fewer than MIN_DEV is left out. Raises InputError if no language is left.
    """
    natural = [number for number, source in enumerate(shards.sources) if source in NATURAL]
    rows = np.flatnonzero(np.isin(shards.pair_source, natural) & held[shards.pair_english])
    rng, chosen = np.random.default_rng(CHOICE_SEED), {}
    for number, lang in enumerate(shards.languages):
        own = rows[shards.pair_lang[rows] == number]
        _, first = np.unique(shards.english_hash[shards.pair_english[own]], return_index=True)
        own = own[np.sort(first)]
        if len(own) >= MIN_DEV:
            chosen[lang] = own if len(own) <= MAX_DEV else rng.choice(own, MAX_DEV, replace=False)
    if not chosen:
        raise InputError(
            f"{shards.folder} has no language with {MIN_DEV} held-out pairs of {', '.join(NATURAL)}, so there is nothing to "
            "choose an arm by. Use shards of more pairs (1 % of the English segments are held out)."
        )
    return chosen


@dataclass(frozen=True, kw_only=True)
class Tests:
    """Both test sets as ids: FLORES of the languages trained on, XTREME's 36 of Tatoeba as (text, English)."""

    flores_english: Ragged
    flores: dict[str, Ragged]
    tatoeba: dict[str, tuple[Ragged, Ragged]]


def read_tests(flores: Path, tatoeba: Path, shards: Shards, lines: int | None = None) -> Tests:
    """The first so many lines of each file. Raises InputError if one of XTREME's 36 languages is missing."""
    sets, sentences = read_tatoeba(tatoeba), read_flores(flores)
    if missing := sorted(set(XTREME) - set(sets)):
        raise InputError(f"{tatoeba} lacks {', '.join(missing)}: the figure is a mean over 36 languages. Copy LASER's files.")
    tokenizer = load_tokenizer(shards.tokenizer_path)

    def ids(texts: list[str]) -> Ragged:
        return ragged(tokenise(tokenizer, texts[:lines], MAX_TOKENS))

    return Tests(
        flores_english=ids(sentences.english),
        flores={lang: ids(sentences.texts[lang]) for lang in shards.languages if lang in sentences.texts},
        tatoeba={lang: (ids(sets[lang].text), ids(sets[lang].english)) for lang in XTREME},
    )


def few(pairs: dict[str, np.ndarray], tests: Tests) -> tuple[dict[str, np.ndarray], Tests]:
    """The part of dev_pairs and read_tests in FEW languages: a whole encoder takes minutes of one core for all of them."""
    flores = {lang: tests.flores[lang] for lang in FEW if lang in tests.flores}
    tatoeba = {lang: tests.tatoeba[lang] for lang in FEW if lang in tests.tatoeba}
    return {lang: pairs[lang][:FEW_DEV] for lang in FEW if lang in pairs}, replace(tests, flores=flores, tatoeba=tatoeba)


def measure(embed: Embed, shards: Shards, pairs: dict[str, np.ndarray], tests: Tests) -> dict[str, float]:
    """The three figures in %: {dev, flores, tatoeba}. pairs are those of dev_pairs."""
    english = embed(tests.flores_english)
    both_ways = (retrieval_accuracy(embed(text), embed(other)) for text, other in tests.tatoeba.values())
    return {
        "dev": dev_error(embed, shards, pairs),
        "flores": float(np.mean([xsim(embed(text), english, k=4).error_rate for text in tests.flores.values()])),
        "tatoeba": float(np.mean([sum(ways) / 2 for ways in both_ways])),
    }


def dev_error(embed: Embed, shards: Shards, pairs: dict[str, np.ndarray]) -> float:
    """The dev figure in % for the pairs of each language."""
    hashes = shards.english_hash[shards.pair_english[np.concatenate(list(pairs.values()))]]
    pool, first = np.unique(hashes, return_index=True)  # sorted, so that a hash finds its row
    english = embed(shards.english(np.concatenate(list(pairs.values()))[first], MAX_TOKENS))
    errors = []
    for rows in pairs.values():
        found = (embed(shards.text(rows, MAX_TOKENS)) @ english.T).argmax(axis=1)
        errors.append(np.mean(pool[found] != shards.english_hash[shards.pair_english[rows]]))
    return 100 * float(np.mean(errors))


@torch.no_grad()
def embed_bags(encoder: Encoder, batch: Ragged) -> np.ndarray:
    """Vectors [n, D] of a transparent encoder, by the warm start's short way."""
    return F.normalize(bag_vectors(encoder, make_bags(batch))).numpy()


def embed_whole(encoder: Encoder, batch: Ragged) -> np.ndarray:
    """Vectors [n, D] by all layers on the CPU."""
    return embed_sentences(encoder, np.split(batch.ids, np.cumsum(batch.lengths)[:-1]), attention="padded")


def describe_tokenizer(shards: Shards) -> dict[str, Any]:
    """{vocab_size, unknown: % of the tokens of all texts, english_unknown: of the English segments, scripts: {script: pieces}}.

    pieces: per word, where the script has spaces, else per character, of SAMPLED texts of each of its languages, decoded (so
    without their unknown characters). A language's script is that of most of its letters; kana count as CJK.
    """
    tokenizer, rng = load_tokenizer(shards.tokenizer_path), np.random.default_rng(0)
    totals: dict[str, np.ndarray] = {}
    for number in range(len(shards.languages)):
        own = np.flatnonzero(shards.pair_lang == number)
        rows = np.sort(rng.choice(own, min(len(own), SAMPLED), replace=False))
        sentences = [shards.text_ids[shards.text_offsets[i] : shards.text_offsets[i + 1]].tolist() for i in rows]
        texts = tokenizer.decode_batch(sentences, skip_special_tokens=True)
        letters = Counter(unicodedata.name(c, "?").split()[0] for text in texts for c in text if c.isalpha())
        letters["CJK"] += letters.pop("HIRAGANA", 0) + letters.pop("KATAKANA", 0)
        script = letters.most_common(1)[0][0]
        units = (len("".join(text.split())) if script in UNSPACED else len(text.split()) for text in texts)
        totals[script] = totals.get(script, 0) + np.array([sum(map(len, sentences)), sum(units)])
    return {
        "vocab_size": shards.vocab_size,
        "unknown": 100 * float(np.mean(shards.text_ids == UNKNOWN)),
        "english_unknown": 100 * float(np.mean(shards.english_ids == UNKNOWN)),
        "scripts": {script: float(pieces / units) for script, (pieces, units) in sorted(totals.items())},
    }
