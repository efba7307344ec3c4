"""A corpus of 600 made-up pairs in two toy languages, its tokenizer and its shards, made once per session."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

WORDS = {
    "eng": "sun moon house river dog cat bread water night day road tree stone bird".split(),  # noqa: SIM905
    "fra": "soleil lune maison fleuve chien chat pain eau nuit jour route arbre pierre oiseau".split(),  # noqa: SIM905
    "rus": "солнце луна дом река собака кот хлеб вода ночь день дорога дерево камень птица".split(),  # noqa: SIM905
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and threads that wait for each other lose much on a busy machine."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pairs_tsv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    picks = rng.integers(0, 14, 5)
    for i in range(600):
        if i % 10 != 9:  # else the line before again, in the other language: English shared by two pairs
            picks = rng.integers(0, 14, rng.integers(2, 9))
        lang = ("fra", "rus")[i % 2]
        english, text = (" ".join(WORDS[name][p] for p in picks) for name in ("eng", lang))
        lines.append(f"{lang}\t{('toy', 'ui')[i % 3 == 0]}\t{english}\t{text}\n")
    path = tmp_path_factory.mktemp("bitext") / "pairs.tsv"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def toy_tokenizer(pairs_tsv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sentencepiece", reason="part of mexma-rt[train]")
    from mexma_train.config import TokenizerConfig
    from mexma_train.data.bitext import read_pairs
    from mexma_train.data.tokenizer import sample_lines, train_tokenizer

    config = TokenizerConfig(vocab_size=90, lines_per_language=500)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(sample_lines(read_pairs(pairs_tsv), config), config).save(str(path))
    return path


@pytest.fixture(scope="session")
def toy_shards(pairs_tsv: Path, toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mexma_train.data.prepare import prepare

    folder = tmp_path_factory.mktemp("shards") / "toy"
    prepare(pairs_tsv, folder, toy_tokenizer, progress=False)
    return folder
