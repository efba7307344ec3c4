"""How the reference shows docstrings: a line that starts with the names of arguments and a colon becomes an item of a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

ITEM = re.compile(r"^((?:[a-z_]+(?:, )?)+): ", re.M)


class Items(griffe.Extension):
    """Run by griffe, which reads the code for mkdocstrings."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    """The same text with its items as a list; `a, b: what` starts one, which goes on to the next item or blank line."""
    first, _, rest = text.partition("\n")
    return first + "\n" + ITEM.sub(lambda match: f"\n- `{match[1]}`: ", rest) if rest else text
