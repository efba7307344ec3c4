from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_rt.errors import InputError
from mexma_train.config import SamplingConfig
from mexma_train.data.dev_split import held_out_segments
from mexma_train.data.prepare import prepare
from mexma_train.data.shards import Shards, open_shards
from mexma_train.neighbourhoods import bags_of_pieces
from mexma_train.sampling import BUCKET, PairSampler, deal, equal_cuts

ORDERS = st.sampled_from(["draw", "epochs"])
LENGTHS = st.lists(st.integers(4, 400), min_size=1, max_size=200).map(np.array)


@pytest.fixture(scope="module")
def shards(toy_shards: Path) -> Shards:
    return open_shards(toy_shards)


@pytest.fixture(scope="module")
def uneven(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """400 + 100 pairs of fra (sources a, b) and 50 + 50 of rus (a, c), every English line another one."""
    folder = tmp_path_factory.mktemp("uneven")
    groups = [("fra", "a", 400), ("fra", "b", 100), ("rus", "a", 50), ("rus", "c", 50)]
    lines = [f"{lang}\t{source}" for lang, source, count in groups for _ in range(count)]
    lines = [lines[i] for i in np.random.default_rng(0).permutation(600)]
    (folder / "pairs.tsv").write_text(
        "".join(f"{line}\tsun {'a ' * (i // 26)}{chr(97 + i % 26)}\tlune\n" for i, line in enumerate(lines))
    )
    prepare(folder / "pairs.tsv", folder / "shards", toy_tokenizer)
    return open_shards(folder / "shards")


def names(shards: Shards, rows: np.ndarray) -> list[tuple[str, str]]:
    return [(shards.languages[shards.pair_lang[i]], shards.sources[shards.pair_source[i]]) for i in rows]


def config(**values: Any) -> SamplingConfig:
    return SamplingConfig(**{"distinct_english": False, "bucket": 1, **values})


@settings(max_examples=30, deadline=None)
@given(order=ORDERS, seed=st.integers(0, 99), bucket=st.sampled_from([1, 2, 5]), calls=st.permutations(range(12)))
def test_a_batch_depends_on_seed_number_and_size_alone(
    shards: Shards, order: Any, seed: int, bucket: int, calls: list[int]
) -> None:
    settings = SamplingConfig(order=order, seed=seed, bucket=bucket)
    inorder, shuffled = PairSampler(shards, settings), PairSampler(shards, settings)
    expected = [(inorder.batch(i, 8), inorder.micro_batch(i, 8)) for i in range(12)]
    for i in calls:
        shuffled.micro_batch(3, 9)  # another size in between
        assert (shuffled.micro_batch(i, 8) == expected[i][1]).all()
        assert (shuffled.batch(i, 8) == expected[i][0]).all()
    other = PairSampler(shards, SamplingConfig(order=order, seed=seed + 1, bucket=bucket))
    assert not np.array_equal(other.micro_batch(0, 30), inorder.micro_batch(0, 30))
    assert not np.array_equal(inorder.batch(0, 30), inorder.batch(1, 30))


def test_a_caller_may_change_what_it_got(shards: Shards) -> None:
    sampler = PairSampler(shards, SamplingConfig(bucket=4))
    first = sampler.micro_batch(0, 8)
    kept = first.copy()
    first[:] = 0
    assert (sampler.micro_batch(0, 8) == kept).all()


def test_threads_may_share_a_sampler(shards: Shards) -> None:
    alone, shared = (PairSampler(shards, SamplingConfig(bucket=4)) for _ in range(2))
    numbers = np.random.default_rng(0).integers(0, 40, 400).tolist()
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda number: shared.micro_batch(number, 8), numbers))
    assert all((rows == alone.micro_batch(number, 8)).all() for rows, number in zip(got, numbers, strict=True))


@pytest.mark.parametrize("order", ["draw", "epochs"])
def test_no_english_segment_twice_in_a_batch_or_a_bucket(shards: Shards, order: Any) -> None:
    sampler = PairSampler(shards, SamplingConfig(order=order, bucket=3))
    dropped = 0
    for number in range(0, 20, 3):
        batch = sampler.batch(number, 300)
        bucket = np.concatenate([sampler.micro_batch(number + i, 100) for i in range(3)])
        for rows in (batch, bucket):
            english = shards.pair_english[rows]
            assert len(english) == len(np.unique(english)) > 100
            dropped += 300 - len(rows)
    assert dropped > 0  # else this test could not fail


