"""Piece usage by language: written and read back, looked up, refused; and the shipped tables fit the tokenizers they name."""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

pytest.importorskip("torch", reason="exports need torch (pip: mexma-rt[export])")

from mexma_export import export_bundle, usage
from mexma_export.cli import main
from mexma_export.trim import trim_vocabulary
from mexma_export.usage import (
    TABLES,
    LanguageUse,
    Usage,
    parse_languages,
    pieces_of,
    read_usage,
    vocabulary_hash,
    write_usage,
)
from mexma_rt.errors import FileError, InputError


def language(lang: str, pieces: list[int], lost: float = 0.5) -> LanguageUse:
    return LanguageUse(lang=lang, lines=7, pieces=len(pieces), held_out="a test", lost_tokens=lost, changed_sentences=9.0)


def write_table(path: Path, tokenizer: Tokenizer, pieces: dict[str, list[int]], lost: float = 0.5) -> Path:
    table = Usage(
        name="toy",
        vocabulary=vocabulary_hash(tokenizer),
        text="by hand",
        languages={lang: language(lang, ids, lost) for lang, ids in pieces.items()},
        pieces={lang: np.array(ids) for lang, ids in pieces.items()},
    )
    write_usage(path, table, tokenizer.get_vocab_size())
    return path


@pytest.fixture
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))


