"""benchmarks/model_dev.py and model_ablations.py: what is held out, the dev figure, the arms' recipes and the table."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from mexma_rt.errors import InputError  # noqa: E402
from mexma_train.config import ModelConfig, SamplingConfig  # noqa: E402
from mexma_train.encoder import new_encoder  # noqa: E402
from mexma_train.sampling import PairSampler  # noqa: E402
from mexma_train.shards import Ragged, Shards, open_shards  # noqa: E402
from mexma_train.warmup import make_transparent  # noqa: E402

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def ablations() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("model_ablations")


@pytest.fixture
def dev(ablations: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Sized for the toy corpus: a fifth of some 500 segments, and `toy` is its natural source."""
    module = importlib.import_module("model_dev")
    for name, value in {"HELD_OUT": 0.2, "NATURAL": ("toy",), "MIN_DEV": 5, "MAX_DEV": 25}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def shards(toy_shards: Path) -> Shards:
    """Every third segment equal to the one before it, as if prepare had forgotten the line in between."""
    opened = open_shards(toy_shards)
    hashes = np.array(opened.english_hash)
    hashes[2::3] = hashes[1::3][: len(hashes[2::3])]
    return replace(opened, english_hash=hashes)


def english_lines(shards: Shards, pairs: np.ndarray) -> set[int]:
    return {int(shards.english_hash[shards.pair_english[pair]]) for pair in pairs}


def test_no_held_out_segment_nor_an_equal_line_is_ever_drawn(dev: ModuleType, shards: Shards) -> None:
    held = dev.held_out_segments(shards)
    kept_out = {int(h) for h in shards.english_hash[held]}
    assert 0.1 < held.mean() < 0.5
    assert all(held[i] == (int(h) in kept_out) for i, h in enumerate(shards.english_hash))  # equal lines go together
    sampler = PairSampler(dev.training_part(shards, held), SamplingConfig(distinct_english=False, bucket=4))
    drawn = [sampler.batch(number, 200) for number in range(20)] + [sampler.micro_batch(number, 50) for number in range(40)]
    seen = np.unique(np.concatenate(drawn))
    assert not english_lines(shards, seen) & kept_out
    assert set(seen) == {pair for pair in range(len(shards)) if not held[shards.pair_english[pair]]}  # and all others are


def test_groups_of_the_training_part_hold_their_own_pairs(dev: ModuleType, shards: Shards) -> None:
    part = dev.training_part(shards, dev.held_out_segments(shards))
    assert sum(group.count for group in part.groups) == len(part.order) < len(shards)
    for group in part.groups:
        own = part.order[group.start : group.start + group.count]
        assert (shards.pair_lang[own] == group.lang).all() and (shards.pair_source[own] == group.source).all()


def test_dev_pairs_are_held_out_natural_and_no_line_twice(dev: ModuleType, shards: Shards) -> None:
    held = dev.held_out_segments(shards)
    chosen = dev.dev_pairs(shards, held)
    assert set(chosen) == {"fra", "rus"}
    for lang, pairs in chosen.items():
        assert 5 <= len(pairs) <= 25 and len(english_lines(shards, pairs)) == len(pairs)
        assert held[shards.pair_english[pairs]].all()
        assert {shards.sources[i] for i in shards.pair_source[pairs]} == {"toy"}
        assert {shards.languages[i] for i in shards.pair_lang[pairs]} == {lang}
    with pytest.raises(
        InputError, match="has no language with 5 held-out pairs of toy, so there is nothing to choose an arm by"
    ):
        dev.dev_pairs(shards, np.zeros_like(held))


def test_dev_error_is_the_mean_over_languages(dev: ModuleType, toy_shards: Path) -> None:
    """Vectors by hand: each text has that of its English line, but two French ones and a Russian one point astray."""
    shards = open_shards(toy_shards)
    pairs = dev.dev_pairs(shards, dev.held_out_segments(shards))
    lines = sorted(english_lines(shards, np.concatenate(list(pairs.values()))))
    vectors: dict[tuple[int, ...], np.ndarray] = {}

    def sentences(batch: Ragged) -> list[tuple[int, ...]]:
        return [tuple(part.tolist()) for part in np.split(batch.ids, np.cumsum(batch.lengths)[:-1])]

    for lang, rows in pairs.items():
        texts, english_sides = (sentences(side(rows, 128)) for side in (shards.text, shards.english))
        for i, (text, english) in enumerate(zip(texts, english_sides, strict=True)):
            place = lines.index(int(shards.english_hash[shards.pair_english[rows[i]]]))
            vectors[english] = np.eye(len(lines))[place]
            astray = i < {"fra": 2, "rus": 1}[lang]
            vectors[text] = np.eye(len(lines))[(place + 1) % len(lines) if astray else place]
    error = dev.dev_error(lambda batch: np.array([vectors[s] for s in sentences(batch)]), shards, pairs)
    assert error == pytest.approx(100 * (2 / len(pairs["fra"]) + 1 / len(pairs["rus"])) / 2)


