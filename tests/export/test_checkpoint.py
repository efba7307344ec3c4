"""Checkpoint folders that cannot be exported are refused with what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="checkpoints are loaded with torch (pip: mexma-rt[export])")

from mexma_export.checkpoint import load_checkpoint
from mexma_export.precisions import torch_runner
from mexma_rt.errors import BundleError, FileError

from .. import forms

CLS, sentence_transformers = forms.CLS, forms.sentence_transformers


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def refuse(folder: Path | str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        load_checkpoint(folder)


def test_a_good_folder_loads(tiny_checkpoint: Path) -> None:
    import torch

    checkpoint = load_checkpoint(tiny_checkpoint)
    assert (checkpoint.name, checkpoint.dimensions, checkpoint.max_length_limit) == ("tiny", 32, 512)
    assert not checkpoint.model.training
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.float32}


def test_languages_are_those_of_the_config_or_of_a_known_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_checkpoint(folder).languages == []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(folder))
    assert len(load_checkpoint("facebook/MEXMA").languages) == 81
    change_config(folder, languages=["eng", "fra"])
    assert load_checkpoint(folder).languages == load_checkpoint("facebook/MEXMA").languages == ["eng", "fra"]
    change_config(folder, languages="fra")
    assert load_checkpoint(folder).languages == []


def test_names_that_are_no_folder_never_reach_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("went to the hub"))
    for name in ["nothing", "runs/mni", "/no/such/folder", "a/b/c"]:
        refuse(name, FileError, "no such checkpoint folder. Give a folder with config.json")


def test_a_file_and_a_bundle_are_told_from_a_checkpoint(tiny_bundle: Path, tmp_path: Path) -> None:
    refuse(tiny_bundle / "tokenizer.json", FileError, f"is a file. Name the folder that it is in: {tiny_bundle}")
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / "model.safetensors").unlink()
    refuse(bundle, FileError, "is a bundle without weights, and an export needs them. Name the checkpoint that the bundle")


def test_a_hub_name_fetches_safe_files_only(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **keywords: Any) -> str:
        asked.update(keywords, name=name)
        return str(tiny_checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_checkpoint("some-lab/mexma", revision="v1").name == "some-lab/mexma"
    assert asked == {
        "name": "some-lab/mexma",
        "revision": "v1",
        "allow_patterns": [
            *("config.json", "model.safetensors", "tokenizer.json", "README.md"),
            *("model-*.safetensors", "model.safetensors.index.json", "*_Dense/model.safetensors"),
            *("modules.json", "*/config.json", "sentence_*_config.json"),  # which say how the model pools and where it cuts
            *("config_sentence_transformers.json", "tokenizer_config.json", "special_tokens_map.json"),
            *("sentencepiece.bpe.model", "vocab.txt"),  # for the line that is advised where tokenizer.json is missing
        ],
    }


def test_missing_files(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "hidden")
    refuse(folder, FileError, r"tokenizer\.json is missing")
    (folder / "hidden").rename(folder / "tokenizer.json")
    (folder / "model.safetensors").unlink()
    refuse(folder, FileError, r"model\.safetensors is missing")
    (folder / "config.json").unlink()
    refuse(folder, FileError, r"config\.json is missing, so this is not a checkpoint folder")


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuse(
        folder, BundleError, r"only pickled weights \(pytorch_model\.bin\), which are refused because a pickle can run any code"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "nomic_bert"}, r"model_type is 'nomic_bert': rotary positions\. Supported are the encoders"),
        ({"model_type": "qwen3"}, r"model_type is 'qwen3': a decoder\. Supported are the encoders"),
        ({"is_decoder": True}, r"is_decoder or add_cross_attention is set, but a decoder has no sentence vector"),
        ({"architectures": ["XLMRobertaForSequenceClassification"]}, r"is a classifier or cross-encoder .*scores pairs"),
        ({"position_embedding_type": "relative_key"}, r"position_embedding_type is 'relative_key'"),
        ({"hidden_act": "relu"}, r"hidden_act is 'relu', but the encoders known here have 'gelu'"),
        ({"pad_token_id": 0}, r"pad_token_id is 0, but the tokenizer pads with 1, and XLM-R counts positions from that id"),
        ({"vocab_size": 9999}, r"tokenizer\.json has 322 pieces, but config\.json says vocab_size 9999"),
        ({"vocab_size": 300}, r"tokenizer\.json has 322 pieces, but config\.json says vocab_size 300"),
        ({"vocab_size": 328}, r"word_embeddings\.weight has the shape \(322, 32\), but config\.json says \(328, 32\)"),
        (
            {"num_hidden_layers": 4},
            r"the weights lack 16 tensors of the encoder in config\.json \(first: encoder\.layer\.3",
        ),
        ({"hidden_size": None}, r"no number for hidden_size"),
        ({"num_hidden_layers": 0}, r"no number for num_hidden_layers"),
        ({"num_attention_heads": -4}, r"no number for num_attention_heads"),
        ({"num_attention_heads": 5}, r"hidden_size 32 cannot be divided evenly among 5 attention heads"),
        ({"layer_norm_eps": "1e-5"}, r"config\.json: a setting cannot be used: .*layer_norm_eps"),
        ({"model_type": ["bert"]}, r"model_type is \['bert'\]\. Supported are the encoders"),
        ({"architectures": "XLMRobertaForSequenceClassification"}, r"XLMRobertaForSequenceClassification is a classifier or"),
    ],
)
def test_wrong_configs(folder: Path, change: dict[str, Any], message: str) -> None:
    change_config(folder, **change)
    refuse(folder, BundleError, message)


def test_damaged_files(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1000])
    refuse(folder, BundleError, "the weights do not load: .*damaged or was not copied whole")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    refuse(folder, BundleError, "not a readable tokenizer")
    (folder / "config.json").write_text("{", encoding="utf-8")
    refuse(folder, BundleError, "not valid JSON")


def test_nan_weights(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refuse(folder, BundleError, r"NaN or infinite numbers in encoder\.layer\.1\.output\.dense\.bias. Training diverged")


def test_tokenizers_of_another_kind(folder: Path) -> None:
    path = folder / "tokenizer.json"
    before = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(before) | {"post_processor": None}), encoding="utf-8")
    refuse(folder, BundleError, r"an empty text gives the ids \[\], but a sentence needs one token before and one after it")
    path.write_text(before.replace("<pad>", "<padding>"), encoding="utf-8")
    refuse(
        folder,
        BundleError,
        r"nothing says which token is for padding \(there is no <pad> or \[PAD\]\)\. Put \"pad_token\" into",
    )


def test_truncation_and_padding_in_the_file_are_switched_off(folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert len(load_checkpoint(folder).tokenizer.encode("The children were playing near the river.").ids) > 8
    assert load_checkpoint(folder).tokenizer.encode("").ids == [0, 2]


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        (
            {"pooling_mode_lasttoken": True},
            (),
            "ask for the pooling lasttoken, but the graphs support only cls or mean, one of them",
        ),
        ({"pooling_mode": "weightedmean"}, ("Normalize",), "ask for the pooling weightedmean, but"),
        ({"pooling_mode": "first_and_last"}, ("Normalize",), "ask for the pooling first_and_last, but"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, (), "ask for the pooling cls, max"),
        ({}, (), "ask for the pooling none"),
        ({"pooling_mode_cls_token": True}, ("LSTM",), "names the module LSTM, which this export does not support"),
        ({"pooling_mode_cls_token": True}, ("Normalize", "Dense"), "has the modules Transformer, Pooling, Normalize, Dense in"),
        ({"pooling_mode_cls_token": True}, ("Dense",), r"2_Dense/config\.json"),
        (None, (), r"the pooling that it describes cannot be read .*Copy the whole folder again"),
    ],
)
def test_another_pooling_than_that_of_the_graphs(
    folder: Path, pooling: dict[str, object] | None, more: tuple[str, ...], message: str
) -> None:
    sentence_transformers(folder, pooling, *more)
    with pytest.raises(BundleError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}]
)
def test_the_pooling_of_the_graphs_is_taken(folder: Path, pooling: dict[str, object]) -> None:
    sentence_transformers(folder, pooling, "Normalize")
    assert load_checkpoint(folder).dimensions == 32


@pytest.mark.parametrize(
    ("pooling", "more", "files", "message"),
    [
        (CLS | {"include_prompt": False}, ("Normalize",), {}, r"include_prompt false\. .*leaves the prompt's tokens out"),
        (
            CLS,
            ("Normalize",),
            {"sentence_bert_config.json": {"do_lower_case": True}},
            r"do_lower_case true\. .*converts every text to lower case",
        ),
        (
            CLS,
            ("Normalize",),
            {"config_sentence_transformers.json": {"prompts": {"q": "query: "}, "default_prompt_name": "q"}},
            "default_prompt_name 'q'. This model's encode puts a prompt before texts",
        ),
        (
            CLS,
            ("Normalize",),
            {"config_sentence_transformers.json": {"prompts": {"q": "query: "}, "default_prompt_name": "passage"}},
            "default_prompt_name is 'passage', but the prompts are q",
        ),
        (CLS, ("Normalize", "Normalize"), {}, "has the modules Transformer, Pooling, Normalize, Normalize in this order"),
    ],
)
def test_what_the_owners_encode_would_do_and_the_bundle_not(
    folder: Path, pooling: dict[str, object], more: tuple[str, ...], files: dict[str, object], message: str
) -> None:
    sentence_transformers(folder, pooling, *more)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    refuse(folder, BundleError, message)


@pytest.mark.parametrize(
    ("name", "asks", "remedy", "said"),
    [
        (
            "config_sentence_transformers.json",
            {"prompts": {"q": "query: "}, "default_prompt_name": "q"},
            {"prompts": {"q": "query: "}, "default_prompt_name": None},
            r"replace it with null \(config_sentence_transformers\.json\), and name the prompt .*prompt='q'\)",
        ),
        (
            "1_Pooling/config.json",
            CLS | {"include_prompt": False},
            CLS | {"include_prompt": True},
            r"replace it with true \(1_Pooling/config\.json\), and delete the prompts from config_sentence_transformers",
        ),
        (
            "sentence_bert_config.json",
            {"do_lower_case": True, "max_seq_length": 96},
            {"do_lower_case": False, "max_seq_length": 96},
            r'replace it with false, and put "normalizer": \{"type": "Lowercase"\}',
        ),
    ],
)
def test_what_is_advised_gives_the_owners_vectors(
    folder: Path, name: str, asks: dict[str, object], remedy: dict[str, object], said: str, sentences: list[tuple[str, str]]
) -> None:
    peer = pytest.importorskip("sentence_transformers", reason="the owner's code (pip: mexma-rt[bench])")
    texts = [text for _, text in sentences]
    sentence_transformers(folder, CLS, "Normalize")
    (folder / "tokenizer_config.json").write_text(json.dumps(forms.TOKENIZER_CONFIG))
    (folder / name).write_text(json.dumps(asks))
    owner = peer.SentenceTransformer(str(folder), device="cpu").encode(texts)
    refuse(folder, BundleError, f"In a copy of the folder, {said}")
    (folder / name).write_text(json.dumps(remedy))
    if "do_lower_case" in asks:
        content = json.loads((folder / "tokenizer.json").read_text())
        steps = [{"type": "Lowercase"}, *([content["normalizer"]] if content["normalizer"] else [])]
        (folder / "tokenizer.json").write_text(json.dumps(content | {"normalizer": {"type": "Sequence", "normalizers": steps}}))
    checkpoint = load_checkpoint(folder)
    before = checkpoint.pipeline.prompts.get("q", "")
    ids = [checkpoint.tokenizer.encode(before + text.strip()).ids for text in texts]
    ours = np.concatenate([torch_runner(checkpoint)(np.array([row]), np.ones((1, len(row)), np.int64))[0] for row in ids])
    np.testing.assert_allclose(ours / np.linalg.norm(ours, axis=1, keepdims=True), owner, atol=1e-5)


def test_a_pooling_folder_without_modules_json(folder: Path) -> None:
    sentence_transformers(folder, {"pooling_mode_mean_tokens": True})
    (folder / "modules.json").unlink()
    refuse(folder, BundleError, r"has a folder 1_Pooling but no modules\.json, so nothing says how this model computes")


@pytest.mark.parametrize(
    ("settings", "tokenizer", "length"),
    [
        ({"max_seq_length": 200, "do_lower_case": False}, {}, 200),
        ({"max_seq_length": None}, {"model_max_length": 77}, 77),
        ({}, {"model_max_length": 10**30}, None),
    ],
)
def test_the_length_is_that_of_the_folder(
    folder: Path, settings: dict[str, object], tokenizer: dict[str, object], length: int | None
) -> None:
    sentence_transformers(folder, CLS, "Normalize")
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert load_checkpoint(folder).pipeline.max_length == length


@pytest.mark.parametrize("length", [0, 2, -5, "64", [64], True])
def test_a_length_that_no_text_has(length: object, folder: Path) -> None:
    sentence_transformers(folder, CLS)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    with pytest.raises(BundleError, match=r"its settings cut texts after .* tokens, but at least 3 are needed"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [1, None, {"content": [1]}, {"content": "<pad>"}])
def test_the_name_of_padding_in_other_types(name: object, folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": name}))
    assert load_checkpoint(folder).special_ids.pad == 1


def test_an_adapter_beside_the_weights(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(BundleError, match=r"adapter_config\.json: an adapter lies beside the weights, .*merge_and_unload"):
        load_checkpoint(folder)


def test_prompts_that_encode_does_not_apply_are_no_hindrance(folder: Path) -> None:
    sentence_transformers(folder, CLS, "Normalize")
    prompts = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "document"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert load_checkpoint(folder).pipeline.prompts == {"query": "query: "}


def test_a_layer_more_than_config_json_says(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] - 1}))
    with pytest.raises(BundleError, match=r"hold 16 tensors for which config\.json has no place \(first: encoder\.layer\.2\."):
        load_checkpoint(folder)


def test_a_module_of_somebody_elses_code(folder: Path) -> None:
    sentence_transformers(folder, CLS, "Normalize")
    text = (folder / "modules.json").read_text().replace("sentence_transformers.models.Pooling", "their_code.Pooling")
    (folder / "modules.json").write_text(text)
    refuse(folder, BundleError, r"names the module their_code\.Pooling, which this export does not support")
