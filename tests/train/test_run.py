"""Whole runs on the toy corpus: learning, stopping, killing, resuming, evaluating."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from safetensors.torch import load_file  # noqa: E402
from transformers import XLMRobertaModel  # noqa: E402

from mexma_rt.errors import FileError, InputError  # noqa: E402
from mexma_train.config import MexmaConfig, ModelConfig, RankingConfig, Recipe, RunConfig, SamplingConfig, WarmupConfig  # noqa: E402
from mexma_train.run import mexma_rate, resume, train  # noqa: E402
from mexma_train.state import states  # noqa: E402
from mexma_train.warmup import warmup_rate  # noqa: E402

TOY = Recipe(
    name="toy",
    model=ModelConfig(
        hidden_size=32, layers=2, heads=4, intermediate_size=64, max_positions=64,
        head_layers=1, head_heads=4, head_intermediate_size=64,
    ),
    sampling=SamplingConfig(bucket=4),
    warmup=WarmupConfig(steps=60, batch_pairs=64, lr=0.05),
    ranking=RankingConfig(steps=10, batch_pairs=32, lr=1e-3),
    mexma=MexmaConfig(steps=20, batch_pairs=16, lr=1e-3),
    run=RunConfig(log_every=1),
)  # fmt: skip
TIMES = {"seconds", "pairs_per_second", "tokens_per_second"}


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def test_set(pairs_tsv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [line.split("\t") for line in pairs_tsv.read_text(encoding="utf-8").splitlines() if line.startswith("fra")]
    path = tmp_path_factory.mktemp("tests") / "fra.tsv"
    path.write_text("".join(f"{row[2]}\t{row[3]}\n" for row in rows[:60]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(toy_shards: Path, test_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    recipe = replace(TOY, run=replace(TOY.run, eval_pairs=(str(test_set),), eval_every=10))
    assert train(recipe, toy_shards, out)
    return out


def test_every_stage_learns(finished: Path) -> None:
    lines = log_lines(finished)
    warmup = [line for line in lines if line["stage"] == "warmup"]
    assert warmup[-1]["loss"] < 0.7 * warmup[0]["loss"]
    assert warmup[-1]["accuracy"] > 2 / 64  # chance is 1/64
    ranking = [line for line in lines if line["stage"] == "ranking"]
    assert [line["update"] for line in ranking] == list(range(1, 11)) and ranking[-1]["loss"] < ranking[0]["loss"]
    mexma = [line for line in lines if line["stage"] == "mexma" and "loss" in line]
    assert [line["update"] for line in mexma] == list(range(1, 21))
    assert mexma[-1]["mlm_source"] < mexma[0]["mlm_source"] and mexma[-1]["mlm_target"] < mexma[0]["mlm_target"]
    assert {"align", "koleo", "contrastive", "accuracy", "grad_norm", "lr"} <= set(mexma[0])


def test_the_run_is_evaluated_as_asked(finished: Path) -> None:
    measured = [(line["update"], line["evaluation"]) for line in log_lines(finished) if "evaluation" in line]
    assert [update for update, _ in measured] == [10, 20]
    for _, results in measured:
        assert set(results) == {"fra", "mean"}
        assert set(results["fra"]) == {"xsim", "accuracy", "alignment", "uniformity", "mlm_accuracy"}
        assert results["fra"]["accuracy"] > 100 / 60  # above chance


def test_checkpoint_is_a_hugging_face_folder(finished: Path) -> None:
    from transformers import AutoTokenizer

    folder = finished / "checkpoint"
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {p.name for p in folder.iterdir()}
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "xlm-roberta" and config["architectures"] == ["XLMRobertaModel"]
    assert config["languages"] == ["eng", "fra", "rus"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("sun house", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == 0 and ids[0, -1] == 2
    model = XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False)
    assert torch.isfinite(model(ids).last_hidden_state).all()
    assert not [p.name for p in finished.iterdir() if p.name.startswith(".")]


def test_a_run_stopped_after_every_update_repeats_every_loss_to_the_bit(toy_shards: Path, tmp_path: Path) -> None:
    steps = {name: replace(getattr(TOY, name), steps=3) for name in ("warmup", "ranking", "mexma")}
    short = replace(TOY, **steps)
    assert train(short, toy_shards, tmp_path / "whole")
    stops = [train(short, toy_shards, tmp_path / "stopped", minutes=0)]
    stops += [resume(tmp_path / "stopped", minutes=0) for _ in range(6)]
    assert stops == [
        False,
        False,
        False,
        False,
        False,
        False,
        True,
    ]  # two stops in each stage; the last update of a stage goes on
    assert log_lines(tmp_path / "stopped") == log_lines(tmp_path / "whole")
    expected, found = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.kill
@pytest.mark.parametrize("stage", ["warmup", "ranking", "mexma"])
def test_kill_9_and_resume_repeats_every_loss_to_the_bit(stage: str, finished: Path, toy_shards: Path, tmp_path: Path) -> None:
    """The process is killed for real, somewhere after the first saved state of the stage."""
    out = tmp_path / "killed"
    recipe = replace(TOY, run=replace(TOY.run, save_minutes=0.0005))
    code = (
        "from mexma_train.config import *; from mexma_train.run import train\n"
        f"train({recipe!r}, {str(toy_shards)!r}, {str(out)!r})"
    )
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as this process: sums in another order differ in the last bit
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, env=one_thread)
    end = time.monotonic() + 120
    while not list(out.glob(f"state-{stage}-*.safetensors")) and time.monotonic() < end:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert states(out) and not (out / "checkpoint").exists()
    assert resume(out)
    losses = [line for line in log_lines(finished) if "evaluation" not in line]
    assert log_lines(out) == losses
    expected, found = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (finished, out))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_last_states_are_kept_and_older_ones_dropped(toy_shards: Path, tmp_path: Path) -> None:
    recipe = replace(
        TOY, warmup=None, ranking=None, mexma=replace(TOY.mexma, steps=5), run=replace(TOY.run, save_minutes=0.0, keep=3)
    )
    train(recipe, toy_shards, tmp_path / "run")
    assert [path.name for path in states(tmp_path / "run")] == [f"state-mexma-{n:09}.safetensors" for n in (3, 4, 5)]


def test_fp16_trains_with_a_loss_scale_that_survives_a_resume(toy_shards: Path, tmp_path: Path) -> None:
    mexma = replace(TOY.mexma, steps=4, precision="fp16")
    recipe = replace(TOY, warmup=None, ranking=None, mexma=mexma)
    assert train(recipe, toy_shards, tmp_path / "whole")
    train(recipe, toy_shards, tmp_path / "cut", minutes=0)
    assert "scaler" in load_file(states(tmp_path / "cut")[-1])
    assert resume(tmp_path / "cut")
    assert log_lines(tmp_path / "cut") == log_lines(tmp_path / "whole")


def test_a_finished_run_is_not_overwritten_and_nothing_is_not_resumed(finished: Path, toy_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"already holds a run\. Continue it with: mexma-train resume"):
        train(TOY, toy_shards, finished)
    with pytest.raises(FileError, match=r"nothing to resume\. Start it with: mexma-train run"):
        resume(tmp_path / "none")


def test_frozen_words_stay_as_they_were_and_the_rest_learns(finished: Path, toy_shards: Path, tmp_path: Path) -> None:
    start = str(finished / "checkpoint")
    mexma = replace(TOY.mexma, steps=2, freeze_words=True)
    train(replace(TOY, warmup=None, ranking=None, initial_checkpoint=start, mexma=mexma), toy_shards, tmp_path / "frozen")
    before, after = (load_file(f / "checkpoint" / "model.safetensors") for f in (finished, tmp_path / "frozen"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "embeddings.word_embeddings.weight" not in changed
    assert "encoder.layer.0.attention.self.value.weight" in changed


def test_a_resume_needs_no_initial_checkpoint(finished: Path, toy_shards: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(finished / "checkpoint", start)
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(config | {"languages": ["afr", "eng"]}))
    recipe = replace(TOY, warmup=None, ranking=None, initial_checkpoint=str(start), mexma=replace(TOY.mexma, steps=2))
    assert not train(recipe, toy_shards, tmp_path / "run", minutes=0)
    shutil.rmtree(start)
    assert resume(tmp_path / "run")
    trained_on = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())["languages"]
    assert trained_on == ["afr", "eng", "fra", "rus"]  # the checkpoint's and its own


def test_a_loss_that_is_no_number_changes_no_weight_and_leaves_its_batch(toy_shards: Path, tmp_path: Path) -> None:
    broken = replace(TOY, warmup=None, ranking=None, mexma=replace(TOY.mexma, align_weight=float("nan")))
    out = tmp_path / "nan"
    with pytest.raises(InputError, match=r"(?s)update 0: the loss or its gradient is not a number; .*--mexma\.lr") as error:
        train(broken, toy_shards, out)
    (path,) = out.glob("broken-batch-*.safetensors")
    assert str(path) in str(error.value)
    batch = load_file(path)
    clean = batch["ids"][: len(batch["ids"]) // 2]
    assert len(clean) == batch["lengths"].sum() and torch.equal(clean[batch["chosen"]], batch["labels"])
    assert not states(out) and not (out / "checkpoint").exists()


def test_a_checkpoint_with_another_vocabulary_is_refused(finished: Path, toy_shards: Path, tmp_path: Path) -> None:
    from mexma_train.encoder import new_encoder, save_encoder

    other = new_encoder(TOY.model, 50)
    save_encoder(other.config, other.state_dict(), tmp_path / "other")
    with pytest.raises(InputError, match="has 50 pieces, but the shards' tokenizer has 90"):
        train(replace(TOY, warmup=None, ranking=None, initial_checkpoint=str(tmp_path / "other")), toy_shards, tmp_path / "out")


def test_learning_rates_follow_the_papers_schedule() -> None:
    """As facebookresearch/mexma: 0.1 of the peak at the start, the peak after 30 %, half of it mid-cosine, 0 at the end."""
    config = MexmaConfig(steps=1000)
    assert [round(mexma_rate(step, config, 1000), 6) for step in (0, 150, 300, 650, 1000)] == [0.1, 0.55, 1.0, 0.5, 0.0]
    original = replace(config, schedule="micro-batch")  # 2,000 micro-batches: update 0 takes the rate of micro-batch 1
    rates = [mexma_rate(step, original, 1000) for step in (0, 299, 300, 999)]
    assert rates[0] == pytest.approx(0.1 + 0.9 * 1 / 600)
    assert rates[1] == pytest.approx(0.1 + 0.9 * 599 / 600)
    assert rates[2] == pytest.approx(0.5 * (1 + torch.cos(torch.tensor(torch.pi * 1 / 1400)).item()))
    assert rates[3] == pytest.approx(0.5 * (1 + torch.cos(torch.tensor(torch.pi * 1399 / 1400)).item()), abs=1e-7)
    assert [round(warmup_rate(step, WarmupConfig(steps=1000)), 4) for step in (0, 99, 500)] == [0.01, 0.901, 0.5]
    assert [round(warmup_rate(step, WarmupConfig(steps=60)), 4) for step in (0, 19, 30)] == [0.05, 0.6833, 0.5]  # a short run
