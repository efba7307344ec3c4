"""How the reference shows docstrings: arguments, at the start of a line or sentence, become items of a list."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import griffe

ITEM = re.compile(r"(?:^|(?<=\. ))((?:[a-z_]+, )*[a-z_]+): ", re.M)


class Items(griffe.Extension):
    """Run by griffe, which reads the code for mkdocstrings."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring:
            named = {each.name for each in obj.parameters} if isinstance(obj, griffe.Function) else set()
            obj.docstring.value = listed(obj.docstring.value, named)


def listed(text: str, arguments: Collection[str]) -> str:
    """The same text with its items as a list; `a, b: what` starts one, which goes on to the next item or blank line."""
    first, _, rest = text.partition("\n")

    def item(match: re.Match[str]) -> str:
        names = match[1].split(", ")
        starts_line = match.start() == 0 or rest[match.start() - 1] == "\n"
        return f"\n- `{match[1]}`: " if starts_line or set(names) <= set(arguments) else match[0]

    return f"{first}\n{ITEM.sub(item, rest)}" if rest else text
