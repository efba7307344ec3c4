"""What arms of the bundled model are compared by: English segments that no arm trains on, three figures, and a table of them.

dev      % of texts whose nearest vector by cosine, among the English sides of all dev pairs, is not their translation; mean
         over languages. Arms are chosen by it
flores   xsim error in % on FLORES-200 devtest (ratio, k=4, text -> English), mean over the languages trained on that it has
tatoeba  accuracy in % on LASER's Tatoeba test, mean of both directions and of XTREME's 36 languages

E English segments of a shard folder, n sentences, D dimensions.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mexma_rt.errors import InputError
from mexma_rt.evaluation import retrieval_accuracy, xsim
from mexma_train.encoder import Encoder
from mexma_train.evaluate import TestSet
from mexma_train.probe import embed_sentences, ragged, tokenise
from mexma_train.shards import Group, Ragged, Shards
from mexma_train.suite import XTREME
from mexma_train.suite_data import Flores, read_flores, read_tatoeba
from mexma_train.tokenizer import load_tokenizer
from mexma_train.warmup import bag_vectors, make_bags

HELD_OUT = 0.01  # of the English segments: 8,460 of the corpus's 849,364, with 9,220 dev pairs in 49 languages
NATURAL = ("tatoeba", "wmt", "stories", "seed", "bible", "help", "udhr")  # the rest are messages of programs and their manuals
MIN_DEV, MAX_DEV = 20, 300  # pairs of a language: fewer make no figure, more no better choice of an arm
SPLIT_SEED, CHOICE_SEED = 7, 8  # of which segments are held out, and which dev pairs are taken where there are more
MAX_TOKENS = 128
UNKNOWN = 3  # <unk>
SAMPLED = 300  # texts of a language that a tokenizer is judged by
UNSPACED = ("CJK", "THAI", "KHMER")  # scripts that put no spaces between words

AD_HOC = "ad hoc †"  # "made_by" of the rows from before model_ablations.py

INTRODUCTION = f"""# Ablations of the bundled model

Made by `benchmarks/model_ablations.py`; its module says how each arm is run, and `--list` what each one changes. Every row is
one run with one seed: no spread was measured, so small differences prove nothing. What has no row here was not measured.

**Held out.** {100 * HELD_OUT:g} % of the English segments, drawn once, the same for all arms: no pair of theirs, nor of an
equal English line, is trained on, in any language. **dev** (the figure by which arms are chosen): texts whose nearest English
sentence among those of all dev pairs is not their translation, % (lower is better), mean over languages. Dev pairs are those
of held-out segments and of {", ".join(NATURAL)}; at most {MAX_DEV} of a language, which needs {MIN_DEV}.
They come from the same sources as the training pairs.
**FLORES**: xsim error, % (lower is better), FLORES-200 devtest, ratio margin, k = 4, text to English, mean over the languages
trained on. **Tatoeba-36**: accuracy, % (higher is better), mean of both directions and of XTREME's 36 languages. Those two are
test sets: shown, not chosen by.

**The arms.** Unless its heading names a stage, an arm is the bag-of-subwords warm start from fresh weights, updates of 2,048
drawn pairs, measured before any other stage. A row says how many updates it made, the pairs they saw and the CPU seconds of the
updates alone, batches included. No English segment stands twice in a batch: of equal ones the first stays, because a duplicate
makes KoLeo explode (tests/train/test_losses.py, test_koleo_of_a_duplicate_is_large_but_finite_and_has_a_finite_gradient) and
is a wrong negative. Rows in italics are repeated for comparison.
"""
ABOUT_AD_HOC = """
† Measured with scripts that this benchmark replaced: the product's sampler, bags, losses and rates, the same held-out segments
and dev pairs, in a loop of their own. Three differences: fresh weights of seed 0 (the draws' seed is the row's); held-out pairs
were dropped from a batch after it was drawn; the CPU seconds include the measuring, on a machine that was busy with other work,
so compare them with care. The teacher of these rows is use_quantized.onnx, an int8 copy of multilingual USE, its 512
dimensions projected on 256 principal axes.
"""
COLUMNS = ("arm", "why", "updates", "pairs seen", "CPU s", "threads", "dev, %", "FLORES, %", "Tatoeba-36, %", "seed", "run")

Embed = Callable[[Ragged], np.ndarray]  # sentences -> vectors of length 1, float32 [n, D]


def held_out_segments(shards: Shards) -> np.ndarray:
    """Which English segments no arm may train on: bool [E], about HELD_OUT of them, and every segment equal to one of them.

    Drawn by the segment's number, so that shards of the same pairs hold out the same lines whatever their tokenizer: prepare
    numbers the lines, and does not look at their ids.
    """
    drawn = np.random.default_rng(SPLIT_SEED).random(len(shards.english_hash)) < HELD_OUT
    # A line that prepare has forgotten stands twice, under two numbers; two lines of unknown characters may also be equal.
    return np.isin(shards.english_hash, shards.english_hash[drawn])


def training_part(shards: Shards, held: np.ndarray) -> Shards:
    """The shards without the pairs of the held-out segments [E]: a sampler with order="draw" cannot reach them.

    It draws through groups and order alone. With order="epochs" it would go through all pairs.
    """
    keep = ~held[shards.pair_english[shards.order]]
    before = np.concatenate([[0], np.cumsum(keep)])
    groups = []
    for group in shards.groups:
        start, end = (int(before[place]) for place in (group.start, group.start + group.count))
        groups.append(Group(lang=group.lang, source=group.source, start=start, count=end - start))
    return replace(shards, order=np.asarray(shards.order)[keep], groups=groups)


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


def read_tests(flores: Path, tatoeba: Path) -> tuple[Flores, dict[str, TestSet]]:
    """FLORES and XTREME's 36 languages of Tatoeba. Raises InputError if one of the 36 is missing."""
    sets = read_tatoeba(tatoeba)
    if missing := sorted(set(XTREME) - set(sets)):
        raise InputError(f"{tatoeba} lacks {', '.join(missing)}: the figure is a mean over 36 languages. Copy LASER's files.")
    return read_flores(flores), {lang: sets[lang] for lang in XTREME}


