"""What the pages name is there: modules, files and commands."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *(ROOT / name for name in ("train/README.md", "mexma_rt/models/mexma-small/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]


def test_every_deep_name_and_file_that_a_page_mentions_is_there() -> None:
    names, files = set(), set()
    for page in DOCUMENTS:
        text = page.read_text(encoding="utf-8")
        names |= set(re.findall(r"\bmexma_(?:rt|export|train)(?:\.[A-Za-z_]\w*)+", text))
        files |= set(re.findall(r"\b(?:mexma_(?:rt|export|train)|tests|docs)/[\w/-]+\.(?:py|md)\b", text))
    assert {"mexma_rt.mteb.MtebEncoder", "mexma_rt.load"} <= names and len(files) > 10
    missing = [name for name in sorted(names) if not resolves(name)]
    folders = (ROOT, ROOT / "export", ROOT / "train")
    missing += [name for name in sorted(files) if not any((folder / name).exists() for folder in folders)]
    assert missing == []


@pytest.mark.parametrize("name", ["mexma_rt.knn.mutual_neighbours", "mexma_rt.approximate.approximate_neighbours"])
def test_deep_names_that_earlier_pages_mentioned_are_there(name: str) -> None:
    assert resolves(name)


def resolves(name: str) -> bool:
    parts = name.split(".")
    value = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        try:
            value = getattr(value, part)
        except AttributeError:
            if importlib.util.find_spec(".".join(parts[:i])) is None:
                return False
            value = importlib.import_module(".".join(parts[:i]))
    return True


COMMANDS = {"mexma": "mexma_rt.cli", "mexma-train": "mexma_train.cli"}


def commands_in(text: str) -> set[tuple[str, str]]:
    """(program, subcommand) of each command line: in backticks, or at the start of a line."""
    return set(re.findall(r"(?:^\s*|`)(mexma|mexma-train) ([a-z]+)\b", text, re.M))


def test_every_command_that_a_page_mentions_is_there() -> None:
    pytest.importorskip("torch", reason="mexma-train needs torch (pip: mexma-rt[train])")
    pages = [page for page in DOCUMENTS if page.name != "CHANGELOG.md"]  # which names what was removed
    found = {command for page in pages for command in commands_in(page.read_text(encoding="utf-8"))}
    assert {("mexma", "mine"), ("mexma-train", "run")} <= found
    known = {program: importlib.import_module(module).main.commands for program, module in COMMANDS.items()}
    assert [command for command in sorted(found) if command[1] not in known[command[0]]] == []


def test_these_checks_can_fail() -> None:
    assert not resolves("mexma_rt.knn.nothing") and not resolves("mexma_rt.nothing.at_all")
    assert commands_in("`mexma-train pack shards`\n    mexma mine a b\n") == {("mexma-train", "pack"), ("mexma", "mine")}
