"""Checkpoint folders as people have them: the same vectors, proved by the owner's code, or an error that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="checkpoints are loaded with torch (pip: mexma-rt[export])")

import torch
from safetensors.torch import load_file, save_file

import mexma_rt
from mexma_export import Sentence, export_bundle
from mexma_export.checkpoint import Checkpoint, load_checkpoint
from mexma_export.owner import compare_with_owner
from mexma_export.precisions import torch_runner
from mexma_export.trim import write_weights
from mexma_rt.errors import BundleError, FileError

IDS = np.array([[0, 5, 6, 7, 8, 9, 2]])
WORDS = "embeddings.word_embeddings.weight"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.fixture(scope="module")
def gate(sentences: list[tuple[str, str]]) -> list[Sentence]:
    return [Sentence(lang=lang, text=text) for lang, text in sentences[:6]]


def vector(checkpoint: Checkpoint) -> np.ndarray:
    return torch_runner(checkpoint)(IDS, np.ones_like(IDS))[0]


def change_weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    """None takes a key away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def prefixed(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def with_heads(tensors: dict[str, Any]) -> dict[str, Any]:
    beside = {
        "pooler.dense.weight": (32, 32),
        "pooler.dense.bias": (32,),
        "lm_head.bias": (322,),
        "lm_head.dense.weight": (32, 32),
    }
    named = {"roberta." + name: tensor for name, tensor in tensors.items()}
    return named | {("" if name.startswith("lm") else "roberta.") + name: torch.ones(shape) for name, shape in beside.items()}


def with_words_in_the_head(tensors: dict[str, Any]) -> dict[str, Any]:
    named = {"roberta." + name: tensor for name, tensor in tensors.items() if name != WORDS}
    return named | {"lm_head.decoder.weight": tensors[WORDS], "lm_head.bias": torch.zeros(322)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *((prefixed(prefix), "XLMRobertaModel, the last") for prefix in ("", "roberta.")),
        *((prefixed(prefix), f"without the prefix {prefix!r}") for prefix in ("bert.", "model.", "module.", "encoder.")),
        (prefixed("0.auto_model."), "without the prefix '0.auto_model.'"),
        (prefixed("encoder.encoder."), "without the prefix 'encoder.encoder.'"),
        (prefixed("_orig_mod.module."), "without the prefix '_orig_mod.module.'"),  # of torch.compile and of DDP
        (lambda tensors: prefixed("module.")(with_heads(tensors)), "without the prefix 'module.roberta.'"),
        (lambda tensors: prefixed("module.")(with_words_in_the_head(tensors)), "from module.lm_head.decoder.weight"),
        (with_heads, "XLMRobertaModel, the last"),
        (with_words_in_the_head, "from lm_head.decoder.weight"),
    ],
)
def test_names_of_the_weights(
    change: Callable[[dict[str, Any]], dict[str, Any]], said: str, folder: Path, tiny_checkpoint: Path, gate: list[Sentence]
) -> None:
    change_weights(folder, change)
    checkpoint = load_checkpoint(folder)
    np.testing.assert_array_equal(vector(checkpoint), vector(load_checkpoint(tiny_checkpoint)))
    assert said in compare_with_owner(checkpoint, gate, 64).computed_by
    write_weights(checkpoint, folder / "written.safetensors")  # what a bundle gets: names that the torch back end reads
    assert load_file(folder / "written.safetensors").keys() >= load_file(tiny_checkpoint / "model.safetensors").keys()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_weights(kind: Any, folder: Path, gate: list[Sentence]) -> None:
    change_weights(folder, lambda tensors: {name: tensor.to(kind) for name, tensor in tensors.items()})
    change_config(folder, dtype=str(kind).removeprefix("torch."))
    checkpoint = load_checkpoint(folder)
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.float32}
    assert compare_with_owner(checkpoint, gate, 64).largest_error < 1e-5


