from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from mexma_rt.errors import FileError, InputError
from mexma_train.shards import open_shards, prepare


def test_every_pair_comes_back_as_the_tokenizer_would_encode_it(pairs_tsv: Path, toy_shards: Path) -> None:
    shards = open_shards(toy_shards)
    tokenizer = Tokenizer.from_file(str(toy_shards / "tokenizer.json"))
    rows = [line.split("\t") for line in pairs_tsv.read_text(encoding="utf-8").splitlines()]
    order = np.random.default_rng(1).permutation(len(rows))
    for side, column in ((shards.english, 2), (shards.text, 3)):
        ragged = side(order, 512)
        got = np.split(ragged.ids, np.cumsum(ragged.lengths)[:-1])
        assert [g.tolist() for g in got] == [tokenizer.encode(rows[i][column]).ids for i in order]
    assert [shards.languages[i] for i in shards.pair_lang] == [row[0] for row in rows]
    assert [shards.sources[i] for i in shards.pair_source] == [row[1] for row in rows]


def test_english_is_stored_once(pairs_tsv: Path, toy_shards: Path) -> None:
    english = [line.split("\t")[2] for line in pairs_tsv.read_text(encoding="utf-8").splitlines()]
    shards = open_shards(toy_shards)
    assert len(shards.english_offsets) - 1 == len(set(english)) < len(english)
    numbers = np.asarray(shards.pair_english)
    for i in range(len(english)):
        assert english[i] == english[int(np.flatnonzero(numbers == numbers[i])[0])]


def test_cut_sentences_keep_both_frame_tokens(toy_shards: Path) -> None:
    shards = open_shards(toy_shards)
    ragged, full = shards.text(np.arange(50), 6), shards.text(np.arange(50), 512)
    assert (ragged.lengths == np.minimum(full.lengths, 6)).all()
    for cut, whole in zip(
        np.split(ragged.ids, np.cumsum(ragged.lengths)[:-1]), np.split(full.ids, np.cumsum(full.lengths)[:-1]), strict=True
    ):
        assert cut[0] == 0 and cut[-1] == 2
        assert (cut[1:-1] == whole[1 : len(cut) - 1]).all()


def test_existing_folder_survives_and_nothing_is_left_behind(pairs_tsv: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with pytest.raises(FileError, match="exists already"):
        prepare(pairs_tsv, tmp_path / "shards", toy_tokenizer)
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(InputError, match="holds no usable pair"):
        prepare(tmp_path / "empty.tsv", tmp_path / "new", toy_tokenizer)
    assert not (tmp_path / "new").exists()


def test_incomplete_folder_names_the_missing_file(toy_shards: Path, tmp_path: Path) -> None:
    for file in toy_shards.iterdir():
        if file.name != "text.ids.npy":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileError, match=r"no shard folder: text\.ids\.npy missing\. Type: mexma-train prepare"):
        open_shards(tmp_path)


def test_meta_counts_what_was_read(toy_shards: Path) -> None:
    meta = json.loads((toy_shards / "meta.json").read_text())
    assert (meta["pairs"], meta["rows_read"], meta["rows_skipped"]) == (600, 600, {})
    assert meta["languages"] == ["fra", "rus"]
