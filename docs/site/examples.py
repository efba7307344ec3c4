"""Run the examples and put what they print, and their pictures, into docs/examples.md: `python docs/site/examples.py`.

Type this after the bundled model has changed. The page keeps the hash of the model's files beside each output, and
tests/test_examples.py compares outputs where it is that of the model of today.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import mexma_rt
from mexma_rt.bundle.manifest import hash_of_files

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/examples.md"
PICTURE = ROOT / "docs/images/search.svg"
OUTPUT = re.compile(r"<!-- output of (?P<name>\w+)\.py by (?P<model>\w+) -->\n```text\n(?P<text>.*?)```\n", re.S)


def model() -> str:
    """The hash of the bundled model's files."""
    return hash_of_files(mexma_rt.load().bundle.files)


def output_of(name: str, *arguments: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(ROOT / f"examples/{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout


def main() -> None:
    """Write the page again."""
    here = model()

    def again(match: re.Match[str]) -> str:
        arguments = [str(PICTURE)] if match["name"] == "search" else []
        text = output_of(match["name"], *arguments)
        return f"<!-- output of {match['name']}.py by {here} -->\n```text\n{text}```\n"

    PICTURE.parent.mkdir(exist_ok=True)
    PAGE.write_text(OUTPUT.sub(again, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
