from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mexma_rt
import mexma_train.teacher as teacher_module
from mexma_rt.errors import FileError, InputError
from mexma_train.data.prepare import prepare
from mexma_train.data.shards import open_shards
from mexma_train.teacher import nearest_rotation, principal_axes, teach
from mexma_train.teacher_model import Teacher, open_teacher

from .conftest import WORDS
from .string_model import save_string_model

FILES = ("teacher.json", "teacher.npy", "teacher.projection.npy")
TABLE = np.random.default_rng(5).standard_normal((15, 12)) * np.linspace(3, 0.3, 12)


@pytest.fixture
def shards(pairs_tsv: Path, toy_tokenizer: Path, tmp_path: Path) -> Path:
    prepare(pairs_tsv, tmp_path / "shards", toy_tokenizer, progress=False)
    return tmp_path / "shards"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_string_model(tmp_path / "words.onnx", WORDS["eng"], TABLE, unknown=14)


@pytest.fixture(scope="module")
def english(pairs_tsv: Path) -> list[str]:
    """The English segments in the order of the shards: the distinct lines in file order."""
    return list(dict.fromkeys(line.split("\t")[2] for line in pairs_tsv.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def vectors(english: list[str]) -> np.ndarray:
    """What the stand-in gives for them, at length 1: float64 [E, 12]."""
    rows = np.stack([sum(TABLE[WORDS["eng"].index(word)] for word in text.split()) for text in english])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def replace_teacher(monkeypatch: pytest.MonkeyPatch, embed: object) -> None:
    monkeypatch.setattr(teacher_module, "open_teacher", lambda *_: Teacher(name="toy", sha256="0" * 64, embed=embed))  # type: ignore[arg-type]


def test_rows_keep_the_inner_products_as_the_best_projection_does(shards: Path, model: Path, vectors: np.ndarray) -> None:
    taught = teach(shards, model, dimensions=5)
    assert taught.made and taught.about == json.loads((shards / "teacher.json").read_text())
    _, singular, axes = np.linalg.svd(vectors)
    best = vectors @ axes[:5].T
    best /= np.linalg.norm(best, axis=1, keepdims=True)
    rows = np.load(shards / "teacher.npy")
    assert rows.dtype == np.float16
    assert np.abs(rows @ rows.T.astype(float) - best @ best.T).max() < 1e-3  # signs of axes are free; float16 has 11 bits
    assert taught.about["share_kept"] == pytest.approx((singular[:5] ** 2).sum() / (singular**2).sum(), abs=1e-6)
    assert 0.5 < taught.about["share_kept"] < 0.999

    projection = np.load(shards / "teacher.projection.npy")
    assert (projection.shape, projection.dtype) == ((12, 5), np.float64)
    new = vectors @ projection  # as a user would project new text
    assert np.abs(new / np.linalg.norm(new, axis=1, keepdims=True) - rows).max() < 1e-3


def test_the_report_names_the_teacher_and_the_shards(shards: Path, model: Path, english: list[str]) -> None:
    about = teach(shards, model, dimensions=5).about
    del about["share_kept"]
    assert about == {
        "format": 1,
        "teacher": "words.onnx",
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "teacher_dimensions": 12,
        "dimensions": 5,
        "sample": len(english),
        "segments": len(english),
        "tokens": len(np.load(shards / "english.ids.npy")),
        "zero_vectors": 0,
        "cut_texts": 0,
    }


def test_a_pair_gets_the_vector_of_its_english(
    shards: Path, model: Path, pairs_tsv: Path, english: list[str], vectors: np.ndarray
) -> None:
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    teach(shards, model, dimensions=12)
    pairs = np.array([9, 8, 599, 0])
    lines = [line.split("\t")[2] for line in pairs_tsv.read_text(encoding="utf-8").splitlines()]
    expected = vectors[[english.index(lines[pair]) for pair in pairs]]
    assert open_shards(shards).teacher_of(pairs) == pytest.approx(expected, abs=1e-3)
    after = {path.name: path.read_bytes() for path in shards.iterdir()}
    assert sorted(after) == sorted([*before, *FILES])  # no work folder is left
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("dimensions", [12, 256])
def test_a_small_teacher_is_not_projected(dimensions: int, shards: Path, model: Path, vectors: np.ndarray) -> None:
    about = teach(shards, model, dimensions=dimensions).about
    assert (about["dimensions"], about["share_kept"], about["sample"]) == (12, 1.0, 0)
    assert (np.load(shards / "teacher.projection.npy") == np.eye(12)).all()
    assert np.load(shards / "teacher.npy") == pytest.approx(vectors, abs=1e-3)


def test_axes_by_hand() -> None:
    axes, share = principal_axes(np.diag([1.0, 4, 2]), 2)
    assert axes == pytest.approx(np.array([[0, 0], [1, 0], [0, 1]]))
    assert share == pytest.approx(6 / 7)
    direction = np.array([3.0, -4])
    axes, share = principal_axes(np.outer(direction, direction), 1)
    assert axes == pytest.approx(np.array([[-0.6], [0.8]])) and share == pytest.approx(1)


@given(st.integers(0, 2**32 - 1))
def test_the_largest_component_of_an_axis_is_positive(seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((20, 6))
    axes, _ = principal_axes(vectors.T @ vectors, 4)
    assert (axes.max(axis=0) > -axes.min(axis=0)).all()
    assert axes.T @ axes == pytest.approx(np.eye(4), abs=1e-9)


def test_a_quarter_turn_by_hand() -> None:
    """x = (1, 0), (0, 1) and y = (0, 2), (-1, 0): a quarter turn brings x to y's directions."""
    x, y = np.eye(2), np.array([[0.0, 2], [-1, 0]])
    assert nearest_rotation(x.T @ y) == pytest.approx(np.array([[0, 1], [-1, 0]]))


@given(st.integers(0, 2**32 - 1))
def test_no_other_rotation_is_nearer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, 9, 4))
    ours = nearest_rotation(x.T @ y)
    assert ours.T @ ours == pytest.approx(np.eye(4), abs=1e-9)
    for _ in range(20):
        other, _ = np.linalg.qr(rng.standard_normal((4, 4)))
        assert (x @ other * y).sum() <= (x @ ours * y).sum() + 1e-9


@pytest.mark.parametrize("dimensions", [5, 12])
def test_rows_are_turned_to_a_model_that_learnt_from_others(
    dimensions: int, shards: Path, model: Path, vectors: np.ndarray, tmp_path: Path
) -> None:
    """A pupil whose vectors are the projected ones in axes of their own gets its rows back; their inner products stay."""
    teach(shards, model, dimensions=dimensions)
    plain = np.load(shards / "teacher.npy").astype(float)
    turn, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((dimensions, dimensions)))
    projection = np.load(shards / "teacher.projection.npy")
    pupil = save_string_model(tmp_path / "pupil.onnx", WORDS["eng"], TABLE @ projection @ turn, unknown=14)
    with pytest.raises(FileError, match=r"are not rotated, but this call wants them rotated towards pupil\.onnx\. To replace"):
        teach(shards, model, dimensions=dimensions, like=pupil)
    for name in FILES:
        (shards / name).unlink()
    about = teach(shards, model, dimensions=dimensions, like=pupil).about
    assert (about["like"], about["sample"]) == ("pupil.onnx", len(vectors))
    assert about["like_sha256"] == hashlib.sha256(pupil.read_bytes()).hexdigest()
    rows = np.load(shards / "teacher.npy").astype(float)
    assert np.abs(rows - plain @ turn).max() < 2e-3  # float16 twice
    new = vectors @ np.load(shards / "teacher.projection.npy")
    assert np.abs(new / np.linalg.norm(new, axis=1, keepdims=True) - rows).max() < 1e-3
    assert not teach(shards, model, dimensions=dimensions, like=pupil).made
    with pytest.raises(FileError, match=r"are rotated towards pupil\.onnx, but this call wants them not rotated"):
        teach(shards, model, dimensions=dimensions)


