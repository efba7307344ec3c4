"""Reading the suite's test sets and choosing languages: what is accepted, and what the errors teach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mexma_rt.errors import FileError, InputError
from mexma_train.evaluate import TestSet
from mexma_train.suite.data import choose_mining, choose_trained, named, read_flores, read_tatoeba


def write_flores(folder: Path, *languages: str, lines: int = 6) -> Path:
    folder.mkdir(exist_ok=True)
    for lang in languages:
        (folder / f"{lang}.txt").write_text("".join(f"{lang} {i}\n" for i in range(lines)), encoding="utf-8")
    return folder


def write_tatoeba(folder: Path, *languages: str, lines: int = 6) -> Path:
    folder.mkdir(exist_ok=True)
    for lang in languages:
        (folder / f"{lang}.tsv").write_text("".join(f"eng {i}\t{lang} {i}\n" for i in range(lines)), encoding="utf-8")
    return folder


def test_flores_is_read_by_language_under_tatoebas_names(tmp_path: Path) -> None:
    found = read_flores(write_flores(tmp_path / "f", "eng", "als", "srp_Cyrl", "deu"))
    assert found.english == [f"eng {i}" for i in range(6)]
    assert set(found.texts) == {"sqi", "srp", "deu"}
    assert found.texts["sqi"][5] == "als 5"


def test_tatoeba_is_read_by_language(tmp_path: Path) -> None:
    found = read_tatoeba(write_tatoeba(tmp_path / "t", "deu", "jpn"))
    assert list(found) == ["deu", "jpn"]
    assert (found["jpn"].english[0], found["jpn"].text[0]) == ("eng 0", "jpn 0")


def test_flores_without_what_it_needs(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    with pytest.raises(FileError, match=r"f is not a folder\. Give --flores the folder of FLORES-200 devtest"):
        read_flores(folder)
    folder.mkdir()
    with pytest.raises(FileError, match=r"f has no \.txt file\. Give --flores .* such as deu\.txt, and eng\.txt"):
        read_flores(folder)
    write_flores(folder, "deu")
    with pytest.raises(FileError, match=r"f has no eng\.txt, and every language is compared with English\. Copy .* as in deu"):
        read_flores(folder)
    (folder / "deu.txt").unlink()
    write_flores(folder, "eng")
    with pytest.raises(FileError, match=r"has only eng\.txt: .* Add files such as deu\.txt"):
        read_flores(folder)


def test_flores_files_that_do_not_fit(tmp_path: Path) -> None:
    folder = write_flores(tmp_path / "f", "eng", "deu")
    write_flores(folder, "jpn", lines=5)
    with pytest.raises(
        InputError, match=r"jpn\.txt has 5 lines and eng\.txt 6, but line i of every file must be the same sentence.*wc -l"
    ):
        read_flores(folder)
    (folder / "jpn.txt").write_text("1\n2\n \n4\n5\n6\n")
    with pytest.raises(InputError, match=r"jpn\.txt, line 3 is blank"):
        read_flores(folder)
    with pytest.raises(InputError, match=r"eng\.txt has 4 lines.*at least 5 are needed"):
        read_flores(write_flores(tmp_path / "few", "eng", "deu", lines=4))


def test_a_language_in_two_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"srp\.txt and srp_Cyrl\.txt in .* are the same language \(srp\).*Keep one"):
        read_flores(write_flores(tmp_path / "f", "eng", "srp", "srp_Cyrl"))
    with pytest.raises(InputError, match=r"als\.tsv and sqi\.tsv in .* are the same language \(sqi\)"):
        read_tatoeba(write_tatoeba(tmp_path / "t", "als", "sqi"))


def test_tatoeba_without_files_and_with_bad_lines(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"t is not a folder\. Give --tatoeba the folder of LASER's Tatoeba"):
        read_tatoeba(tmp_path / "t")
    write_tatoeba(tmp_path / "t")
    with pytest.raises(FileError, match=r"t has no \.tsv file\. Give --tatoeba"):
        read_tatoeba(tmp_path / "t")
    (tmp_path / "t" / "deu.tsv").write_text("one column\n" * 6)
    with pytest.raises(InputError, match=r"deu\.tsv, line 1: 1 column instead of 2"):
        read_tatoeba(tmp_path / "t")


def test_languages_are_split_at_commas_and_spaces_and_named_once() -> None:
    assert named("deu, jpn tur", "--trained") == ["deu", "jpn", "tur"]
    with pytest.raises(InputError, match=r"--trained names deu twice\. Give every language once"):
        named("deu,jpn,deu", "--trained")
    with pytest.raises(InputError, match="--mining-languages is empty"):
        named(" , ", "--mining-languages")


def sets(**pairs: int) -> dict[str, TestSet]:
    return {lang: TestSet(name=lang, english=["a"] * n, text=["b"] * n) for lang, n in pairs.items()}


def test_mining_takes_the_usual_languages_that_are_there_and_large_enough() -> None:
    assert choose_mining(None, sets(afr=100, tur=20, deu=100, jpn=19)) == ["deu", "tur"]
    assert choose_mining(None, sets(afr=100, ber=19, nld=100, nob=50, pol=50, por=50, ron=50)) == [
        "afr",
        "nld",
        "nob",
        "pol",
        "por",
    ]
    assert choose_mining(["afr"], sets(afr=20, deu=100)) == ["afr"]
    with pytest.raises(InputError, match=r"has tlh, but there is no tlh\.tsv\. There are: afr, deu"):
        choose_mining(["tlh"], sets(afr=20, deu=100))
    with pytest.raises(InputError, match=r"afr\.tsv has 19 pairs, and mining needs at least 20\. Leave it out"):
        choose_mining(["afr"], sets(afr=19))


def test_trained_languages_come_from_the_option_the_model_or_the_earlier_results(tmp_path: Path) -> None:
    tested = {"jpn", "deu", "tur"}
    assert choose_trained("deu,fra", ["tur"], ["jpn"], tested) == ["deu", "fra"]
    assert choose_trained(None, ["tur"], ["jpn"], tested) == ["tur"]
    assert choose_trained(None, [], ["jpn"], tested) == ["jpn"]
    assert choose_trained("all", ["tur"], ["jpn"], tested) == ["deu", "jpn", "tur"]
    (tmp_path / "meta.json").write_text(json.dumps({"languages": ["eng", "tur", "uig"]}))
    assert choose_trained(str(tmp_path), [], [], tested) == ["tur", "uig"]


def test_trained_languages_that_nobody_knows_or_tests(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not say which languages .* Type --trained deu,fra .* or --trained all"):
        choose_trained(None, [], [], {"deu"})
    with pytest.raises(InputError, match=r"None of the languages trained on \(ger\) has a test file; there are deu"):
        choose_trained("ger", [], [], {"deu"})
    with pytest.raises(InputError, match="--trained names deu twice"):
        choose_trained("deu deu", [], [], {"deu"})
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(InputError, match=r"meta\.json names no languages .* such as deu,fra"):
        choose_trained(str(tmp_path), [], [], {"deu"})