def split(folder: Path) -> list[str]:
    """model.safetensors in two files with an index; returns their names."""
    tensors = load_file(folder / "model.safetensors")
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    half = len(tensors) // 2
    place = {name: names[i >= half] for i, name in enumerate(tensors)}
    for file in names:
        save_file({name: tensors[name] for name in tensors if place[name] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    (folder / "model.safetensors").unlink()
    return names


def test_weights_in_several_files(folder: Path, tiny_checkpoint: Path, gate: list[Sentence]) -> None:
    names = split(folder)
    checkpoint = load_checkpoint(folder)
    np.testing.assert_array_equal(vector(checkpoint), vector(load_checkpoint(tiny_checkpoint)))
    assert checkpoint.rewritten and compare_with_owner(checkpoint, gate, 64).largest_error < 1e-5
    (folder / names[1]).unlink()
    with pytest.raises(FileError, match=f"1 of 2 weight files are missing, the first is {names[1]}. Copy them here too"):
        load_checkpoint(folder)


def test_a_configuration_without_numbers_that_the_table_says(
    folder: Path, tiny_checkpoint: Path, gate: list[Sentence], tmp_path: Path
) -> None:
    change_config(folder, max_position_embeddings=None, type_vocab_size=None)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.max_length_limit == 512
    assert compare_with_owner(checkpoint, gate, 512).largest_error < 1e-5
    np.testing.assert_array_equal(vector(checkpoint), vector(load_checkpoint(tiny_checkpoint)))


def test_added_tokens_need_rows(folder: Path, tiny_checkpoint: Path, gate: list[Sentence]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["<x>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(
        BundleError, match=r"323 pieces, but config\.json says vocab_size 322: its last 1, from '<x>' on, were added later"
    ):
        load_checkpoint(folder)
    change_config(folder, vocab_size=328)
    change_weights(folder, lambda tensors: tensors | {WORDS: torch.cat([tensors[WORDS], torch.ones(6, 32)])})
    checkpoint = load_checkpoint(folder)
    assert checkpoint.tokenizer.encode("a <x>").ids[-2] == 322
    assert compare_with_owner(checkpoint, gate, 64).largest_error < 1e-5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder.layer.0.attention.self.query.lora_A.weight", "an adapter or a changed architecture"),
        (
            "encoder.layer.0.attention.self.distance_embedding.weight",
            r"has no place \(first: encoder.layer.0.attention.self.dist",
        ),
        ("classifier.out_proj.weight", "a head of a classifier or cross-encoder"),
    ],
)
def test_weights_that_the_model_has_no_place_for(name: str, message: str, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors | {name: torch.ones(4, 32)})
    with pytest.raises(BundleError, match=message):
        load_checkpoint(folder)


def test_an_adapter_alone(folder: Path) -> None:
    change_weights(folder, lambda tensors: {"base_model.model.layer.0.lora_A.weight": torch.ones(4, 32)})
    with pytest.raises(BundleError, match=r"or it is an adapter without its base model\. Merge or save the whole model"):
        load_checkpoint(folder)


def test_only_a_sentencepiece_model(folder: Path, sentences: list[tuple[str, str]], tmp_path: Path) -> None:
    """What is advised is typed, and gives the ids of SentencePiece itself, where fairseq puts them: one higher."""
    spm = pytest.importorskip("sentencepiece", reason="makes the model, and transformers reads it with it")
    texts = [text for _, text in sentences]
    (tmp_path / "texts").write_text("\n".join(texts * 5), encoding="utf-8")
    options = {"vocab_size": 300, "hard_vocab_limit": False, "character_coverage": 1.0, "minloglevel": 2}
    spm.SentencePieceTrainer.train(input=str(tmp_path / "texts"), model_prefix=str(tmp_path / "spm"), **options)
    pieces = spm.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(FileError, match=r"tokenizer\.json is missing\. Copy the one that the model was trained with\.$"):
        load_checkpoint(folder)
    (tmp_path / "spm.model").rename(folder / "sentencepiece.bpe.model")
    rows = len(pieces) + 2  # <pad> and <mask>
    change_config(folder, vocab_size=rows)
    change_weights(folder, lambda tensors: tensors | {WORDS: torch.cat([tensors[WORDS]] * 2)[:rows]})
    with pytest.raises(
        FileError, match=r"makes it from sentencepiece\.bpe\.model \(.*pip install sentencepiece\).*, type: "
    ) as caught:
        load_checkpoint(folder)
    exec(str(caught.value).split(", type: ")[1], {})
    checkpoint = load_checkpoint(folder)
    for text in [*texts, "  two  spaces ", "ﬁne Ｆull", "¤ is unknown"]:
        ids = [piece + 1 if piece else 3 for piece in pieces.encode(text)]
        assert checkpoint.tokenizer.encode(text).ids == [0, *ids, 2]


def test_only_a_vocabulary_of_wordpiece(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "vocab.txt")
    with pytest.raises(FileError, match=r"transformers makes it from vocab\.txt\. In Python, type: import transformers; "):
        load_checkpoint(folder)


def test_weights_under_another_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    with pytest.raises(
        FileError, match=r"is missing, but model\.fp16\.safetensors is there\. If it has the weights, rename it"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize("rows", [514, 8194])
def test_lengths_of_the_position_table(rows: int, folder: Path, gate: list[Sentence], tmp_path: Path) -> None:
    """XLM-R counts positions from 2, so two rows go unused; texts of up to 700 tokens have equal vectors."""
    table = "embeddings.position_embeddings.weight"
    change_config(folder, max_position_embeddings=rows)
    change_weights(folder, lambda t: t | {table: torch.randn(rows, 32, generator=torch.Generator().manual_seed(3))})
    checkpoint = load_checkpoint(folder)
    assert checkpoint.max_length_limit == rows - 2
    assert compare_with_owner(checkpoint, gate, min(rows - 2, 700)).largest_error < 1e-5
    export_bundle(folder, tmp_path / "bundle", precisions=("fp32",), sentences=gate)
    with pytest.raises(mexma_rt.InputError, match=f"max_length={rows - 1}.* {rows - 2}"):
        mexma_rt.load(tmp_path / "bundle", max_length=rows - 1)
    encoder = mexma_rt.load(tmp_path / "bundle", max_length=rows - 2)
    text = " ".join(sentence.text for sentence in gate * 20)
    ids = checkpoint.tokenizer.encode(text).ids
    ids = [*ids[: min(rows - 2, 700) - 1], 2]
    with torch.inference_mode():
        state = checkpoint.model(torch.tensor([ids])).last_hidden_state[0, 0].numpy()
    cut = checkpoint.tokenizer.decode(ids)
    assert checkpoint.tokenizer.encode(cut).ids == ids
    np.testing.assert_allclose(encoder.embed([cut])[0], state / np.linalg.norm(state), atol=1e-5)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_no_numbers_that_we_know(kind: Any, folder: Path) -> None:
    """They loaded, and the vectors were those of another model: the scales were left out."""
    change_weights(folder, lambda tensors: {n: t.to(kind) if t.ndim == 2 else t for n, t in tensors.items()})
    with pytest.raises(
        BundleError, match=r"are quantised \(.* is (int8|float8_e4m3fn)\).*Name the model that it was made from"
    ):
        load_checkpoint(folder)


def test_a_configuration_of_quantised_weights(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(BundleError, match="quantization_config is set: the weights are quantised"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["tf_model.h5", "model.gguf", "onnx/model.onnx"])
def test_weights_of_another_library_alone(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(FileError, match=rf"model\.safetensors is missing, and {Path(name).name} is of another library"):
        load_checkpoint(folder)


def test_a_pointer_of_git_lfs(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    with pytest.raises(BundleError, match=r"is a pointer of Git LFS, not the weights\. Fetch them in the clone: git lfs pull"):
        load_checkpoint(folder)


def test_the_folder_around_it(folder: Path, tmp_path: Path) -> None:
    """As the hub's cache keeps models."""
    inside = tmp_path / "models--a--b" / "snapshots" / "0a1b"
    inside.parent.mkdir(parents=True)
    folder.rename(inside)
    with pytest.raises(FileError, match=r"config\.json is missing, but there is .*Name its folder: .*snapshots/0a1b$"):
        load_checkpoint(tmp_path / "models--a--b")