def test_a_model_of_another_size_is_refused(shards: Path, model: Path) -> None:
    with pytest.raises(InputError, match=r"like: words\.onnx has 12 dimensions, but the rows would have 5"):
        teach(shards, model, dimensions=5, like=model)
    assert not (shards / ".teacher").exists()


def test_the_axes_come_from_a_fixed_sample(
    shards: Path, english: list[str], vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first 50 texts that the teacher reads choose the axes, and are the same at a second try."""
    row_of = {text: row for row, text in enumerate(english)}
    monkeypatch.setattr(teacher_module, "SAMPLE", 50)
    seen: list[str] = []

    def embed(texts: list[str]) -> tuple[np.ndarray, int]:
        seen.extend(texts)
        return np.stack([vectors[row_of.get(text, 0)] for text in texts]), 0

    replace_teacher(monkeypatch, embed)
    about = teach(shards, "toy", dimensions=3).about
    assert seen[0] == "." and seen[51:] == english  # asked for its dimensions; the sample; all
    sample = seen[1:51]
    assert len(set(sample)) == 50 and sample != english[:50]
    _, singular, axes = np.linalg.svd(vectors[[row_of[text] for text in sample]])
    projection = np.load(shards / "teacher.projection.npy")
    assert projection @ projection.T == pytest.approx(axes[:3].T @ axes[:3], abs=1e-8)  # the same space
    assert about["sample"] == 50
    assert about["share_kept"] == pytest.approx((singular[:3] ** 2).sum() / (singular**2).sum())

    for name in FILES:
        (shards / name).unlink()
    seen.clear()
    teach(shards, "toy", dimensions=3)
    assert seen[1:51] == sample


def test_the_teacher_reads_the_decoded_ids(toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFKC, white space and characters without a piece are lost; special tokens are not read; nothing is cut."""
    lines = ["sun  moon\u00a0", "ｓｕｎ", "sun ☃ moon", "☃", "moon </s> sun", "stone " * 999 + "bird"]
    (tmp_path / "pairs.tsv").write_text("".join(f"fra\ttoy\t{line}\tlune\n" for line in lines), encoding="utf-8")
    prepare(tmp_path / "pairs.tsv", tmp_path / "s", toy_tokenizer, progress=False)
    seen: list[str] = []

    def embed(texts: list[str]) -> tuple[np.ndarray, int]:
        seen.extend(texts)
        return np.ones((len(texts), 2)), 0

    replace_teacher(monkeypatch, embed)
    teach(tmp_path / "s", "toy")
    assert [" ".join(text.split()) for text in seen[1:]] == ["sun moon", "sun", "sun moon", "", "moon sun", lines[-1]]
    assert seen[1:3] == ["sun moon", "sun"]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 60))
