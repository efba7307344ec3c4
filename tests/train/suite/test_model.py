"""What the suite embeds with. Vectors and states are compared with transformers' and the runtime's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from transformers import PreTrainedTokenizerFast, XLMRobertaModel  # noqa: E402

import mexma_rt  # noqa: E402
from mexma_rt.errors import FileError, InputError  # noqa: E402
from mexma_train.checkpoint import save_checkpoint  # noqa: E402
from mexma_train.config import ModelConfig  # noqa: E402
from mexma_train.data.tokenizer import load_tokenizer  # noqa: E402
from mexma_train.encoder import new_encoder  # noqa: E402
from mexma_train.suite.model import open_model  # noqa: E402

SHAPE = ModelConfig(
    hidden_size=32, layers=2, heads=4, intermediate_size=64, max_positions=40,
    head_layers=1, head_heads=4, head_intermediate_size=64,
)  # fmt: skip
TEXTS = ["sun moon", "река дом дом дом вода", "pain eau soleil lune maison fleuve chien chat", "sun moon"]


@pytest.fixture(scope="module")
def checkpoint(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    encoder = new_encoder(SHAPE, load_tokenizer(toy_tokenizer).get_vocab_size())
    folder = tmp_path_factory.mktemp("run") / "toy" / "checkpoint"
    folder.parent.mkdir()
    save_checkpoint(encoder.config, encoder.state_dict(), toy_tokenizer, folder)
    return folder


def test_a_checkpoint_gives_transformers_states_of_every_piece(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mexma_train.suite.model.STATES_AT_ONCE", 3)  # two batches
    theirs = XLMRobertaModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    with open_model(str(checkpoint), max_tokens=8) as model:
        assert model.states is not None
        vectors, cut = model.embed(TEXTS)
        sentences = model.states(TEXTS)
    full = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    assert cut == sum(length > 8 for length in full) and 0 < cut < 4
    assert vectors.shape == (4, 32) and len(sentences) == 4
    for text, vector, sentence in zip(TEXTS, vectors, sentences, strict=True):
        ids = tokenizer(text, truncation=True, max_length=8, return_tensors="pt")["input_ids"]
        states = theirs(ids).last_hidden_state[0].detach().numpy()
        np.testing.assert_allclose(vector, states[0] / np.linalg.norm(states[0]), atol=2e-6)
        np.testing.assert_allclose(sentence.states_LD, states[1:-1], atol=2e-5)
        assert sentence.pieces == [piece.replace("▁", "") for piece in tokenizer.convert_ids_to_tokens(ids[0])[1:-1]]


def test_a_checkpoint_says_what_it_is_and_no_path(checkpoint: Path) -> None:
    with open_model(str(checkpoint), max_tokens=38) as model:
        assert model.about["name"] == "toy"  # every run calls its folder checkpoint
        assert (model.about["kind"], model.about["dimensions"], model.about["max_tokens"]) == ("checkpoint", 32, 38)
        assert model.versions["torch"] == torch.__version__
        assert model.languages == ()
        assert str(checkpoint.parent.parent) not in json.dumps(model.about)


def test_languages_that_the_config_names_are_read(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"languages": ["eng", "fra", "rus"]}))
    with open_model(str(tmp_path), max_tokens=20) as model:
        assert model.languages == ("fra", "rus")


def test_a_bundle_is_embedded_by_the_runtime_with_its_token_states(recwarn: pytest.WarningsRecorder) -> None:
    texts = ["Hello world", "Bonjour le monde", "very " * 200]
    encoder = mexma_rt.load("mexma-small", device="cpu", threads=1)
    with open_model("mexma-small", threads=1) as model:
        vectors, cut = model.embed(texts)
    np.testing.assert_array_equal(vectors, encoder.embed_report(texts).vectors)
    assert cut == 1
    assert model.states is not None
    hello, _, cut_text = model.states(texts)
    assert hello.pieces == ["Hello", "world"] or "".join(hello.pieces) == "Helloworld"
    np.testing.assert_array_equal(hello.states_LD, encoder.embed_tokens(texts[:1], normalize=False)[0].vectors)
    assert len(cut_text.pieces) == len(cut_text.states_LD) == 126 and "very" in cut_text.pieces
    assert not [warning for warning in recwarn if "cut" in str(warning.message)]  # the count says it
    assert len(model.languages) == 113 and {"deu", "uig"} <= set(model.languages) and "eng" not in model.languages
    assert (model.about["name"], model.about["kind"], model.about["max_tokens"]) == ("mexma-small", "bundle", 128)
    assert model.about["source_sha256"] == encoder.bundle.source["sha256"]
    assert str(encoder.bundle.folder) not in json.dumps(model.about)


def test_other_folders_are_explained(checkpoint: Path, tmp_path: Path) -> None:
    def refused(name: str, message: str, **options: object) -> None:
        with pytest.raises((FileError, InputError), match=message), open_model(name, **options):  # type: ignore[arg-type]
            pytest.fail("opened")

    refused(str(tmp_path / "no"), r"no folder or bundled model .*no\. MODEL is a checkpoint folder.*\(.*mexma-small.*\)")
    refused(str(tmp_path), r"has no config\.json and no model\.safetensors and no tokenizer\.json, so it is not a checkpoint")
    refused(str(checkpoint.parent), r"Type: mexma-train eval --suite .*toy/checkpoint")
    refused(str(checkpoint), "--precision int8 is for bundles, but .* is a checkpoint.*Leave it out", precision="int8")
    refused(
        str(checkpoint), r"max_tokens is 39, but checkpoint takes from 3 .* to 38 tokens\. Type --max-tokens 38", max_tokens=39
    )
