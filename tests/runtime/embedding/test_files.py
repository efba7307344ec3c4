"""embed_file: every input and every output against encoder.embed on the whole list, refusals, errors that teach."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mexma_rt
from mexma_rt import FileError, InputError, MissingExtraError
from mexma_rt.embedding import reading
from mexma_rt.embedding.files import write_vectors
from mexma_rt.embedding.settings import EmbedSettings
from mexma_rt.files import resumable, storage

TEXTS = ["one", "", "  ", "Où ?", "tab\there", "one", "猫は暖かい石の上で眠っています。", "Hello " * 100, "last"]


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> mexma_rt.Encoder:
    return mexma_rt.load(tiny_bundle, precision="fp32", max_length=32, threads=1)


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def source() -> Path:
    path = Path("in.txt")
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def in_slabs(encoder: mexma_rt.Encoder, rows: int, **settings: Any) -> np.ndarray:
    """Independently of embed_file.py: the texts cut into slices of `rows`, each embedded, one under the other."""
    return np.concatenate([encoder.embed_report(TEXTS[i : i + rows], **settings).vectors for i in range(0, len(TEXTS), rows)])


# --- inputs -------------------------------------------------------------------------------------------------------------


def jsonl() -> bytes:
    return "".join(json.dumps({"id": i, "t": text}) + "\n" for i, text in enumerate(TEXTS)).encode()


def lines() -> bytes:
    return ("\n".join(TEXTS) + "\n").encode()


def zst(data: bytes) -> bytes:
    return pytest.importorskip("zstandard", reason="part of mexma-rt[files]").compress(data)


@pytest.mark.parametrize(
    ("name", "field", "content"),
    [
        ("in", None, lines),
        ("in.gz", None, lambda: gzip.compress(lines()[:20]) + gzip.compress(lines()[20:])),
        ("in.txt.xz", None, lambda: lzma.compress(lines())),
        ("in.zst", None, lambda: zst(lines()[:20]) + zst(lines()[20:])),  # two frames, as pzstd writes
        ("in.jsonl", "t", jsonl),
        ("in.json.gz", "t", lambda: gzip.compress(jsonl())),
        ("in.ndjson.zst", "t", lambda: zst(jsonl())),
    ],
)
def test_every_input_gives_the_vectors_of_its_texts(
    encoder: mexma_rt.Encoder, name: str, field: str | None, content: Callable[[], bytes]
) -> None:
    Path(name).write_bytes(content())
    report = encoder.embed_file(name, "v.npy", field=field)
    assert Path("v.npy").read_bytes() == saved(encoder.embed_report(TEXTS).vectors)
    assert report.shape == (9, 32) and report.report.sentences == 9
    assert names() == sorted(["v.npy", name])  # nothing is left


def test_a_parquet_column(encoder: mexma_rt.Encoder) -> None:
    pa = pytest.importorskip("pyarrow", reason="part of mexma-rt[files]")
    import pyarrow.parquet as pq

    expected = saved(encoder.embed_report(TEXTS).vectors)
    for column in (pa.array(TEXTS), pa.array(TEXTS, pa.large_string()), pa.array(TEXTS).dictionary_encode()):
        pq.write_table(pa.table({"id": list(range(9)), "t": column}), "in.parquet", row_group_size=4)
        encoder.embed_file("in.parquet", "v.npy", field="t")
        assert Path("v.npy").read_bytes() == expected


@pytest.mark.parametrize(("field", "content"), [(None, lines), ("t", jsonl)])
def test_standard_input(
    encoder: mexma_rt.Encoder, monkeypatch: pytest.MonkeyPatch, field: str | None, content: Callable[[], bytes]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content()), encoding="latin-1"))
    encoder.embed_file("-", "v.npy", field=field)
    assert Path("v.npy").read_bytes() == saved(encoder.embed_report(TEXTS).vectors)
    assert names() == ["v.npy"]


def test_an_empty_file(encoder: mexma_rt.Encoder) -> None:
    Path("in.txt").touch()
    assert encoder.embed_file("in.txt", "v.npy").shape == (0, 32)
    assert Path("v.npy").read_bytes() == saved(np.empty((0, 32), np.float32))


# --- outputs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 4, 9, 100])
def test_slabs_of_any_size_give_the_vectors_of_the_list(
    encoder: mexma_rt.Encoder, source: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(reading, "SLAB_ROWS", rows)
    monkeypatch.setattr(resumable, "TABLE_ROWS", 4)
    report = encoder.embed_file(source, "v.npy")
    expected = in_slabs(encoder, rows)
    assert Path("v.npy").read_bytes() == saved(expected)
    np.testing.assert_allclose(np.load("v.npy", mmap_mode="r"), encoder.embed_report(TEXTS).vectors, atol=1e-5)
    assert report.cut == 1 and report.report.truncated == (7,) and report.report.truncated_lengths[0] > 32

    encoder.embed_file(source, "shards", shard_rows=4)
    for i in range(3):
        assert Path(f"shards/vectors-0000{i}.npy").read_bytes() == saved(expected[4 * i : 4 * i + 4])
    index = json.loads(Path("shards/vectors.json").read_text())
    assert [(shard["file"], shard["rows"]) for shard in index["shards"]] == [
        ("vectors-00000.npy", 4),
        ("vectors-00001.npy", 4),
        ("vectors-00002.npy", 1),
    ]
    assert (index["rows"], index["storage"], index["model"]) == (9, "float32", "tiny") and len(names("shards")) == 4

    pq = pytest.importorskip("pyarrow.parquet", reason="part of mexma-rt[files]")
    encoder.embed_file(source, "v.parquet", precision="float16")
    column = pq.read_table("v.parquet")["vector"]
    assert str(column.type) == "fixed_size_list<element: halffloat>[32]"
    np.testing.assert_array_equal(np.array(column.to_pylist(), np.float16), expected.astype(np.float16))
    assert not [name for name in names() if name.startswith(".")]


def test_settings_reach_the_encoder(encoder: mexma_rt.Encoder, source: Path) -> None:
    settings: dict[str, Any] = {"truncate_dim": np.int64(12), "precision": "float16", "normalize": False, "batch_tokens": 64}
    encoder.embed_file(source, "v.npy", **settings)
    assert Path("v.npy").read_bytes() == saved(encoder.embed_report(TEXTS, **settings).vectors)


def test_the_public_function_takes_a_model_by_name(
    encoder: mexma_rt.Encoder, source: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mexma_rt.embedding.loading._shared", {str(tiny_bundle): encoder})
    assert isinstance(mexma_rt.embed_file(source, "v.npy", model=tiny_bundle), mexma_rt.FileReport)
    assert Path("v.npy").read_bytes() == saved(encoder.embed_report(TEXTS).vectors)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("truncate_dim", [None, 27])
def test_a_file_holds_what_embed_gives(
    encoder: mexma_rt.Encoder, source: Path, monkeypatch: pytest.MonkeyPatch, precision: str, truncate_dim: int | None
) -> None:
    """What embed gives is compared with sentence-transformers in test_vectors.py."""
    ranges = storage.Ranges(minimum=(-0.4,) * 32, maximum=(0.5,) * 32)
    ranged = dataclasses.replace(encoder, bundle=dataclasses.replace(encoder.bundle, ranges=ranges))
    settings: dict[str, Any] = {"precision": precision, "truncate_dim": truncate_dim}
    report = ranged.embed_file(source, "v.npy", **settings)
    assert Path("v.npy").read_bytes() == saved(ranged.embed_report(TEXTS, **settings).vectors)
    assert report.shape == np.load("v.npy").shape and report.storage == precision


def test_int8_without_ranges_says_so_and_leaves_nothing(encoder: mexma_rt.Encoder, source: Path) -> None:
    plain = dataclasses.replace(encoder, bundle=dataclasses.replace(encoder.bundle, ranges=None))
    with pytest.raises(InputError, match="precision='int8' needs a range per dimension, but this bundle has none"):
        plain.embed_file(source, "v.npy", precision="int8")
    assert names() == ["in.txt"]


@given(st.lists(st.text(max_size=9)), st.integers(1, 5), st.integers(1, 30))
def test_slabs_are_the_texts_in_order_and_bounded(texts: list[str], rows: int, characters: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "SLAB_ROWS", rows)
        patch.setattr(reading, "SLAB_CHARACTERS", characters)
        slabs = list(reading._slabs(texts, reading.SLAB_ROWS, reading.SLAB_CHARACTERS))
    assert [text for slab in slabs for text in slab] == texts
    for slab in slabs:
        assert len(slab) <= rows and (len(slab) == 1 or sum(map(len, slab)) <= characters)
    assert all(slabs) or slabs == [[]]


# --- refusals -----------------------------------------------------------------------------------------------------------


def test_arguments_that_cannot_be_used(encoder: mexma_rt.Encoder, source: Path) -> None:
    Path("out").mkdir()
    Path("file").touch()
    for error, message, output, settings in [
        (InputError, "precision='bits' is not a storage format. Type one of: .*ubinary", "v", {"precision": "bits"}),
        (InputError, "int8 keeps directions only", "v", {"precision": "int8", "normalize": False}),
        (InputError, "shard_rows=0 must be", "v", {"shard_rows": 0}),
        (InputError, r"Leave out \.npy", "v.npy", {"shard_rows": 4}),
        (InputError, "truncate_dim=99 is more than the 32 dimensions", "v", {"truncate_dim": 99}),
        (InputError, "is both an input and the output", "in.txt", {}),
        (FileError, "is a file, but shards are written to a folder", "file", {"shard_rows": 4}),
        (FileError, "out already exists. Choose another name, or move it away.", "out", {"shard_rows": 4}),
        (FileError, "is a device, a pipe or an open file", os.devnull, {}),
    ]:
        with pytest.raises(error, match=message):
            encoder.embed_file(source, output, **settings)  # type: ignore[arg-type]
    assert names() == ["file", "in.txt", "out"]


def test_a_missing_library_is_named_before_the_work(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pyarrow is not installed"):  # at the start, not after hours
        write_vectors(lambda: pytest.fail("a model was loaded"), source, "v.parquet", EmbedSettings())


def interrupted(encoder: mexma_rt.Encoder, monkeypatch: pytest.MonkeyPatch, slabs: int = 2, **settings: Any) -> None:
    """A run that ends after `slabs` slabs of two rows."""
    monkeypatch.setattr(reading, "SLAB_ROWS", 2)
    write_rows, calls = resumable.write_rows, iter(range(slabs))

    def write(*arguments: Any) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        write_rows(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resumable, "write_rows", write)
        encoder.embed_file("in.txt", "v.npy", **settings)


def test_an_interrupted_run_goes_on_and_its_report_is_of_the_whole(
    encoder: mexma_rt.Encoder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(encoder, monkeypatch)
    assert names(".v.npy.part") == ["data", "lock", "state.json"] and not Path("v.npy").exists()
    report = encoder.embed_file(source, "v.npy")
    assert report.resumed == 4 and report.report.sentences == 9 and report.report.truncated == (7,)
    assert Path("v.npy").read_bytes() == saved(in_slabs(encoder, 2))
    assert encoder.embed_file(source, "v.npy").resumed == 0  # what is complete is made anew


def test_another_job_refuses_to_go_on(
    encoder: mexma_rt.Encoder, source: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(encoder, monkeypatch)
    precision = next(name for name in encoder.bundle.graphs if name != "fp32")
    other = mexma_rt.load(tiny_bundle, precision=precision, max_length=16)
    files: dict[str, Any] = {**encoder.bundle.files, "x": SimpleNamespace(sha256="0")}
    changed = mexma_rt.load(tiny_bundle, precision="fp32", max_length=32)
    object.__setattr__(changed, "bundle", dataclasses.replace(changed.bundle, files=files))
    before = Path(".v.npy.part/state.json").read_bytes()
    alone = dataclasses.replace(encoder, deterministic=True)
    for who, settings, message in [
        (alone, {}, "deterministic: False then, True now"),
        (other, {}, f"max_length: 32 then, 16 now; precision: 'fp32' then, '{precision}' now"),
        (changed, {}, "model files: "),
        (encoder, {"precision": "ubinary"}, "storage: 'float32' then, 'ubinary' now"),
        (encoder, {"normalize": False}, "normalize: True then, False now"),
        (encoder, {"truncate_dim": 8}, "truncate_dim: None then, 8 now"),
    ]:
        with pytest.raises(InputError, match=rf"unfinished run of another job.*{message}.*rm -r .*\.v\.npy\.part"):
            who.embed_file(source, "v.npy", **settings)  # type: ignore[arg-type]
    source.write_text("another text\n" * 9)
    with pytest.raises(InputError, match=r"texts: '.*' then, '.*' now"):
        encoder.embed_file(source, "v.npy")
    assert Path(".v.npy.part/state.json").read_bytes() == before and not Path("v.npy").exists()
    shutil.rmtree(".v.npy.part")
    encoder.embed_file(source, "v.npy")


def test_damage_in_the_folder_of_the_work(encoder: mexma_rt.Encoder, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(encoder, monkeypatch)
    with Path(".v.npy.part/data").open("r+b") as data:
        data.truncate(200)
    with pytest.raises(FileError, match=r"data is missing or cut off.*Start over: rm -r .*\.v\.npy\.part"):
        encoder.embed_file(source, "v.npy")
    Path(".v.npy.part/state.json").write_text("{")
    with pytest.raises(FileError, match=r"state\.json is damaged\. Start over: rm -r .*\.v\.npy\.part"):
        encoder.embed_file(source, "v.npy")


def with_prompts(encoder: mexma_rt.Encoder, **prompts: str) -> mexma_rt.Encoder:
    return dataclasses.replace(encoder, bundle=dataclasses.replace(encoder.bundle, prompts=prompts))


def test_a_prompt_is_put_before_every_row(encoder: mexma_rt.Encoder, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_prompts(encoder, query="query: ")
    asked.embed_file(source, "v.npy", prompt="query")
    wanted = encoder.embed_report(["query: " + text for text in TEXTS]).vectors
    assert Path("v.npy").read_bytes() == saved(wanted)
    with pytest.raises(InputError, match="prompt='title': this model has the prompts 'query'"):
        asked.embed_file(source, "w.npy", prompt="title")
    assert names() == ["in.txt", "v.npy"]
    Path("v.npy").unlink()
    interrupted(asked, monkeypatch, prompt="query")
    changed = with_prompts(encoder, query="Query: ")
    for other, prompt in ((asked, None), (changed, "query")):
        with pytest.raises(InputError, match=r"unfinished run of another job.*prompt"):
            other.embed_file(source, "v.npy", prompt=prompt)
    assert asked.embed_file(source, "v.npy", prompt="query").resumed == 4
    np.testing.assert_allclose(np.load("v.npy"), wanted, atol=1e-6)


def test_two_runs_at_once(encoder: mexma_rt.Encoder, source: Path) -> None:
    pytest.importorskip("fcntl", reason="only POSIX systems have this lock")
    with resumable.work_folder(Path("v.npy").resolve()) as folder:
        with pytest.raises(FileError, match=r"v\.npy is being written by another process"):
            encoder.embed_file(source, "v.npy")
        assert folder.is_dir()


def test_an_input_that_changes_while_it_is_read(encoder: mexma_rt.Encoder, source: Path) -> None:
    def load() -> mexma_rt.Encoder:
        source.write_text("\n".join([*TEXTS[:-1], "LAST"]) + "\n", encoding="utf-8")
        return encoder

    with pytest.raises(FileError, match=r"The input changed while it was read.*Run the command again"):
        write_vectors(load, source, "v.npy", EmbedSettings())
    assert names() == ["in.txt"]


def test_a_disk_without_room(encoder: mexma_rt.Encoder, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9 * 32 * 4 - 1))
    with pytest.raises(FileError, match=r"needs 0\.0 MB more, but .* has 0\.0 MB free\. Make room.*'float16' or 'int8'"):
        encoder.embed_file(source, "v.npy")
    encoder.embed_file(source, "v.npy", precision="float16")


def test_size_and_memory_are_stated_before_a_long_job(
    encoder: mexma_rt.Encoder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    write_vectors(lambda: encoder, source, "v.npy", EmbedSettings(), announce=said.append)
    assert said == []
    interrupted(encoder, monkeypatch)
    write_vectors(lambda: encoder, source, "v.npy", EmbedSettings(), announce=said.append)
    write_vectors(lambda: encoder, source, "v.npy", EmbedSettings(), announce=said.append)
    assert said[0].startswith("v.npy: 9 rows x 32 float32, 0.0 MB on disk; besides the model about ")
    assert said[0].endswith("Resumes after row 4, where a run was interrupted.")
    assert said[1].endswith("If interrupted, run the same command again: it resumes.")

    zstandard = pytest.importorskip("zstandard", reason="part of mexma-rt[files]")
    wide = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=27)).compressobj()
    Path("in.zst").write_bytes(wide.compress(lines()) + wide.flush())  # as zstd --long
    write_vectors(lambda: encoder, "in.zst", "v.npy", EmbedSettings(), announce=said.append)
    stated = [int(text.partition("about ")[2].partition(" MB")[0]) for text in said]
    assert stated[2] == pytest.approx(stated[1] + 2**27 / 1e6, abs=1.5)
