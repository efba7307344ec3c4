"""Vocabulary trimming: text of kept pieces keeps its pieces and its vectors, and all other text can still be cut."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import shutil
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

torch = pytest.importorskip("torch", reason="exports need torch (pip: mexma-rt[export])")

from mexma_export import ExportReport, ParityError, Sentence, export_bundle, trim  # noqa: E402
from mexma_export.cli import main  # noqa: E402
from mexma_export.trim import trim_vocabulary, trimmed_embeddings, write_trimmed_weights  # noqa: E402
from mexma_rt.errors import BundleError, FileError, InputError  # noqa: E402

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]


def unigram(pieces: dict[str, float], *, byte_fallback: bool = False, template: tuple[str, ...] = ()) -> Tokenizer:
    """A Unigram tokenizer with XLM-R's ids: specials 0 to 3, the pieces from 4, `<mask>` last inside the vocabulary."""
    names = [*SPECIALS, *pieces, "<mask>"]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    parts = ["<s>", "A", *template, "</s>"]
    single = [{"Sequence": {"id": p, "type_id": 0}} if p == "A" else {"SpecialToken": {"id": p, "type_id": 0}} for p in parts]
    used = {p: {"id": p, "ids": [names.index(p)], "tokens": [p]} for p in parts if p != "A"}
    data: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": p} | special for i, p in enumerate(names) if p in (*SPECIALS, "<mask>")],
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": used},
        "model": {
            "type": "Unigram",
            "unk_id": 3,
            "byte_fallback": byte_fallback,
            "vocab": [[p, pieces.get(p, 0.0)] for p in names],
        },
    }
    for key in ("truncation", "padding", "normalizer", "pre_tokenizer", "decoder"):
        data[key] = None
    return Tokenizer.from_str(json.dumps(data))


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def kept_pieces(source: Tokenizer, corpus: Path) -> list[str]:
    return [piece_of(source, i) for i in trim_vocabulary(source, [corpus]).kept]


def piece_of(tokenizer: Tokenizer, number: int) -> str:
    piece = tokenizer.id_to_token(int(number))
    assert piece is not None
    return piece


# Which pieces stay, by hand


def test_used_pieces_single_characters_and_specials_stay_in_their_order(tmp_path: Path) -> None:
    source = unigram({"a": -5.0, "ab": -2.0, "b": -5.0, "bc": -3.0, "abc": -7.0, "cc": -1.0, "c": -8.0})
    result = trim_vocabulary(source, [write(tmp_path / "corpus", "abc", "b")])  # ab+c -10, a+bc -8, abc -7
    wanted = [*SPECIALS, "a", "b", "abc", "c", "<mask>"]
    assert [result.tokenizer.id_to_token(i) for i in range(len(wanted))] == wanted
    assert result.kept.tolist() == [0, 1, 2, 3, 4, 6, 8, 10, 11] and result.kept.dtype == np.int64
    assert result.tokenizer.get_vocab_size() == 9
    saved = json.loads(result.tokenizer.to_str())
    assert saved["model"]["unk_id"] == 3
    assert saved["model"]["vocab"][4:] == [["a", -5.0], ["b", -5.0], ["abc", -7.0], ["c", -8.0], ["<mask>", 0.0]]
    assert [(t["content"], t["id"]) for t in saved["added_tokens"]] == [
        *((p, i) for i, p in enumerate(SPECIALS)),
        ("<mask>", 8),
    ]
    assert result.tokenizer.encode("abc").tokens == ["<s>", "abc", "</s>"]
    assert result.tokenizer.encode("ab").tokens == ["<s>", "a", "b", "</s>"]  # "ab" is gone: single characters spell it


def test_a_piece_whose_character_only_longer_pieces_spell_stays(tmp_path: Path) -> None:
    source = unigram({"a": -1.0, "aa": -1.5, "az": -3.0, "az!": -9.0})
    assert kept_pieces(source, write(tmp_path / "corpus", "a")) == [*SPECIALS, "a", "az", "az!", "<mask>"]
    assert trim_vocabulary(source, [tmp_path / "corpus"]).tokenizer.encode("aaz").tokens == ["<s>", "a", "az", "</s>"]


