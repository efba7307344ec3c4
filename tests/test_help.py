"""The help of every command, and of every group of commands, ends with an example that can be pasted and that it takes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from mexma_rt.cli import main
from mexma_rt.version import __version__

from .scripts import ROOT, load_script

TOOLS = ("mexma", "mexma-export", "mexma-train")


def tool(name: str) -> click.Group:
    return main if name == "mexma" else pytest.importorskip(name.replace("-", "_") + ".cli").main


def every_command(name: str, command: click.Command) -> Iterator[str]:
    """The names of a command and of all below it, such as "mexma bench embed"."""
    yield name
    if isinstance(command, click.Group):
        for each in command.commands:
            yield from every_command(f"{name} {each}", command.commands[each])


def reads(line: str) -> None:
    """Have the command of a line read it, and do nothing. Raises click.UsageError, except for a file that is not there."""
    first, *arguments = shlex.split(line)
    name: str | None = first
    command: click.Command | None = tool(first)
    context = None
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=name, parent=context, **command.context_settings)
        name, command, arguments = command.resolve_command(context, arguments)
    assert command is not None
    try:
        command.make_context(name, arguments, parent=context)
    except click.MissingParameter:
        raise
    except click.BadParameter as error:
        if "does not exist" not in error.message:
            raise


@pytest.mark.parametrize("name", TOOLS)
def test_every_help_ends_with_an_example_that_can_be_pasted(name: str) -> None:
    commands = list(every_command(name, tool(name)))
    assert len(commands) > 6
    for line in commands:
        for width in (80, 200):  # click wraps what is longer, and half a line cannot be pasted
            result = CliRunner().invoke(tool(name), [*line.split()[1:], "--help"], prog_name=name, terminal_width=width)
            assert result.exit_code == 0, result.output
            last = result.output.rstrip().splitlines()[-1]
            assert last.startswith(f"  Example: {line} "), f"{line} --help ends with: {last}"
            example = last.removeprefix("  Example: ")
            reads(example)


@pytest.mark.parametrize("name", TOOLS)
def test_no_summary_of_a_command_is_cut_off(name: str) -> None:
    result = CliRunner().invoke(tool(name), ["--help"], prog_name=name, terminal_width=80)
    summaries = result.output.split("Commands:")[1].split("Example:")[0].strip().splitlines()
    assert len(summaries) == len(tool(name).commands)
    assert [line for line in summaries if not line.endswith(".") or line.endswith("...")] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mexma mine a b --no-such-option", "No such option"),
        ("mexma min a b", "No such command"),
        ("mexma embed a.txt", "Missing option"),
        ("mexma knn a.npy -o x", "Missing argument"),
        ("mexma mine a b -k none", "not a valid integer"),
    ],
)
def test_a_line_that_a_command_does_not_take_is_noticed(line: str, message: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        reads(line)
    assert message in caught.value.format_message()


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_has_h_and_says_its_version(name: str) -> None:
    run = CliRunner().invoke
    assert run(tool(name), ["--version"]).output == f"{name}, version {__version__}\n"
    assert run(tool(name), ["-h"]).output == run(tool(name), ["--help"]).output


def test_the_page_of_the_command_line_has_the_help_of_every_command() -> None:
    for name in TOOLS:
        tool(name)
    page = load_script("docs/site/commands.py").with_help((ROOT / "docs/cli.md").read_text(encoding="utf-8"))
    lines = page.splitlines()
    commands = [line for name in TOOLS for line in every_command(name, tool(name))]
    assert [line.split(" {")[0].lstrip("# ") for line in lines if " { #" in line] == sorted(commands, key=str.split)
    for line in commands:
        name, *words = line.split()
        result = CliRunner().invoke(tool(name), [*words, "--help"], prog_name=name, terminal_width=80)
        assert f"```text\n{result.output}```\n" in page
    assert "<!--" not in page and max(map(len, lines)) <= 110