def test_equal_english_beyond_the_window_of_prepare_counts_as_equal(toy_tokenizer: Path, tmp_path: Path) -> None:
    """Such segments have two numbers, but one hash."""
    (tmp_path / "p.tsv").write_text("fra\tx\tsun  moon\tlune\nrus\tx\tsun moon\tlune\nfra\tx\triver\tlune\n")
    prepare(tmp_path / "p.tsv", tmp_path / "s", toy_tokenizer)
    shards = open_shards(tmp_path / "s")
    assert shards.pair_english.tolist() == [0, 1, 2]
    epoch = PairSampler(shards, SamplingConfig(order="epochs")).batch(0, 3)
    assert len(epoch) == 2 and 2 in epoch


def test_language_and_source_shares(uneven: Shards) -> None:
    """By hand, T = 0.5 and weights b 2, c 0: fra 400 + 200 = 600, rus 50; p ~ sqrt: 24.495 and 7.071."""
    sampler = PairSampler(uneven, config(temperature=0.5, source_weights={"b": 2.0, "c": 0.0}))
    fra = 24.4949 / (24.4949 + 7.0711)
    share = dict(zip(uneven.languages, sampler.language_share, strict=True))
    assert share == {"fra": pytest.approx(fra, abs=1e-5), "rus": pytest.approx(1 - fra, abs=1e-5)}
    rows = np.concatenate([sampler.batch(number, 100) for number in range(300)])
    drawn = names(uneven, rows)
    shares = {key: drawn.count(key) / len(drawn) for key in set(drawn)}
    expected = {("fra", "a"): fra * 2 / 3, ("fra", "b"): fra / 3, ("rus", "a"): 1 - fra}
    assert shares == {key: pytest.approx(value, abs=0.012) for key, value in expected.items()}  # 4 standard deviations
    # Inside a group any pair alike: the 400 of (fra, a) are drawn 38.8 times each on average.
    counts = np.bincount(rows, minlength=600)[[key == ("fra", "a") for key in names(uneven, np.arange(600))]]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() == pytest.approx(399, abs=99)  # chi square, 3.5 deviations


def test_temperatures_one_and_zero(uneven: Shards) -> None:
    assert PairSampler(uneven, config(temperature=1.0)).language_share.sum() == pytest.approx(1)
    for temperature, fra in ((1.0, 5 / 6), (0.0, 0.5)):
        share = PairSampler(uneven, config(temperature=temperature)).language_share
        assert share[uneven.languages.index("fra")] == pytest.approx(fra)


def test_temperature_zero_leaves_excluded_languages_out(uneven: Shards) -> None:
    """n^0 = 1 also for n = 0: a language whose sources all have weight 0 must not come back through that."""
    sampler = PairSampler(uneven, config(temperature=0.0, source_weights={"a": 0.0, "c": 0.0}))
    assert sampler.language_share.tolist() == [float(name == "fra") for name in uneven.languages]
    assert set(names(uneven, sampler.batch(0, 500))) == {("fra", "b")}