def measure(
    embed: Embed, shards: Shards, pairs: dict[str, np.ndarray], tests: tuple[Flores, dict[str, TestSet]]
) -> dict[str, float]:
    """The three figures in %: {dev, flores, tatoeba}. pairs are those of dev_pairs."""
    tokenizer, (flores, tatoeba) = load_tokenizer(shards.tokenizer_path), tests

    def vectors(texts: list[str]) -> np.ndarray:
        return embed(ragged(tokenise(tokenizer, texts, MAX_TOKENS)))

    english = vectors(flores.english)
    trained = [lang for lang in shards.languages if lang in flores.texts]
    both_ways = (retrieval_accuracy(vectors(test.text), vectors(test.english)) for test in tatoeba.values())
    return {
        "dev": dev_error(embed, shards, pairs),
        "flores": float(np.mean([xsim(vectors(flores.texts[lang]), english, k=4).error_rate for lang in trained])),
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


def table(rows: list[dict[str, Any]], not_run: list[str]) -> str:
    """Markdown of the rows that model_ablations.py keeps: by question, below the rows that they compare with.

    Each has "question" ("" for the base) and "why" beside its figures; of a run made twice the last row counts. not_run names
    arms without a row.
    """
    latest = {(_protocol(row), row["arm"], row["start"], row["updates"], row["threads"]): row for row in rows}
    rows = list(latest.values())
    lines = [INTRODUCTION]
    if any(row["made_by"] == AD_HOC for row in rows):
        lines.append(ABOUT_AD_HOC.lstrip())
    for question in dict.fromkeys(row["question"] for row in rows):
        own = [row for row in rows if row["question"] == question]
        lines += [f"## {question or 'The base'}", "", *_row(COLUMNS), *_row(["---"] * len(COLUMNS))]
        for protocol in dict.fromkeys(_protocol(row) for row in own):
            same = [row for row in own if _protocol(row) == protocol]
            lines += [line for row in rows if row not in same and _is_reference(row, same[0]) for line in _figures(row, True)]
            lines += [line for row in same for line in _figures(row, False)]
        lines.append("")
    lines += _tokenizers(rows)
    if not_run:
        lines += ["## Arms without a row", "", "Defined in `model_ablations.py`, not run yet: " + "; ".join(not_run) + "."]
    return "\n".join(lines).rstrip("\n") + "\n"


def _protocol(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["made_by"] == AD_HOC, row["steps"], row["seed"], row["corpus_pairs"], row["tokenizer"]["vocab_size"])


def _is_reference(row: dict[str, Any], of: dict[str, Any]) -> bool:
    """Whether a row is the warm start that another began with (or the base), or the plain arm of its stage."""
    if _protocol(row) != _protocol(of):
        return False
    return row["arm"] == (of["start"] or "base") or (of["stage"] != "warmup" and row["arm"] == of["stage"])


def _figures(row: dict[str, Any], reference: bool) -> list[str]:
    figures = (f"{row[name]:.2f}" for name in ("dev", "flores", "tatoeba"))
    name = f"*{row['arm']}*" if reference else row["arm"]
    spent = (f"{row['updates']:,}", f"{row['pairs_seen']:,}", f"{row['cpu_seconds']:,.0f}", str(row["threads"]))
    return _row([name, row["why"], *spent, *figures, str(row["seed"]), f"{row['date']}, {row['made_by']}"])


def _tokenizers(rows: list[dict[str, Any]]) -> list[str]:
    """The tokenizers of the rows side by side; what they did to the figures is in the rows of the base."""
    kinds = {(row["corpus_pairs"], row["tokenizer"]["vocab_size"]): row["tokenizer"] for row in rows}
    facts = [kinds[key] for key in sorted(kinds)]
    heads = [f"{pairs:,} pairs, {vocab_size:,} pieces" for pairs, vocab_size in sorted(kinds)]
    lines = ["## Tokenizers", "", f"Pieces per word (per character: {', '.join(UNSPACED)}), of {SAMPLED} training texts a"]
    lines[-1] += " language; a language counts with the script of most of its letters."
    lines += ["", *_row(["", *heads]), *_row(["---"] * (len(heads) + 1))]
    for name, key in (("unknown, % of the texts' tokens", "unknown"), ("unknown, % of the English tokens", "english_unknown")):
        lines += _row([name, *(f"{fact[key]:.4f}" for fact in facts)])
    for script in sorted({script for fact in facts for script in fact["scripts"]}):
        found = [fact["scripts"].get(script) for fact in facts]
        lines += _row([script, *("" if value is None else f"{value:.2f}" for value in found)])
    return [*lines, ""]


def _row(cells: Iterable[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]
