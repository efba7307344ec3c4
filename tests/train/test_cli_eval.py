"""`mexma-train eval` as a user types it: two grammars, and a whole suite on a toy checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from mexma_train.checkpoint import save_checkpoint  # noqa: E402
from mexma_train.cli import main  # noqa: E402
from mexma_train.config import ModelConfig  # noqa: E402
from mexma_train.data.tokenizer import load_tokenizer  # noqa: E402
from mexma_train.encoder import new_encoder  # noqa: E402

SHAPE = ModelConfig(
    hidden_size=32, layers=1, heads=4, intermediate_size=64, head_layers=1, head_heads=4, head_intermediate_size=64
)


@pytest.fixture
def checkpoint(toy_tokenizer: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    encoder = new_encoder(SHAPE, load_tokenizer(toy_tokenizer).get_vocab_size())
    save_checkpoint(encoder.config, encoder.state_dict(), toy_tokenizer, tmp_path / "toy")
    return tmp_path / "toy"


@pytest.fixture
def data(pairs_tsv: Path, tmp_path: Path) -> tuple[Path, Path]:
    flores, tatoeba = tmp_path / "flores", tmp_path / "tatoeba"
    flores.mkdir()
    tatoeba.mkdir()
    rows = [line.split("\t") for line in pairs_tsv.read_text(encoding="utf-8").splitlines()]
    french = [row for row in rows if row[0] == "fra"][:40]
    (flores / "eng.txt").write_text("".join(f"{row[2]}\n" for row in french), encoding="utf-8")
    (flores / "fra.txt").write_text("".join(f"{row[3]}\n" for row in french), encoding="utf-8")
    for lang in ("fra", "rus"):
        few = [row for row in rows if row[0] == lang][40:90]
        (tatoeba / f"{lang}.tsv").write_text("".join(f"{row[2]}\t{row[3]}\n" for row in few), encoding="utf-8")
    return flores, tatoeba


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_whole_suite_and_a_second_one_beside_it(checkpoint: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="part of mexma-rt[train]")
    folders = ("--flores", data[0], "--tatoeba", data[1])
    first = call("eval", "--suite", checkpoint, *folders, "--out", tmp_path / "a", "--trained", "fra,rus", "--threads", 1)
    assert first.exit_code == 0, first.output
    assert first.stdout.strip() == str(tmp_path / "a" / "suite.md")
    assert (
        "toy: checkpoint, mexma_train, torch, equal attention, fp32 on cpu; 1 languages of FLORES and 2 of Tat" in first.stderr
    )
    assert "FLORES xsim error, mean of 1 languages trained on" in first.stderr
    results = json.loads((tmp_path / "a" / "results.json").read_text(encoding="utf-8"))
    assert results["trained"] == ["fra", "rus"]
    assert set(results["mining"]) == {"fra", "rus"}  # none of the usual five is there
    assert results["model"]["threads"] == 1
    assert str(tmp_path) not in json.dumps(results)
    assert str(tmp_path) not in (tmp_path / "a" / "suite.md").read_text(encoding="utf-8")

    before = ("--before", tmp_path / "a" / "results.json")  # which also says what the languages are
    again = call("eval", "--suite", checkpoint, *folders, "--out", tmp_path / "b", *before, "--mining-languages", "rus")
    assert again.exit_code == 0, again.output
    page = (tmp_path / "b" / "suite.md").read_text(encoding="utf-8")
    error = results["languages"]["fra"]["flores_xsim"]
    assert f"| FLORES xsim error % | languages trained on | 1 languages | {error:.2f} | {error:.2f} | +0.00 |" in page
    assert json.loads((tmp_path / "b" / "results.json").read_text(encoding="utf-8"))["languages"] == results["languages"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["m"], "PAIRS are missing: test files of english<TAB>text. Type: mexma-train eval m PAIRS... or, for the whole"),
        (
            ["m", "a.tsv", "--flores", "f", "--mining-languages", "deu"],
            "--flores, --mining-languages: only with --suite. Type: me",
        ),
        (
            ["--suite", "m", "a.tsv"],
            "--suite takes its sentences from --flores and --tatoeba, not from a.tsv. Type: mexma-train",
        ),
        (
            ["--suite", "m", "--tatoeba", "t"],
            "--suite needs --flores and --out too. Type: mexma-train eval --suite m --flores DIR",
        ),
    ],
)
def test_unclear_calls_say_what_to_type(words: list[str], message: str) -> None:
    result = call("eval", *words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_mistakes_in_the_data_are_found_before_the_model_is_opened(data: tuple[Path, Path], tmp_path: Path) -> None:
    folders = ("--flores", data[0], "--tatoeba", data[1], "--out", tmp_path / "o")
    (tmp_path / "old.json").write_text("{}")
    for extra, message in (
        (["--before", tmp_path / "old.json"], "the format is None, not 'mexma-suite'"),
        (["--mining-languages", "deu"], "there is no deu.tsv"),
        (["--mining-languages", "fra,fra"], "--mining-languages names fra twice"),
    ):
        result = call("eval", "--suite", tmp_path / "no-model", *folders, *extra)
        assert result.exit_code == 1
        assert message in result.stderr and "Traceback" not in result.output
    (data[0] / "eng.txt").unlink()
    result = call("eval", "--suite", tmp_path / "no-model", *folders)
    assert "has no eng.txt, and every language is compared with English" in result.stderr
    assert not (tmp_path / "o").exists()


def test_a_model_that_does_not_say_its_languages(checkpoint: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    result = call("eval", "--suite", checkpoint, "--flores", data[0], "--tatoeba", data[1], "--out", tmp_path / "o")
    assert result.exit_code == 1
    assert "does not say which languages it was trained on" in result.stderr and "--trained all" in result.stderr
    assert not (tmp_path / "o").exists()
