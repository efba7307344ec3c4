"""How a room hands on what other rooms may use: by name, importing the module it is in only when somebody asks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def doors(room: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`: {name: the package's module that defines it}. Raises AttributeError for any other name."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{homes[name]}"), name)

    return find