def test_the_lowest_score_stays_because_the_unknown_pieces_score_comes_from_it(tmp_path: Path) -> None:
    # "baz": b+az = -30, ba+<unk> = -1-30. Without "xy" (-20), <unk> would score -25 and win.
    source = unigram({"a": -5.0, "b": -15.0, "ba": -1.0, "az": -15.0, "x": -5.0, "y": -5.0, "xy": -20.0})
    corpus = write(tmp_path / "corpus", "baz", "ba", "xy")  # x+y = -10 beats "xy": nothing uses it
    assert source.encode("baz").tokens == ["<s>", "b", "az", "</s>"]
    assert "xy" in kept_pieces(source, corpus)
    assert trim_vocabulary(source, [corpus]).tokenizer.encode("baz").tokens == ["<s>", "b", "az", "</s>"]


def test_byte_pieces_stay_where_the_tokenizer_falls_back_to_them(tmp_path: Path) -> None:
    letters = dict.fromkeys("<0x123456789ABCDEF>", -1.0)  # so that the byte pieces are not kept for these alone
    pieces = letters | {f"<0x{byte:02X}>": -30.0 for byte in range(256)} | {"AA": -1.5}
    corpus = write(tmp_path / "corpus", "A")
    result = trim_vocabulary(unigram(pieces, byte_fallback=True), [corpus])
    assert len(result.kept) == 4 + len(letters) + 256 + 1
    assert result.tokenizer.encode("é").tokens == ["<s>", "<0xC3>", "<0xA9>", "</s>"]
    assert len(trim_vocabulary(unigram(pieces), [corpus]).kept) == 4 + len(letters) + 1 + 1  # one of the lowest score


def test_ids_in_the_template_are_renumbered(tmp_path: Path) -> None:
    source = unigram({"a": -1.0, "aa": -1.5, "aaa": -9.0, "aaaa": -9.0}, template=("<mask>",))
    result = trim_vocabulary(source, [write(tmp_path / "corpus", "a")])
    assert source.encode("a").ids == [0, 4, 8, 2]
    assert result.tokenizer.encode("a").ids == [0, 4, len(result.kept) - 1, 2]
    assert result.tokenizer.encode("a").tokens == ["<s>", "a", "<mask>", "</s>"]


SCORES = st.floats(-20, -0.5)
WORDS = st.text("abcz ", max_size=12)  # z has no piece of its own: <unk>, or part of a longer piece


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.dictionaries(st.text("abcz", min_size=2, max_size=4), SCORES, max_size=25),
    characters=st.tuples(SCORES, SCORES, SCORES, SCORES),
    corpus=st.lists(WORDS, max_size=4),
    unseen=st.lists(WORDS, max_size=8),
)
def test_any_vocabulary_and_corpus(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: dict[str, float],
    characters: tuple[float, ...],
    corpus: list[str],
    unseen: list[str],
) -> None:
    source = unigram(dict(zip("abc ", characters, strict=True)) | pieces)
    lines = ["a", *corpus]
    result = trim_vocabulary(source, [write(tmp_path_factory.mktemp("c") / "corpus", *lines)])
    for text in [*lines, *unseen]:
        old, new = source.encode(text), result.tokenizer.encode(text)
        if text in lines or set(old.ids) <= set(result.kept.tolist()):
            assert result.kept[new.ids].tolist() == old.ids
        if "z" not in text:
            assert 3 not in new.ids
            assert "".join(new.tokens[1:-1]) == text


# The whole export

CORPUS_ROWS = slice(0, 6)  # English, French, German


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    return write(tmp_path_factory.mktemp("corpus") / "corpus.txt", *(text for _, text in sentences[CORPUS_ROWS]))


@pytest.fixture(scope="module")
def trimmed(
    tiny_checkpoint: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]
) -> ExportReport:
    target = tmp_path_factory.mktemp("trimmed") / "tiny"
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    return export_bundle(tiny_checkpoint, target, sentences=rows, trim_vocab=[corpus])


