"""Long runs, by hand (pytest -m slow -s tests/runtime/test_endurance.py): memory, threads, any text, kills. With -s each prints
its figures, which benchmarks/results/reliability.md has of one run. A short form of the text test runs by default.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mexma_rt
from mexma_rt import InputError, TruncationWarning

ROOT = Path(mexma_rt.__file__).parents[1]
WORDS = ["cat", "stone", "Où", "猫は", "Привет", "مرحبا", "🇩🇪", "a", "river", "</s>", "дом", "ß"]


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> mexma_rt.Encoder:
    return mexma_rt.load(tiny_bundle, device="cpu", precision="fp32", threads=1)


def say(figures: str) -> None:
    sys.stdout.write(f"\n{figures}\n")


def rss() -> float:
    """MiB of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(0, words)))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory from /proc")
def test_memory_stays_flat_over_ten_thousand_varied_batches(encoder: mexma_rt.Encoder) -> None:
    rng, marks = random.Random(0), []
    for call in range(10_001):
        texts = [sentence(rng, rng.choice((3, 20, 120))) for _ in range(rng.choice((1, 1, 3, 8, 40)))]
        vectors = encoder.embed_report(texts, precision=rng.choice(("float32", "float16", "ubinary"))).vectors
        assert len(vectors) == len(texts)
        if call % 1000 == 0:
            marks.append(rss())
    say(f"MiB in memory at every 1,000th of 10,000 batches: {', '.join(f'{mark:.0f}' for mark in marks)}")
    assert max(marks[6:]) - max(marks[1:6]) < 8  # nothing grows once every length was seen


@pytest.mark.slow
@pytest.mark.parametrize("through", ["encoder", "service"])
def test_sixteen_threads_a_thousand_calls_each(encoder: mexma_rt.Encoder, through: str) -> None:
    rng = random.Random(1)
    texts = list({sentence(rng, 12) for _ in range(300)})
    expected = {text: encoder.embed([text])[0] for text in texts}
    wrong: list[str] = []
    service = encoder.service()
    embed = encoder.embed if through == "encoder" else service.embed

    def work(seed: int) -> None:
        own = random.Random(seed)
        for _ in range(1000):
            chosen = own.choices(texts, k=own.randint(1, 4))
            for text, vector in zip(chosen, embed(chosen), strict=True):
                if not np.abs(vector - expected[text]).max() < 1e-5:
                    wrong.append(text)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    started, before = time.perf_counter(), rss()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = service.report()
    service.close()
    say(
        f"16 threads x 1,000 calls through the {through}: {len(wrong)} wrong vectors, {time.perf_counter() - started:.0f} s, "
        f"memory {before:.0f} -> {rss():.0f} MiB, {report.sentences_per_batch:.1f} sentences per shared batch"
    )
    assert wrong == [] and report.calls == (16_000 if through == "service" else 0)


# --- any text -----------------------------------------------------------------------------------------------------------

CATEGORIES: Any = ("Cc", "Cf", "Cn", "Co", "Cs", "Lm", "Lo", "Lu", "Mc", "Me", "Mn", "Nd", "Po", "Sk", "So", "Zl", "Zp", "Zs")
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"
EMOJI = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "🇺🇳", "👍🏽", "\u200d", "\ufe0f", "\ufffd", "\ufeff", "\0", "\x1b[31m", "\r\n", "e" + "\u0301" * 40]
ANY = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(categories=CATEGORIES), max_size=60),
    st.text(st.sampled_from(BIDI + "abאבشс"), max_size=60),
    st.lists(st.sampled_from(EMOJI + WORDS), max_size=20).map("".join),
)


def check_any_texts(encoder: mexma_rt.Encoder, texts: list[str]) -> None:
    """A lone surrogate is named; every other text has a finite vector of length 1, and the same one in other company."""
    bad = [index for index, text in enumerate(texts) if any("\ud800" <= character <= "\udfff" for character in text)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        if bad:
            with pytest.raises(InputError, match=rf"texts\[{bad[0]}\] contains a lone surrogate"):
                encoder.embed(texts)
            return
        vectors = encoder.embed(texts)
        assert vectors.shape == (len(texts), encoder.dimensions)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(encoder.embed(texts[::-1])[::-1], vectors, atol=1e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(ANY, max_size=6))
def test_any_text(encoder: mexma_rt.Encoder, texts: list[str]) -> None:
    check_any_texts(encoder, texts)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(ANY, max_size=6))
