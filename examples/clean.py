"""Clean a noisy bitext: drop what is no translation, say why, and mine what was dropped for pairs that were only misplaced.

    python examples/clean.py [FOLDER]

noisy.fr and noisy.en are 40 lines with ten faults: a block of five that slipped by one line, two sides that are equal, a blank
line, an advertisement, a repetition, a "yes" that became a paragraph. FOLDER (or a temporary one) gets kept.tsv, dropped.tsv,
and report.html, the page of `mexma mine` about the two sides. A bitext of millions of lines goes the same way.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

from click.testing import CliRunner

import mexma_rt as mexma
from mexma_rt.cli import main as command
from mexma_rt.mining.filter import filter_bitext

HERE = Path(__file__).parent
SOURCE, TARGET = HERE / "noisy.fr", HERE / "noisy.en"


def clean(folder: Path) -> list[mexma.Pair]:
    """Write kept.tsv and dropped.tsv; returns the pairs that were found among the dropped lines."""
    report = filter_bitext(
        mexma.load, SOURCE, TARGET, folder / "kept.tsv", dropped=folder / "dropped.tsv", threshold=1.06, progress=False
    )
    print(f"{report.kept} of {report.pairs} pairs kept")
    with (folder / "dropped.tsv").open(encoding="utf-8", newline="") as stream:
        dropped = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in dropped:
        print(f"  line {row['line']:>2}  {row['reason']:<10}  {row['source'][:36]} | {row['target'][:36]}")
    slipped = [row for row in dropped if row["reason"] == "score"]
    return mexma.mine([row["source"] for row in slipped], [row["target"] for row in slipped], k=2, progress=False)


def report_page(page: Path) -> None:
    """What `mexma mine noisy.fr noisy.en --report PAGE` shows: which scores the pairs have, and those around the threshold."""
    arguments = ["mine", str(SOURCE), str(TARGET), "-o", str(page.with_name("pairs.tsv")), "--report", str(page)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = clean(folder)
        print(f"{len(found)} pairs found again among the dropped lines")
        for pair in found:
            print(f"  {pair.score:.2f}  {pair.source} | {pair.target}")
        report_page(folder / "report.html")


if __name__ == "__main__":
    main()
