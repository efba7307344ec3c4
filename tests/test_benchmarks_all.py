"""`python benchmarks/all.py`: every CPU benchmark from its command to its file of results, in sizes that mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    "quality": "quality/results.json",
    "mining_f1": "mining_f1.md",
    "align_documents": "align_documents.md",
    "embed": "embed.md",
    "service": "service.md",
    "mining_speed": "mining_speed.md",
    "mining_disk": "mining_disk.md",
    "plan": "plan.md",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_benchmark_writes_its_file(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the peers need torch")
    french, english = ((ROOT / f"examples/chapter.{lang}").read_text(encoding="utf-8").splitlines() for lang in ("fr", "en"))
    rows = min(len(french), len(english), 60)
    (tmp_path / "flores").mkdir()
    (tmp_path / "tatoeba").mkdir()
    for lang, lines in (("eng", english), ("deu", french), ("fra", french)):
        (tmp_path / f"flores/{lang}.txt").write_text("\n".join(lines[:rows]) + "\n", encoding="utf-8")
    pairs = "".join(f"{a}\t{b}\n" for a, b in zip(english[:rows], french[:rows], strict=True))
    (tmp_path / "tatoeba/deu.tsv").write_text(pairs, encoding="utf-8")
    words = ["--smoke", "--only", name, "--model", "tests/tiny_bundle", "--out", str(tmp_path / "out")]
    words += ["--flores", str(tmp_path / "flores"), "--tatoeba", str(tmp_path / "tatoeba")]
    done = subprocess.run([sys.executable, "benchmarks/all.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "out/all.json").read_text())
    assert report["smoke"] and [each["status"] for each in report["jobs"][name]] == [0] and report["left_out"] == []
    assert (tmp_path / "out" / FILES[name]).stat().st_size > 100