@settings(max_examples=25, deadline=None)
@given(pairs=st.integers(9, 700), seed=st.integers(0, 50))
def test_an_epoch_holds_every_pair_once_and_batches_span_its_end(shards: Shards, pairs: int, seed: int) -> None:
    sampler = PairSampler(shards, config(order="epochs", seed=seed))
    stream = np.concatenate([sampler.batch(number, pairs) for number in range(-(-1800 // pairs))])
    epochs = [stream[start : start + 600] for start in (0, 600, 1200)]
    for epoch in epochs:
        assert (np.sort(epoch) == np.arange(600)).all()
    assert not np.array_equal(epochs[0], epochs[1])


def test_buckets_of_epochs_hold_every_pair_once(shards: Shards) -> None:
    sampler = PairSampler(shards, config(order="epochs", bucket=4))
    stream = np.concatenate([sampler.micro_batch(number, 25) for number in range(24)])  # 6 buckets of 100
    assert (np.sort(stream) == np.arange(600)).all()


def test_epochs_ignore_weights_and_temperature(uneven: Shards) -> None:
    plain = PairSampler(uneven, config(order="epochs"))
    weighted = PairSampler(uneven, config(order="epochs", temperature=0.0, source_weights={"a": 0.0}))
    assert (plain.batch(0, 600) == weighted.batch(0, 600)).all()
    assert weighted.language_share[uneven.languages.index("fra")] == pytest.approx(5 / 6)


@settings(max_examples=40, deadline=None)
@given(order=ORDERS, bucket=st.integers(2, 9), pairs=st.integers(2, 40), group=st.integers(0, 5))
def test_a_bucket_deals_out_what_it_drew_in_parts_of_equal_tokens(
    shards: Shards, order: Any, bucket: int, pairs: int, group: int
) -> None:
    sampler = PairSampler(shards, config(order=order, bucket=bucket))
    parts = [sampler.micro_batch(group * bucket + place, pairs, 12) for place in range(bucket)]
    drawn = sampler._rows(BUCKET, group, bucket * pairs)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.sort(drawn))
    lengths = [np.minimum(shards.text(p, 12).lengths, 12) + np.minimum(shards.english(p, 12).lengths, 12) for p in parts]
    longest = max(part.max() for part in lengths)
    sums = np.array([part.sum() for part in lengths])
    assert np.abs(sums - sums.mean()).max() <= longest
    lengths.sort(key=lambda part: (part.min(), part.max()))
    assert all(short.max() <= long.min() for short, long in itertools.pairwise(lengths))  # cut by length


def test_parts_are_dealt_out_at_random(shards: Shards) -> None:
    """Else every bucket would begin with its shortest pairs."""
    sampler = PairSampler(shards, config(bucket=4))
    shortest = [
        int(np.argmin([shards.lengths(sampler.micro_batch(4 * b + i, 20)).mean() for i in range(4)])) for b in range(60)
    ]
    assert min(np.bincount(shortest, minlength=4)) > 4  # 15 each on average, 3.4 the standard deviation


def test_batches_are_redrawn_for_each_cut(shards: Shards) -> None:
    """Length is counted as it will be cut: with max_tokens=3 all pairs are equally long, and parts hold equally many."""
    sampler = PairSampler(shards, config(bucket=5))
    assert {len(sampler.micro_batch(i, 20, 3)) for i in range(5)} == {20}
    assert len({len(sampler.micro_batch(i, 20)) for i in range(5)}) > 1


def test_too_few_distinct_pairs_for_a_bucket_are_explained(shards: Shards) -> None:
    sampler = PairSampler(shards, SamplingConfig(order="epochs", bucket=2_000))
    with pytest.raises(
        InputError, match=r"1 pairs x sampling\.bucket=2000 hold only \d+ distinct English segments, fewer than.*bucket to 1"
    ):
        sampler.micro_batch(0, 1)


@given(lengths=LENGTHS, data=st.data())
def test_equal_cuts(lengths: np.ndarray, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(lengths)))
    cuts = equal_cuts(lengths, parts)
    pieces = np.split(lengths, cuts)
    assert len(pieces) == parts and all(len(piece) for piece in pieces)
    mean = lengths.sum() / parts
    if lengths.max() <= mean:
        assert all(abs(piece.sum() - mean) <= lengths.max() for piece in pieces)


@given(lengths=LENGTHS, ranks=st.integers(1, 20))
def test_deal_gives_equal_work(lengths: np.ndarray, ranks: int) -> None:
    rank = deal(lengths, ranks)
    counts = np.bincount(rank, minlength=ranks)
    assert len(counts) == ranks and counts.max() - counts.min() <= 1
    sums = np.bincount(rank, weights=lengths, minlength=ranks)
    assert sums.max() - sums.min() <= lengths.max()


def test_deal_is_much_better_than_its_bound() -> None:
    lengths = np.random.default_rng(0).integers(8, 400, 1200)
    sums = np.bincount(deal(lengths, 8), weights=lengths)
    assert sums.max() / sums.mean() < 1.001


@pytest.mark.parametrize("order", ["draw", "epochs"])
def test_pairs_for_tokens(uneven: Shards, shards: Shards, order: Any) -> None:
    for corpus in (shards, uneven):
        sampler = PairSampler(corpus, config(order=order))
        for max_tokens in (8, 512):
            pairs = sampler.pairs_for_tokens(3_000, max_tokens)
            rows = np.concatenate([sampler.batch(number, pairs) for number in range(40)])
            tokens = corpus.text(rows, max_tokens).lengths.sum() + corpus.english(rows, max_tokens).lengths.sum()
            assert tokens / 40 == pytest.approx(3_000, rel=0.03)
            assert pairs == PairSampler(corpus, config(order=order)).pairs_for_tokens(3_000, max_tokens)
    assert sampler.pairs_for_tokens(1, 512) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"source_weights": {"ui": 1.0, "tatoebo": 2.0}},
            r"names tatoebo, but the shards .* have the sources ui, toy\. Correct",
        ),
        ({"source_weights": {"ui": -1.0}}, r"source_weights has {'ui': -1\.0}; a weight is a number from 0 \(never drawn\) up"),
        ({"source_weights": {"ui": 0.0, "toy": 0.0}}, "is 0 for every source"),
        ({"bucket": 0}, "sampling.bucket is 0"),
        ({"seed": -1}, "sampling.seed -1"),
    ],
)
def test_settings_that_cannot_be(shards: Shards, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PairSampler(shards, SamplingConfig(**values))


def test_neighbourhoods_are_of_like_segments_but_not_of_twins(shards: Shards) -> None:
    """Eight distant clusters: neighbours are of their seed's far oftener than by chance."""
    segments = len(shards.english_hash)
    cluster = np.arange(segments) % 8
    rng = np.random.default_rng(0)
    vectors = np.concatenate([np.eye(8)[cluster], 0.2 * rng.standard_normal((segments, 8))], axis=1)
    vectors[8::16] = vectors[0]  # twins of the first segment, in its cluster
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    taught = replace(shards, teacher=vectors.astype(np.float16))
    sampler, same, all_near = PairSampler(taught, SamplingConfig(distinct_english=False)), 0, 0
    for number in range(20):
        rows = sampler.neighbour_batch(number, 4, 4)  # one group: its seed, then its neighbours
        assert (rows == sampler.neighbour_batch(number, 4, 4)).all() and len(rows) <= 4
        seed, near = shards.pair_english[rows[0]], shards.pair_english[rows[1:]]
        same, all_near = same + int((cluster[near] == cluster[seed]).sum()), all_near + len(near)
        assert seed not in near
        assert not (np.isin(near, [0, *range(8, segments, 16)]) & (seed in [0, *range(8, segments, 16)])).any()
    assert all_near > 40 and same > 0.4 * all_near  # 1 in 8 by chance; halves of few members cut through clusters


def test_neighbourhoods_need_draws(shards: Shards) -> None:
    with pytest.raises(InputError, match=r"needs --sampling\.order draw"):
        PairSampler(shards, SamplingConfig(order="epochs")).neighbour_batch(0, 32, 4)


def test_without_a_teacher_segments_with_the_same_rare_pieces_lie_close(shards: Shards) -> None:
    vectors = bags_of_pieces(shards, 0).astype(np.float64)
    frequency = np.bincount(shards.english_ids, minlength=shards.vocab_size)
    weight = np.log(len(shards.english_ids) / np.maximum(frequency, 1))
    tfidf = np.zeros((len(shards.english_hash), shards.vocab_size))
    for row, (start, end) in enumerate(itertools.pairwise(shards.english_offsets.tolist())):
        np.add.at(tfidf[row], shards.english_ids[start:end], weight[shards.english_ids[start:end]])
    tfidf /= np.maximum(np.linalg.norm(tfidf, axis=1, keepdims=True), 1e-12)
    error = vectors @ vectors.T - tfidf @ tfidf.T
    assert np.abs(error).mean() < 1.5 / np.sqrt(128)
    assert (bags_of_pieces(shards, 0) == bags_of_pieces(shards, 0)).all()
    rows = PairSampler(shards, SamplingConfig()).neighbour_batch(0, 32, 4)
    assert 1 < len(rows) <= 32


def test_the_dev_share_is_never_drawn(shards: Shards) -> None:
    sampler = PairSampler(shards, SamplingConfig(dev_share=0.2, distinct_english=False))
    held = held_out_segments(shards, 0.2)
    assert 0.1 < held.mean() < 0.3
    drawn = np.concatenate([sampler.batch(number, 200) for number in range(40)])
    assert not held[shards.pair_english[drawn]].any()
    assert len(np.unique(drawn)) > 0.95 * (~held[shards.pair_english]).sum()
    with pytest.raises(InputError, match=r"dev_share is 0\.2 with order 'epochs'"):
        PairSampler(shards, SamplingConfig(dev_share=0.2, order="epochs"))
