"""The mix of mexma-small's last run: counts by language, and texts that lost their spaces."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from ..scripts import load_script


@pytest.fixture(scope="module")
def small_mix() -> ModuleType:
    return load_script("train/small_mix.py")


def test_counts_sources_and_spaces(small_mix: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text(
        "".join(f"{lang}\ttatoeba\tEnglish {i} of it\tein Satz {lang} {i}\n" for lang in ("deu", "pes") for i in range(50)),
        encoding="utf-8",
    )
    (tmp_path / "more.tsv").write_text(
        "".join(
            f"azb\t{source}\tEnglish {i} of it\tبیر {i} سؤز\n" for source in ("mediawiki", "transliterated") for i in range(99)
        ),
        encoding="utf-8",
    )
    rows = list(small_mix.mix(tmp_path / "pairs.tsv", tmp_path / "more.tsv"))
    counts = Counter((lang, source) for lang, source, _, _ in rows)
    assert counts["deu", "tatoeba"] == counts["pes", "tatoeba"] == 700
    assert counts["azb", "mediawiki"] + counts["azb", "transliterated"] == 2500
    assert 3 < counts["azb", "mediawiki"] / counts["azb", "transliterated"] < 5.3  # weights 2 and 0.5
    assert counts["azb", "unspaced"] == 11_500 and counts["pes", "unspaced"] == 9000 and ("deu", "unspaced") not in counts
    unspaced = [text for lang, source, _, text in rows if (lang, source) == ("pes", "unspaced")]
    assert 7000 < sum(" " not in text for text in unspaced) < 8000  # all 7,000, and of 2,000 with three spaces 0.6 ** 3
    assert all(text.replace(" ", "").startswith("einSatzpes") and text == text.strip() for text in unspaced)
    assert rows == list(small_mix.mix(tmp_path / "pairs.tsv", tmp_path / "more.tsv")) != sorted(rows)
