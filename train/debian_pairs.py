"""Pairs of English and some 70 languages, most of which other corpora lack, out of Debian packages, as TSV.

    apt-get download $(cat train/debian_packages.txt)       # into an empty folder; any Debian or Ubuntu, no root needed
    pip install polib
    python train/debian_pairs.py FOLDER > more.tsv          # lang, source, English, text: what `mexma-train prepare` reads

Three sources: gettext catalogues (.mo: KDE, GNOME, LibreOffice, WordPress and others; "messages"), MediaWiki's JSON files
("mediawiki"), and South Azerbaijani made of Azerbaijani by a table of letters ("transliterated"). Accelerators, markup and
wiki syntax are taken out. Dropped are messages that are mostly no words, that the translator left in English, or whose English
the language has already. Texts keep the licences of their programs (GPL, LGPL, MPL, Apache). Needs dpkg-deb.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import polib

# Debian's and MediaWiki's code -> the code of FLORES-200 or of Tatoeba's test sets.
LANGUAGES = {
    "gd": "gla", "ha": "hau", "so": "som", "azb": "azb", "ary": "ary", "ckb": "ckb", "ku-arab": "ckb", "xh": "xho",
    "br": "bre", "oc": "oci", "ku": "kur", "kmr": "kur", "ku-latn": "kur", "hsb": "hsb", "dsb": "dsb", "fy": "fry",
    "kab": "kab", "csb": "csb", "nds": "nds", "la": "lat", "yi": "yid", "tt": "tat", "tt-cyrl": "tat", "tk": "tuk",
    "uz": "uzn", "mn": "khk", "ast": "ast", "jv": "jav", "fo": "fao", "kw": "cor", "pam": "pam", "war": "war",
    "ceb": "ceb", "am": "amh", "sa": "san", "az": "azj", "io": "ido", "ie": "ile", "lfn": "lfn", "gsw": "gsw",
    "mhr": "mhr", "arz": "arz", "arq": "arq", "aeb-arab": "aeb", "cbk-zam": "cbk", "ang": "ang", "ch": "cha",
    "dtp": "dtp", "wuu-hans": "wuu", "yue": "yue", "yue-hant": "yue", "awa": "awa", "pms": "pms", "nov": "nov",
    "shi": "ber", "rif": "ber", "cu": "orv", "eu": "eus", "et": "est", "is": "isl", "lt": "lit", "sw": "swh",
    "kk": "kaz", "kk-cyrl": "kaz", "km": "khm", "ga": "gle", "he": "heb", "cy": "cym", "ug": "uig", "ug-arab": "uig",
}  # fmt: skip
CATALOGUE = re.compile(
    r"(?:locale|resource)/([A-Za-z]+)(?:_[A-Z]+)?(?:\.UTF-8)?/LC_MESSAGES/[^/]+\.mo$"
    r"|wp-content/languages/(?:[a-z]+-)*([a-z]{2,3})(?:_[A-Z]+)?\.mo$"
)
I18N = re.compile(r"mediawiki/.*/(i18n(?:/[a-z]+)?)/([a-z-]+)\.json$")
TAG = re.compile(r"<[^<>]{1,200}>")
CJK_ACCELERATOR = re.compile(r"\s*\([_&~][A-Za-z]\)")
ACCELERATOR = re.compile(r"[_&~](?=\w)")
WIKI_CHOICE = re.compile(r"\{\{\s*(?:PLURAL|GENDER|GRAMMAR)\s*:[^{}]*\|([^{}|]*)\}\}", re.IGNORECASE)
WIKI_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
WEB_LINK = re.compile(r"\[(?:https?:)?//?\S+\s+([^\[\]]*)\]|\[\$\d\s+([^\[\]]*)\]")
# Azerbaijani's Latin letters as South Azerbaijani writes them in Arabic ones: inside a word, at its start where that differs,
# and the short e at its end. Its many words in Persian's own spelling are beyond a table.
ARABIC = dict(zip("abcçdfgğhxjkqlmnprsştvyz", "ابجچدفگغهخژکقلمنپرسشتویز", strict=True)) | {
    ",": "،", "?": "؟", "ə": "", "e": "ئ", "i": "ی", "ı": "ی", "o": "و", "ö": "ؤ", "u": "و", "ü": "ۆ",
}  # fmt: skip
ARABIC_START = {"a": "آ", "ə": "ا", "e": "ائ", "i": "ای", "ı": "ای", "o": "او", "ö": "اؤ", "u": "او", "ü": "اۆ"}
CHARACTERS = 8, 400  # shortest and longest text, English characters
SHORT = 4  # of the texts with fewer words than this, every fifth stays: menus teach little


def rows(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """(language, source, English, text) of every usable message in the folder's .deb files, each pair once."""
    seen: set[tuple[str, str]] = set()
    for package in sorted(folder.glob("*.deb")):
        for language, source, english, text in _catalogues(package):
            english, text = clean(english, source), clean(text, source)
            key = language, english.casefold()
            if key not in seen and usable(english, text):
                seen.add(key)
                yield language, source, english, text
                if language == "azj":
                    yield "azb", "transliterated", english, arabic_script(text)


