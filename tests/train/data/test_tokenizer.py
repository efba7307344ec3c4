from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from mexma_rt.errors import FileError, InputError
from mexma_train.config import TokenizerConfig
from mexma_train.data.bitext import Row, read_pairs
from mexma_train.data.tokenizer import load_tokenizer, sample_lines, train_tokenizer

pytest.importorskip("sentencepiece", reason="part of mexma-rt[train]")


def test_special_ids_and_frame_are_xlmrs(toy_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(toy_tokenizer)
    assert tokenizer.get_vocab_size() == 90
    assert [tokenizer.token_to_id(t) for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [0, 1, 2, 3, 89]
    ids = tokenizer.encode("sun house").ids
    assert (ids[0], ids[-1]) == (0, 2)
    assert 3 not in ids


def test_text_comes_back_and_white_space_and_width_do_not_matter(toy_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(toy_tokenizer)
    plain = tokenizer.encode("солнце луна")
    assert tokenizer.decode(plain.ids) == "солнце луна"
    assert tokenizer.encode("  солнце\t\u200b луна\n").ids == plain.ids
    assert tokenizer.encode("ｓｕｎ").ids == tokenizer.encode("sun").ids  # NFKC


def test_unknown_characters_become_unk(toy_tokenizer: Path) -> None:
    assert 3 in load_tokenizer(toy_tokenizer).encode("ψ").ids


def test_small_languages_are_not_drowned() -> None:
    rows = [Row(lang="fra", source="x", english=f"e{i}", text=f"f{i}") for i in range(5_000)]
    rows += [Row(lang="gle", source="x", english=f"e{i}", text=f"g{i}") for i in range(50)]
    lines = sample_lines(rows, TokenizerConfig(vocab_size=150, lines_per_language=40, english_share=2))
    assert sum(line[0] == "g" for line in lines) == 40
    assert sum(line[0] == "f" for line in lines) == 40
    assert sum(line[0] == "e" for line in lines) == 80


def test_too_little_text_for_the_vocabulary_is_explained() -> None:
    with pytest.raises(InputError, match=r"could not make 5000 pieces from 2 lines(?s:.*)smaller vocab_size"):
        train_tokenizer(["one line", "two lines"], TokenizerConfig(vocab_size=5_000))


def test_foreign_special_ids_are_refused(toy_tokenizer: Path, tmp_path: Path) -> None:
    text = toy_tokenizer.read_text(encoding="utf-8").replace('"<mask>"', '"<blank>"')
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id("<mask>") is None
    with pytest.raises(InputError, match=r"but XLM-R's are \[0, 1, 2, 3, 89\]"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_missing_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no\.json is not a file\. Type: mexma-train tokenizer PAIRS"):
        load_tokenizer(tmp_path / "no.json")


def test_a_tokenizer_saved_with_cutting_and_padding_still_encodes_whole_texts(toy_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(toy_tokenizer))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    whole = load_tokenizer(toy_tokenizer).encode("sun moon house river").ids
    assert 3 < len(whole) < 20
    assert load_tokenizer(tmp_path / "tokenizer.json").encode("sun moon house river").ids == whole


def test_a_damaged_tokenizer_is_explained(toy_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text(toy_tokenizer.read_text(encoding="utf-8")[:1000], encoding="utf-8")
    with pytest.raises(FileError, match=r"cut\.json is not a readable tokenizer\.json: .*Copy or make it again"):
        load_tokenizer(tmp_path / "cut.json")


def test_lines_are_sampled_from_any_source_bitext_reads(tmp_path: Path) -> None:
    for name, line in (("a.en", "hello {}\n"), ("a.fr", "bonjour {}\n")):
        (tmp_path / name).write_text("".join(line.format(i) for i in range(100)))
    config = TokenizerConfig(vocab_size=150, lines_per_language=10, english_share=3)
    lines = sample_lines(read_pairs(f"{tmp_path}/a.en:{tmp_path}/a.fr,lang=fra"), config)
    assert sorted({line.split()[0] for line in lines}) == ["bonjour", "hello"] and len(lines) == 40
