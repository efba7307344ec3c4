from __future__ import annotations

import hashlib
import json
import lzma
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mexma_train.data.held_out as held_out_module
from mexma_rt.errors import FileError
from mexma_train.data.bitext import Row
from mexma_train.data.held_out import LIST, HeldOut, Screen, encode_list, hash_lines, load_held_out, normalise

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "held_out.py"
FLORES = [
    '"We now have 4-month-old mice that are non-diabetic that used to be diabetic," he added.',
    "„Wir haben jetzt 4 Monate alte Mäuse, die Diabetes hatten und jetzt keinen mehr haben“, fügte er hinzu.",
    "“ขณะนี้เรามีหนูอายุ 4 เดือนที่ไม่เป็นโรคเบาหวานซึ่งแต่ก่อนเคยเป็น” เขากล่าวเพิ่มเติม",
]
TATOEBA = [
    "We can not learn Japanese without learning Kanji.",
    "漢字を学ばないで日本語の勉強はできない。",
    "Tom washed his hands and face.",
]


@pytest.fixture(scope="module")
def listed() -> HeldOut:
    return load_held_out()


@pytest.mark.parametrize("sentence", FLORES + TATOEBA)
def test_test_sentences_are_found_whatever_their_case_punctuation_and_spacing(listed: HeldOut, sentence: str) -> None:
    variants = [
        sentence,
        sentence.upper(),
        sentence.lower() + " !!!",
        "» " + sentence.strip("\"„“”.") + " «",
        sentence.replace(" ", "\u00a0\u200b"),
        sentence.replace(" ", ""),
        unicodedata.normalize("NFD", sentence),
        sentence.replace("4", "\uff14"),  # full width
        "\n" + sentence.replace(" ", "\n"),
    ]  # fmt: skip
    assert listed.contains(variants).all()
    assert not listed.contains([sentence + " x", sentence[3:], sentence.replace("4", "5") + "5"]).any()


def test_sentences_of_ours_are_not_found(listed: HeldOut) -> None:
    ours = ["The bundle is incomplete or damaged.", "sun moon house", "солнце луна дом", "", " ", "...!?", "\n", "👍"]
    assert not listed.contains(ours).any()
    assert listed.contains([]).shape == (0,)


def test_what_the_list_says_of_itself(listed: HeldOut) -> None:
    """90 languages x 1,012 sentences; Tatoeba's 112 files, both sides. The wheel has room for 1.3 MB."""
    assert dict(listed.sets) == {"FLORES-200 devtest": 90 * 1012, "Tatoeba test set of LASER": 177_754}
    assert len(listed.hashes) == 248_872 and (np.diff(listed.hashes.astype(np.int64)) > 0).all()
    assert int(listed.hashes[-1]) < 2**40
    assert LIST.stat().st_size < 1_300_000


def test_hashes_are_those_of_b2sum() -> None:
    """printf helloworld | b2sum | cut -c1-10, and likewise."""
    lines = ["Hello, World!", "  STRASSE-café ²", "नमस्ते।", "“Straße” Cafe\u0301 2"]
    assert [f"{value:010x}" for value in hash_lines(lines).tolist()[::2]] == ["f240a80204", "7a87fa600a"]
    assert hash_lines(lines[3:])[0] == 0xDE5BD09016
    assert normalise(lines[1]) == "strassecafé2"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=20), max_size=8))
def test_many_lines_at_once_are_hashed_as_one_by_one_in_plain_python(lines: list[str]) -> None:
    def plain(line: str) -> int:
        lowered = unicodedata.normalize("NFKC", line).lower()
        kept = "".join(c for c in lowered if unicodedata.category(c)[0] in "LMN")
        return int(hashlib.blake2b(kept.encode()).hexdigest()[:10], 16)

    assert hash_lines(lines).tolist() == [plain(line) for line in lines]


def test_a_final_sigma_does_not_depend_on_the_next_line() -> None:
    assert normalise("ΟΔΟΣ") == "οδο\u03c2"
    assert hash_lines(["ΟΔΟΣ", "ΑΒ"]).tolist() == [*hash_lines(["οδο\u03c2"]), *hash_lines(["αβ"])]


