"""Reads and checks the two test sets of the quality suite: FLORES (one file per language) and Tatoeba (english<TAB>text)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mexma_rt.errors import FileError, InputError, typed
from mexma_rt.files.atomic import read_lines
from mexma_train.evaluate import MIN_PAIRS, XSIM_K, TestSet, read_test_set

ENGLISH = "eng"
SAME = {"srp_Cyrl": "srp", "als": "sqi", "arb": "ara", "zho": "cmn"}  # FLORES' spelling -> Tatoeba's
MINING_LANGUAGES = ("deu", "jpn", "tur", "ara", "fin")  # five families and three scripts, 1,000 Tatoeba pairs each
MIN_MINING_PAIRS = 20  # with fewer, noise leaves fewer than k = 4 neighbours; a reliable figure needs hundreds


@dataclass(frozen=True, kw_only=True)
class Flores:
    """english[i] and texts[language][i] are the same sentence."""

    english: list[str]
    texts: dict[str, list[str]]


def read_flores(folder: Path) -> Flores:
    """Read FOLDER/xxx.txt, one per language, and eng.txt.

    Raises FileError if the folder or eng.txt is missing or there is no other language; InputError if the files differ in
    length, have fewer than 5 lines or a blank one, or if two are of the same language.
    """
    files = _by_language(folder, "txt", "--flores", "FLORES-200 devtest: one file per language such as deu.txt, and eng.txt")
    if ENGLISH not in files:
        raise FileError(
            f"{folder} has no eng.txt, and every language is compared with English. Copy FLORES' English sentences there, "
            f"line by line as in {next(iter(files.values())).name}: {folder / 'eng.txt'}"
        )
    if len(files) == 1:
        raise FileError(f"{folder} has only eng.txt: there is nothing to compare it with. Add files such as deu.txt.")
    lines = {lang: read_lines(path) for lang, path in files.items()}
    english = lines.pop(ENGLISH)
    if len(english) < MIN_PAIRS:
        raise InputError(
            f"{folder / 'eng.txt'} has {len(english)} lines, but xsim looks at the {XSIM_K} nearest neighbours, so at least "
            f"{MIN_PAIRS} are needed (FLORES-200 devtest has 1,012)."
        )
    for lang, text in [(ENGLISH, english), *lines.items()]:
        if len(text) != len(english):
            raise InputError(
                f"{files[lang]} has {len(text)} lines and eng.txt {len(english)}, but line i of every file must be the same "
                f"sentence. Copy the file again, or leave the language out. Type: wc -l {typed(folder)}/*.txt"
            )
        if blank := next((i for i, line in enumerate(text, start=1) if not line.strip()), None):
            raise InputError(f"{files[lang]}, line {blank} is blank, but every line must be a sentence. Copy the file again.")
    return Flores(english=english, texts=lines)


def read_tatoeba(folder: Path) -> dict[str, TestSet]:
    """Read FOLDER/xxx.tsv, lines english<TAB>text: {language: test set}.

    Raises FileError if the folder is missing or has no such file, InputError if two files are of the same language, and what
    `read_test_set` raises.
    """
    files = _by_language(folder, "tsv", "--tatoeba", "LASER's Tatoeba files: one per language such as deu.tsv")
    return {lang: read_test_set(path) for lang, path in files.items()}


def _by_language(folder: Path, suffix: str, option: str, wanted: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileError(f"{folder} is not a folder. Give {option} the folder of {wanted}.")
    files: dict[str, Path] = {}
    for path in sorted(folder.glob(f"*.{suffix}")):
        lang = SAME.get(path.stem, path.stem)
        if lang in files:
            raise InputError(
                f"{files[lang].name} and {path.name} in {folder} are the same language ({lang}), so one would hide the other. "
                "Keep one of them."
            )
        files[lang] = path
    if not files:
        raise FileError(f"{folder} has no .{suffix} file. Give {option} the folder of {wanted}.")
    return files


def named(languages: str, option: str) -> list[str]:
    """The languages listed in an option, separated by commas or spaces. Raises InputError for a duplicate or an empty list."""
    names = languages.replace(",", " ").split()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        what = f"names {', '.join(twice)} twice" if twice else "is empty"
        raise InputError(f"{option} {what}. Give every language once, such as {option} deu,fra.")
    return names


def choose_mining(languages: Sequence[str] | None, tatoeba: dict[str, TestSet]) -> list[str]:
    """The languages to mine: those named, or else those of MINING_LANGUAGES (failing that, the first five) with enough pairs.

    Raises InputError for a named language that has no test file or fewer than 20 pairs.
    """
    large = [lang for lang, test_set in tatoeba.items() if len(test_set.text) >= MIN_MINING_PAIRS]
    if languages is None:
        return [lang for lang in MINING_LANGUAGES if lang in large] or large[: len(MINING_LANGUAGES)]
    for lang in languages:
        if lang not in tatoeba:
            raise InputError(f"--mining-languages has {lang}, but there is no {lang}.tsv. There are: {', '.join(tatoeba)}.")
        if lang not in large:
            raise InputError(
                f"--mining-languages has {lang}, but {lang}.tsv has {len(tatoeba[lang].text)} pairs, and mining needs at least "
                f"{MIN_MINING_PAIRS}. Leave it out."
            )
    return list(languages)


def choose_trained(option: str | None, said: Sequence[str], earlier: Sequence[str], tested: Iterable[str]) -> list[str]:
    """The languages the model was trained on: from the option, or else the model, or else the earlier results.

    option: languages, "all" (all of `tested`) or the folder of the shards it was trained on. Raises InputError if none of the
    three says, if a language is named twice, and if none of the languages has a test file.
    """
    tested = sorted(tested)
    if option is None:
        chosen = list(said or earlier)
        if not chosen:
            raise InputError(
                "The model does not say which languages it was trained on, and the lead figure is the mean over them. "
                "Type --trained deu,fra (its languages), --trained SHARDS (the folder it was trained on) or --trained all."
            )
    elif option.strip() == "all":
        chosen = tested
    elif (meta := Path(option) / "meta.json").is_file():
        chosen = _languages_of_shards(meta)
    else:
        chosen = named(option, "--trained")
    if not set(chosen) & set(tested):
        raise InputError(
            f"None of the languages trained on ({', '.join(chosen)}) has a test file; there are {', '.join(tested)}. "
            "Type --trained with their ISO 639-3 codes, or --trained all."
        )
    return chosen


def _languages_of_shards(meta: Path) -> list[str]:
    try:
        languages = json.loads(meta.read_bytes())["languages"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{meta} names no languages ({error!r}). Give --trained the languages, such as deu,fra.") from None
    return [str(lang) for lang in languages if lang != ENGLISH]
