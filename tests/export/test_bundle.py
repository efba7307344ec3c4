"""What a bundle folder holds, and what export_bundle refuses before any work."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mexma_export import THRESHOLDS, ParityError, Sentence, Thresholds, export_bundle
from mexma_rt.errors import BundleError, FileError, InputError


def test_manifest_lists_every_file_with_its_size_and_hash(tiny_bundle: Path) -> None:
    manifest = json.loads((tiny_bundle / "mexma.json").read_text(encoding="utf-8"))
    found = {p.relative_to(tiny_bundle).as_posix(): p for p in tiny_bundle.rglob("*") if p.is_file()}
    del found["mexma.json"]
    assert set(manifest["files"]) == set(found)
    for name, path in found.items():
        content = path.read_bytes()
        assert manifest["files"][name] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_manifest_says_what_the_runtime_needs(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    manifest = json.loads((tiny_bundle / "mexma.json").read_text(encoding="utf-8"))
    weights = hashlib.sha256((tiny_checkpoint / "model.safetensors").read_bytes()).hexdigest()
    wanted = {
        "format": "mexma-bundle",
        "format_version": 1,
        "name": "tiny",
        "dimensions": 32,
        "max_length": 128,
        "max_length_limit": 512,
        "pooling": "cls",
        "default_precision": "int8",
        "languages": [],
        "source": {"name": "tiny", "sha256": weights},
        "graphs": {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"},
    }
    assert {key: manifest[key] for key in wanted} == wanted
    for precision, floor in [("fp32", 0.99999), ("int8", 0.995)]:
        summary = manifest["parity"][precision]
        assert summary["passed"] is True and summary["sentences"] == 20
        assert floor <= summary["min_cosine"] <= summary["mean_cosine"] <= 1 + 1e-9
    assert all(manifest["created"].values())
    full = json.loads((tiny_bundle / "parity.json").read_text(encoding="utf-8"))
    assert full["int8"]["buckets"].keys() == {"2", "8", "16", "32", "64", "128", "256", "512"}
    assert len(full["int8"]["by_language"]) == manifest["parity"]["int8"]["languages"]


def test_no_machine_path_is_in_the_text_files(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    for path in [*tiny_bundle.glob("*.json"), *tiny_bundle.glob("*/*.json")]:
        text = path.read_text(encoding="utf-8")
        assert str(tiny_checkpoint.parent) not in text and str(tiny_bundle.parent) not in text


def test_int8_alone_without_weights(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    stages: list[str] = []
    report = export_bundle(
        tiny_checkpoint,
        tmp_path / "small",
        precisions=["int8"],
        weights=False,
        max_length=64,
        sentences=[Sentence(lang=lang, text=text) for lang, text in sentences],
        progress=lambda stage, done, total: stages.append(stage),
    )
    folder = tmp_path / "small"
    assert not (folder / "onnx/model.onnx").exists() and not (folder / "model.safetensors").exists()
    assert (folder / "onnx/model_int8.onnx").read_bytes() == (tiny_bundle / "onnx/model_int8.onnx").read_bytes()
    manifest = json.loads((folder / "mexma.json").read_text(encoding="utf-8"))
    assert manifest["graphs"] == {"int8": "onnx/model_int8.onnx"} and list(manifest["parity"]) == ["int8"]
    assert manifest["max_length"] == 64
    assert json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"] == 64
    assert (report.default_precision, report.reason) == ("int8", "fastest on CPU, and its parity gate passed")
    assert list(dict.fromkeys(stages)) == [
        "load checkpoint",
        "owner's code",
        "export int8",
        "sensitivity of int8",
        "parity gate",
        "write files",
        "fresh process",
        "hash files",
    ]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precisions": ["int4"]}, "Unknown precision 'int4': choose from fp32, fused, int8, mixed, w8, w4, fp16."),
        ({"precisions": "fp32"}, r"Precisions must be a list without duplicates from fp32, .* Type --precision "),
        ({"precisions": []}, r"Precisions must be a list without duplicates from fp32, .* Type --precision "),
        ({"precisions": ["int8"], "default_precision": "fp32"}, r"'fp32' is not among .* Type --precision int8,fp32"),
        ({"max_length": 513}, r"max length 513 is outside 3 to 512: the position table has rows for 512 tokens"),
        ({"opset": 17}, r"Opset 17 is outside 18 to 23, which this export can write"),
        ({"opset": 24}, r"Opset 24 is outside 18 to 23.*Omit --opset to get 18"),
        ({"opset": "18"}, r"Opset '18' is outside"),
        ({"opset": 20, "precisions": ["int8"]}, r"Opset 20 applies to the fp32 and fp16 graphs, but neither is exported"),
        ({"max_length": 2}, r"max length 2 is outside 3 to 512"),
    ],
)
def test_bad_arguments(tiny_checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_exporter_that_breaks_is_one_clear_error(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("unsupported operator aten::new\nand a page of graph")

    monkeypatch.setattr("mexma_export.rows.save_graph", broken)
    with pytest.raises(
        BundleError, match=r"^Writing the int8 graph failed: unsupported operator aten::new\. .*--precision fp32"
    ):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", precisions=["int8"])
    assert list(tmp_path.iterdir()) == []


def test_default_precision_rule() -> None:
    from mexma_export.bundle import _default_precision

    assert _default_precision(["fp32", "mixed"], None) == ("mixed", "smallest of those exported, and its parity gate passed")
    assert _default_precision(["fp32"], None) == ("fp32", "no graph made for the CPU was exported")
    assert _default_precision(["fp32", "fused"], None)[0] == "fused"
    assert _default_precision(["fp32", "int8"], None)[0] == "int8"
    assert _default_precision(["fp32", "int8"], "fp32") == ("fp32", "asked for")


def test_the_default_length_is_the_owners_or_128_within_the_table() -> None:
    from mexma_export.bundle import _length

    assert [_length(None, 512, None), _length(None, 512, 200), _length(None, 512, 514), _length(None, 64, None)] == [
        *(128, 200, 512, 64)
    ]
    assert _length(77, 512, 200) == 77


def test_mixed_takes_the_place_of_an_int8_that_fails_only_where_none_was_named(
    tiny_checkpoint: Path, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    strict = dict(THRESHOLDS) | {"int8": Thresholds(min_cosine=0.999999, mean_cosine=0.999999)}
    report = export_bundle(tiny_checkpoint, tmp_path / "auto", sentences=rows, thresholds=strict, weights=False)
    assert list(report.parity) == ["fp32", "mixed"] and report.default_precision == "mixed"
    assert report.reason.startswith("instead of int8, which failed its parity gate: lowest cosine 0.99")
    assert sorted(path.name for path in (tmp_path / "auto" / "onnx").iterdir()) == ["model.onnx", "model_mixed.onnx"]
    saved = json.loads((tmp_path / "auto" / "parity.json").read_text())
    assert saved["refused"]["int8"]["passed"] is False and saved["mixed"]["passed"] is True
    with pytest.raises(ParityError, match="The int8 graph does not reproduce"):
        export_bundle(tiny_checkpoint, tmp_path / "named", precisions=["int8"], sentences=rows, thresholds=strict)
    with pytest.raises(InputError, match="The default precision 'int8' is not in the bundle: lowest cosine"):
        export_bundle(
            tiny_checkpoint, tmp_path / "wanted", sentences=rows, thresholds=strict, default_precision="int8", weights=False
        )
    assert [path.name for path in tmp_path.iterdir()] == ["auto"]


def test_missing_parent_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no such folder\. Create it first: mkdir -p"):
        export_bundle(tiny_checkpoint, tmp_path / "no" / "bundle")


def test_a_target_that_cannot_be_written(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *arguments: object, **keywords: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(FileError, match=r"cannot write there \(Permission denied\)\. Choose another place"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")


def test_an_untrimmed_bundle_says_nothing_of_its_vocabulary(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    assert "vocabulary" not in json.loads((tiny_bundle / "mexma.json").read_text(encoding="utf-8"))
    weights = (tiny_checkpoint / "model.safetensors").read_bytes()
    assert (tiny_bundle / "model.safetensors").read_bytes() == weights


def test_a_graph_that_does_not_open_in_a_fresh_process_is_no_bundle(tmp_path: Path) -> None:
    from mexma_export.reopen import check_in_fresh_process

    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(np.arange(99, dtype=np.uint8).tobytes())
    with pytest.raises(BundleError, match=r"the exported graphs do not run in a fresh process: .*model\.onnx"):
        check_in_fresh_process(tmp_path)
