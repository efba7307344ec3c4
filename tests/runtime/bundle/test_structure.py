"""A bundle with a compact graph alone: the graphs of standard operators that are built from it, and its checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mexma_rt import BackendError, BundleError, FileError, InputError, load
from mexma_rt.bundle import buildable, built_graph, initialisers, open_bundle, read_tensor, weights_of, write_checkpoint
from mexma_rt.cli import main


@pytest.fixture(scope="module")
def compact_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    from mexma_export import Sentence, export_bundle

    target = tmp_path_factory.mktemp("compact") / "tiny"
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    export_bundle(tiny_checkpoint, target, precisions=["w8"], weights=False, sentences=rows)
    return target


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEXMA_RT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_compact_bundle_runs_in_a_precision_that_it_has_no_graph_of(
    precision: str, compact_bundle: Path, cache: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    pytest.importorskip("sentence_transformers", reason="the independent reference (pip: mexma-rt[bench])")
    from sentence_transformers import SentenceTransformer

    texts = [text for _, text in sentences]
    encoder = load(compact_bundle, precision=precision, device="cpu")
    assert encoder.backend.precision == precision and "built from the bundle's w8 graph" in encoder.backend.reason
    folder = write_checkpoint(open_bundle(compact_bundle), tmp_path / "checkpoint")
    wanted = SentenceTransformer(str(folder), device="cpu").encode(texts)  # the same rounded weights, by another library
    np.testing.assert_allclose(encoder.embed(texts), wanted, atol=2e-5 if precision == "fp32" else 4e-3)
    (built,) = cache.iterdir()
    before = (built / "weights.data").stat().st_mtime_ns
    load(compact_bundle, precision=precision, device="cpu")
    assert (built / "weights.data").stat().st_mtime_ns == before  # once


def test_the_torch_back_end_runs_a_compact_bundle_by_the_weights_of_its_graph(
    compact_bundle: Path, cache: Path, sentences: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an installation with torch and no other CUDA would leave the bundled model on the CPU."""
    pytest.importorskip("torch", reason="the torch back end (pip: mexma-rt[torch])")
    texts = [text for _, text in sentences]
    encoder = load(compact_bundle, backend="torch", device="cpu")
    np.testing.assert_allclose(
        encoder.embed(texts), load(compact_bundle, precision="fp32", device="cpu").embed(texts), atol=2e-5
    )
    assert "with the weights of the bundle's w8 graph; 5 golden sentences: lowest cosine" in encoder.backend.reason
    monkeypatch.setattr("mexma_rt.backends.torch.weights_of", shuffled)
    with pytest.raises(BackendError, match="torch computes wrong vectors in fp32 on cpu"):
        load(compact_bundle, backend="torch", device="cpu")


def shuffled(graph: Path, **options: bool) -> Iterator[tuple[str, np.ndarray]]:
    for name, numbers in weights_of(graph, **options):
        yield name, numbers[:, ::-1] if name.endswith("layer.1.output.dense.weight") else numbers


def test_the_built_graph_has_standard_operators_only(compact_bundle: Path, cache: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="reads the graph (pip: mexma-rt[export])")
    path = built_graph(open_bundle(compact_bundle), "fp32")
    onnx.checker.check_model(str(path), full_check=True)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}


@pytest.mark.parametrize("damage", ["cut", "changed", "absent"])
def test_what_is_damaged_in_the_cache_is_written_again(damage: str, compact_bundle: Path, cache: Path) -> None:
    bundle = open_bundle(compact_bundle)
    data = built_graph(bundle, "fp32").with_name("weights.data")
    content = data.read_bytes()
    if damage == "absent":
        data.unlink()
    else:
        data.write_bytes(content[:-7] if damage == "cut" else b"\1" + content[1:])
    assert built_graph(bundle, "fp32").with_name("weights.data").read_bytes() == content
    assert [path.name for path in cache.iterdir()] == [data.parent.name]


def test_a_cache_that_cannot_be_written_says_where_to_point_it(
    compact_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MEXMA_RT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FileError, match=r"set the environment variable MEXMA_RT_CACHE to another folder\."):
        built_graph(open_bundle(compact_bundle), "fp32")


def test_wrong_numbers_of_a_built_graph_are_found(compact_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mexma_rt.bundle import structure

    monkeypatch.setattr(structure, "weights_of", shuffled)
    with pytest.raises(BackendError, match="computes wrong vectors in fp32 on cpu"):
        load(compact_bundle, precision="fp32", device="cpu")


def test_a_precision_that_cannot_be_built_is_refused_as_before(tiny_bundle: Path) -> None:
    assert buildable(open_bundle(tiny_bundle)) == ()
    with pytest.raises(BackendError, match="precision='fp16' is not in the bundle"):
        load(tiny_bundle, precision="fp16", device="cpu")


def test_the_checkpoint_folder_loads_in_sentence_transformers(
    compact_bundle: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    pytest.importorskip("sentence_transformers", reason="loads the folder (pip: mexma-rt[bench])")
    from safetensors.numpy import load_file
    from sentence_transformers import SentenceTransformer

    command = ["models", "--checkpoint", str(tmp_path / "st"), "--model", str(compact_bundle)]
    result = CliRunner().invoke(main, [*command, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"model": "tiny", "checkpoint": str(tmp_path / "st")}
    texts = [text for _, text in sentences]
    got = SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(texts)
    assert (got * load(compact_bundle, device="cpu").embed(texts)).sum(axis=1).min() > 0.999
    arrays = load_file(tmp_path / "st" / "model.safetensors")
    assert arrays["embeddings.word_embeddings.weight"].shape == (322, 32)
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 1 and "already exists. Name another folder, or delete it first." in again.stderr


def test_a_bundle_without_weights_by_name_has_no_checkpoint(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (folder / "model.safetensors").unlink()
    from mexma_rt.bundle import read_manifest

    with pytest.raises(InputError, match="has no graph that holds the weights under their names"):
        write_checkpoint(read_manifest(folder), tmp_path / "target")
    assert not list(tmp_path.glob("*target*"))


def test_tensors_are_read_as_the_onnx_library_reads_them(compact_bundle: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the reference reader (pip: mexma-rt[export])")
    path = compact_bundle / "onnx/model_w8.onnx"
    held = {t.name: t for t in onnx.load(path).graph.initializer}
    found = initialisers(path)
    assert found.keys() == held.keys()
    for name, tensor in held.items():
        if tensor.data_type in (1, 2, 3, 10):
            np.testing.assert_array_equal(read_tensor(path, found[name]), onnx.numpy_helper.to_array(tensor))
    (tmp_path / "no.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(BundleError, match="is not an ONNX file"):
        initialisers(tmp_path / "no.onnx")