def test_any_text_three_thousand_times(encoder: mexma_rt.Encoder, texts: list[str]) -> None:
    check_any_texts(encoder, texts)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(piece=st.one_of(st.sampled_from(WORDS + EMOJI), st.text(min_size=1, max_size=9)), mate=ANY)
def test_words_of_a_megabyte(encoder: mexma_rt.Encoder, piece: str, mate: str) -> None:
    check_any_texts(encoder, [piece * (1_000_000 // len(piece.encode("utf-8", "replace"))), mate])


# --- files --------------------------------------------------------------------------------------------------------------

EMBED = """
import sys, mexma_rt
from mexma_rt.embedding import EmbedSettings, reading, write_vectors
from mexma_rt.bench.worker import peak_mb
reading.SLAB_ROWS = int(sys.argv[4])
said = []
load = lambda: mexma_rt.load(sys.argv[1], precision="fp32", threads=1)
report = write_vectors(load, sys.argv[2], sys.argv[3], EmbedSettings(), announce=said.append)
print(peak_mb(), report.resumed, *said)
"""


def command(bundle: Path, source: Path, output: Path, slab: int = 8192) -> list[str]:
    return [sys.executable, "-c", EMBED, str(bundle), str(source), str(output), str(slab)]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a program alone is in /proc")
def test_memory_does_not_grow_with_the_file_and_is_what_was_stated(tiny_bundle: Path, tmp_path: Path) -> None:
    peaks = {}
    for rows in (1, 20_000, 300_000):
        source = tmp_path / f"{rows}.txt"
        source.write_text("".join(f"the cat {i} sleeps\n" for i in range(rows)))
        done = subprocess.run(
            command(tiny_bundle, source, tmp_path / "v.npy"), capture_output=True, text=True, check=True, env=ENVIRONMENT
        )
        megabytes, _, said = done.stdout.strip().partition(" ")
        peaks[rows] = float(megabytes) * 1000 / 1024
    stated = int(said.partition("about ")[2].partition(" MB")[0].replace(",", "")) / 1.048576
    say(f"Peak MiB by rows: { {rows: round(peak) for rows, peak in peaks.items()} }; stated beside the model: {stated:.0f}")
    assert peaks[300_000] - peaks[20_000] < 16 and peaks[300_000] - peaks[1] <= stated


@pytest.mark.slow
def test_a_hundred_random_kills_leave_the_same_bytes(tiny_bundle: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "v.npy"
    source.write_text("".join(f"Hello {i} {'word ' * (i % 9)}\n" for i in range(6000)))
    started = time.monotonic()
    subprocess.run(command(tiny_bundle, source, output, 200), check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    whole, seconds = hashlib.sha256(output.read_bytes()).hexdigest(), time.monotonic() - started
    output.unlink()
    rng, kills, at_work, resumed, complete = random.Random(2), 0, 0, 0, 0
    while kills < 100 or not complete:
        with subprocess.Popen(
            command(tiny_bundle, source, output, 200),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                said, errors = process.communicate(timeout=rng.uniform(0.3, 1.1) * seconds if kills < 100 else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                at_work += (tmp_path / ".v.npy.part" / "state.json").exists()
                assert not output.exists() or hashlib.sha256(output.read_bytes()).hexdigest() == whole
                continue
        assert process.returncode == 0, errors
        assert hashlib.sha256(output.read_bytes()).hexdigest() == whole
        complete, resumed = complete + 1, resumed + (int(said.split()[1]) > 0)
        output.unlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt"]
    say(f"{kills} kills, {at_work} of them with rows done; {complete} complete outputs, {resumed} of them resumed, all equal")
    assert at_work > 10 and resumed > 0