def test_slabs_are_bounded_and_the_same_from_any_mark(lengths: list[int], segments: int, tokens: int) -> None:
    texts = object.__new__(teacher_module._Texts)
    texts.offsets = np.cumsum([0, *lengths])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_module, "SLAB_SEGMENTS", segments)
        patch.setattr(teacher_module, "SLAB_TOKENS", tokens)
        slabs = [slab.tolist() for slab in texts.slabs(range(len(lengths)))]
        assert [row for slab in slabs for row in slab] == list(range(len(lengths)))
        for place, slab in enumerate(slabs):
            total = sum(lengths[row] for row in slab)
            assert 1 <= len(slab) <= segments and (total <= tokens or len(slab) == 1)
            following = slab[-1] + 1
            assert (  # no slab is smaller than it must be
                len(slab) == segments or following == len(lengths) or total + lengths[following] > tokens
            )
            assert [s.tolist() for s in texts.slabs(range(slab[0], len(lengths)))] == slabs[place:]


KILLED = """
import os, sys
import mexma_train.teacher as teacher
home = teacher.shutil if sys.argv[3] == "rmtree" else teacher
real, calls = getattr(home, sys.argv[3]), int(sys.argv[4])
def call(*words, **named):
    global calls
    calls -= 1
    if not calls:
        os.kill(os.getpid(), 9)
    return real(*words, **named)
setattr(home, sys.argv[3], call)
teacher.SLAB_SEGMENTS = 100
teacher.teach(sys.argv[1], sys.argv[2], dimensions=5)
"""


