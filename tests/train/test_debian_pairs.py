"""Pairs out of Debian packages: what is cleaned and dropped, by examples, and a real .deb from end to end."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from ..scripts import load_script

polib = pytest.importorskip("polib", reason="train/debian_pairs.py reads .mo files with polib: pip install polib")


@pytest.fixture(scope="module")
def debian() -> ModuleType:
    return load_script("train/debian_pairs.py")


@pytest.mark.parametrize(
    ("source", "raw", "expected"),
    [
        ("messages", "_Open the &file", "Open the file"),
        ("messages", "~Save all changes", "Save all changes"),
        ("messages", "ファイルを開く(_O)", "ファイルを開く"),
        ("messages", "Read <a href='x'>the\nmanual</a> &amp; go", "Read the manual & go"),
        ("messages", "snake_case names", "snakecase names"),  # the price of one rule for accelerators
        ("mediawiki", "See [[Special:Log|the '''log''']] of {{SITENAME}}", "See the log of wiki"),
        ("mediawiki", "{{PLURAL:$1|one page|$1 pages}} deleted", "$1 pages deleted"),
        ("mediawiki", "Read [https://example.org/a the licence] first", "Read the licence first"),
        ("mediawiki", "{{int:other}} is left", ""),
        ("mediawiki", "[[File:$1]] [[", ""),
    ],
)
def test_a_message_becomes_plain_text(debian: ModuleType, source: str, raw: str, expected: str) -> None:
    assert debian.clean(raw, source) == expected


@pytest.mark.parametrize(
    ("english", "text", "kept"),
    [
        ("The page has been deleted.", "Chaidh an duilleag a sguabadh às.", True),
        ("The page has been deleted.", "the page has been deleted.", False),  # left in English
        ("Deleted", "Chaidh a sguabadh às", False),  # one word
        ("The page has been deleted.", "às", False),
        ("%s: %d/%d (%s) [%x] at", "%s: %d/%d (%s) [%x] aig", False),  # hardly a letter
        ("There are no such pages here today", "ok ok", False),  # far shorter than its English
        ("मेरा पृष्ठ here is a page", "এই পাতাটি এখন মুছে ফেলা হয়েছে", True),  # vowel signs are no letters to str.isalpha
    ],
)
def test_only_pairs_of_words_stay(debian: ModuleType, english: str, text: str, kept: bool) -> None:
    assert debian.usable(english, text) is kept


def test_azerbaijani_in_arabic_letters(debian: ModuleType) -> None:
    """By hand, as FLORES-200 spells these words in azb: 'indi', 'aylıq', 'amma', 'var', 'siçanlarımız'."""
    assert debian.arabic_script("İndi aylıq, amma siçanlarımız var") == "ایندی آیلیق، آما سیچانلاریمیز وار"


def test_a_package(debian: ModuleType, tmp_path: Path) -> None:
    """A .deb with a gettext catalogue and MediaWiki's files: rows once each, in the form that mexma-train prepare reads."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is Debian's")
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text("Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n")
    for code, told in (
        ("gd", "Chaidh am faidhle a sguabadh às"),
        ("az", "Fayl bu qovluqdan silindi"),
        ("xx", "Fayl nan silin"),
    ):
        folder = root / "usr/share/locale" / code / "LC_MESSAGES"
        folder.mkdir(parents=True)
        catalogue = polib.POFile()
        catalogue.append(polib.POEntry(msgid="The _file has been deleted", msgstr=told))
        catalogue.append(polib.POEntry(msgid="The file has been &deleted", msgstr=told, msgctxt="again"))
        catalogue.append(
            polib.POEntry(msgid="%d big file", msgid_plural="%d big files", msgstr_plural={0: "a b c", 1: "d e f"})
        )
        catalogue.save_as_mofile(str(folder / "x.mo"))
    wiki = root / "usr/share/mediawiki/languages/i18n"
    wiki.mkdir(parents=True)
    (wiki / "en.json").write_text(json.dumps({"a": "You have {{PLURAL:$1|a new|new}} messages now", "b": "not told at all"}))
    (wiki / "gd.json").write_text(
        json.dumps({"@metadata": {"authors": ["x"]}, "a": "Tha teachdaireachdan ùra agad an-dràsta", "z": "chan eil"})
    )
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, tmp_path / "x.deb"], check=True, capture_output=True)
    assert sorted(debian.rows(tmp_path)) == [
        ("azb", "transliterated", "The file has been deleted", "فایل بو قوولوقدان سیلیندی"),
        ("azj", "messages", "The file has been deleted", "Fayl bu qovluqdan silindi"),
        ("gla", "mediawiki", "You have new messages now", "Tha teachdaireachdan ùra agad an-dràsta"),
        ("gla", "messages", "The file has been deleted", "Chaidh am faidhle a sguabadh às"),
    ]
