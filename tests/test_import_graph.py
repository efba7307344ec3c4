"""The house: no circles between rooms, no arrow against the stated order, no private or unlisted name taken across rooms."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from .scripts import ROOT, load_script

graph = load_script("docs/import_graph.py")

PACKAGES = list(graph.PACKAGES)
ROOM_OF = {module: graph.room(module) for package in PACKAGES for module in graph.modules(package)}
FOUND = {package: graph.imports(package) for package in PACKAGES}
LISTED = ("files", "bundle", "embedding", "knn", "mining", "align", "evaluation", "bench")  # rooms whose doors are a list


def test_the_rooms_of_the_runtime_have_no_circle() -> None:
    arrows = graph.arrows(FOUND["mexma_rt"], ROOM_OF)
    assert len(arrows) >= 12 and "knn" in arrows["mining"]  # the graph is not empty
    assert graph.circle(arrows) == []


def test_no_arrow_of_the_runtime_points_against_the_order() -> None:
    assert graph.against_order(FOUND["mexma_rt"]) == []
    rooms = {graph.room(module) for module in graph.modules("mexma_rt")}
    assert sorted(rooms) == sorted(name for names in graph.ORDER for name in names)


@pytest.mark.parametrize("package", ["mexma_export", "mexma_train"])
def test_the_modules_of_export_and_train_have_no_circle(package: str) -> None:
    """Imports for annotations alone are left out: they load nothing. A package's __init__ hands on its modules."""
    own = [each for each in FOUND[package] if each.module.startswith(package) and not each.typing_only]
    arrows = graph.arrows([each for each in own if each.importer != package], {m: m for m in graph.modules(package)})
    assert len(arrows) > 10
    assert graph.circle(arrows) == []


def neighbours(each: Any) -> bool:
    """Whether importer and module are in one room (one folder of one package)."""
    parts = [name.split(".")[:2] if name.count(".") > 1 else name.split(".")[:1] for name in (each.importer, each.module)]
    return parts[0] == parts[1]


def private_names(found: list[Any]) -> list[str]:
    return [f"{each.place}: {each.name or each.module}" for each in found if not neighbours(each) and is_private(each)]


def is_private(each: Any) -> bool:
    last = each.name or each.module.rpartition(".")[2]
    return last.startswith("_") and not last.startswith("__")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_private_name_is_imported_across_rooms(package: str) -> None:
    assert private_names(FOUND[package]) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_private_attribute_of_something_else_is_touched(package: str) -> None:
    """`module._name` and `thing._name`: what has an underscore is for the object (self, cls) that has it."""
    touched = []
    for file in graph.modules(package).values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and re.match("_[a-z]", node.attr):
                touched += [f"{file}:{node.lineno}: {ast.unparse(node)}"] if node.value.id not in ("self", "cls") else []
    assert touched == []


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_take_of_each_other_what_their_doors_list(package: str) -> None:
    doors = {name: set(importlib.import_module(f"mexma_rt.{name}").__all__) for name in LISTED}
    taken = [
        f"{each.place}: {each.module} {each.name}"
        for each in FOUND[package]
        if ROOM_OF[each.module] in doors and not neighbours(each) and each.name and each.name not in doors[ROOM_OF[each.module]]
    ]
    assert taken == []


@pytest.mark.parametrize("name", LISTED)
def test_every_door_opens(name: str) -> None:
    package = importlib.import_module(f"mexma_rt.{name}")
    assert package.__doc__ and len(package.__doc__.splitlines()) <= 3
    assert package.__file__
    for door in package.__all__:
        assert not (Path(package.__file__).parent / f"{door}.py").exists(), f"{door} is a module too, which hides the door"
        assert getattr(package, door) is not None
    with pytest.raises(AttributeError, match=f"module 'mexma_rt.{name}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_the_picture_of_architecture_md_is_that_of_the_code() -> None:
    assert graph.PICTURE.read_text(encoding="utf-8") == graph.picture(), "type: python docs/import_graph.py"
    assert "](docs/images/rooms.svg)" in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_the_checks_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"mexma_rt.knn.search", "mexma_rt.mining.pairs", "mexma_rt.cli.mine"}
    file = tmp_path / "search.py"
    file.write_text("def f():\n    from mexma_rt.mining.pairs import _secret\n    import mexma_rt.cli.mine\n")
    found = list(graph.imports_of("mexma_rt.knn.search", file, ours))
    assert [(each.module, each.name) for each in found] == [("mexma_rt.mining.pairs", "_secret"), ("mexma_rt.cli.mine", "")]
    assert len(graph.against_order(found)) == 2
    assert len(private_names(found)) == 1
    other = graph.Import(importer="mexma_rt.mining.pairs", module="mexma_rt.knn.search", name="", place="", typing_only=False)
    assert graph.circle(graph.arrows([*found, other], {name: graph.room(name) for name in ours})) == ["knn", "mining", "knn"]
