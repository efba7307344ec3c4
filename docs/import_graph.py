"""Who imports whom: the arrows between the rooms of mexma_rt, mexma_train and mexma_export, function-level imports included.

tests/test_import_graph.py holds them to ORDER; `python docs/import_graph.py` draws docs/images/rooms.svg for ARCHITECTURE.md.
"""

from __future__ import annotations

import ast
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
    ("__main__",),
)
PICTURE = ROOT / "docs/images/rooms.svg"
COLUMNS = {  # of the picture: where a room stands from left to right, so that no arrow runs through a third room
    **{"doors": 0.2, "errors": 1.1, "version": 3.1, "cores": 4.4, "checks": 1.4, "progress": 2.25},
    **{"files": 0.2, "bundle": 0.2, "backends": 0.2, "embedding": 1.1, "knn": 3.2, "cluster": 2.2, "mining": 2.2},
    **{"align": 2.9, "evaluation": 1.9, "bench": 0.9, "mteb": 0.0, "mexma_rt": 2.4, "cli": 1.7},
}


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


def drawn_arrows() -> dict[str, set[str]]:
    """The arrows between the rooms of mexma_rt that others do not imply."""
    graph = arrows(imports("mexma_rt"), {name: room(name) for each in PACKAGES for name in modules(each)})
    return {name: below - set().union(*(_reachable(graph, other) for other in below)) for name, below in graph.items()}


def picture() -> str:
    """The rooms of mexma_rt as SVG, ORDER from the bottom up; it has no background, for light and dark pages."""
    column, row, width, height = 150, 58, 112, 30
    tall = row * (len(ORDER) - 1) + 20
    at = {name: (75 + column * COLUMNS[name], tall - row * (i + 0.5)) for i, names in enumerate(ORDER[:-1]) for name in names}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="820" height="{tall}" viewBox="0 0 820 {tall}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#7180d8"/></marker>',
    ]
    for name, below in sorted(drawn_arrows().items()):
        for other in sorted(below if name in at else ()):
            (x, y), (u, v) = at[name], at[other]
            path = f"M{x:g} {y + height / 2:g}L{u:g} {v - height / 2:g}"
            lines.append(f'<path d="{path}" fill="none" stroke="#7180d8" stroke-width="1.3" marker-end="url(#tip)"/>')
    for name, (x, y) in at.items():
        box = f'x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width}" height="{height}"'
        lines.append(f'<rect {box} rx="5" fill="#e8eaf6" stroke="#3949ab"/>')
        lines.append(f'<text x="{x:g}" y="{y + 5:g}" text-anchor="middle" fill="#1a237e">{name}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _reachable(graph: Mapping[str, set[str]], name: str) -> set[str]:
    below: set[str] = set()
    waiting = list(graph.get(name, ()))
    while waiting:
        if (other := waiting.pop()) not in below:
            below.add(other)
            waiting += graph.get(other, ())
    return below


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
