"""`mexma-train` and `mexma-export` with standard output full or closed: one line and status 1, as of `mexma`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..runtime.streams import runs

if sys.platform != "linux":
    pytest.skip("needs /dev/full and fork", allow_module_level=True)

PAIRS = "".join(f"fra\ttest\tThe house number {i}.\tLa maison numéro {i}.\n" for i in range(30))
TOKENIZER = Path(__file__).parents[1] / "tiny_tokenizer.json"


@pytest.mark.parametrize(
    ("entry", "name", "forms"),
    [
        (
            "mexma_train.cli:main",
            "mexma-train",
            ["--help", "--version", "run --help", f"prepare pairs.tsv SHARDS --tokenizer {TOKENIZER}"],
        ),
        ("mexma_export.cli:main", "mexma-export", ["--help", "trim --help", "doctor"]),
    ],
)
def test_one_line_and_status_1(entry: str, name: str, forms: list[str], tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text(PAIRS, encoding="utf-8")
    for stdout, message in (("/dev/full", "cannot be written: No space left on device"), ("closed", "is closed")):
        commands = [form.replace("SHARDS", f"shards{len(stdout)}").split() for form in forms]
        for form, run in zip(forms, runs(entry, commands, tmp_path, stdout=stdout), strict=True):
            assert run.status == 1 and "Traceback" not in run.stderr, (form, run.stderr)
            assert [line for line in run.stderr.splitlines() if line.startswith(f"{name}: standard output {message}")], form
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"pairs.tsv", *(["shards9"] if name == "mexma-train" else [])}
    for run in runs(entry, [["--help"]], tmp_path):
        assert run.status == 0 and run.stdout.startswith("Usage: ") and run.stderr == ""
