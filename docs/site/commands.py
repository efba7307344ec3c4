"""The page of the command line: what `--help` of every command prints, under a heading each."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

import click

PLACE = re.compile(r"^<!-- help of (?P<name>[\w-]+) from (?P<module>[\w.]+) -->$", re.M)
WIDTH = 80  # characters that the site shows without scrolling


def with_help(markdown: str) -> str:
    """The page with the help of a tool and its commands at each `<!-- help of NAME from MODULE -->`."""

    def written(match: re.Match[str]) -> str:
        return "\n".join(sections(match["name"], importlib.import_module(match["module"]).main))

    return PLACE.sub(written, markdown)


def sections(name: str, command: click.Command, parent: click.Context | None = None, depth: int = 2) -> Iterator[str]:
    """The section of a command, then those of its own commands."""
    settings: dict[str, Any] = {**command.context_settings, "terminal_width": WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    path = context.command_path
    yield f"{'#' * depth} {path} {{ #{path.replace(' ', '-')} data-toc-label='{name}' }}\n"
    yield f"```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for each in sorted(command.commands):
            yield from sections(each, command.commands[each], context, depth + 1)