def test_vectors_of_text_with_kept_pieces_are_those_of_the_untrimmed_bundle(
    trimmed: ExportReport, tiny_bundle: Path, sentences: list[tuple[str, str]]
) -> None:
    import mexma_rt

    texts = [text for _, text in sentences]
    for precision in ("fp32", "int8"):
        full = mexma_rt.load(tiny_bundle, precision=precision).embed(texts)
        small = mexma_rt.load(trimmed.path, precision=precision).embed(texts)
        cosine = (full.astype(np.float64) * small).sum(axis=1)
        # int8 inputs are scaled by the largest number of a batch, and the batches hold other lengths now
        assert cosine[CORPUS_ROWS].min() >= (1 - 1e-6 if precision == "fp32" else 0.995)
        assert cosine[CORPUS_ROWS.stop :].min() < 0.9  # the check can fail: Greek is spelt letter by letter now


def test_the_kept_rows_are_the_same_bits(trimmed: ExportReport, tiny_checkpoint: Path, tiny_bundle: Path, corpus: Path) -> None:
    from safetensors.numpy import load_file

    full, small = load_file(tiny_checkpoint / "model.safetensors"), load_file(trimmed.path / "model.safetensors")
    old = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    new = Tokenizer.from_file(str(trimmed.path / "tokenizer.json"))
    ids: Any = [old.token_to_id(piece_of(new, i)) for i in range(new.get_vocab_size())]
    assert full.keys() == small.keys()
    for name, tensor in full.items():
        rows = ids if name == "embeddings.word_embeddings.weight" else slice(None)
        np.testing.assert_array_equal(small[name], tensor[rows])
    for text in corpus.read_text(encoding="utf-8").splitlines():
        assert [ids[i] for i in new.encode(text).ids] == old.encode(text).ids