def clean(text: str, source: str) -> str:
    """One line of plain text: without accelerators, markup, or (mediawiki) wiki syntax; "" where syntax is left over."""
    if source == "mediawiki":
        text = text.replace("{{SITENAME}}", "wiki").replace("'''", "").replace("''", "")
        text = WIKI_LINK.sub(r"\1", WIKI_CHOICE.sub(r"\1", text))
        text = WEB_LINK.sub(lambda match: match[1] or match[2] or "", text)
        if "{{" in text or "[[" in text:
            return ""
    else:
        text = ACCELERATOR.sub("", CJK_ACCELERATOR.sub("", html.unescape(text)))
    return " ".join(html.unescape(TAG.sub(" ", text)).split())


def usable(english: str, text: str) -> bool:
    """Whether a pair is of two texts of words, translated, and of like length."""
    shortest, longest = CHARACTERS
    if not (shortest <= len(english) <= longest and 4 <= len(text) <= 2 * longest) or " " not in english:
        return False
    if english.casefold() == text.casefold() or not 0.25 < len(text) / len(english) < 4:
        return False
    letters = [sum(c.isalpha() or c.isspace() or "\u0300" <= c <= "\u0eff" for c in side) for side in (english, text)]
    if letters[0] < 0.75 * len(english) or letters[1] < 0.7 * len(text):
        return False
    return len(english.split()) >= SHORT or sum(english.encode()) % 5 == 0


def arabic_script(text: str) -> str:
    """Azerbaijani in Latin letters, spelt with Arabic ones; what is no Latin letter stays."""
    words = []
    for word in text.replace("İ", "i").replace("I", "ı").lower().split(" "):
        letters = re.sub(r"(.)\1", r"\1", word)  # one for two, as in amma
        start = ARABIC_START.get(letters[:1], "")
        body = "".join(ARABIC.get(letter, letter) for letter in (letters[1:] if start else letters))
        words.append(start + body + ("ه" if letters.endswith("ə") else ""))
    return " ".join(words)


def _catalogues(package: Path) -> Iterator[tuple[str, str, str, str]]:
    """Raw messages of one package: (language, source, English, text)."""
    wiki: dict[str, dict[str, dict[str, str]]] = {}  # folder -> MediaWiki's code -> messages
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as process:
        assert process.stdout
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                catalogue, i18n = CATALOGUE.search(member.name), I18N.search(member.name)
                if catalogue and (language := LANGUAGES.get((catalogue[1] or catalogue[2]).lower())):
                    extracted = tar.extractfile(member)
                    assert extracted
                    yield from ((language, "messages", *pair) for pair in _gettext(extracted.read()))
                elif i18n and (i18n[2] == "en" or i18n[2] in LANGUAGES):
                    extracted = tar.extractfile(member)
                    assert extracted
                    folder = str(Path(member.name).parent)
                    wiki.setdefault(folder, {})[i18n[2]] = json.loads(extracted.read())
    yield from _mediawiki(wiki.values())


def _gettext(data: bytes) -> Iterator[tuple[str, str]]:
    """(English, text) of the messages of a .mo file that have no plural and are UTF-8; none of a file that polib refuses."""
    try:
        entries = polib.mofile(data)
    except (OSError, UnicodeDecodeError, ValueError, LookupError) as error:
        sys.stderr.write(f"A catalogue left out: {error}\n")
        return
    for entry in entries:
        if entry.msgid and entry.msgstr and not entry.msgid_plural:
            yield entry.msgid, entry.msgstr


def _mediawiki(folders: Iterable[dict[str, dict[str, str]]]) -> Iterator[tuple[str, str, str, str]]:
    for folder in folders:
        english = folder.get("en", {})
        for code, messages in folder.items():
            if code != "en":
                for key in messages.keys() & english.keys() - {"@metadata"}:
                    yield LANGUAGES[code], "mediawiki", english[key], messages[key]


def main() -> None:
    """Write the rows of the folder named on the command line to standard output."""
    if len(sys.argv) != 2 or not (folder := Path(sys.argv[1])).is_dir():
        sys.exit("Give the folder of the .deb files: python train/debian_pairs.py FOLDER > more.tsv")
    for row in rows(folder):
        sys.stdout.write("\t".join(row) + "\n")


if __name__ == "__main__":
    main()
