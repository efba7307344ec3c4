"""benchmarks/model_*.py: what is held out, the dev figure, the arms' recipes, their variants and the table."""

from __future__ import annotations

import argparse
import importlib
from collections import Counter
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
from mexma_train.data.dev_split import held_out_segments, training_part  # noqa: E402
from mexma_train.data.shards import Ragged, Shards, open_shards  # noqa: E402
from mexma_train.encoder import new_encoder  # noqa: E402
from mexma_train.model import Mexma  # noqa: E402
from mexma_train.parallel import World  # noqa: E402
from mexma_train.run import mexma_stage, warmup_stage  # noqa: E402
from mexma_train.sampling import PairSampler  # noqa: E402
from mexma_train.warmup import bag_vectors, make_bags, make_transparent, prepare_for_masking  # noqa: E402

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONS = argparse.Namespace(steps=7, batch_pairs=90, later_steps=60, later_pairs=None, seed=3)


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
    held = held_out_segments(shards, dev.HELD_OUT)
    kept_out = {int(h) for h in shards.english_hash[held]}
    assert 0.1 < held.mean() < 0.5
    assert all(held[i] == (int(h) in kept_out) for i, h in enumerate(shards.english_hash))  # equal lines go together
    sampler = PairSampler(training_part(shards, held), SamplingConfig(distinct_english=False, bucket=4))
    drawn = [sampler.batch(number, 200) for number in range(20)] + [sampler.micro_batch(number, 50) for number in range(40)]
    seen = np.unique(np.concatenate(drawn))
    assert not english_lines(shards, seen) & kept_out
    assert set(seen) == {pair for pair in range(len(shards)) if not held[shards.pair_english[pair]]}  # and all others are


def test_groups_of_the_training_part_hold_their_own_pairs(dev: ModuleType, shards: Shards) -> None:
    part = training_part(shards, held_out_segments(shards, dev.HELD_OUT))
    assert sum(group.count for group in part.groups) == len(part.order) < len(shards)
    for group in part.groups:
        own = part.order[group.start : group.start + group.count]
        assert (shards.pair_lang[own] == group.lang).all() and (shards.pair_source[own] == group.source).all()


def test_dev_pairs_are_held_out_natural_and_no_line_twice(dev: ModuleType, shards: Shards) -> None:
    held = held_out_segments(shards, dev.HELD_OUT)
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
    pairs = dev.dev_pairs(shards, held_out_segments(shards, dev.HELD_OUT))
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
    arms = importlib.import_module("model_arms")
    recipes = {name: ablations.recipe_of(name, OPTIONS) for name in arms.ARMS}
    for name, recipe in recipes.items():
        assert (recipe.warmup.steps, recipe.warmup.batch_pairs, recipe.mexma.seed) == (7, 90, 3)
        assert recipe.sampling.seed == (4 if arms.ARMS[name].stage == "again" else 3)  # draws that the start has not seen
    different = {(repr(recipes[name]), a.stage, a.from_start, a.masked_first, a.variant) for name, a in arms.ARMS.items()}
    assert len(different) == len(recipes)  # no arm is another one over again
    depth = {name: (recipe.model.layers, recipe.ranking.steps) for name, recipe in recipes.items() if "layers" in name}
    assert set(depth.values()) == {(2, 90), (4, 45), (6, 30)}
    assert recipes["without bible"].sampling.source_weights == arms.WEIGHTS | {"bible": 0}


@pytest.fixture
def setting(dev: ModuleType, shards: Shards) -> Any:
    """A small model on the toy corpus; the judge is a transparent encoder with weights of its own."""
    variants, arms = importlib.import_module("model_variants"), importlib.import_module("model_arms")
    shape = ModelConfig(hidden_size=16, layers=2, heads=2, intermediate_size=32, max_positions=80, dropout=0.0, head_layers=1,
                        head_heads=2, head_intermediate_size=32)  # fmt: skip
    torch.manual_seed(0)
    model, judge = Mexma(new_encoder(shape, shards.vocab_size), shape), new_encoder(shape, shards.vocab_size)
    make_transparent(model.encoder)
    make_transparent(judge)
    recipe = replace(arms.BASE, model=shape, sampling=SamplingConfig(bucket=2))
    recipe = replace(
        recipe, warmup=replace(recipe.warmup, batch_pairs=24), mexma=replace(recipe.mexma, batch_pairs=12, steps=2)
    )
    training = training_part(shards, held_out_segments(shards, dev.HELD_OUT))
    sampler = PairSampler(training, replace(recipe.sampling, source_weights={}))
    return variants.Setting(recipe=recipe, model=model, sampler=sampler, judge=judge)