def test_the_report_says_what_was_kept_of_what(
    trimmed: ExportReport, tiny_checkpoint: Path, corpus: Path, sentences: list[tuple[str, str]]
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    used = {i for text in corpus.read_text(encoding="utf-8").splitlines() for i in tokenizer.encode(text).ids}
    specials = {vocabulary[p] for p in [*SPECIALS, "<mask>"]}
    scores = json.loads(tokenizer.to_str())["model"]["vocab"]
    lowest = min(range(len(scores)), key=lambda i: scores[i][1])
    kept = used | specials | {i for p, i in vocabulary.items() if len(p) == 1} | {lowest}
    lost = [lang for lang, text in sentences if not set(tokenizer.encode(text).ids) <= kept]
    manifest = json.loads((trimmed.path / "mexma.json").read_text(encoding="utf-8"))
    assert manifest["vocabulary"] == {
        "pieces": len(kept),
        "source_pieces": 322,
        "embedding_bytes": len(kept) * 32 * 4,
        "source_embedding_bytes": 322 * 32 * 4,
        "corpus": [{"name": "corpus.txt", "lines": 6, "sha256": hashlib.sha256(corpus.read_bytes()).hexdigest()}],
        "languages": [],
        "gate_sentences": 20,
        "gate_sentences_that_lost_pieces": len(lost),
        "lost_by_language": {lang: lost.count(lang) for lang in sorted(set(lost))},
    }
    assert 200 < len(kept) < 300 and 0 < len(lost) <= 14  # the figures say something
    assert "fra" not in lost and "deu" in lost  # of the two German sentences one is in the corpus
    config = json.loads((trimmed.path / "config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == len(kept)
    assert manifest["source"]["sha256"] == hashlib.sha256((tiny_checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert trimmed.vocabulary is not None and trimmed.vocabulary.pieces == len(kept)


def test_transformers_loads_the_folder_with_the_same_ids_and_vectors(trimmed: ExportReport, corpus: Path) -> None:
    from transformers import AutoTokenizer, XLMRobertaModel

    import mexma_rt

    texts = [*corpus.read_text(encoding="utf-8").splitlines(), "Γεια σου", "never seen: qqq", "a <mask> b", ""]
    theirs = AutoTokenizer.from_pretrained(trimmed.path)
    ours = Tokenizer.from_file(str(trimmed.path / "tokenizer.json"))
    assert theirs(texts)["input_ids"] == [encoding.ids for encoding in ours.encode_batch(texts)]
    size = ours.get_vocab_size()
    assert (theirs.mask_token_id, theirs.unk_token_id, theirs.pad_token_id) == (size - 1, 3, 1)
    assert ours.encode("a <mask> b").ids[2] == size - 1
    loaded: Any = XLMRobertaModel.from_pretrained(trimmed.path, add_pooling_layer=False, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    batch = theirs(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        vectors = model.eval()(**batch).last_hidden_state[:, 0].numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(mexma_rt.load(trimmed.path, precision="fp32").embed(texts), vectors, atol=1e-5)


def test_a_trimmed_bundle_is_a_checkpoint_that_the_same_corpus_leaves_as_it_is(trimmed: ExportReport, corpus: Path) -> None:
    from mexma_export.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(trimmed.path)
    again = trim_vocabulary(checkpoint.tokenizer, [corpus])
    assert trimmed.vocabulary is not None
    assert again.kept.tolist() == list(range(trimmed.vocabulary.pieces))


def test_rows_beyond_the_pieces_go_too(
    tiny_checkpoint: Path, corpus: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    from safetensors.numpy import load_file, save_file

    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "spare"))
    weights = load_file(source / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    weights[name] = np.concatenate([weights[name], np.ones((6, 32), np.float32)])
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {"vocab_size": 328}
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    report = export_bundle(source, tmp_path / "b", precisions=["int8"], sentences=rows, trim_vocab=[corpus])
    assert report.vocabulary is not None
    assert (report.vocabulary.source_pieces, report.vocabulary.source_embedding_bytes) == (322, 328 * 32 * 4)
    assert len(load_file(tmp_path / "b" / "model.safetensors")[name]) == report.vocabulary.pieces


# What must not pass


def test_rows_in_a_wrong_order_do_not_pass_the_gate(
    tiny_checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[tuple[str, str]]
) -> None:
    def shifted(model: Any, kept: np.ndarray) -> AbstractContextManager[None]:
        return trimmed_embeddings(model, np.concatenate([kept[:4], np.roll(kept[4:], 1)]))

    monkeypatch.setattr(trim, "trimmed_embeddings", shifted)
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    with pytest.raises(ParityError, match=r"The int8 graph does not reproduce the checkpoint's vectors"):
        export_bundle(tiny_checkpoint, tmp_path / "b", precisions=["int8"], sentences=rows, trim_vocab=[corpus])
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_whose_pieces_moved_is_refused(
    tiny_checkpoint: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trim._without_others

    def swapped(data: dict[str, Any], kept: np.ndarray) -> Tokenizer:
        vocabulary = data["model"]["vocab"]
        a, b = (int(i) for i in kept[5:7])
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
        return whole(data, kept)

    monkeypatch.setattr(trim, "_without_others", swapped)
    with pytest.raises(BundleError, match=r"would move 2 of its \d+ pieces to wrong ids .*Export without --trim-vocab"):
        trim_vocabulary(Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json")), [corpus])


def test_a_kept_text_cut_otherwise_is_an_error(tmp_path: Path) -> None:
    source = unigram({"a": -1.0, "b": -1.0, "ab": -1.5, "abb": -9.0})
    result = trim_vocabulary(source, [write(tmp_path / "corpus", "ab")])
    other = unigram({"a": -1.0, "b": -1.0, "ab": -9.0, "abb": -9.0})  # the same pieces, other scores
    with pytest.raises(BundleError, match=r"cuts 'ab' into other pieces, although all of its pieces were kept"):
        trim.lost_pieces(other, result, ["ab"])
    assert trim.lost_pieces(source, replace(result, kept=result.kept[:-2]), ["a"]) == [False]


def test_other_kinds_of_tokenizers_are_refused(tmp_path: Path) -> None:
    from tokenizers import models

    bpe = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate([*SPECIALS, "a"])}, merges=[], unk_token="<unk>"))
    with pytest.raises(BundleError, match=r"of the type BPE, but only Unigram tokenizers such as XLM-R's can be trimmed"):
        trim_vocabulary(bpe, [write(tmp_path / "corpus", "a")])


def test_a_tokenizer_that_does_not_fit_the_vocabulary_is_refused(tiny_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {"vocab_size": 9999}
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json has 322 pieces, but config\.json says vocab_size 9999"):
        export_bundle(source, tmp_path / "b", trim_vocab=[corpus])
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("text", ["", "\n\n", "  \n", "\u4e00\u4e8c\n"])
def test_a_corpus_without_known_text_is_refused(tmp_path: Path, text: str) -> None:
    source = unigram({"a": -1.0})
    (tmp_path / "good").write_text("a\n", encoding="utf-8")
    (tmp_path / "empty").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"empty: no text that this tokenizer knows \({text.count(chr(10))} lines\)"):
        trim_vocabulary(source, [tmp_path / "good", tmp_path / "empty"])


def test_corpus_files_that_cannot_be_read(tmp_path: Path) -> None:
    def refuse(name: str, kind: type[Exception], message: str, content: bytes | None = None) -> None:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(kind, match=message):
            trim_vocabulary(unigram({"a": -1.0}), [tmp_path / name])

    refuse("none", FileError, "none does not exist")
    refuse("", FileError, "is a folder, but a text file")
    refuse("latin", InputError, r"latin, line 2, byte 1: 0xe9 is not valid UTF-8.*iconv", b"a\n\xe9\n")
    for name, content in [("x.gz", gzip.compress(b"a\n" * 99)), ("x.xz", lzma.compress(b"a\n" * 99))]:
        refuse(name, FileError, "is damaged or incomplete", content[:-9])
        refuse(name, FileError, "is damaged or incomplete", b"plain text")


def test_packed_corpora_marks_and_line_ends(tmp_path: Path) -> None:
    source = unigram({"a": -5.0, "b": -5.0, "ab": -1.0, "aab": -1.0, "bb": -1.0})
    raw = "\ufeffaab\r\nbb\r\n".encode()
    for name, content in [("plain", raw), ("x.gz", gzip.compress(raw)), ("x.xz", lzma.compress(raw))]:
        (tmp_path / name).write_bytes(content)
        result = trim_vocabulary(source, [tmp_path / name])
        assert [source.id_to_token(int(i)) for i in result.kept] == [*SPECIALS, "a", "b", "aab", "bb", "<mask>"]
        assert (result.corpus[0].lines, result.corpus[0].sha256) == (2, hashlib.sha256(content).hexdigest())


# Weights and model


def test_weights_keep_their_types_and_a_language_models_head_fits_again(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    shapes = {
        "roberta.embeddings.word_embeddings.weight": (10, 4),
        "roberta.embeddings.position_embeddings.weight": (10, 4),
        "lm_head.decoder.weight": (10, 4),
        "lm_head.bias": (10,),
        "lm_head.dense.weight": (4, 4),
    }
    full = {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}
    save_file(full, tmp_path / "full", metadata={"format": "pt"})
    kept = np.array([0, 1, 2, 3, 7, 9])
    write_trimmed_weights(tmp_path / "full", tmp_path / "small", kept)
    small = load_file(tmp_path / "small")
    assert {name: tuple(t.shape) for name, t in small.items()} == shapes | {
        "roberta.embeddings.word_embeddings.weight": (6, 4),
        "lm_head.decoder.weight": (6, 4),
        "lm_head.bias": (6,),
    }
    for name, tensor in small.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, full[name][kept.tolist()] if len(tensor) == 6 else full[name])
    with safe_open(tmp_path / "small", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_weights_without_word_embeddings_are_an_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"words": torch.zeros(10, 4)}, tmp_path / "full")
    with pytest.raises(BundleError, match=r"has no tensor embeddings\.word_embeddings\.weight, .*Type --no-weights"):
        write_trimmed_weights(tmp_path / "full", tmp_path / "small", np.arange(5))
    assert not (tmp_path / "small").exists()


def test_the_model_is_whole_again_after_the_block_and_shares_its_encoder(tiny_checkpoint: Path) -> None:
    from mexma_export.checkpoint import load_checkpoint

    model = load_checkpoint(tiny_checkpoint).model
    words, layers = model.embeddings.word_embeddings, {p.data_ptr() for p in model.encoder.parameters()}
    with pytest.raises(KeyError), trimmed_embeddings(model, np.array([0, 1, 2, 3, 9])):
        held = model.embeddings.word_embeddings
        assert torch.equal(held.weight, words.weight[[0, 1, 2, 3, 9]]) and held.padding_idx == 1
        assert {p.data_ptr() for p in model.encoder.parameters()} == layers
        raise KeyError
    assert model.embeddings.word_embeddings is words and words.weight.requires_grad
    with trimmed_embeddings(model, None):
        assert model.embeddings.word_embeddings is words


# The most useful pieces


def test_so_many_pieces_are_kept_and_the_needed_ones_among_them(tmp_path: Path) -> None:
    source = unigram({"a": -5.0, "ab": -2.0, "b": -5.0, "bc": -3.0, "abc": -7.0, "cc": -1.0, "c": -8.0})
    corpus = [write(tmp_path / "corpus", "abc", "b")]  # a, b and c are characters, c has the lowest score
    assert kept_of(source, trim_vocabulary(source, corpus, pieces=9)) == ["a", "b", "cc", "c"]  # cc: e^-1 of e^-1 + e^-2 + ...
    assert kept_of(source, trim_vocabulary(source, corpus, pieces=10)) == ["a", "b", "abc", "cc", "c"]  # abc: in the text
    assert len(trim_vocabulary(source, pieces=12).kept) == 12
    for pieces in (8, 13):
        with pytest.raises(
            InputError, match=rf"{pieces} pieces cannot be kept: the tokenizer has 12, and 8 of them are needed"
        ):
            trim_vocabulary(source, corpus, pieces=pieces)


def kept_of(source: Tokenizer, found: trim.Trim) -> list[str]:
    return [piece_of(source, i) for i in found.kept if i > 3][:-1]


def test_a_checkpoint_is_trimmed_before_training(tiny_checkpoint: Path, tmp_path: Path, sentences: Any) -> None:
    """Vectors of the texts that are kept, by transformers alone, before and after."""
    from transformers import XLMRobertaModel

    texts = [text for _, text in sentences[:4]]
    result = CliRunner().invoke(
        main, ["trim", str(tiny_checkpoint), str(tmp_path / "small"), "--trim-vocab", str(write(tmp_path / "corpus", *texts))]
    )
    assert result.exit_code == 0, result.output
    vectors, rows = [], []
    for folder in (tiny_checkpoint, tmp_path / "small"):
        model = XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False).eval()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        rows.append((model.config.vocab_size, tokenizer.get_vocab_size()))
        with torch.inference_mode():
            states = [model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state for text in texts]
        vectors.append(states)
    assert rows[1][0] == rows[1][1] < rows[0][0]
    for before, after in zip(*vectors, strict=True):
        assert torch.equal(before, after)
    again = CliRunner().invoke(main, ["trim", str(tiny_checkpoint), str(tmp_path / "other")])
    assert again.exit_code == 2 and "Nothing says which pieces to keep. Type --trim-vocab CORPUS" in again.output


# Command line


def test_the_command_line_takes_several_corpora_and_prints_the_figures(
    tiny_checkpoint: Path, tmp_path: Path, sentences: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = write(tmp_path / "own.tsv", *(f"{lang}\t{text}" for lang, text in sentences))
    parts = [write(tmp_path / name, sentences[i][1]) for name, i in [("one", 0), ("two", 3)]]
    arguments = [tiny_checkpoint, "--precision", "int8", "--no-weights", "--verify", shown]
    for part in parts:
        arguments += ["--trim-vocab", part]
    result = CliRunner().invoke(main, [str(a) for a in [*arguments, tmp_path / "a", "--json"]])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["vocabulary"]
    assert [(file["name"], file["lines"]) for file in found["corpus"]] == [("one", 1), ("two", 1)]
    result = CliRunner().invoke(main, [str(a) for a in [*arguments, tmp_path / "b"]])
    before, after = found["source_embedding_bytes"] / 1e6, found["embedding_bytes"] / 1e6
    assert (
        f"  vocabulary: {found['pieces']} of 322 pieces kept, after 2 lines; word embeddings {before:.1f} -> {after:.1f} MB "
        f"(float32); {found['gate_sentences_that_lost_pieces']} of 20 gate sentences lost pieces\n"
    ) in result.stdout


def test_the_command_line_refuses_a_missing_and_an_empty_corpus(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tiny_checkpoint), str(tmp_path / "b"), "--trim-vocab", str(tmp_path / "none")])
    assert result.exit_code == 2 and "does not exist" in result.stderr
    (tmp_path / "empty").touch()
    result = CliRunner().invoke(main, [str(tiny_checkpoint), str(tmp_path / "b"), "--trim-vocab", str(tmp_path / "empty")])
    assert result.exit_code == 2 and "empty: no text that this tokenizer knows (0 lines)" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