@pytest.fixture
def tables(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table by hand: fra uses the first ten pieces after the specials, deu every third."""
    folder = tmp_path / "tables"
    folder.mkdir()
    size = tokenizer.get_vocab_size()
    write_table(folder / "pieces_toy.xz", tokenizer, {"fra": list(range(4, 14)), "deu": list(range(5, size, 3))})
    monkeypatch.setattr(usage, "TABLES", folder)
    return folder


def test_a_table_comes_back_and_equal_tables_are_equal_bytes(tables: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    table = read_usage(tables / "pieces_toy.xz")
    assert {lang: ids.tolist() for lang, ids in table.pieces.items()} == {
        "fra": list(range(4, 14)),
        "deu": list(range(5, tokenizer.get_vocab_size(), 3)),
    }
    assert table.languages["fra"] == language("fra", [0] * 10)
    write_usage(tmp_path / "again.xz", table, tokenizer.get_vocab_size())
    assert (tmp_path / "again.xz").read_bytes() == (tables / "pieces_toy.xz").read_bytes()


def test_the_hash_is_of_the_pieces_in_their_order(tokenizer: Tokenizer) -> None:
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    text = json.dumps([piece for piece, _ in vocab], ensure_ascii=False)
    assert vocabulary_hash(tokenizer) == hashlib.sha256(text.encode()).hexdigest()


def test_the_pieces_of_several_languages_are_their_union(tables: Path, tokenizer: Tokenizer) -> None:
    ids, known = pieces_of(tokenizer, ["deu", "fra"])
    assert ids == set(range(4, 14)) | set(range(5, tokenizer.get_vocab_size(), 3))
    assert [use.lang for use in known] == ["deu", "fra"]


def test_an_unknown_language_names_the_known_and_the_likely_ones(tables: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(
        InputError, match=r"The table has no entry for xyz, zho.*\(zho is cmn here\.\) It has these .*: fra deu\. For any"
    ):
        pieces_of(tokenizer, ["fra", "xyz", "zho"])


def test_a_tokenizer_without_a_table_is_refused(tables: Path, toy_pieces: Tokenizer) -> None:
    with pytest.raises(
        InputError, match=r"has tables for the tokenizers of toy, but this one has other pieces.*--trim-vocab CORPUS"
    ):
        pieces_of(toy_pieces, ["fra"])


@pytest.fixture
def toy_pieces(tokenizer: Tokenizer) -> Tokenizer:
    """The same pieces but for one name."""
    data = json.loads(tokenizer.to_str())
    data["model"]["vocab"][-2][0] += "x"
    return Tokenizer.from_str(json.dumps(data))


@pytest.mark.parametrize("text, expected", [("fra", ("fra",)), (" fra, deu,fra ,", ("fra", "deu"))])
def test_languages_are_read_each_once(text: str, expected: tuple[str, ...]) -> None:
    assert parse_languages(text) == expected


@pytest.mark.parametrize("text", ["", " , "])
def test_no_language_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="names no language"):
        parse_languages(text)


@pytest.mark.parametrize("damage", ["empty", "cut", "no xz", "version", "short"])
def test_a_damaged_table_is_an_error(damage: str, tables: Path) -> None:
    path = tables / "pieces_toy.xz"
    raw = lzma.decompress(path.read_bytes())
    path.write_bytes(
        {
            "empty": b"",
            "cut": path.read_bytes()[:-30],
            "no xz": b"pieces",
            "version": lzma.compress(raw.replace(b'"format_version": 1', b'"format_version": 2')),
            "short": lzma.compress(raw[:-1]),
        }[damage]
    )
    with pytest.raises(FileError, match=r"pieces_toy\.xz: missing or damaged .* Install mexma-rt again\."):
        read_usage(path)


def test_trimming_keeps_what_always_stays_what_the_language_uses_and_the_corpus(
    tables: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("quick\n", encoding="utf-8")
    always = set(trim_vocabulary(tokenizer).kept.tolist())
    in_corpus = set(tokenizer.encode("quick").ids)
    assert set(trim_vocabulary(tokenizer, languages=["fra"]).kept.tolist()) == always | set(range(4, 14))
    both = trim_vocabulary(tokenizer, [corpus], ["fra"])
    assert set(both.kept.tolist()) == always | set(range(4, 14)) | in_corpus
    assert [use.lang for use in both.languages] == ["fra"]


def test_the_command_says_what_each_language_loses_and_the_manifest_keeps_it(
    tables: Path, tokenizer: Tokenizer, tiny_checkpoint: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    size = tokenizer.get_vocab_size()
    write_table(tables / "pieces_toy.xz", tokenizer, {"fra": list(range(4, size)), "deu": list(range(4, size))}, lost=3.25)
    verify = tmp_path / "verify.tsv"
    verify.write_text("".join(f"{lang}\t{text}\n" for lang, text in sentences[:6]), encoding="utf-8")
    call = [str(tiny_checkpoint), str(tmp_path / "b"), "--precision", "fp32", "--no-weights", "--verify", str(verify)]
    result = CliRunner().invoke(main, [*call, "--languages", "fra,deu"])
    assert result.exit_code == 0, result.output
    assert f"{size:,} of {size:,} pieces kept, of 2 languages; word embeddings" in result.output
    assert "fra: 3.2 % of the tokens of a test lost their piece" in result.output
    assert result.output.count("This is a lot: add your own text with --trim-vocab CORPUS") == 2
    manifest = json.loads((tmp_path / "b" / "mexma.json").read_text(encoding="utf-8"))
    assert [use["lang"] for use in manifest["vocabulary"]["languages"]] == ["fra", "deu"]


def test_the_command_refuses_unknown_languages_and_writes_nothing(tables: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tiny_checkpoint), str(tmp_path / "b"), "--languages", "fr"])
    assert result.exit_code == 2 and "The table has no entry for fr" in result.output
    assert "(fra, not fr)" in result.output and not (tmp_path / "b").exists()


def test_a_string_of_languages_is_taken_apart_in_python_too(tables: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The table has no entry for fr, xyz, so nothing says"):
        export_bundle(tiny_checkpoint, tmp_path / "b", languages="fr,deu,xyz")


def test_the_shipped_table_of_xlm_r_is_of_its_size() -> None:
    """The tokenizer itself is too large for this repository; benchmarks/piece_usage.py made the table and its hash from it."""
    table = read_usage(TABLES / "pieces_xlmr.xz")
    assert len(table.languages) == 63 and max(ids[-1] for ids in table.pieces.values()) < 250_001
    assert {"eng", "uig", "khm"} <= set(table.languages) and len(table.vocabulary) == 64
    for lang, use in table.languages.items():
        assert use.pieces == len(table.pieces[lang]) > 3000 and use.lines > 5000, lang