def test_every_arm_is_a_recipe_and_depth_costs_as_many_flops(ablations: ModuleType) -> None:
    options = argparse.Namespace(steps=7, later_steps=60, seed=3)
    recipes = {name: ablations.recipe_of(name, options) for name in ablations.ARMS}
    assert all(recipe.warmup.steps == 7 and recipe.sampling.seed == recipe.mexma.seed == 3 for recipe in recipes.values())
    assert len({repr(recipe) for recipe in recipes.values()}) == len(recipes) - 3  # base, ranking (2) and mexma differ by stage
    depth = {name: (recipe.model.layers, recipe.ranking.steps) for name, recipe in recipes.items() if "layers" in name}
    assert set(depth.values()) == {(2, 90), (4, 45), (6, 30)}
    assert recipes["without bible"].sampling.source_weights == ablations.WEIGHTS | {"bible": 0}


def test_a_warm_start_fits_encoders_of_any_depth(ablations: ModuleType, tmp_path: Path) -> None:
    def transparent(layers: int) -> Any:
        encoder = new_encoder(ModelConfig(hidden_size=8, layers=layers, heads=2, intermediate_size=16, max_positions=12), 30)
        make_transparent(encoder)
        return encoder

    trained, deeper = transparent(1), transparent(4)
    ablations.save_start(trained, tmp_path / "start.safetensors")
    ablations.load_start(deeper, tmp_path / "start.safetensors")
    last = trained.encoder.layer[0].state_dict()
    assert all(torch.equal(x, last[name]) for name, x in deeper.encoder.layer[3].state_dict().items())
    # `settle` has centred the word rows and given them one length, and the positions are no longer zero.
    rows = trained.embeddings.word_embeddings.weight
    rows = torch.nn.functional.normalize(rows - rows.mean(dim=1, keepdim=True))
    assert torch.allclose(torch.nn.functional.normalize(deeper.embeddings.word_embeddings.weight), rows, atol=1e-6)
    assert deeper.embeddings.position_embeddings.weight.any()


def test_the_table_repeats_what_an_arm_is_compared_with(dev: ModuleType) -> None:
    def row(arm: str, figure: float, **other: Any) -> dict[str, Any]:
        return {
            "arm": arm, "stage": "warmup", "start": None, "made_by": "abc", "date": "2026-01-01", "seed": 42, "steps": 300,
            "updates": 300, "pairs_seen": 1_234_567, "cpu_seconds": 99.5, "threads": 1, "corpus_pairs": 600,
            "tokenizer": {"vocab_size": 90, "unknown": 0.5, "english_unknown": 0.25, "scripts": {"LATIN": 1.5}},
            "dev": figure, "flores": 30.0, "tatoeba": 40.0, "question": "Teacher", "why": "Because.",
        } | other  # fmt: skip

    later = {"stage": "ranking", "start": "distil", "question": "Depth", "updates": 60}
    rows = [
        row("base", 21.0, question=""),
        row("base", 25.0, question="", made_by=dev.AD_HOC),
        row("distil", 19.0),
        row("distil", 17.0),  # the same run again
        row("ranking", 9.0, **later),
        row("six layers", 8.0, **later),
    ]
    text = dev.table(rows, ["mexma"])
    _, base, teacher, depth, tokenizers, missing = text.split("\n## ")
    assert "† Measured with scripts" in text and "not run yet: mexma." in missing
    assert [line.split(" | ")[6] for line in base.splitlines()[4:] if line] == ["21.00", "25.00"]
    cells = [line.strip("| ").split(" | ") for line in teacher.splitlines()[4:] if line]
    assert [(line[0], line[6]) for line in cells] == [("*base*", "21.00"), ("distil", "17.00")]
    assert cells[1][3] == "1,234,567"
    cells = [line.strip("| ").split(" | ") for line in depth.splitlines()[4:] if line]
    assert [(line[0], line[6]) for line in cells] == [("*distil*", "17.00"), ("ranking", "9.00"), ("six layers", "8.00")]
    assert "| LATIN | 1.50 |" in tokenizers and "600 pairs, 90 pieces" in tokenizers