def warm(setting: Any) -> Any:
    return warmup_stage(setting.recipe.warmup, setting.model, setting.sampler, 1)


def shown(shards: Shards, rows: np.ndarray, batch: Any) -> bool:
    """Whether a batch's bags are those of these pairs."""
    bags = make_bags(shards.text(rows, 64))
    return len(batch.text.starts) == len(rows) and torch.equal(batch.text.columns, bags.columns)


def test_a_hard_batch_is_half_a_pool_and_its_nearest_neighbours(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = importlib.import_module("model_variants")
    monkeypatch.setattr(variants, "TOO_NEAR", 0.995)  # untrained vectors are all alike
    (batch,) = variants.hard_negatives(warm(setting), setting).batches(0)
    pool = setting.sampler.batch(0, 6 * 24)
    bags = make_bags(setting.sampler.shards.english(pool, 64))
    unit = torch.nn.functional.normalize(bag_vectors(setting.judge, bags)).detach().double().numpy()
    chosen = set(range(12))
    for i in range(12):  # the reference, one line at a time
        cosines = unit @ unit[i]
        others = [j for j in range(12, len(pool)) if cosines[j] <= 0.995]
        chosen |= {max(others, key=lambda j: cosines[j])} if others else set()
    assert batch.pairs == len(chosen) > 12 and shown(setting.sampler.shards, pool[sorted(chosen)], batch)


def test_the_filter_drops_the_pairs_of_the_lowest_margin_and_counts_them(setting: Any) -> None:
    variants, shards = importlib.import_module("model_variants"), setting.sampler.shards
    (batch,) = variants.filter_half(warm(setting), setting).batches(3)
    drawn = setting.sampler.batch(3, 48)
    sides = (make_bags(side(drawn, 64)) for side in (shards.text, shards.english))
    x, y = (torch.nn.functional.normalize(bag_vectors(setting.judge, bags)).detach().double().numpy() for bags in sides)
    cosines = x @ y.T
    means = (np.sort(cosines, axis=1)[:, -4:].mean(axis=1) + np.sort(cosines, axis=0)[-4:].mean(axis=0)) / 2
    ratio = np.diag(cosines) / means
    kept = np.sort(np.argsort(ratio)[len(drawn) // 2 :])
    assert shown(shards, drawn[kept], batch)
    names = np.array(shards.sources)[shards.pair_source[drawn]].tolist()
    left = Counter(np.array(names)[kept].tolist())
    assert setting.notes == {"drawn": Counter(names), "dropped": Counter(names) - left} and len(setting.notes["drawn"]) == 2


def test_the_rules_drop_short_unlike_and_equal_sides(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    variants, shards = importlib.import_module("model_variants"), setting.sampler.shards
    monkeypatch.setattr(variants, "RATIO", 1.2)
    monkeypatch.setattr(variants, "SHORT", 5)
    (batch,) = variants.filter_rules(warm(setting), setting).batches(0)
    assert 0 < sum(setting.notes["dropped"].values()) < sum(setting.notes["drawn"].values())
    sizes = [np.diff([*bags.starts.tolist(), len(bags.columns)]) - 2 for bags in (batch.text, batch.english)]
    assert min(sizes[0].min(), sizes[1].min()) >= 5
    assert (np.maximum(*sizes) <= 1.2 * np.minimum(*sizes)).all() and len(sizes[0]) > 5
    texts = [shards.english_ids[slice(*shards.english_offsets[e : e + 2])] for e in shards.pair_english]
    offsets = np.cumsum([0, *map(len, texts)])
    copies = replace(setting, sampler=PairSampler(replace(shards, text_ids=np.concatenate(texts), text_offsets=offsets),
                                                  SamplingConfig()))  # fmt: skip
    with pytest.raises(ZeroDivisionError):  # all are dropped: there is no number of draws that would do
        variants.filter_rules(warm(setting), copies).batches(0)


def test_the_teacher_beside_mexma_is_infonce_against_its_vectors(setting: Any) -> None:
    variants, shards = importlib.import_module("model_variants"), setting.sampler.shards
    targets = np.random.default_rng(1).normal(size=(len(shards.english_hash), 16)).astype(np.float16)
    sampler = PairSampler(replace(shards, teacher=targets), setting.sampler.config)
    setting = replace(setting, sampler=sampler)
    plain = mexma_stage(setting.recipe, setting.model, sampler, World(device=torch.device("cpu")), [])
    (batch,) = plain.batches(1)
    before = plain.terms(batch)["loss"].item()
    clean, _ = setting.model.states(batch, "padded")
    taught = variants.mexma_teacher(plain, setting).terms(batch)["loss"].item()
    pairs = sampler.micro_batch(1, 12, 96)
    teacher = targets[shards.pair_english[pairs]].astype(np.float64)
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    expected = 0.0
    for side in clean.detach().double().chunk(2):  # the source, then the English side
        x = (side / side.norm(dim=1, keepdim=True)).numpy()
        for logits in (x @ teacher.T / 0.07, teacher @ x.T / 0.07):
            expected += float(np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits))) / 4
    assert taught - before == pytest.approx(expected, abs=1e-4) and expected > 1


def test_masked_first_runs_the_token_loss_before_the_ranking(ablations: ModuleType, setting: Any) -> None:
    arm, world = importlib.import_module("model_arms").ARMS["ranking, masked first"], World(device=torch.device("cpu"))
    first, second = ablations.stages(arm, setting, 1, world)
    assert (first.name, second.name) == ("mexma", "ranking") and first.steps == 2
    recipe = ablations.recipe_of("ranking, masked first", OPTIONS)
    assert (recipe.mexma.align_weight, recipe.mexma.koleo_weight, recipe.mexma.contrastive_weight) == (0, 0, 0)


def test_a_warm_start_fits_encoders_of_any_depth(ablations: ModuleType, tmp_path: Path) -> None:
    def transparent(layers: int) -> Any:
        encoder = new_encoder(ModelConfig(hidden_size=8, layers=layers, heads=2, intermediate_size=16, max_positions=12), 30)
        make_transparent(encoder)
        return encoder

    trained, deeper = transparent(1), transparent(4)
    ablations.save_start(trained, tmp_path / "start.safetensors")
    ablations.load_start(deeper, tmp_path / "start.safetensors")
    prepare_for_masking(deeper)
    last = trained.encoder.layer[0].state_dict()
    assert all(torch.equal(x, last[name]) for name, x in deeper.encoder.layer[3].state_dict().items())
    # `prepare_for_masking` has centred the word rows and given them one length, and the positions are no longer zero.
    rows = trained.embeddings.word_embeddings.weight
    rows = torch.nn.functional.normalize(rows - rows.mean(dim=1, keepdim=True))
    assert torch.allclose(torch.nn.functional.normalize(deeper.embeddings.word_embeddings.weight), rows, atol=1e-6)
    assert deeper.embeddings.position_embeddings.weight.any()


def test_the_table_repeats_what_an_arm_is_compared_with(ablations: ModuleType) -> None:
    module = importlib.import_module("model_table")

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
        row("base", 25.0, question="", made_by=module.AD_HOC),
        row("distil", 19.0),
        row("distil", 17.0),  # the same run again
        row("ranking", 9.0, **later),
        row("six layers", 8.0, **later),
        row("six layers", 7.0, few=True, **later),
        row("no update", 11.0, few=True, **later | {"updates": 0, "question": "Start"}),
        row("base", 22.0, question="", seed=43),
    ]
    alone = {"corpus_pairs": 50, "tokenizer": rows[0]["tokenizer"] | {"vocab_size": 32, "scripts": {"THAI": 0.25}}}
    text = module.table(rows, ["mexma"], [alone])
    _, spread, base, teacher, depth, start, tokenizers, missing = text.split("\n## ")
    assert "† Measured with scripts" in text and "not run yet: mexma." in missing
    assert "| base | 300 | 90 | 2 | 21.50 (21.00 to 22.00) | 30.00 (30.00 to 30.00) |" in spread
    assert [line.split(" | ")[6] for line in base.splitlines()[4:] if line] == ["21.00", "22.00", "25.00"]
    cells = [line.strip("| ").split(" | ") for line in teacher.splitlines()[4:] if line]
    assert [(line[0], line[6]) for line in cells] == [("*base*", "21.00"), ("distil", "17.00")]
    assert cells[1][3] == "1,234,567"
    cells = [line.strip("| ").split(" | ") for line in depth.splitlines()[4:] if line]
    compared = [("*distil*", "17.00"), ("*no update* ‡", "11.00"), ("ranking", "9.00"), ("six layers", "8.00")]
    assert [(line[0], line[6]) for line in cells] == [*compared, ("six layers ‡", "7.00")]
    assert "no update ‡ | Because. | 0 |" in start
    assert "| 50 pairs, 32 pieces | 600 pairs, 90 pieces |" in tokenizers
    assert "| LATIN |  | 1.50 |" in tokenizers and "| THAI | 0.25 |  |" in tokenizers
