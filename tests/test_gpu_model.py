"""benchmarks/gpu_model.py: the journey of a model to a machine with a GPU and back, here on the CPU with the tiny bundle."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="part of mexma-rt[train]")
for name in ("transformers", "safetensors"):
    pytest.importorskip(name, reason=f"{name} is part of mexma-rt[train]")
from .scripts import load_script  # noqa: E402

REPOSITORY = Path(__file__).parents[1]
RECIPE = """
from mexma_train.config import *
RECIPE = Recipe(
    name="toy",
    model=ModelConfig(hidden_size=32, layers=3, heads=4, intermediate_size=64, dropout=0.0, head_layers=1, head_heads=4,
                      head_intermediate_size=64),
    sampling=SamplingConfig(bucket=1, distinct_english=False),  # the tiny tokenizer has few pieces, so many lines look alike
    ranking=RankingConfig(steps=6, batch_pairs=8, words_lr=0, lr=1e-3),
    mexma=MexmaConfig(steps=3, batch_pairs=4, accumulation=1, lr=1e-3, freeze_words=True),
)
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path])
    module = load_script("benchmarks/gpu_model.py")
    monkeypatch.setattr(module, "PART_BYTES", 20_000)
    monkeypatch.setattr(module, "PROBE", 6)
    return module


@pytest.fixture
def carry(script: ModuleType, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards of 100 made-up pairs, in parts."""
    rng, rows = random.Random(0), []
    for _ in range(100):
        numbers = [rng.randrange(100) for _ in range(rng.randint(3, 9))]
        rows.append("xxx\ttoy\t" + "\t".join(" ".join(f"{word}{n}" for n in numbers) for word in ("one", "un")) + "\n")
    (tmp_path / "pairs.tsv").write_text("".join(rows), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(script, "PART_BYTES", 2000)
        script.main(["--model", str(tiny_bundle), "pack", str(tmp_path / "pairs.tsv"), str(tmp_path / "carry")])
    assert len(list((tmp_path / "carry").iterdir())) > 1
    return tmp_path / "carry"


def test_as_many_pairs_are_packed_as_fit(
    script: ModuleType, carry: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 1 << 20 < script.tree_room() < 64 << 20  # what `carry` was packed into, whole
    room = sum(part.stat().st_size for part in carry.iterdir()) - 200
    words = ["--model", str(tiny_bundle), "pack", str(tmp_path / "pairs.tsv")]
    script.main([*words, str(tmp_path / "less"), "--room", str(room)])
    said = re.search(r": (\d+) of 100 pairs in ([\d,]+) bytes", capsys.readouterr().out)
    assert said and 0 < int(said[1]) < 100
    assert sum(part.stat().st_size for part in (tmp_path / "less").iterdir()) == int(said[2].replace(",", "")) <= room
    with pytest.raises(SystemExit, match=r"No pairs fit into 100 bytes, at \d+ bytes a pair"):
        script.main([*words, str(tmp_path / "none"), "--room", "100"])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("bits", [0, 4])
def test_a_model_comes_back_trained_and_whole(
    script: ModuleType,
    carry: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE.replace("lr=1e-3", f"lr=1e-3, round_bits={bits}"))
    out, work = tmp_path / "out", tmp_path / "work"
    train = script.train

    def unhurried(*places: object, minutes: float | None = None, **settings: object) -> object:
        return train(*places, minutes=None if minutes is None else 20 * minutes, **settings)

    # The plan is for three seconds, whatever else the machine does meanwhile; only a run twenty times too slow is cut.
    monkeypatch.setattr(script, "time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr(script, "train", unhurried)
    common = ["--work", str(work), "--model", str(tiny_bundle)]
    script.main([*common, "train", str(tmp_path / "recipe.py"), str(carry), str(out), "--device", "cpu", "--minutes", "0.05"])
    said = capsys.readouterr().out
    assert "then: python benchmarks/gpu_model.py send OUT --first 4" in said
    assert len(list(out.glob("changed.safetensors.*"))) == 4
    while more := re.search(r"then: python benchmarks/gpu_model.py send OUT --first (\d+)", said):
        script.main([*common, "send", str(out), "--first", more[1]])
        said = capsys.readouterr().out
    assert all(part.stat().st_size <= 20_000 for part in out.glob("changed.*"))
    script.main([*common, "join", str(out), str(tmp_path / "checkpoint")])

    start, end, back = (
        script.load_file(folder / "model.safetensors")
        for folder in (work / "start", work / "run" / "checkpoint", tmp_path / "checkpoint")
    )
    assert back.keys() == end.keys()
    words = "embeddings.word_embeddings.weight"
    assert torch.equal(back[words], start[words])  # frozen, so not sent
    moved = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(back[moved], start[moved])
    for name, tensor in end.items():
        torch.testing.assert_close(back[name], tensor, atol=2e-5, rtol=1e-3)  # fp16 on the way
        assert not bits or torch.equal(back[name], tensor)  # but not of numbers on a grid, which it would leave
    stages = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    updates = {stage: max(line["update"] for line in stages if line["stage"] == stage) for stage in ("ranking", "mexma")}
    assert updates["ranking"] >= updates["mexma"] >= 1  # the recipe's proportions
    assert (tmp_path / "checkpoint" / "tokenizer.json").read_bytes() == (tiny_bundle / "tokenizer.json").read_bytes()


def test_what_cannot_be_trained_is_told_with_what_to_do(script: ModuleType, tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    words = ["--work", str(tmp_path / "work"), "--model", str(tiny_bundle)]
    with pytest.raises(SystemExit, match=r"has no shards\.tar\.xz\.00: see the commands"):
        script.main([*words, "train", str(tmp_path / "recipe.py"), str(tmp_path), str(tmp_path / "out"), "--device", "cpu"])
