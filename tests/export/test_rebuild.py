"""A bundle's mixed graph holds the whole encoder: the checkpoint made of it gives the same vectors, and exports to the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="reads the checkpoint with torch (pip: mexma-rt[export])")

from mexma_export import Sentence, export_bundle  # noqa: E402
from mexma_export.cli import main  # noqa: E402
from mexma_export.rebuild import rebuild_checkpoint  # noqa: E402
from mexma_rt import BundleError, InputError, load  # noqa: E402
from mexma_rt.bundle.safetensors_folder import encoder_shapes  # noqa: E402


@pytest.fixture(scope="module")
def mixed_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    target = tmp_path_factory.mktemp("mixed") / "tiny"
    export_bundle(tiny_checkpoint, target, precisions=["mixed"], weights=False, sentences=rows)
    return target


def test_the_weights_are_the_sources_but_for_the_rounding(mixed_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    found = load_file(rebuild_checkpoint(mixed_bundle, tmp_path / "again") / "model.safetensors")
    source = load_file(tiny_checkpoint / "model.safetensors")
    assert found.keys() == source.keys()
    for name, array in found.items():
        assert array.dtype == np.float32 and array.shape == source[name].shape
        if "word_embeddings" in name:
            bound = np.abs(source[name]).max(axis=1, keepdims=True) / 254 * 1.001
        else:
            bound = np.abs(source[name]) * (2**-11 if array.ndim == 2 and "encoder" in name else 0) + 1e-7
        assert (np.abs(array - source[name]) <= bound).all(), name


def test_shapes_of_the_encoder_are_those_of_transformers() -> None:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(
        vocab_size=11, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=9, type_vocab_size=1,
    )  # fmt: skip
    model = XLMRobertaModel(config, add_pooling_layer=False)
    assert encoder_shapes(config.to_dict()) == {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_the_rebuilt_folder_is_one_of_sentence_transformers(mixed_bundle: Path, tmp_path: Path) -> None:
    folder = rebuild_checkpoint(mixed_bundle, tmp_path / "again")
    for name in ("modules.json", "1_Pooling/config.json", "2_Normalize/config.json", "tokenizer.json"):
        assert (folder / name).exists() == (mixed_bundle / name).exists(), name
        assert not (folder / name).is_file() or (folder / name).read_bytes() == (mixed_bundle / name).read_bytes()
    assert (folder / "modules.json").is_file() and (folder / "1_Pooling" / "config.json").is_file()


def test_the_rebuilt_checkpoint_exports_to_the_same_vectors(
    mixed_bundle: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    done = CliRunner().invoke(main, ["rebuild", str(mixed_bundle), str(tmp_path / "again"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"checkpoint": str(tmp_path / "again")}
    rows = [Sentence(lang=lang, text=text) for lang, text in sentences]
    report = export_bundle(tmp_path / "again", tmp_path / "bundle", precisions=["mixed"], sentences=rows, weights=False)
    assert report.parity["mixed"].min_cosine > 1 - 1e-9  # nothing is left to round
    texts = [text for _, text in sentences]
    np.testing.assert_allclose(load(tmp_path / "bundle").embed(texts), load(mixed_bundle).embed(texts), atol=1e-5)


def test_a_bundle_without_a_graph_of_weights_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no graph that holds the weights .*its graphs: fp32, int8"):
        rebuild_checkpoint(tiny_bundle, tmp_path / "again")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_another_configuration_is_refused(mixed_bundle: Path, tmp_path: Path) -> None:
    import hashlib
    import json

    folder = Path(shutil.copytree(mixed_bundle, tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    content = json.dumps(config | {"intermediate_size": 65}).encode()
    (folder / "config.json").write_bytes(content)
    manifest = json.loads((folder / "mexma.json").read_text())
    manifest["files"]["config.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "mexma.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"do not match its config\.json: encoder\.layer\.0\.intermediate\.dense\.bias"):
        rebuild_checkpoint(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()
