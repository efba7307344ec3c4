"""Every format gives the same rows, and its damage is explained. The libraries that write the formats write the files here."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mexma_rt.errors import FileError, InputError
from mexma_train.data.bitext import ReadReport, Row, read_pairs

ROWS = [
    Row(lang="fra", source="tatoeba", english="Hello.", text="Bonjour."),
    Row(lang="jpn", source="ui", english="Open file", text="ファイルを開く"),
    Row(lang="fra", source="ui", english="Go", text="Aller"),
]
COLUMNS = {name: [getattr(row, name) for row in ROWS] for name in ("lang", "source", "english", "text")}
TSV = "".join("\t".join(values) + "\n" for values in zip(*COLUMNS.values(), strict=True)).encode()


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason="part of mexma-rt[train]")
    return zstandard.compress(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", PACKERS)
def test_tsv_of_every_compression(tmp_path: Path, suffix: str) -> None:
    pack = PACKERS[suffix]
    (tmp_path / f"a.tsv{suffix}").write_bytes(pack(TSV.replace(b"\n", b"\r\n")))
    assert list(read_pairs(tmp_path / f"a.tsv{suffix}")) == ROWS
    # Compressed files may be several joined ones; a byte order mark is no part of the first language.
    (tmp_path / f"two.tsv{suffix}").write_bytes(pack(b"\xef\xbb\xbf" + TSV) + pack(TSV))
    assert list(read_pairs(tmp_path / f"two.tsv{suffix}")) == ROWS * 2


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_damaged_compression_is_an_error_and_no_early_end(tmp_path: Path, suffix: str) -> None:
    data = PACKERS[suffix](b"".join(b"fra\tx\tline %d\tligne %d\n" % (i, i * i) for i in range(20_000)))
    (tmp_path / f"cut.tsv{suffix}").write_bytes(data[: len(data) // 2])
    (tmp_path / f"flipped.tsv{suffix}").write_bytes(data[:5000] + bytes(byte ^ 255 for byte in data[5000:5400]) + data[5400:])
    (tmp_path / f"other.tsv{suffix}").write_bytes(TSV)
    for name, why in (("cut", r" \("), ("flipped", r" \("), ("other", ": its first bytes are not those of")):
        with pytest.raises(FileError, match=rf"{name}\.tsv{suffix} is damaged or incomplete{why}.*Copy or download it again"):
            list(read_pairs(tmp_path / f"{name}.tsv{suffix}"))


def test_zst_with_a_long_window(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="part of mexma-rt[train]")
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.tsv.zst").write_bytes(packer.compress(TSV) + packer.flush())
    assert list(read_pairs(tmp_path / "a.tsv.zst")) == ROWS


def test_plain_text_has_no_column_names(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(TSV)
    with pytest.raises(InputError, match=r"a\.tsv is plain text, where columns have no names: leave out english, lang_column"):
        list(read_pairs(f"{tmp_path}/a.tsv,english=trg,lang_column=l"))


@pytest.mark.parametrize("suffix", PACKERS)
def test_moses_pairs(tmp_path: Path, suffix: str) -> None:
    english, french = tmp_path / f"news.fr-en.en{suffix}", tmp_path / f"news.fr-en.fr{suffix}"
    english.write_bytes(PACKERS[suffix](b"Hello.\r\nA\tB\n"))
    french.write_bytes(PACKERS[suffix](b"Bonjour.\nA\xc2\x85B"))  # NEL ends no line, and the last line needs no end
    expected = [("fra", "news", "Hello.", "Bonjour."), ("fra", "news", "A\tB", "A\x85B")]
    rows = list(read_pairs(f"{english}:{french},lang=fra"))
    assert [(row.lang, row.source, row.english, row.text) for row in rows] == expected
    assert list(read_pairs(f"{english}:{french}", lang="fra", source="news")) == rows
    assert {row.source for row in read_pairs(f"{english}:{french},source=own", lang="fra", source="all")} == {"own"}


@pytest.mark.parametrize(("english", "french"), [(3, 5), (5, 3)])
def test_moses_files_of_different_length_name_both_counts(tmp_path: Path, english: int, french: int) -> None:
    (tmp_path / "a.en").write_text("hello\n" * english)
    (tmp_path / "a.fr").write_text("bonjour\n" * french)
    with pytest.raises(InputError, match=rf"a\.en has {english} lines and .*a\.fr has {french}: they are not aligned"):
        list(read_pairs(f"{tmp_path}/a.en:{tmp_path}/a.fr,lang=fra"))


def test_moses_needs_a_language_and_both_files(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("hello\n")
    with pytest.raises(InputError, match=r"say which language .*a\.fr is in, for example: .*a\.en:.*a\.fr,lang=fra"):
        list(read_pairs(f"{tmp_path}/a.en:{tmp_path}/a.fr"))
    with pytest.raises(FileError, match=r"a\.fr does not exist"):
        list(read_pairs(f"{tmp_path}/a.en:{tmp_path}/a.fr,lang=fra"))


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pa = pytest.importorskip("pyarrow", reason="part of mexma-rt[train]")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet_file_and_folder(tmp_path: Path) -> None:
    assert list(read_pairs(write_parquet(tmp_path / "b.parquet", COLUMNS))) == ROWS
    tabs = {"lang": ["fra"], "source": ["x"], "english": ["a\tb\nc"], "text": ["d\te\nf"]}
    write_parquet(tmp_path / "a.parquet", tabs)
    assert list(read_pairs(tmp_path)) == [Row(lang="fra", source="x", english="a\tb\nc", text="d\te\nf"), *ROWS]


def test_parquet_of_other_string_types(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="part of mexma-rt[train]")
    columns = {
        "lang": pa.array(COLUMNS["lang"]).dictionary_encode(),
        "source": pa.array(COLUMNS["source"], pa.large_string()),
        "english": pa.array([text.encode() for text in COLUMNS["english"]], pa.binary()),
        "text": pa.array(COLUMNS["text"], pa.string_view()),
    }
    path = write_parquet(tmp_path / "a.parquet", columns, row_group_size=2)
    assert list(read_pairs(path)) == ROWS


def test_the_originals_parquet_is_read_with_the_columns_named(tmp_path: Path) -> None:
    """facebookresearch/mexma: columns src and trg, English in trg."""
    path = write_parquet(tmp_path / "train.parquet", {"src": COLUMNS["text"], "trg": COLUMNS["english"]})
    with pytest.raises(
        InputError, match=r"has the columns src, trg, but none called lang\. Type .*train\.parquet,lang=fra to set"
    ):
        list(read_pairs(path))
    with pytest.raises(
        InputError, match=r"but none called english\. Say which ones to read: .*train\.parquet,english=trg,text=src"
    ):
        list(read_pairs(path, lang="fra"))
    expected = [Row(lang="fra", source="train", english=row.english, text=row.text) for row in ROWS]
    assert list(read_pairs(f"{path},english=trg,text=src,lang=fra")) == expected
    assert list(read_pairs(path, english="trg", text="src", lang="fra")) == expected


def test_columns_inside_columns_and_columns_of_languages(tmp_path: Path) -> None:
    translation = [{"en": row.english, "xx": row.text} for row in ROWS]
    columns = {"translation": translation, "code": COLUMNS["lang"], "source": COLUMNS["source"]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    source = f"{path},english=translation.en,text=translation.xx,lang_column=code"
    assert list(read_pairs(source)) == ROWS
    assert list(read_pairs(source, lang="ignored", source="ignored")) == ROWS  # they fill in only what is missing
    assert {(row.lang, row.source) for row in read_pairs(f"{source},lang=deu,source=x")} == {("deu", "x")}
    for wrong in ("translation.de", "code.en", "no.en"):
        with pytest.raises(InputError, match=rf"none called {wrong}\. Say which ones"):
            list(read_pairs(f"{path},english={wrong},text=translation.xx,lang_column=code"))
    with pytest.raises(InputError, match=r"none called corpus\. Type .*,source=NAME to set the source of all rows, or"):
        list(read_pairs(f"{source},source_column=corpus"))
    with pytest.raises(InputError, match=r"column translation is of type struct<.*but it must be text"):
        list(read_pairs(f"{path},english=translation,text=translation.xx,lang_column=code"))


def test_null_values_and_wrong_encoding_in_parquet_are_bad_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="part of mexma-rt[train]")
    latin = pa.array([b"x"] * 997 + [b"caf\xe9", b"y", b""], pa.binary()).view(pa.string())  # Arrow does not check
    english = [*["hello"] * 998, None, "z"]
    path = write_parquet(tmp_path / "a.parquet", {"lang": ["fra"] * 1000, "english": english, "text": latin})
    report = ReadReport()
    assert len(list(read_pairs(path, report))) == 997
    assert report.bad == {"not UTF-8": 1, "null value": 1, "empty side": 1}
    empty = {"lang": ["fra"] * 2, "english": ["a", "b"], "text": pa.nulls(2)}  # how a column without any value is written
    with pytest.raises(InputError, match=r"2 of 2 rows cannot be used \(null value: 2, first row 1\)"):
        list(read_pairs(write_parquet(tmp_path / "b.parquet", empty)))


def test_damaged_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {name: values * 1000 for name, values in COLUMNS.items()})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match=r"a\.parquet is damaged or incomplete"):
        list(read_pairs(path))
    with pytest.raises(FileError, match=r"contains neither \.parquet files nor a data set written by `datasets`"):
        (tmp_path / "empty").mkdir()
        list(read_pairs(tmp_path / "empty"))


def test_data_sets_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="compares with folders that Hugging Face datasets writes")
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_dict({name: values * 2000 for name, values in COLUMNS.items()})
    data.save_to_disk(tmp_path / "parts", num_shards=3)
    assert len(list((tmp_path / "parts").glob("*.arrow"))) == 3
    assert list(read_pairs(tmp_path / "parts")) == ROWS * 2000
    data.select([5, 1, 3]).save_to_disk(tmp_path / "chosen")  # a selection is written out, not as indices
    assert list(read_pairs(tmp_path / "chosen")) == [ROWS[2], ROWS[1], ROWS[0]]
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "splits")
    assert len(list(read_pairs(tmp_path / "splits"))) == 6000
    assert list(read_pairs(tmp_path / "splits" / "test")) == [ROWS[1]]
    datasets.DatasetDict(dev=data).save_to_disk(tmp_path / "no-train")
    with pytest.raises(InputError, match=r"without a `train` split; it has dev\. Name one: .*no-train/NAME"):
        list(read_pairs(tmp_path / "no-train"))


def test_opus_data_set_of_translations(tmp_path: Path) -> None:
    """As Helsinki-NLP's on the hub: one column `translation` of the feature Translation."""
    datasets = pytest.importorskip("datasets", reason="compares with folders that Hugging Face datasets writes")
    datasets.disable_progress_bars()
    features = datasets.Features(translation=datasets.Translation(languages=["en", "fr"]))
    pairs = [{"en": "Hello.", "fr": "Bonjour."}]
    datasets.Dataset.from_dict({"translation": pairs}, features=features).save_to_disk(tmp_path / "opus")
    source = f"{tmp_path}/opus,english=translation.en,text=translation.fr,lang=fra"
    assert list(read_pairs(source)) == [Row(lang="fra", source="opus", english="Hello.", text="Bonjour.")]


def test_data_set_folders_that_cannot_be_read(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="part of mexma-rt[train]")
    for state, error, message in (
        ({"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}, InputError, r"flatten_indices\(\)"),
        ({"_data_files": [{"filename": "a.arrow"}]}, FileError, r"a\.arrow does not exist"),
        ({"epoch": 3}, FileError, r"is not a data set: its state\.json, unlike that of `datasets`, lists no"),
    ):
        (tmp_path / "state.json").write_text(json.dumps(state))
        with pytest.raises(error, match=message):
            list(read_pairs(tmp_path))
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "b.arrow"}]}')
    (tmp_path / "b.arrow").write_bytes(b"no arrow stream")
    with pytest.raises(FileError, match=r"b\.arrow is damaged or incomplete"):
        list(read_pairs(tmp_path))
