"""`mexma-train` as a user types it, and the whole house: bitext -> tokenizer -> shards -> checkpoint -> bundle -> pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")
pytest.importorskip("sentencepiece", reason="part of mexma-rt[train]")

import mexma_train.cli  # noqa: E402
from mexma_rt.errors import MissingExtraError  # noqa: E402

RECIPE = """
from mexma_train.config import *
RECIPE = Recipe(
    name="toy",
    tokenizer=TokenizerConfig(vocab_size=90),
    model=ModelConfig(hidden_size=32, layers=2, heads=4, intermediate_size=64, head_layers=1, head_heads=4,
                      head_intermediate_size=64),
    warmup=WarmupConfig(steps=250, batch_pairs=64, lr=0.05),
    mexma=MexmaConfig(steps=20, batch_pairs=16, lr=1e-4),
)
"""


def call(*words: object) -> str:
    result = CliRunner().invoke(mexma_train.cli.main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def test_from_bitext_to_mined_pairs(pairs_tsv: Path, tmp_path: Path) -> None:
    import mexma_rt
    from mexma_export import export_bundle

    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    tokenizer, shards, out = tmp_path / "tokenizer.json", tmp_path / "shards", tmp_path / "run"
    refused = CliRunner().invoke(mexma_train.cli.main, ["tokenizer", str(pairs_tsv), str(tmp_path / "t.model")])
    assert refused.exit_code == 1 and "t.model: a tokenizer is written as .json" in refused.stderr
    assert "90 pieces from" in call("tokenizer", pairs_tsv, tokenizer, "--recipe", recipe)
    assert json.loads(call("prepare", pairs_tsv, shards, "--tokenizer", tokenizer))["pairs"] == 600
    assert "finished" in call("run", recipe, shards, out)

    rows = [line.split("\t") for line in pairs_tsv.read_text(encoding="utf-8").splitlines()]
    sentences = [("eng", row[2]) for row in rows[:20]]
    export_bundle(out / "checkpoint", tmp_path / "bundle", precisions=["fp32"], sentences=_as_sentences(sentences))
    encoder = mexma_rt.load(tmp_path / "bundle")
    french = {row[3]: row[2] for row in rows if row[0] == "fra" and len(row[2].split()) > 3}
    pairs = mexma_rt.mine(list(french), sorted(set(french.values())), encoder=encoder, threshold=1.0)
    right = sum(french[pair.source] == pair.target for pair in pairs if pair.source is not None)
    assert right > 0.5 * len(french)  # by chance it would be about 1 of 200


def _as_sentences(rows: list[tuple[str, str]]) -> list:
    from mexma_export import Sentence

    return [Sentence(lang=lang, text=text) for lang, text in rows]


@pytest.fixture
def short(tmp_path: Path) -> Path:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.replace("steps=250", "steps=4").replace("steps=20", "steps=2"))
    return recipe


def test_stopping_resuming_evaluating_and_drawing(pairs_tsv: Path, toy_shards: Path, short: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = call("run", short, toy_shards, out, "--minutes", 0, "--run.log-every", 1)
    assert f"continue with: mexma-train resume {out}" in said
    assert "toy: cpu, one process, fp32; attention equal (CPU: " in said
    rows = [line.split("\t") for line in pairs_tsv.read_text(encoding="utf-8").splitlines()[:40]]
    test_set = tmp_path / "toys.tsv"
    test_set.write_text("".join(f"{row[2]}\t{row[3]}\n" for row in rows), encoding="utf-8")
    assert "finished" in call("resume", out, "--run.eval-pairs", test_set)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    evaluated = CliRunner().invoke(mexma_train.cli.main, ["eval", str(out / "checkpoint"), str(test_set)])
    results = json.loads(evaluated.stdout)
    assert set(results) == {"toys", "mean"}
    for measure, value in results["toys"].items():  # what the run measured at its end
        assert lines[-1]["evaluation"]["toys"][measure] == pytest.approx(value, rel=1e-3, abs=1e-6)
    pytest.importorskip("matplotlib", reason="part of mexma-rt[train]")
    assert call("plot", out).strip().endswith("run.png")
    assert (out / "run.png").read_bytes().startswith(b"\x89PNG")


def test_flags_change_the_recipe_and_original_sets_it_back(toy_shards: Path, short: Path, tmp_path: Path) -> None:
    from mexma_train.state import newest_state

    out = tmp_path / "out"
    call("run", short, toy_shards, out, "--no-warmup", "--original", "--mexma.steps", 1, "--mexma.koleo-weight", 0.5)
    recipe = newest_state(out).recipe
    assert recipe.warmup is None and recipe.mexma.koleo_weight == 0.5
    assert (recipe.mexma.precision, recipe.mexma.reduction, recipe.sampling.order) == ("fp16", "micro-batch", "epochs")


def test_a_dry_run_says_what_would_be_trained_and_trains_nothing(toy_shards: Path, short: Path, tmp_path: Path) -> None:
    said = call("run", short, toy_shards, tmp_path / "out", "--dry-run", "--mexma.batch-tokens", 400)
    assert "parameters" in said and "clean tokens" in said and "memory of a process" in said
    assert not (tmp_path / "out").exists()


def test_user_errors_are_one_message_without_traceback(toy_shards: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(mexma_train.cli.main, ["run", str(tmp_path / "no.py"), str(toy_shards), str(tmp_path / "o")])
    assert result.exit_code == 1
    assert "mexma-train: " in result.output and "Recipes are Python files" in result.output
    assert "Traceback" not in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_named_device_that_is_missing_is_refused(toy_shards: Path, short: Path, tmp_path: Path) -> None:
    arguments = ["run", str(short), str(toy_shards), str(tmp_path / "o"), "--device", "cuda"]
    result = CliRunner().invoke(mexma_train.cli.main, arguments)
    assert result.exit_code == 1
    assert "sees no CUDA GPU. Type --device cpu" in result.output


def test_a_missing_extra_is_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(extra: str, *modules: str) -> None:
        raise MissingExtraError(f"pip install 'mexma-rt[{extra}]'")

    monkeypatch.setattr(mexma_train.cli, "require_extra", missing)
    result = CliRunner().invoke(mexma_train.cli.main, ["run", "a", "b", "c"])
    assert result.exit_code == 1
    assert "pip install 'mexma-rt[train]'" in result.output
