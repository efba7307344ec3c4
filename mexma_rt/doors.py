"""How a room hands on what other rooms may use: by name, importing the module it is in only when somebody asks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def doors(room: str, **names: str) -> tuple[Callable[[str], Any], list[str]]:
    """A package's `__getattr__` and `__all__`; names: of each of its modules, the names to hand on, with spaces between them.

    `__getattr__` raises AttributeError for any other name. The import-graph test holds other rooms to these names.
    """
    homes = {name: module for module, listed in names.items() for name in listed.split()}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{homes[name]}"), name)

    return find, sorted(homes)
