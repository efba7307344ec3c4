"""The ranking stage: its batch, its losses with and without a teacher, and what it moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from transformers import XLMRobertaModel  # noqa: E402

from mexma_rt.errors import InputError  # noqa: E402
from mexma_train.config import ModelConfig, RankingConfig, SamplingConfig, WarmupConfig  # noqa: E402
from mexma_train.data.shards import open_shards  # noqa: E402
from mexma_train.encoder import new_encoder  # noqa: E402
from mexma_train.losses import ranking_terms  # noqa: E402
from mexma_train.probe import embed_sentences  # noqa: E402
from mexma_train.ranking import draw, ranking_batch, ranking_parameters, ranking_rate, whole_terms  # noqa: E402
from mexma_train.sampling import PairSampler  # noqa: E402
from mexma_train.warmup import warmup_batch  # noqa: E402

SHAPE = ModelConfig(hidden_size=32, layers=2, heads=4, intermediate_size=64, max_positions=40, dropout=0.0)


def ranking_loss(x: np.ndarray, y: np.ndarray, temperature: float) -> float:
    """InfoNCE in float64, from the formula: the mean of both directions; y may have more rows than x, wrong for all of them."""
    x, y = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True) for v in (x, y))
    scores = np.exp(x @ y.T / temperature)
    right = np.diag(scores)
    return float((-np.log(right / scores.sum(axis=1)) - np.log(right / scores[:, : len(x)].sum(axis=0))).mean() / 2)


@pytest.mark.parametrize("pool", [0, 9])
def test_terms_with_a_teacher_are_those_of_the_formula(pool: int) -> None:
    rng = np.random.default_rng(0)
    x, y, t = (rng.normal(size=(rows, 5)).astype(np.float32) for rows in (7, 7, 7 + pool))
    config = RankingConfig(steps=1, temperature=0.2, contrastive_weight=0.5, distil_weight=3.0, distil_temperature=0.1)
    terms = ranking_terms(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(t), config)
    contrastive = ranking_loss(x, y, 0.2)
    distil = (ranking_loss(x, t, 0.1) + ranking_loss(y, t, 0.1)) / 2
    assert terms["contrastive"].item() == pytest.approx(contrastive, rel=1e-5)
    assert terms["distil"].item() == pytest.approx(distil, rel=1e-5)
    assert terms["loss"].item() == pytest.approx(0.5 * contrastive + 3 * distil, rel=1e-5)
    alone = ranking_terms(torch.from_numpy(x), torch.from_numpy(y), None, config)
    assert set(alone) == {"loss", "accuracy"} and alone["loss"].item() == pytest.approx(contrastive, rel=1e-5)


def test_terms_are_those_of_transformers_vectors(toy_shards: Path) -> None:
    """The whole way from pair numbers to the loss, against padded sentences through XLMRobertaModel."""
    torch.manual_seed(0)
    sampler = PairSampler(open_shards(toy_shards), SamplingConfig(bucket=1))
    encoder = new_encoder(SHAPE, sampler.shards.vocab_size)
    config = RankingConfig(steps=1, batch_pairs=12, temperature=0.1, max_tokens=20)
    terms = whole_terms(encoder, ranking_batch(3, sampler, config), config, "padded")

    theirs = XLMRobertaModel(encoder.config, add_pooling_layer=False).eval()
    theirs.load_state_dict(encoder.state_dict())
    pairs = sampler.batch(3, 12)
    vectors = []
    for side in (sampler.shards.text(pairs, 20), sampler.shards.english(pairs, 20)):
        ends = np.cumsum(side.lengths)
        with torch.no_grad():
            rows = [theirs(torch.from_numpy(side.ids[e - n : e])[None]) for e, n in zip(ends, side.lengths, strict=True)]
        vectors.append(torch.cat([row.last_hidden_state[:, 0] for row in rows]).numpy())
    assert terms["loss"].item() == pytest.approx(ranking_loss(vectors[0], vectors[1], 0.1), rel=1e-4)


def test_targets_are_the_teachers_vectors_of_the_english_sides(toy_shards: Path) -> None:
    shards = open_shards(toy_shards)
    teacher = np.random.default_rng(1).normal(size=(len(shards.english_hash), 32)).astype(np.float16)
    sampler = PairSampler(replace(shards, teacher=teacher), SamplingConfig(bucket=1))
    batch = ranking_batch(5, sampler, RankingConfig(steps=1, batch_pairs=9, distil_weight=1.0))
    assert batch.targets is not None
    expected = [teacher[shards.pair_english[pair]] for pair in sampler.batch(5, 9)]
    assert np.array_equal(batch.targets.numpy(), np.array(expected, np.float32))
    with pytest.raises(InputError, match="mexma-train teach"):
        ranking_batch(5, PairSampler(shards, SamplingConfig()), RankingConfig(steps=1, distil_weight=1.0))


@pytest.mark.parametrize("make", [ranking_batch, warmup_batch])
def test_the_pool_adds_teachers_vectors_of_segments_that_are_not_in_the_batch(toy_shards: Path, make: Any) -> None:
    shards = open_shards(toy_shards)
    teacher = np.arange(len(shards.english_hash), dtype=np.float16)[:, None] * np.ones(3, np.float16)  # row e says e
    sampler = PairSampler(replace(shards, teacher=teacher), SamplingConfig(bucket=1))
    of_stage = {ranking_batch: RankingConfig, warmup_batch: WarmupConfig}[make]
    batch = make(5, sampler, of_stage(steps=1, batch_pairs=9, distil_weight=1.0, distil_pool=40))
    rows, own = batch.targets[:, 0].numpy().astype(int), [shards.pair_english[pair] for pair in sampler.batch(5, 9)]
    assert rows[: len(own)].tolist() == own
    hashes = shards.english_hash[rows]
    assert len(np.unique(hashes)) == len(hashes) > len(own)  # a second one would be right where it counts as wrong
    again = make(5, sampler, of_stage(steps=1, batch_pairs=9, distil_weight=1.0, distil_pool=40))
    assert np.array_equal(batch.targets, again.targets)  # a function of (seed, update): resume draws the same


def test_words_have_their_own_rate_and_may_stay_as_they_are() -> None:
    encoder = new_encoder(SHAPE, 50)
    *rest, words = ranking_parameters(encoder, RankingConfig(steps=1, lr=0.1, words_lr=0.2))
    assert {group["lr"] for group in rest} == {0.1} and words["lr"] == 0.2
    assert words["params"][0] is encoder.embeddings.word_embeddings.weight
    assert sum(len(group["params"]) for group in rest) == len(list(encoder.parameters())) - 1
    without = ranking_parameters(encoder, RankingConfig(steps=1, words_lr=0))
    assert not encoder.embeddings.word_embeddings.weight.requires_grad and len(without) == len(rest)


def test_lower_layers_move_more_slowly() -> None:
    encoder = new_encoder(SHAPE, 50)
    top, below, embeddings, _ = ranking_parameters(encoder, RankingConfig(steps=1, lr=0.1, layer_decay=0.5))
    assert (top["lr"], below["lr"], embeddings["lr"]) == pytest.approx((0.1, 0.05, 0.025))
    assert top["params"][0] is next(encoder.encoder.layer[1].parameters())
    assert {id(p) for p in embeddings["params"]} == {
        id(p) for name, p in encoder.embeddings.named_parameters() if not name.startswith("word_")
    }


def test_translations_of_a_segment_share_its_english_and_are_not_wrong_for_each_other(toy_shards: Path) -> None:
    """Against the formula in float64: a text's wrong answers are the other segments, an English side's the others' texts."""
    torch.manual_seed(0)
    sampler = PairSampler(open_shards(toy_shards), SamplingConfig(bucket=1))
    shards = sampler.shards
    config = RankingConfig(steps=1, batch_pairs=200, translations=2, temperature=0.1, max_tokens=20)
    batch = ranking_batch(0, sampler, config)
    assert len(batch.lengths) < 2 * batch.pairs  # some segments have two translations
    pairs = draw(0, sampler, config)
    assert len(np.unique(pairs)) == len(pairs) == batch.pairs
    assert np.bincount(shards.pair_english[pairs]).max() == 2
    encoder = new_encoder(SHAPE, shards.vocab_size).eval()
    terms = whole_terms(encoder, batch, config, "padded")
    x, y = (embed_sentences(encoder, np.split(s.ids, np.cumsum(s.lengths)[:-1]), attention="padded").astype(np.float64)
            for s in (shards.text(pairs, 20), shards.english(pairs, 20)))  # fmt: skip
    english, losses = shards.pair_english[pairs], []
    for i in range(len(pairs)):
        rivals = (english != english[i]) | (np.arange(len(pairs)) == i)
        for logits in (x[i] @ y.T / 0.1, y[i] @ x.T / 0.1):
            losses.append(np.log(np.exp(logits[rivals]).sum()) - logits[i])
    assert terms["loss"].item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_rate_rises_and_falls_to_nothing() -> None:
    config = RankingConfig(steps=100, warmup_share=0.1)
    rates = [ranking_rate(update, config) for update in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == pytest.approx(0.91)
    assert rates[-1] == pytest.approx(0.01) and rates[9:] == sorted(rates[9:], reverse=True)


def test_a_ranking_stage_runs_in_one_process(toy_shards: Path, tmp_path: Path) -> None:
    from mexma_train.config import MexmaConfig, Recipe
    from mexma_train.parallel import World
    from mexma_train.run import train

    recipe = Recipe(name="toy", model=SHAPE, ranking=RankingConfig(steps=1), mexma=MexmaConfig(steps=1))
    with pytest.raises(InputError, match="the ranking stage of recipe 'toy' runs in one process only"):
        train(recipe, toy_shards, tmp_path / "out", device=World(device=torch.device("cpu"), rank=0, size=2))
