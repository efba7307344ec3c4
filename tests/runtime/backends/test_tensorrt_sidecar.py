"""The JSON beside an engine: every reason to refuse an engine before it is opened. (tests/export has the writing.)"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mexma_rt.backends.sidecar import (
    Profile,
    Sidecar,
    TensorInfo,
    check_sidecar,
    graph_hash,
    manifest_graph_hash,
    read_sidecar,
    sidecar_path,
)
from mexma_rt.bundle.manifest import Bundle, FileEntry
from mexma_rt.errors import BackendError, BundleError, FileError

PLAN = b"an engine, as far as a sidecar knows" * 100
GRAPH_SHA = "ab" * 32
HERE: dict[str, Any] = {"library": "tensorrt_rtx", "version": "1.7.1.116", "sm": 89, "graph_sha256": GRAPH_SHA}


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "rtx.engine"
    path.write_bytes(PLAN)
    content = {"format": "mexma-engine", "format_version": 2} | dataclasses.asdict(made())
    sidecar_path(path).write_text(json.dumps(content))
    return path


def made(**changes: Any) -> Sidecar:
    fields: dict[str, Any] = {
        "library": "tensorrt_rtx",
        "version": "1.7.1.116",
        "sm": (86, 89),
        "precision": "fp16",
        "matmuls": 24,
        "half_matmuls": 23,
        "counted_in": "network",
        "profiles": (Profile(batch=1, length=16), Profile(batch=32, length=64)),
        "inputs": (TensorInfo(name="input_ids", dtype="int64", shape=(-1, -1)),),
        "outputs": (TensorInfo(name="sentence_embedding", dtype="float32", shape=(-1, 32)),),
        "normalized": True,
        "graph_sha256": GRAPH_SHA,
        "engine_sha256": hashlib.sha256(PLAN).hexdigest(),
        "engine_bytes": len(PLAN),
        "build_seconds": 1.5,
        "built": "2026-11-22T18:00:00+00:00",
    }
    return Sidecar(**(fields | changes))


def change(engine: Path, **changes: Any) -> None:
    path = sidecar_path(engine)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not ...}))


def test_every_field_is_read(engine: Path) -> None:
    assert sidecar_path(engine).name == "rtx.engine.json"
    assert read_sidecar(engine) == made()


def test_the_engine_of_this_place_passes(engine: Path) -> None:
    for sm in (86, 89):
        check_sidecar(read_sidecar(engine), engine, **(HERE | {"sm": sm}))
    check_sidecar(read_sidecar(engine), engine, **(HERE | {"graph_sha256": None}))


REFUSED = [
    (
        {"library": "tensorrt"},
        BackendError,
        r"an engine of tensorrt_rtx, but was given to tensorrt\..* engine BUNDLE tensorrt$",
    ),
    (
        {"version": "1.8.0.1"},
        BackendError,
        r"built by tensorrt_rtx 1\.7\.1\.116, but 1\.8\.0\.1 is installed(?s:.*)pip install 'tensorrt-rtx-cu13==1\.7\.1\.116'$",
    ),
    ({"sm": 90}, BackendError, r"built for SM 86, 89, but this GPU has SM 90\. .* mexma-export engine BUNDLE rtx --sm 90$"),
    ({"graph_sha256": "cd" * 32}, BundleError, f"SHA-256 {GRAPH_SHA}, but the graph here has {'cd' * 32}"),
]


@pytest.mark.parametrize(("here", "error", "words"), REFUSED)
def test_an_engine_of_another_place_is_refused_with_both_values(
    engine: Path, here: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        check_sidecar(read_sidecar(engine), engine, **(HERE | here))


def test_damaged_bytes_are_refused(engine: Path) -> None:
    flipped = PLAN[:50] + bytes([PLAN[50] ^ 1]) + PLAN[51:]
    engine.write_bytes(flipped)
    both = f"SHA-256 {hashlib.sha256(flipped).hexdigest()}, but rtx.engine.json says {hashlib.sha256(PLAN).hexdigest()}"
    with pytest.raises(BundleError, match=both):
        check_sidecar(read_sidecar(engine), engine, **HERE)
    engine.write_bytes(PLAN[:-1])
    with pytest.raises(BundleError, match=f"has {len(PLAN) - 1} bytes, but rtx.engine.json says {len(PLAN)}: it is truncated"):
        check_sidecar(read_sidecar(engine), engine, **HERE)


def test_missing_files(engine: Path) -> None:
    sidecar_path(engine).unlink()
    with pytest.raises(FileError, match=r"has no rtx\.engine\.json beside it.*mexma-export engine BUNDLE"):
        read_sidecar(engine)
    with pytest.raises(FileError, match=r"none\.engine: no such engine\. Build it again"):
        read_sidecar(engine.with_name("none.engine"))


@pytest.mark.parametrize("text", ["", "[1", "\x00", '"words"', "[]", "{}", '{"format": "mexma-bundle"}'])
def test_another_file_is_no_sidecar(engine: Path, text: str) -> None:
    sidecar_path(engine).write_text(text)
    with pytest.raises(BundleError, match=r"rtx\.engine\.json: not (valid JSON|the description of an engine)"):
        read_sidecar(engine)


DAMAGED = [
    ({"format_version": 1}, "format version 1, but this mexma-rt reads 2. Build it again"),
    ({"format_version": 3}, "format version 3, but this mexma-rt reads 2"),
    ({"normalized": 1}, "normalized is 1"),
    ({"version": ...}, "'version' is missing. The file was changed or truncated"),
    ({"version": 11}, "version is 11"),
    ({"sm": []}, r"sm is \[\]"),
    ({"sm": ["89"]}, r"sm is \['89'\]"),
    ({"sm": [True]}, r"sm is \[True\]"),
    ({"matmuls": True}, "matmuls is True"),
    ({"profiles": [{"batch": 1}]}, "'length' is missing"),
    ({"profiles": [16]}, r"profiles is \[16\]"),
    ({"inputs": [{"name": "input_ids", "dtype": "int64", "shape": "-1"}]}, "shape is '-1'"),
    ({"engine_bytes": 1.5}, r"engine_bytes is 1\.5"),
]


@pytest.mark.parametrize(("changes", "words"), DAMAGED)
def test_a_damaged_sidecar_names_what_is_wrong(engine: Path, changes: dict[str, Any], words: str) -> None:
    change(engine, **changes)
    with pytest.raises(BundleError, match=words):
        read_sidecar(engine)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Sidecar)])
def test_no_field_may_be_missing_or_null(engine: Path, field: str) -> None:
    change(engine, **{field: ...})
    with pytest.raises(BundleError, match=f"'{field}' is missing"):
        read_sidecar(engine)
    change(engine, **{field: None})
    with pytest.raises(BundleError, match=f"{field} is None"):
        read_sidecar(engine)


def test_the_graph_hash_sees_the_weights_of_a_second_file(tmp_path: Path) -> None:
    graph, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    graph.write_bytes(b"graph")
    alone = graph_hash(graph)
    assert alone == hashlib.sha256(b"graph").hexdigest()  # the manifest's hash of the file
    data.write_bytes(b"weights")
    first = graph_hash(graph)
    data.write_bytes(b"others!")
    assert len({alone, first, graph_hash(graph)}) == 3


def test_the_manifests_hashes_give_the_graph_hash(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"graph")
    (tmp_path / "b.onnx").write_bytes(b"graph")
    (tmp_path / "b.onnx.data").write_bytes(b"weights")
    names = ["a.onnx", "b.onnx", "b.onnx.data"]
    hashes = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names}
    bundle = Bundle(
        folder=tmp_path,
        name="toy",
        dimensions=1,
        max_length=3,
        max_length_limit=3,
        default_precision="fp32",
        graphs={"fp32": "a.onnx", "fp16": "b.onnx"},
        files={name: FileEntry(sha256=sha, bytes=0) for name, sha in hashes.items()},
        parity={},
        source={},
    )
    assert manifest_graph_hash(bundle, "fp32") == graph_hash(tmp_path / "a.onnx") == hashes["a.onnx"]
    assert manifest_graph_hash(bundle, "fp16") == graph_hash(tmp_path / "b.onnx") != hashes["b.onnx"]
