"""Whole runs on the toy corpus: learning, stopping, killing, resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from transformers import XLMRobertaModel  # noqa: E402

from mexma_rt.errors import FileError, InputError  # noqa: E402
from mexma_train.config import MexmaConfig, ModelConfig, Recipe, WarmupConfig, load_recipe  # noqa: E402
from mexma_train.run import mexma_rate, train  # noqa: E402
from mexma_train.warmup import warmup_rate  # noqa: E402

TOY = Recipe(
    name="toy",
    model=ModelConfig(
        hidden_size=32, layers=2, heads=4, intermediate_size=64, max_positions=64,
        head_layers=1, head_heads=4, head_intermediate_size=64,
    ),
    warmup=WarmupConfig(steps=100, batch_pairs=64, lr=0.05),
    mexma=MexmaConfig(steps=30, batch_pairs=16, lr=1e-3),
)  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False).state_dict()


def log_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(toy_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(TOY, toy_shards, out)
    return out


def test_both_stages_learn(finished: Path) -> None:
    lines = log_lines(finished)
    warmup = [line for line in lines if line["stage"] == "warmup"]
    assert warmup[-1]["loss"] < 0.7 * warmup[0]["loss"]
    assert warmup[-1]["accuracy"] > 2 / 64  # chance is 1/64
    assert {"mlm_source", "mlm_target", "align", "koleo", "grad_norm", "lr"} <= set(lines[-1])


def test_checkpoint_is_a_hugging_face_folder(finished: Path) -> None:
    from transformers import AutoTokenizer

    folder = finished / "checkpoint"
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {p.name for p in folder.iterdir()}
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "xlm-roberta"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("sun house", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == 0 and ids[0, -1] == 2
    states = XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False)(ids).last_hidden_state
    assert torch.isfinite(states).all()
    assert not [p.name for p in finished.iterdir() if p.name.startswith(".")]


def test_a_run_stopped_after_every_update_ends_in_the_same_weights(toy_shards: Path, tmp_path: Path) -> None:
    short = replace(TOY, warmup=replace(TOY.warmup, steps=3), mexma=replace(TOY.mexma, steps=3))
    assert train(short, toy_shards, tmp_path / "whole")
    stops = [train(short, toy_shards, tmp_path / "stopped", resume=i > 0, minutes=0) for i in range(5)]
    assert stops == [False, False, False, False, True]  # two stops in each stage; the last update of a stage goes on
    expected = weights(tmp_path / "whole" / "checkpoint")
    for name, value in weights(tmp_path / "stopped" / "checkpoint").items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_kill_9_and_resume_ends_in_the_same_weights(finished: Path, toy_shards: Path, tmp_path: Path) -> None:
    """The process is killed for real, between two saves of the state."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"from mexma_train.config import *\nRECIPE = {TOY!r}\n")
    out = tmp_path / "killed"
    code = (
        "import sys, mexma_train.run as run; run.SAVE_SECONDS = 0.05\n"
        "from mexma_train.config import load_recipe\n"
        f"run.train(load_recipe({str(recipe)!r}), {str(toy_shards)!r}, {str(out)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (out / "state.pt").exists() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (out / "state.pt").exists() and not (out / "checkpoint").exists()
    assert train(load_recipe(recipe), toy_shards, out, resume=True)
    expected = weights(finished / "checkpoint")
    for name, value in weights(out / "checkpoint").items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_finished_or_foreign_run_is_not_overwritten(finished: Path, toy_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"holds a run already\. Continue it with --resume"):
        train(TOY, toy_shards, finished)
    with pytest.raises(FileError, match=r"nothing to resume\. Start without --resume"):
        train(TOY, toy_shards, tmp_path / "none", resume=True)
    with pytest.raises(InputError, match="was started with another recipe"):
        train(replace(TOY, name="other"), toy_shards, finished, resume=True)


def test_frozen_words_stay_as_they_were_and_the_rest_learns(finished: Path, toy_shards: Path, tmp_path: Path) -> None:
    start = str(finished / "checkpoint")
    mexma = replace(TOY.mexma, steps=2, freeze_words=True)
    train(replace(TOY, warmup=None, initial_checkpoint=start, mexma=mexma), toy_shards, tmp_path / "frozen")
    before, after = weights(finished / "checkpoint"), weights(tmp_path / "frozen" / "checkpoint")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "embeddings.word_embeddings.weight" not in changed
    assert "encoder.layer.0.attention.self.value.weight" in changed


def test_nan_loss_stops_before_any_weight_changes(toy_shards: Path, tmp_path: Path) -> None:
    broken = replace(TOY, warmup=None, mexma=replace(TOY.mexma, align_weight=float("nan")))
    with pytest.raises(InputError, match=r"update 0, micro-batch 0: loss is nan; .*Lower lr or koleo_weight"):
        train(broken, toy_shards, tmp_path / "nan")


def test_learning_rates_follow_the_papers_schedule() -> None:
    """As facebookresearch/mexma: 0.1 of the peak at the start, the peak after 30 %, half of it mid-cosine, 0 at the end."""
    config = MexmaConfig(steps=1000)
    assert [round(mexma_rate(step, config), 6) for step in (0, 150, 300, 650, 1000)] == [0.1, 0.55, 1.0, 0.5, 0.0]
    assert [round(warmup_rate(step, WarmupConfig(steps=1000)), 4) for step in (0, 99, 500)] == [0.01, 0.901, 0.5]


def test_recipe_files_are_read_and_bad_ones_explained(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="Recipes are Python files that define RECIPE"):
        load_recipe(tmp_path / "no.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="defines no RECIPE = Recipe"):
        load_recipe(tmp_path / "empty.py")


def test_a_warm_start_does_not_overwrite_a_checkpoint() -> None:
    with pytest.raises(InputError, match=r"has a warmup and the initial_checkpoint 'x', .* Keep one of them"):
        replace(TOY, initial_checkpoint="x")
