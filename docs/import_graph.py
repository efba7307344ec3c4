"""Who imports whom: the arrows between the rooms of mexma_rt, mexma_train and mexma_export, function-level imports included.

tests/test_import_graph.py holds them to ORDER; `python docs/import_graph.py` prints the picture of ARCHITECTURE.md (Mermaid).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "mexma_rt": ROOT / "mexma_rt",
    "mexma_export": ROOT / "export/mexma_export",
    "mexma_train": ROOT / "train/mexma_train",
}

# From the ground up: a room imports from rooms further left only. Modules at the top of mexma_rt are rooms of their own;
# "mexma_rt" itself is its __init__, the public API. The rooms of one tuple do not know each other.
ORDER: tuple[tuple[str, ...], ...] = (
    ("version", "errors", "doors", "cores"),
    ("progress", "checks"),
    ("files",),
    ("bundle",),
    ("backends",),
    ("embedding", "knn"),
    ("cluster",),
    ("mining",),
    ("align", "evaluation", "bench"),
    ("mteb",),
    ("mexma_rt",),
    ("cli",),
)


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name: the module that imports, the module it imports from, the name ("" for a module), and where."""

    importer: str
    module: str
    name: str
    place: str
    typing_only: bool


def modules(package: str) -> dict[str, Path]:
    """{dotted name: file} of every module of a package."""
    folder = PACKAGES[package]
    found = {}
    for file in sorted(folder.rglob("*.py")):
        parts = [package, *file.relative_to(folder).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(package: str) -> list[Import]:
    """Every import of one of our own modules in a package, wherever it stands in its file."""
    ours = {name for each in PACKAGES for name in modules(each)}
    return [found for name, file in modules(package).items() for found in imports_of(name, file, ours)]


def imports_of(importer: str, file: Path, ours: set[str]) -> Iterator[Import]:
    """The same of one file; `ours` are the names of our modules."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    guarded = {id(node) for block in ast.walk(tree) if _is_typing_block(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            full = [(node.module, alias.name) for alias in node.names]
            names = [(f"{module}.{name}", "") if f"{module}.{name}" in ours else (module, name) for module, name in full]
        else:
            continue
        for module, name in names:
            if module in ours:
                place = f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}:{node.lineno}"
                yield Import(importer=importer, module=module, name=name, place=place, typing_only=id(node) in guarded)


def _is_typing_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def room(module: str) -> str:
    """Of a module of mexma_rt: the part after the package, or the package for its __init__."""
    return module.split(".")[1] if "." in module else module


def arrows(found: Iterable[Import], part: Mapping[str, str]) -> dict[str, set[str]]:
    """{part: the parts it imports from}; `part` says which part of the picture a module belongs to."""
    graph: dict[str, set[str]] = {}
    for each in found:
        a, b = part[each.importer], part[each.module]
        if a != b:
            graph.setdefault(a, set()).add(b)
    return graph


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The names along one circle of a graph, the first again at the end; [] if there is none."""
    state: dict[str, bool] = {}  # True while its descendants are visited

    def visit(name: str, path: list[str]) -> list[str]:
        state[name] = True
        for other in sorted(graph.get(name, ())):
            if state.get(other):
                return [*path[path.index(other) :], other]
            if other not in state and (found := visit(other, [*path, other])):
                return found
        state[name] = False
        return []

    for name in sorted(graph):
        if name not in state and (found := visit(name, [name])):
            return found
    return []


def against_order(found: Iterable[Import]) -> list[str]:
    """The imports of mexma_rt that point up or sideways in ORDER, in words."""
    floor = {name: i for i, names in enumerate(ORDER) for name in names}
    wrong = []
    for each in found:
        a, b = room(each.importer), room(each.module)
        if a not in floor or b not in floor:
            wrong.append(f"{each.place}: {a if a not in floor else b} is not in ORDER")
        elif a != b and floor[a] <= floor[b]:
            wrong.append(f"{each.place}: {a} imports {each.module}, which ORDER has no lower than {a}")
    return wrong


def picture() -> str:
    """A Mermaid chart of the rooms of mexma_rt; arrows that others imply are left out."""
    graph = arrows(imports("mexma_rt"), {name: room(name) for each in PACKAGES for name in modules(each)})
    lines = ["flowchart BT"]
    for names in ORDER:
        lines += [f"    {name}" for name in names]
    for name in (name for names in ORDER for name in names):
        direct = graph.get(name, set())
        implied = set().union(*(_reachable(graph, other) for other in direct))
        lines += [f"    {name} --> {other}" for other in sorted(direct - implied)]
    return "\n".join(lines) + "\n"


def _reachable(graph: Mapping[str, set[str]], name: str) -> set[str]:
    below: set[str] = set()
    waiting = list(graph.get(name, ()))
    while waiting:
        if (other := waiting.pop()) not in below:
            below.add(other)
            waiting += graph.get(other, ())
    return below


if __name__ == "__main__":
    sys.stdout.write(picture())
