"""Compares stand-ins with the installed TensorRT-RTX, whose methods tell their parameters in their docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any


def assert_of_the_library(stand_in: Any, real: Any, *ours: str) -> None:
    """Every public name of a stand-in's class, but `ours`, is one of the real class; methods take as many parameters."""
    names = [name for name in vars(stand_in) if not name.startswith("_") and name not in ours]
    assert names and [name for name in names if not hasattr(real, name)] == []
    for name in names:
        method = inspect.getattr_static(stand_in, name)
        if inspect.isfunction(method):  # the others are properties, or take what comes
            taken = inspect.signature(method).parameters
            if not any(each.kind is each.VAR_POSITIONAL for each in taken.values()):
                assert len(taken) in parameters(getattr(real, name).__doc__), name


def parameters(doc: str) -> set[int]:
    """How many parameters a method of pybind has, `self` included, by each signature that its docstring lists."""
    lists = re.findall(r"\((self: .*)\) ->", doc)
    assert lists, doc
    return {len(re.findall(r"(?:^|, )\w+: ", listed)) for listed in lists}
