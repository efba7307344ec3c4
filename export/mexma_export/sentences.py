"""Loads the sentences of the parity gate: 562 shipped ones in 57 languages, or a file of your own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mexma_rt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A line of the gate: an ISO 639-3 code and a sentence in that language."""

    lang: str
    text: str


def load_sentences(path: Path | None = None) -> list[Sentence]:
    """Read lines of `lang<TAB>text` (UTF-8; # starts a comment line). None: the 562 shipped sentences in 57 languages.

    The shipped ones are articles of the Universal Declaration of Human Rights, in the public domain. Raises InputError for a
    line of another form, and for a file without sentences.
    """
    source = path or Path(__file__).with_name("parity_sentences.tsv")
    sentences = []
    for number, raw in enumerate(source.read_bytes().splitlines(), start=1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{source}, line {number}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
        lang, tab, text = line.partition("\t")
        if line.startswith("#") or not line.strip():
            continue
        if not (lang and tab and text.strip()):
            raise InputError(f"{source}, line {number}: not 'language<TAB>text': {line.strip()[:80]!r}")
        sentences.append(Sentence(lang=lang, text=text))
    if not sentences:
        raise InputError(f"{source}: no sentences. The gate needs lines of 'language<TAB>text'.")
    return sentences
