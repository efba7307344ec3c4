from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from mexma_rt.errors import FileError, InputError
from mexma_train.data.shards import ARRAYS, open_shards


def test_every_pair_comes_back_as_the_tokenizer_would_encode_it(pairs_tsv: Path, toy_shards: Path) -> None:
    shards = open_shards(toy_shards)
    tokenizer = Tokenizer.from_file(str(toy_shards / "tokenizer.json"))
    rows = [line.split("\t") for line in pairs_tsv.read_text(encoding="utf-8").splitlines()]
    order = np.random.default_rng(1).permutation(len(rows))
    lengths = np.zeros(len(rows), np.int64)
    for side, column in ((shards.english, 2), (shards.text, 3)):
        ragged = side(order, 512)
        got = np.split(ragged.ids, np.cumsum(ragged.lengths)[:-1])
        assert [g.tolist() for g in got] == [tokenizer.encode(rows[i][column]).ids for i in order]
        lengths += ragged.lengths
    assert (shards.lengths(order) == lengths).all()
    assert [shards.languages[i] for i in shards.pair_lang] == [row[0] for row in rows]
    assert [shards.sources[i] for i in shards.pair_source] == [row[1] for row in rows]


def test_cut_sentences_keep_both_frame_tokens(toy_shards: Path) -> None:
    shards = open_shards(toy_shards)
    ragged, full = shards.text(np.arange(50), 6), shards.text(np.arange(50), 512)
    assert (ragged.lengths == np.minimum(full.lengths, 6)).all()
    assert (shards.lengths(np.arange(50), 6) == ragged.lengths + shards.english(np.arange(50), 6).lengths).all()
    for cut, whole in zip(
        np.split(ragged.ids, np.cumsum(ragged.lengths)[:-1]), np.split(full.ids, np.cumsum(full.lengths)[:-1]), strict=True
    ):
        assert cut[0] == 0 and cut[-1] == 2
        assert (cut[1:-1] == whole[1 : len(cut) - 1]).all()


def test_arrays_are_memory_maps(toy_shards: Path) -> None:
    shards = open_shards(toy_shards)
    assert all(isinstance(getattr(shards, name.replace(".", "_")), np.memmap) for name in ARRAYS)


@pytest.fixture
def copy(toy_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_shards, tmp_path / "shards"))


def test_an_incomplete_folder_names_the_missing_file(copy: Path, tmp_path: Path) -> None:
    (copy / "text.ids.npy").unlink()
    with pytest.raises(
        FileError, match=r"incomplete shard folder: text\.ids\.npy missing\. Delete it and type: mexma-train prep"
    ):
        open_shards(copy)
    with pytest.raises(FileError, match=r"is not a shard folder: it has no meta\.json\. Type: mexma-train prepare PAIRS"):
        open_shards(tmp_path)


@pytest.mark.parametrize("found", [1, 3])
def test_another_format_is_refused(copy: Path, found: int) -> None:
    meta = json.loads((copy / "meta.json").read_text(encoding="utf-8"))
    meta["format"] = found
    if found == 1:
        del meta["format"]  # the first version did not say it
        (copy / "order.npy").unlink()  # and had no such file: the format is the better explanation
    (copy / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(
        FileError, match=rf"has shard format {found}, but this version of mexma-train reads format 2\. Delete it and type"
    ):
        open_shards(copy)


def test_damage_is_found_at_opening(copy: Path) -> None:
    whole = (copy / "text.ids.npy").read_bytes()
    (copy / "text.ids.npy").write_bytes(whole[:-2])
    with pytest.raises(FileError, match="is damaged: mmap length is greater than file size"):
        open_shards(copy)
    np.save(copy / "text.ids.npy", np.load(copy / "english.ids.npy"))
    with pytest.raises(FileError, match=r"is damaged: text\.ids\.npy holds \d+ entries instead of \d+"):
        open_shards(copy)
    (copy / "text.ids.npy").write_bytes(whole)
    assert len(open_shards(copy)) == 600
    (copy / "meta.json").write_text('{"format": 2, ')
    with pytest.raises(FileError, match=r"meta\.json is damaged: .*Delete it and type"):
        open_shards(copy)


@pytest.fixture
def taught(copy: Path) -> Path:
    """Shards with a teacher's vectors [E, 3] that say which segment they belong to, made without teacher.py."""
    shards = open_shards(copy)
    segments = len(shards.english_hash)
    np.save(copy / "teacher.npy", np.arange(3 * segments).reshape(segments, 3).astype(np.float16))
    about = {"segments": segments, "tokens": len(shards.english_ids), "dimensions": 3}
    (copy / "teacher.json").write_text(json.dumps(about))
    return copy


def test_a_pair_gets_the_vector_of_its_english_segment(taught: Path) -> None:
    shards = open_shards(taught)
    assert isinstance(shards.teacher, np.memmap)
    pairs = np.array([9, 8, 599, 0])  # pairs 8 and 9 have the same English
    vectors = shards.teacher_of(pairs)
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[3.0 * e, 3.0 * e + 1, 3.0 * e + 2] for e in shards.pair_english[pairs]]
    assert vectors[0].tolist() == vectors[1].tolist() != vectors[2].tolist()


def test_shards_without_a_teacher_say_how_to_get_one(toy_shards: Path) -> None:
    shards = open_shards(toy_shards)
    assert shards.teacher is None
    with pytest.raises(InputError, match=rf"has no teacher vectors, .* Type: mexma-train teach {toy_shards} --teacher"):
        shards.teacher_of(np.arange(3))


def test_a_teacher_of_other_shards_or_a_damaged_one_is_refused(taught: Path) -> None:
    about = json.loads((taught / "teacher.json").read_text())
    whole = (taught / "teacher.npy").read_bytes()
    type_this = rf"Delete them and teach again:\n    rm -f {taught}/teacher\.json .*\n    mexma-train teach {taught} --teacher"

    (taught / "teacher.npy").write_bytes(whole[:-2])
    with pytest.raises(FileError, match=f"are damaged: .*mmap length is greater than file size.*{type_this}"):
        open_shards(taught)
    np.save(taught / "teacher.npy", np.zeros((about["segments"], 2), np.float16))
    with pytest.raises(FileError, match=rf"is float16 \[\d+, 2\] instead of float16 \[\d+, 3\]\. {type_this}"):
        open_shards(taught)
    np.save(taught / "teacher.npy", np.zeros((about["segments"], 3), np.float32))
    with pytest.raises(FileError, match=r"teacher\.npy is float32"):
        open_shards(taught)
    (taught / "teacher.npy").unlink()
    with pytest.raises(FileError, match="are damaged: FileNotFoundError"):
        open_shards(taught)

    (taught / "teacher.npy").write_bytes(whole)
    assert open_shards(taught).teacher is not None
    (taught / "teacher.json").write_text(json.dumps(about | {"tokens": about["tokens"] + 1}))
    with pytest.raises(
        FileError, match=rf"made for other shards, of \d+ English segments and \d+ tokens; these have .*{type_this}"
    ):
        open_shards(taught)
    (taught / "teacher.json").write_text('{"segments": ')
    with pytest.raises(FileError, match=f"are damaged: JSONDecodeError.*{type_this}"):
        open_shards(taught)
    (taught / "teacher.json").write_text("{}")
    with pytest.raises(FileError, match=f"are damaged: KeyError\\('segments'\\).*{type_this}"):
        open_shards(taught)