@pytest.fixture
def neighbourly(tmp_path: Path) -> Path:
    """A teacher whose vectors depend on the batch, so that a resume with other batches would be seen."""
    return save_string_model(tmp_path / "words.onnx", WORDS["eng"], TABLE, unknown=14, neighbours=0.5)


@pytest.mark.kill
@pytest.mark.parametrize(
    ("function", "call", "done"),
    [
        ("_vectors", 3, None),  # while the axes are sought
        ("_write_json", 1, None),  # before the first mark
        ("_vectors", 6 + 4, 300),  # six slabs for the axes; then after the third of all
        ("_write_json", 1 + 3, 200),  # when the third is on the disk, but not marked
        ("_write_json", 1 + 7, "all"),  # before teacher.json
        ("move_file", 2, "all"),  # projection in place
        ("move_file", 3, "all"),  # and vectors
        ("rmtree", 2, "finished"),
    ],
)
def test_kill_9_and_the_same_command_give_the_same_bytes(
    function: str,
    call: int,
    done: int | str | None,
    shards: Path,
    neighbourly: Path,
    english: list[str],
    pairs_tsv: Path,
    toy_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teacher_module, "SLAB_SEGMENTS", 100)
    assert 500 < len(english) < 600
    prepare(pairs_tsv, tmp_path / "whole", toy_tokenizer, progress=False)
    teach(tmp_path / "whole", neighbourly, dimensions=5)

    killed = subprocess.run([sys.executable, "-c", KILLED, str(shards), str(neighbourly), function, str(call)])
    assert killed.returncode == -9
    assert (shards / "teacher.json").exists() == (done == "finished")
    assert (open_shards(shards).teacher is None) == (done != "finished")
    if done not in (None, "finished"):
        mark = json.loads((shards / ".teacher" / "progress.json").read_text())["done"]
        assert mark == (len(english) if done == "all" else done)

    read: list[str] = []
    teacher = open_teacher(neighbourly)

    def embed(texts: list[str]) -> tuple[np.ndarray, int]:
        read.extend(texts)
        return teacher.embed(texts)

    monkeypatch.setattr(
        teacher_module, "open_teacher", lambda *_: Teacher(name=teacher.name, sha256=teacher.sha256, embed=embed)
    )
    assert teach(shards, neighbourly, dimensions=5).made == (done != "finished")
    assert len(read) == (1 + 2 * len(english) if done is None else len(english) - done if isinstance(done, int) else 0)
    for name in FILES:
        assert (shards / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (shards / ".teacher").exists()


def test_a_second_call_does_nothing(shards: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = teach(shards, model)
    times = [(shards / name).stat().st_mtime_ns for name in FILES]
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    monkeypatch.setattr(
        teacher_module,
        "open_teacher",
        lambda *_: Teacher(name="words.onnx", sha256=sha256, embed=lambda _: pytest.fail("read")),
    )
    for dimensions in (256, 12):  # both mean all of the teacher's
        second = teach(shards, model, dimensions=dimensions)
        assert not second.made and second.about == first.about
    assert [(shards / name).stat().st_mtime_ns for name in FILES] == times


def test_another_teacher_or_size_is_refused(shards: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # stopped after the first slab
        patch.setattr(teacher_module, "SLAB_SEGMENTS", 100)
        patch.setattr(teacher_module, "_unit", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception, match="stopped"):
            teach(shards, model, dimensions=12)
    other = save_string_model(tmp_path / "other.onnx", WORDS["eng"], -TABLE)
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in (model, other)]
    message = (
        f"already have vectors of words.onnx (SHA-256 {hashes[0]}..., 12 dimensions), not of other.onnx ({hashes[1]}..., 12). "
        "To replace them, delete them first. Type:\n    "
    )
    with pytest.raises(FileError, match=re.escape(f"{message}rm -r {shards / '.teacher'}") + "$"):
        teach(shards, other)
    teach(shards, model)
    delete = " ".join(str(shards / name) for name in FILES)
    with pytest.raises(FileError, match=re.escape(f"{message}rm -f {delete}") + "$"):
        teach(shards, other)
    with pytest.raises(FileError, match=r"12 dimensions\), not of words\.onnx \(\w{12}\.\.\., 5\)"):
        teach(shards, model, dimensions=5)
    with pytest.raises(InputError, match=r"dimensions is 0; at least 1 is needed\."):
        teach(shards, model, dimensions=0)


def test_a_vector_of_length_0_stays_0_and_is_counted(shards: Path, english: list[str], tmp_path: Path) -> None:
    table = TABLE.copy()
    table[WORDS["eng"].index("sun")] = 0
    about = teach(shards, save_string_model(tmp_path / "m.onnx", WORDS["eng"], table), dimensions=4).about
    only_sun = np.array([set(text.split()) == {"sun"} for text in english])
    rows = np.load(shards / "teacher.npy").astype(float)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0 - only_sun, abs=1e-3)
    assert about["zero_vectors"] == only_sun.sum()


def test_a_teacher_without_usable_vectors_is_refused(
    shards: Path, english: list[str], vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_teacher(monkeypatch, lambda texts: (np.zeros((len(texts), 12)), 0))
    with pytest.raises(InputError, match=r"gave only vectors of length 0\. Check that"):
        teach(shards, "toy", dimensions=5)

    monkeypatch.setattr(teacher_module, "SLAB_SEGMENTS", 50)  # the segment's number is not its place in the slab

    def embed(texts: list[str]) -> tuple[np.ndarray, int]:
        rows = np.ones((len(texts), 12))
        rows[[text == english[77] for text in texts], 3] = np.nan
        return rows, 0

    replace_teacher(monkeypatch, embed)
    expected = re.escape(f"toy gave a vector that is not finite for English segment 77, {english[77]!r}. Use another teacher")
    with pytest.raises(InputError, match=expected):
        teach(shards, "toy")


def test_a_full_disk_is_an_error_and_what_is_written_is_kept(
    shards: Path, model: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_module, "SLAB_SEGMENTS", 100)
    calls = 0

    def full(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # after the projection, the first mark, a slab and its mark
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        expected = rf"in {shards}/\.teacher cannot be written: No space left on device\. .* the same command resumes from it\."
        with pytest.raises(FileError, match=expected):
            teach(shards, model)
    assert json.loads((shards / ".teacher" / "progress.json").read_text())["done"] == 100
    teach(shards, model)
    assert np.load(shards / "teacher.npy") == pytest.approx(vectors, abs=1e-3)


def test_a_bundle_teaches_and_its_cuts_are_counted(toy_tokenizer: Path, tmp_path: Path) -> None:
    lines = ["sun and moon", "the dog " * 400, "bread"]
    (tmp_path / "pairs.tsv").write_text("".join(f"fra\ttoy\t{line}\tlune\n" for line in lines), encoding="utf-8")
    prepare(tmp_path / "pairs.tsv", tmp_path / "s", toy_tokenizer, progress=False)
    about = teach(tmp_path / "s", "mexma-small", dimensions=384, threads=1).about
    assert (about["teacher"], about["dimensions"], about["cut_texts"]) == ("mexma-small", 384, 1)
    with pytest.warns(mexma_rt.TruncationWarning):
        expected = mexma_rt.embed([line.strip() for line in lines])
    rows = np.load(tmp_path / "s" / "teacher.npy").astype(float)
    assert (rows * expected).sum(axis=1)[[0, 2]] == pytest.approx(1, abs=0.01)


def test_the_command_prints_what_was_stored(shards: Path, model: Path) -> None:
    pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")
    from click.testing import CliRunner

    from mexma_train.cli import main

    words = ["teach", str(shards), "--teacher", str(model), "--threads", "1", "--dimensions"]
    first = CliRunner().invoke(main, [*words, "7"])
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout) == json.loads((shards / "teacher.json").read_text())
    assert json.loads(first.stdout)["dimensions"] == 7
    second = CliRunner().invoke(main, [*words, "7"])
    assert (second.exit_code, second.stdout) == (0, first.stdout)
    assert second.stderr == f"{shards} already has the vectors of this teacher; nothing to do.\n"
    third = CliRunner().invoke(main, [*words, "8"])
    assert third.exit_code == 1 and "delete them first" in third.stderr