def test_the_screen_remembers_clean_english_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out_module, "SLOTS", 4)  # so that lines push each other out
    listed = load_held_out()
    asked: list[str] = []

    def contains(self: HeldOut, lines: list[str]) -> np.ndarray:
        asked.extend(lines)
        return np.array([line in ("bad", "schlecht") for line in lines], bool)

    monkeypatch.setattr(HeldOut, "contains", contains)
    screen = Screen(listed)

    def row(english: str, text: str = "gut") -> Row:
        return Row(lang="deu", source="x", english=english, text=text)

    rows = [row("sun"), row("bad"), row("sun", "schlecht"), row("bad", "schlecht")]
    assert screen.keep(rows) == rows[:1] and screen.dropped == {"deu": 3}
    asked.clear()
    assert screen.keep([row("sun"), row("bad")]) == [row("sun")]
    assert sorted(asked) == ["bad", "gut", "gut"]  # sun is known to be clean
    words = [row(f"line {i}") for i in range(50)]
    assert screen.keep([*words, row("bad")]) == words
    assert screen.keep([row("bad"), *words]) == words
    assert screen.keep([]) == []
    assert screen.report()["rows"] == 6


def test_the_list_is_made_again_from_the_folders_of_the_test_sets(tmp_path: Path) -> None:
    flores, tatoeba = tmp_path / "flores", tmp_path / "tatoeba"
    flores.mkdir()
    tatoeba.mkdir()
    (flores / "eng.txt").write_text("One sentence.\n...\n", encoding="utf-8")
    (flores / "deu.txt").write_text("Ein Satz.\r\nDrei Äpfel!\n", encoding="utf-8")
    (tatoeba / "fra.tsv").write_text("One sentence\tUne phrase.\nThree apples.\tTrois pommes.\n", encoding="utf-8")

    def make(name: str) -> bytes:
        command = [sys.executable, SCRIPT, "--flores", flores, "--tatoeba", tatoeba, "-o", tmp_path / name]
        output = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
        assert "6 hashes" in output
        return (tmp_path / name).read_bytes()

    first = make("a.xz")
    assert first == make("b.xz")
    small = load_held_out(tmp_path / "a.xz")
    assert dict(small.sets) == {"FLORES-200 devtest": 4, "Tatoeba test set of LASER": 4}
    distinct = ["onesentence", "einsatz", "dreiäpfel", "unephrase", "threeapples", "troispommes"]
    assert small.hashes.tolist() == sorted(int(hashlib.blake2b(line.encode()).hexdigest()[:10], 16) for line in distinct)
    assert small.contains(["une phrase", "...", "deux phrases"]).tolist() == [True, False, False]


def test_a_list_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "none.xz").write_bytes(encode_list({"empty": ["...", ""]}))
    nothing = load_held_out(tmp_path / "none.xz")
    assert len(nothing.hashes) == 0 and not nothing.contains(["a", ""]).any()


def test_a_missing_or_damaged_list_is_an_error_that_says_what_to_type(tmp_path: Path) -> None:
    path = tmp_path / "list.xz"
    remedy = r"Type:\n    pip install --force-reinstall --no-deps mexma-rt"
    with pytest.raises(FileError, match=rf"list of test sentences, cannot be read: No such file or directory\. {remedy}"):
        load_held_out(path)
    whole = LIST.read_bytes()
    for damaged in (whole[:-9], whole[:5000] + b"?" + whole[5001:], b"no xz", lzma.compress(b"[1]\n"), lzma.compress(b"{}\n")):
        path.write_bytes(damaged)
        with pytest.raises(FileError, match=rf"list of test sentences, is damaged .*{remedy}"):
            load_held_out(path)
    header = {"format": "mexma-held-out", "version": 1, "hashes": 2, "sets": {}}
    path.write_bytes(lzma.compress(json.dumps(header).encode() + b"\n123456789"))
    with pytest.raises(FileError, match="is damaged: 9 bytes for 2 hashes of 5"):
        load_held_out(path)
    path.write_bytes(lzma.compress(json.dumps(header | {"version": 2}).encode() + b"\n"))
    with pytest.raises(FileError, match="has format mexma-held-out 2, but this mexma-train reads mexma-held-out 1"):
        load_held_out(path)
