"""mexma-export triton: the configurations are right by Triton's schema and by the files they describe.

No Triton server runs here. `SCHEMA` holds the names, numbers and types of the fields that we use, from
protobuf/model_config.proto of github.com/triton-inference-server/common, commit 08365ea (BSD-3-Clause, Copyright 2018-2024,
NVIDIA CORPORATION & AFFILIATES).
Where the package tritonclient is installed, its complete schema reads the files too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

protobuf = pytest.importorskip("google.protobuf", reason="reads the text format: pip install protobuf")
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format  # noqa: E402

from mexma_export.cli import main  # noqa: E402
from mexma_export.sidecar import write_sidecar  # noqa: E402
from mexma_export.triton import write_triton  # noqa: E402
from mexma_rt.backends.sidecar import Profile, Sidecar, TensorInfo  # noqa: E402
from mexma_rt.errors import BundleError, InputError  # noqa: E402

FIELD = descriptor_pb2.FieldDescriptorProto
# message -> (field, number, type; "*" is repeated); a type that is no scalar is a message or an enum of this table
SCHEMA = {
    "ModelConfig": [
        ("name", 1, "string"),
        ("backend", 17, "string"),
        ("max_batch_size", 4, "int32"),
        ("input", 5, "*ModelInput"),
        ("output", 6, "*ModelOutput"),
        ("instance_group", 7, "*ModelInstanceGroup"),
        ("default_model_filename", 8, "string"),
        ("dynamic_batching", 11, "ModelDynamicBatching"),
    ],
    "ModelInput": [("name", 1, "string"), ("data_type", 2, "DataType"), ("dims", 4, "*int64")],
    "ModelOutput": [("name", 1, "string"), ("data_type", 2, "DataType"), ("dims", 3, "*int64")],
    "ModelInstanceGroup": [("kind", 4, "Kind"), ("count", 2, "int32"), ("profile", 5, "*string")],
    "ModelDynamicBatching": [("preferred_batch_size", 1, "*int32"), ("max_queue_delay_microseconds", 2, "uint64")],
}
ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_INT32": 8, "TYPE_INT64": 9, "TYPE_FP16": 10, "TYPE_FP32": 11},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}


def published_fields() -> type[Any]:
    """The message ModelConfig, of SCHEMA."""
    file = descriptor_pb2.FileDescriptorProto(name="test_triton.proto", package="inference", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            added = message.field.add(name=field, number=number)
            added.label = FIELD.LABEL_REPEATED if kind.startswith("*") else FIELD.LABEL_OPTIONAL
            kind = kind.removeprefix("*")
            if kind in SCHEMA or kind in ENUMS:
                added.type = FIELD.TYPE_MESSAGE if kind in SCHEMA else FIELD.TYPE_ENUM
                added.type_name = f".inference.{kind}"
            else:
                added.type = FIELD.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def read(model: Path) -> Any:
    """Its config.pbtxt; an unknown field or a value of another type is an error."""
    text = (model / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, published_fields()())
    try:
        from tritonclient.grpc import model_config_pb2
    except (ImportError, RuntimeError):  # RuntimeError: tritonclient without its grpc part
        return config
    complete = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert complete.SerializeToString(deterministic=True) == config.SerializeToString(deterministic=True)
    return config


def tensors(rows: Any) -> list[tuple[str, int, list[int]]]:
    return [(row.name, row.data_type, list(row.dims)) for row in rows]


INPUTS = [("input_ids", 9, [-1]), ("attention_mask", 9, [-1])]
OUTPUTS = [("sentence_embedding", 11, [32]), ("last_hidden_state", 11, [-1, 32])]


def test_every_graph_is_a_model_that_its_configuration_describes(tiny_bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["triton", str(tiny_bundle), str(tmp_path / "models"), "--json"])
    assert result.exit_code == 0, result.output
    graphs = json.loads((tiny_bundle / "mexma.json").read_text(encoding="utf-8"))["graphs"]  # fp32, and int8 or mixed
    assert json.loads(result.stdout)["models"] == [f"tiny_onnx_{precision}" for precision in graphs]
    assert {path.name for path in (tmp_path / "models").iterdir()} == {f"tiny_onnx_{precision}" for precision in graphs}
    ids = np.array([[0, 5, 6, 2], [0, 7, 2, 1]])
    for precision, graph in graphs.items():
        name, kind = f"tiny_onnx_{precision}", 0 if precision == "fp32" else 2  # AUTO, CPU
        config = read(tmp_path / "models" / name)
        assert (config.name, config.backend, config.default_model_filename) == (name, "onnxruntime", Path(graph).name)
        assert config.max_batch_size == 32  # 16,384 tokens / 512
        assert config.HasField("dynamic_batching")
        assert [group.kind for group in config.instance_group] == [kind]
        assert tensors(config.input) == INPUTS and tensors(config.output) == OUTPUTS
        session = onnxruntime.InferenceSession(tmp_path / "models" / name / "1" / config.default_model_filename)
        types = {"tensor(int64)": 9, "tensor(float)": 11}
        for declared, there in [(config.input, session.get_inputs()), (config.output, session.get_outputs())]:
            found = [(t.name, types[t.type], [d if isinstance(d, int) else -1 for d in t.shape[1:]]) for t in there]
            assert tensors(declared) == found
            assert all(not isinstance(t.shape[0], int) for t in there)  # the batch, which the configuration leaves out
        wanted = onnxruntime.InferenceSession(tiny_bundle / graph)
        feed = {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64)}
        np.testing.assert_array_equal(session.run(None, feed)[0], wanted.run(None, feed)[0])


def test_the_schema_bites(tmp_path: Path) -> None:
    for text in ['name: "a" max_batch: 3', 'input { name: "a" data_type: TYPE_LONG }', "max_batch_size: many"]:
        (tmp_path / "config.pbtxt").write_text(text, encoding="utf-8")
        with pytest.raises(text_format.ParseError):
            read(tmp_path)


def with_engine(bundle: Path, *, graph_sha256: str, engine: str = "tensorrt") -> None:
    """Give a bundle bytes that stand for an engine, and the sidecar that the build would write."""
    path = bundle / "engines" / f"{engine}.engine"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"plan")
    io = [TensorInfo(name=name, dtype="int64", shape=(-1, -1)) for name in ("input_ids", "attention_mask")]
    out = [TensorInfo(name="sentence_embedding", dtype="float32", shape=(-1, 32))]
    sidecar = Sidecar(
        library=engine,
        version="10.14.1.48",
        sm=(89,),
        precision="fp16",
        matmuls=24,
        half_matmuls=24,
        counted_in="engine",
        profiles=tuple(Profile(batch=b, length=n) for b, n in [(1, 32), (512, 32), (128, 128), (32, 512)]),
        inputs=tuple(io),
        outputs=tuple(out),
        normalized=True,
        graph_sha256=graph_sha256,
        engine_sha256=hashlib.sha256(b"plan").hexdigest(),
        engine_bytes=4,
        build_seconds=1.0,
        built="2026-01-01T00:00:00+00:00",
    )
    write_sidecar(path, sidecar)


@pytest.fixture
def half_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle with nothing but its fp32 graph, called its fp16 graph: only names and hashes matter here."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "half"))
    manifest = json.loads((folder / "mexma.json").read_text(encoding="utf-8"))
    manifest["graphs"], manifest["default_precision"] = {"fp16": manifest["graphs"]["fp32"]}, "fp16"
    manifest["name"] = "mini v2/é"  # not a folder name of Triton's
    (folder / "mexma.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def test_an_engine_is_served_with_the_profiles_that_take_its_batch(half_bundle: Path, tmp_path: Path) -> None:
    graph = hashlib.sha256((half_bundle / "onnx/model.onnx").read_bytes()).hexdigest()
    with_engine(half_bundle, graph_sha256=graph)
    with_engine(half_bundle, graph_sha256=graph, engine="rtx")
    report = write_triton(half_bundle, tmp_path / "models")
    assert report.models == ("mini-v2_onnx_fp16", "mini-v2_tensorrt")
    assert report.left_out == ("the rtx engine: Triton's tensorrt back end opens engines of tensorrt, not of tensorrt_rtx",)
    model = tmp_path / "models" / "mini-v2_tensorrt"
    config = read(model)
    assert (config.backend, config.max_batch_size, config.default_model_filename) == ("tensorrt", 32, "model.plan")
    assert (model / "1" / "model.plan").read_bytes() == b"plan"
    # 32x512 is the longest; 1x32 does not take 32 rows, 512x32 and 128x128 do
    assert [(group.kind, list(group.profile)) for group in config.instance_group] == [(1, ["1", "2", "3"])]
    assert tensors(config.input) == INPUTS and tensors(config.output) == OUTPUTS[:1]
    text = (model / "config.pbtxt").read_text(encoding="utf-8")
    assert "Built by tensorrt 10.14.1.48 for SM 89: Triton must have this version." in text
    assert "sentence_embedding has length 1. Requests" in text and "last_hidden_state" not in text


def test_an_engine_of_another_graph_is_refused(half_bundle: Path, tmp_path: Path) -> None:
    with_engine(half_bundle, graph_sha256="0" * 64)
    with pytest.raises(BundleError, match="it holds another model's weights"):
        write_triton(half_bundle, tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["half"]
    assert write_triton(half_bundle, tmp_path / "models", precisions=["fp16"]).models == ("mini-v2_onnx_fp16",)


def test_weights_beside_the_graph_come_along(tiny_bundle: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="moves the weights out of a graph (pip: mexma-rt[export])")
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "large"))
    graph = folder / "onnx" / "model.onnx"
    onnx.save(onnx.load(graph), graph, save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    manifest = json.loads((folder / "mexma.json").read_text(encoding="utf-8"))
    for name in ("onnx/model.onnx", "onnx/model.onnx.data"):
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "mexma.json").write_text(json.dumps(manifest), encoding="utf-8")
    write_triton(folder, tmp_path / "models", precisions=["fp32"])
    shutil.rmtree(folder)
    session = onnxruntime.InferenceSession(tmp_path / "models" / "tiny_onnx_fp32" / "1" / "model.onnx")
    ids = np.array([[0, 5, 2]])
    assert np.isfinite(session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]).all()


def test_what_cannot_be_written(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no fp16 graph: it has fp32, \w+\. Name one of those\."):
        write_triton(tiny_bundle, tmp_path / "models", precisions=["fp16"])
    with pytest.raises(InputError, match="already exists"):
        write_triton(tiny_bundle, tmp_path)
    with pytest.raises(BundleError, match=r"(?s)is an XLM-R checkpoint.*\n    mexma-export "):
        write_triton(tiny_checkpoint, tmp_path / "models")
    for arguments, words in (([], "Missing argument 'REPOSITORY'"), ([str(tmp_path)], "already exists")):
        result = CliRunner().invoke(main, ["triton", str(tiny_bundle), *arguments])
        assert result.exit_code == 2 and words in result.stderr
    assert list(tmp_path.iterdir()) == []
