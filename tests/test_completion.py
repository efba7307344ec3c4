"""The lines of docs/getting-started.md that set up completion work in bash, for all three commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"mexma": "mexma_rt", "mexma-export": "mexma_export", "mexma-train": "mexma_train"}

# What bash does after TAB: the function that `complete` names fills COMPREPLY, or asks by compopt for names of files.
TAB = """
compopt() { printf '%%s ' compopt "$@"; echo; }
COMP_WORDS=(%s) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
spec=$(complete -p "${COMP_WORDS[0]}") && words=($spec)
for ((i = 0; i < ${#words[@]}; i++)); do [ "${words[i]}" = -F ] && "${words[i + 1]}" "${COMP_WORDS[0]}"; done
printf '%%s\\n' "${COMPREPLY[@]}"
"""


def setting_up() -> dict[str, str]:
    """{command: the line of the page that sets it up}."""
    page = (ROOT / "docs/getting-started.md").read_text(encoding="utf-8")
    return {name: line for line, name in re.findall(r'^(eval "\$\(\S+ ([\w-]+)\)")$', page, re.M)}


def proposed(line: str, folder: Path) -> list[str]:
    """What bash proposes after the last word of a line, which may be ''."""
    name = line.split()[0]
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    if name != "mexma":
        pytest.importorskip("torch", reason=f"{name} needs torch")
    command = folder / name
    command.write_text(f"#!{sys.executable}\nfrom {PACKAGES[name]}.__main__ import main\n\nmain()\n", encoding="utf-8")
    command.chmod(0o755)
    script = f'PATH="{folder}:$PATH"\n{setting_up()[name]}\n{TAB % line}'
    done = subprocess.run([bash, "--norc", "-c", script], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split("\n")[:-1]


def test_the_page_sets_up_all_three() -> None:
    assert setting_up().keys() == PACKAGES.keys()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mexma m", ["mine", "models"]),
        ("mexma mine a.txt b.txt --retrieval i", ["intersect"]),
        ("mexma mine --source-v", ["--source-vectors"]),
        ("mexma-export tr", ["trim", "triton"]),
        ("mexma-export engine bundle r", ["rtx"]),
        ("mexma-export checkpoint bundle --no-w", ["--no-weights"]),  # of `export`, which is left out
        ("mexma-train re", ["resume"]),
        ("mexma-train run recipe.py shards out --dry", ["--dry-run"]),
    ],
)
def test_words_are_completed(line: str, expected: list[str], tmp_path: Path) -> None:
    assert proposed(line, tmp_path) == expected


@pytest.mark.parametrize(
    "line",
    [
        "mexma embed fre",
        "mexma embed ''",
        "mexma mine french.txt eng",
        "mexma mine french.txt english.txt -o p",
        "mexma embed a.txt --model fold",
        "mexma-export check",
        "mexma-export engine bun",
        "mexma-train run rec",
        "mexma-train eval check",
    ],
)
def test_files_are_completed_by_the_shell(line: str, tmp_path: Path) -> None:
    """click's script alone switches this off for every name that a command takes as text."""
    assert proposed(line, tmp_path) == ["compopt -o default ", ""]


def test_an_option_that_is_not_there_completes_to_nothing(tmp_path: Path) -> None:
    assert proposed("mexma mine --no-such", tmp_path) == [""]
