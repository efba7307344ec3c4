"""Which pieces of a tokenizer each language uses: the tables of `mexma-export --languages`, and what trimming to one costs.

    python read_bitext.py > pairs.tsv
    python benchmarks/piece_usage.py TOKENIZER pairs.tsv --flores flores200-devtest --tatoeba tatoeba-test --name XLM-R \\
        --counts counts.npz -o export/mexma_export/pieces_xlmr.xz --report benchmarks/results/languages.md

pairs.tsv has lines of language<TAB>source<TAB>English<TAB>text, a language's together. Words are counted first and each
distinct one is cut once: both tokenizers cut at white space, so that gives the pieces of the lines. A language's table holds
every piece that occurred. Measured on the first 500 lines of FLORES-200 devtest, else of the Tatoeba test file, which were not
read: tokens whose piece is gone once the vocabulary is trimmed to that language alone (single characters stay, as in trim.py),
and sentences with such a token. --counts keeps the counts, so that a second call need not count again.
"""

from __future__ import annotations

import argparse
import lzma
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mexma_export.trim import trim_vocabulary
from mexma_export.usage import LanguageUse, Usage, read_usage, vocabulary_hash, write_usage

HELD_OUT = 500  # lines
FLORES = {"sqi": "als", "srp": "srp_Cyrl"}  # its names, where they are others
SETS = (
    "eng,fra",
    "eng,fra,deu,spa,ita,por,nld",
    "ara,cmn,eng,fra,rus,spa",
    "eng,jpn,kor,cmn",
    "ben,eng,hin,mal,mar,tam,tel,urd",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="tokenizer.json, plain or .xz")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--flores", type=Path, required=True)
    parser.add_argument("--tatoeba", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--width", type=int, default=1024, help="of the embeddings, for the megabytes (1024: XLM-R-large)")
    parser.add_argument("--counts", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--report", type=Path, help="a section is added")
    options = parser.parse_args()
    raw = options.tokenizer.read_bytes()
    tokenizer = Tokenizer.from_str((lzma.decompress(raw) if options.tokenizer.suffix == ".xz" else raw).decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if not options.counts.exists():
        found: dict[str, Any] = count(tokenizer, options.pairs)
        np.savez_compressed(options.counts, **found)
    with np.load(options.counts) as counts:
        used = {lang: np.flatnonzero(counts[lang]) for lang in sorted(counts) if not lang.startswith("lines of ")}
        lines = {lang: int(counts[f"lines of {lang}"]) for lang in used}
    always = trim_vocabulary(tokenizer, []).kept
    held_out = {lang: held_out_lines(lang, options.flores, options.tatoeba) for lang in used}
    languages = {}
    for lang, pieces in used.items():
        where, texts = held_out[lang]
        lost, changed = cost(tokenizer, np.union1d(always, pieces), texts)
        languages[lang] = LanguageUse(
            lang=lang, lines=lines[lang], pieces=len(pieces), held_out=where, lost_tokens=lost, changed_sentences=changed
        )
    usage = Usage(
        name=options.name,
        vocabulary=vocabulary_hash(tokenizer),
        text="5.59 M translation pairs: see the card of the bundled model",
        languages=languages,
        pieces=used,
    )
    write_usage(options.output, usage, tokenizer.get_vocab_size())
    assert all((read_usage(options.output).pieces[lang] == pieces).all() for lang, pieces in used.items())
    text = report(tokenizer, usage, always, held_out, options.width)
    print(text)
    if options.report:
        with options.report.open("a", encoding="utf-8") as stream:
            stream.write(text)


def count(tokenizer: Tokenizer, pairs: Path) -> dict[str, np.ndarray]:
    """{language: occurrences of each piece [V]} and {"lines of language": how many lines}; English from its distinct lines."""
    counts: dict[str, np.ndarray] = {}

    def close(lang: str, words: Counter[str], lines: int) -> None:
        pieces, distinct = np.zeros(tokenizer.get_vocab_size(), np.int64), list(words)
        for start in range(0, len(distinct), 5000):
            part = distinct[start : start + 5000]
            for word, encoding in zip(part, tokenizer.encode_batch_fast(part, add_special_tokens=False), strict=True):
                np.add.at(pieces, encoding.ids, words[word])
        counts[lang], counts[f"lines of {lang}"] = pieces, np.array(lines)
        print(f"{lang}: {lines:,} lines, {np.count_nonzero(pieces):,} pieces", flush=True)

    english: Counter[str] = Counter()
    seen: set[int] = set()
    current, words, lines = "", Counter[str](), 0
    for lang, source_english, text in rows(pairs):
        if lang != current:
            if current:
                close(current, words, lines)
            current, words, lines = lang, Counter(), 0
        words.update(text.split())
        lines += 1
        if (key := hash(source_english)) not in seen:
            seen.add(key)
            english.update(source_english.split())
    close(current, words, lines)
    close("eng", english, len(seen))
    return counts


def rows(pairs: Path) -> Iterator[tuple[str, str, str]]:
    with pairs.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            lang, _, english, text = line.rstrip("\n").split("\t")
            yield lang, english, text


def held_out_lines(lang: str, flores: Path, tatoeba: Path) -> tuple[str, list[str]]:
    if (path := flores / f"{FLORES.get(lang, lang)}.txt").exists():
        return "FLORES-200 devtest", path.read_text(encoding="utf-8").splitlines()[:HELD_OUT]
    path = tatoeba / f"{lang}.tsv"
    return "the Tatoeba test", [line.split("\t")[1] for line in path.read_text(encoding="utf-8").splitlines()[:HELD_OUT]]


def cost(tokenizer: Tokenizer, kept: np.ndarray, texts: list[str]) -> tuple[float, float]:
    """(percent of the tokens whose piece is not kept, percent of the texts with one)."""
    mask = np.zeros(tokenizer.get_vocab_size(), bool)
    mask[kept] = True
    gone = [~mask[e.ids] for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    changed = np.mean([one.any() for one in gone])
    return round(100 * float(np.concatenate(gone).mean()), 3), round(100 * float(changed), 2)


def report(
    tokenizer: Tokenizer, usage: Usage, always: np.ndarray, held_out: dict[str, tuple[str, list[str]]], width: int
) -> str:
    size = tokenizer.get_vocab_size()
    out = [
        f"## {usage.name}\n",
        f"{size:,} pieces, of which {len(always):,} are always kept.\n",
        f"| languages | pieces kept | of all, % | MB of float32 rows saved at {width:,} dimensions | "
        "held-out tokens cut otherwise, % | sentences with one, % |",
        "|---|---|---|---|---|---|",
    ]
    for text in (*SETS, *usage.languages):
        chosen = text.split(",")
        kept = np.union1d(always, np.concatenate([usage.pieces[lang] for lang in chosen]))
        each = [cost(tokenizer, kept, held_out[lang][1]) for lang in chosen]
        lost, changed = np.mean([one[0] for one in each]), np.mean([one[1] for one in each])
        name = text if len(chosen) > 1 or held_out[text][0].startswith("FLORES") else f"{text} †"
        saved = (size - len(kept)) * width * 4 / 1e6
        out.append(f"| {name} | {len(kept):,} | {100 * len(kept) / size:.1f} | {saved:,.0f} | {lost:.2f} | {changed:.1f} |")
    return "\n".join(out) + "\n\n"


if __name__ == "__main__":
    main()
