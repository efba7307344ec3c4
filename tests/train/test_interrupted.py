"""Ctrl-C in a real `mexma-train`: one line that says what is kept and how to go on, status 130, and the next command does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")
if sys.platform == "win32":
    pytest.skip("Windows has no SIGINT for one process", allow_module_level=True)

from ..runtime.streams import ROOT

pytestmark = pytest.mark.kill

RECIPE = """
from mexma_train.config import *
RECIPE = Recipe(
    name="toy",
    model=ModelConfig(hidden_size=32, layers=2, heads=4, intermediate_size=64, head_layers=1, head_heads=4,
                      head_intermediate_size=64),
    ranking=RankingConfig(steps=5, batch_pairs=8, lr=1e-4),
    mexma=MexmaConfig(steps=1_000_000, batch_pairs=8, lr=1e-4),
    run=RunConfig(log_every=1, save_minutes={minutes}),
)
"""


def interrupted(words: list[object], until: Callable[[], object], folder: Path) -> str:
    """Run mexma-train, send SIGINT to its group, as a terminal does, once `until` holds; gives what it printed last."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "train")))
    command = [sys.executable, "-m", "mexma_train", *map(str, words)]
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, stderr=said, text=True, start_new_session=True
        )
        try:
            for _ in range(1200):
                assert process.poll() is None, (folder / "said").read_text()
                if until():
                    break
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
        said.seek(0)
        lines = said.read().splitlines()
    assert not [line for line in lines if "Traceback" in line or "Aborted" in line]
    return lines[-1]


def test_a_run_says_its_newest_state_and_resumes(toy_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE.format(minutes=0.02))
    words = ["run", "recipe.py", toy_shards, "out"]
    said = interrupted(words, lambda: list((tmp_path / "out").glob("state-mexma-*")), tmp_path)
    newest = max((tmp_path / "out").glob("state-mexma-*"))
    updates = int(newest.stem.rpartition("-")[2])
    assert said == (
        f"mexma-train: interrupted; kept: out/{newest.name}, {updates:,} updates of stage mexma. "
        "Continue with: mexma-train resume out."
    )
    logged = len((tmp_path / "out/log.jsonl").read_text().splitlines())
    said = interrupted(
        ["resume", "out"], lambda: len((tmp_path / "out/log.jsonl").read_text().splitlines()) > logged + 3, tmp_path
    )
    assert "Continue with: mexma-train resume out." in said
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    numbers = [line["update"] for line in lines if line["stage"] == "mexma"]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > updates


def test_a_run_without_a_state_says_so_and_starts_again(toy_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE.format(minutes=1e9).replace("ranking=RankingConfig", "warmup=None and dict"))
    words = ["run", "recipe.py", toy_shards, "out"]
    said = interrupted(words, (tmp_path / "out/log.jsonl").is_file, tmp_path)
    assert said == (
        "mexma-train: interrupted; no state was saved yet, so there is nothing to resume: the same command starts again."
    )
    (tmp_path / "out/log.jsonl").unlink()
    interrupted(words, (tmp_path / "out/log.jsonl").is_file, tmp_path)  # the folder is no obstacle


def test_prepare_leaves_nothing(toy_tokenizer: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pairs.tsv")
    with os.fdopen(os.open(tmp_path / "pairs.tsv", os.O_RDWR), "wb", buffering=0) as writer:
        writer.write(b"fra\ttest\tThe house.\tLa maison.\n")
        begun = lambda: list(tmp_path.glob(".shards.*.partial"))  # noqa: E731
        said = interrupted(["prepare", "pairs.tsv", "shards", "--tokenizer", toy_tokenizer], begun, tmp_path)
    assert said == "mexma-train: interrupted; no output file was changed."
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.tsv", "said"}


@pytest.mark.parametrize(("begun", "ending"), [(False, "starts over."), (True, "resumes where it stopped.")])
def test_teach_says_resumes_only_where_vectors_were_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool, ending: str
) -> None:
    from mexma_train.cli import main

    def stop(*_: object, **__: object) -> None:
        if begun:
            (tmp_path / ".teacher").mkdir()
            (tmp_path / ".teacher/progress.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("mexma_train.teacher.teach", stop)
    done = CliRunner().invoke(main, ["teach", str(tmp_path), "--teacher", "t.onnx"])
    assert done.exit_code == 130
    assert done.stderr.strip().endswith(ending)
