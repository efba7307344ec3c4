from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

import mexma_rt
import mexma_train.teacher_model as teacher_model
from mexma_rt.errors import BackendError, FileError, InputError, MissingExtraError
from mexma_train.teacher_model import open_teacher

onnx = pytest.importorskip("onnx", reason="the stand-in teacher is made with onnx: pip install 'mexma-rt[export]'")

from .string_model import save_string_model  # noqa: E402

WORDS = ["sun", "moon"]
TABLE = np.array([[1.0, 0, 2], [0, 10, 0]])
TEXTS = ["moon", "sun moon moon sun sun", "sun", "moon sun"]
VECTORS: list[list[float]] = [[0.0, 10, 0], [3, 20, 6], [1, 0, 2], [1, 10, 2]]


def test_an_onnx_file_gives_its_vectors_in_the_order_of_the_texts(tmp_path: Path) -> None:
    path = save_string_model(tmp_path / "words.onnx", WORDS, TABLE)
    teacher = open_teacher(path, threads=1)
    vectors, cut = teacher.embed(TEXTS)
    assert vectors.dtype == np.float32 and vectors.tolist() == VECTORS and cut == 0
    assert (teacher.name, teacher.sha256) == ("words.onnx", hashlib.sha256(path.read_bytes()).hexdigest())
    assert open_teacher(str(path)).embed([""])[0].tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(("name", "most"), [("BATCH_TEXTS", 1), ("BATCH_CHARACTERS", 4)])
def test_batches_have_a_limit_of_texts_and_one_of_characters(
    name: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that sees its neighbours tells who they were."""
    embed = open_teacher(save_string_model(tmp_path / "words.onnx", WORDS, TABLE, neighbours=1.0)).embed
    alone = [[2 * x for x in vector] for vector in VECTORS]  # the mean of a batch of one is that one
    assert embed(TEXTS)[0].tolist() != alone
    monkeypatch.setattr(teacher_model, name, most)
    assert embed(TEXTS)[0].tolist() == alone


def test_a_bundle_is_a_teacher_and_counts_what_it_cuts() -> None:
    teacher = open_teacher("mexma-small", threads=1)
    encoder = mexma_rt.load("mexma-small", threads=1)
    manifest = (encoder.bundle.folder / "mexma.json").read_bytes()
    assert (teacher.name, teacher.sha256) == ("mexma-small", hashlib.sha256(manifest).hexdigest())
    texts = ["A dog barks.", "", "word " * 3000]
    vectors, cut = teacher.embed(texts)
    with pytest.warns(mexma_rt.TruncationWarning):
        assert (vectors == encoder.embed(texts)).all()
    assert cut == 1


def test_a_file_that_is_no_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.onnx is not a file\. Check the name"):
        open_teacher(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(FileError, match=r"onnxruntime cannot open .*bad\.onnx: .*Copy or export it again"):
        open_teacher(tmp_path / "bad.onnx")
    ids = onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.FLOAT, ["n", 3])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["n", 3])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["ids"], ["out"])], "same", [ids], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "ids.onnx")
    with pytest.raises(InputError, match=r"is not a teacher: its inputs are ids tensor\(float\) \['n', 3\], .* make a bundle"):
        open_teacher(tmp_path / "ids.onnx")


def test_text_operators_that_are_missing_name_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = onnx.helper.make_tensor_value_info("texts", onnx.TensorProto.STRING, ["n"])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["n", 3])
    node = onnx.helper.make_node("SentencepieceTokenizer", ["texts"], ["out"], domain="ai.onnx.contrib")
    graph = onnx.helper.make_graph([node], "use", [texts], [out])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("ai.onnx.contrib", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "use.onnx")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "onnxruntime_extensions" else find(name, *rest)
    )
    with pytest.raises(
        MissingExtraError, match=r"onnxruntime_extensions is not installed.*\n    pip install 'mexma-rt\[teach\]'"
    ):
        open_teacher(tmp_path / "use.onnx")


def test_a_failing_batch_shows_a_text_of_it(tmp_path: Path) -> None:
    teacher = open_teacher(save_string_model(tmp_path / "words.onnx", WORDS, TABLE, unknown=99))  # no such row
    with pytest.raises(BackendError, match=r"words\.onnx failed in a batch of 1 texts like 'sun comet': "):
        teacher.embed(["sun comet"])
