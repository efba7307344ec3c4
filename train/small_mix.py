"""The pairs of mexma-small's last run: few of the languages it knows well, more of those it knew badly, some without spaces.

    python train/small_mix.py pairs.tsv more.tsv > mix.tsv    # more.tsv: what debian_pairs.py wrote

Rows are drawn with replacement, so many of each language as NEEDED says (KNOWN of every language of pairs.tsv), and shuffled.
"unspaced" rows have lost some or all spaces of their text, as text does on its way through PDF files and old databases, and as
142 of the 1,012 lines of FLORES-200's South Azerbaijani have (15 letters or more to a word): the stretch with those, a fifth of
the lines, had 93 of the language's 116 errors.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

Row = tuple[str, str, str, str]  # language, source, English, text

SEED = 11
KNOWN = 700  # of each language of pairs.tsv
# Share of a source's rows that is read at all, and then the weight of a row in the draw: plentiful short messages least.
READ = {"bible": 0.15, "ui": 0.06, "lohelp": 0.08, "ddtp": 0.15, "pydocs": 0.2, "scratch": 0.3, "help": 0.5}
WEIGHT = {
    "ui": 0.15, "lohelp": 0.3, "bible": 0.4, "ddtp": 0.3, "tatoeba": 4, "stories": 2, "wmt": 2, "pydocs": 0.3, "scratch": 0.5,
    "help": 0.6, "seed": 3, "udhr": 2, "mediawiki": 2, "messages": 1, "transliterated": 0.5,
}  # fmt: skip
NEEDED = {  # of more.tsv: by what FLORES and Tatoeba said of the model before
    "gla": 6000, "hau": 5000, "som": 3500, "ary": 3500, "ckb": 2500, "xho": 2500, "azb": 2500, "san": 1500, "aeb": 1200,
    "lit": 1200, "isl": 1200, "arz": 1200, "uzn": 1000, "gle": 800, "eus": 600, "est": 600, "uig": 600, "swh": 600, "azj": 500,
    "amh": 500, "kaz": 400, "heb": 300, "cym": 300, "khm": 300, "khk": 300,
    "bre": 3000, "tuk": 2500, "mhr": 2000, "kab": 2000, "cor": 1500, "pam": 1500, "hsb": 1500, "dsb": 1500, "csb": 1500,
    "lat": 1500, "oci": 1500, "kur": 1500, "jav": 1500, "dtp": 1200, "ber": 1200, "gsw": 1200, "fry": 1200, "nds": 1200,
    "pms": 1200, "arq": 1000, "war": 1000, "lfn": 1000, "ang": 800, "fao": 800, "tat": 800, "cbk": 700, "ceb": 700, "yid": 600,
    "awa": 600, "cha": 500, "ast": 500, "ido": 500, "ile": 500, "yue": 500, "wuu": 400, "orv": 400, "nov": 200,
}  # fmt: skip
UNSPACED = {"azb": 9000, "pes": 7000, "ara": 2000, "uig": 1500, "urd": 1500, "ckb": 1500}  # without any space
HALF_SPACED = {"azb": 2500, "pes": 2000}  # with two spaces of five


def mix(pairs: Path, more: Path) -> Iterator[Row]:
    """The rows of the run, shuffled. The same files give the same rows."""
    rng = random.Random(SEED)
    known, new = read(pairs, rng), read(more, rng)
    rows: list[Row] = []

    def draw(corpus: dict[str, list[Row]], language: str, count: int, change: Callable[[str], str] | None = None) -> None:
        found = corpus.get(language, [])
        if not found:
            return
        for lang, source, english, text in rng.choices(found, [WEIGHT.get(row[1], 1) for row in found], k=count):
            rows.append((lang, "unspaced", english, change(text)) if change else (lang, source, english, text))

    def some_spaces(text: str) -> str:
        return "".join(word + (" " if rng.random() < 0.4 else "") for word in text.split(" ")).strip()

    for language in sorted(known):
        draw(known, language, KNOWN)
    for language, count in NEEDED.items():
        draw(new, language, count)
    for counts, change in ((UNSPACED, lambda text: text.replace(" ", "")), (HALF_SPACED, some_spaces)):
        for language, count in counts.items():
            draw(known if language in known else new, language, count, change)
    rng.shuffle(rows)
    yield from rows


def read(path: Path, rng: random.Random) -> dict[str, list[Row]]:
    """{language: the rows of a TSV file of lang, source, English, text, of plentiful sources a share}."""
    rows: dict[str, list[Row]] = defaultdict(list)
    with path.open(encoding="utf-8") as file:
        for line in file:
            language, source, english, text = line.rstrip("\n").split("\t")
            if rng.random() < READ.get(source, 1):
                rows[language].append((language, source, english, text))
    return rows


def main() -> None:
    """Write the rows to standard output."""
    if len(sys.argv) != 3:
        sys.exit("Give both files: python train/small_mix.py pairs.tsv more.tsv > mix.tsv")
    for row in mix(Path(sys.argv[1]), Path(sys.argv[2])):
        sys.stdout.write("\t".join(row) + "\n")


if __name__ == "__main__":
    main()
