"""What `pip install 'mexma-rt[cuda]'` puts on the disk: one onnxruntime, and no file of one package over that of another."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import venv
from collections import defaultdict
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="in the standard library since Python 3.11")
packaging = pytest.importorskip("packaging.requirements", reason="needs packaging, which pytest brings")

REPOSITORY = Path(__file__).parents[1]
OF_ONE_FOLDER = re.compile(
    r"onnxruntime(-(gpu|directml|openvino|qnn|silicon|training|rocm|migraphx).*)?"
)  # each writes onnxruntime/


def names_reached(extra: str) -> dict[str, importlib.metadata.Distribution | None]:
    """Every package that mexma-rt with an extra needs here, by pyproject.toml and what is installed; None: not installed."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    waiting = [*project["dependencies"], *optional[extra]]
    found: dict[str, importlib.metadata.Distribution | None] = {}
    while waiting:
        needed = packaging.Requirement(waiting.pop())
        name = re.sub(r"[-_.]+", "-", needed.name).lower()
        if needed.marker and not any(needed.marker.evaluate({"extra": one}) for one in ("", *needed.extras)):
            continue
        if name == "mexma-rt":
            waiting += [line for one in needed.extras for line in optional[one]]
        elif name not in found:
            try:
                found[name] = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = None
                continue
            for line in found[name].requires or ():  # type: ignore[union-attr]
                marker = packaging.Requirement(line).marker
                if marker is None or any(marker.evaluate({"extra": one}) for one in ("", *needed.extras)):
                    waiting.append(line.partition(";")[0])
    return found


@pytest.mark.parametrize("extra", ["cuda", "torch", "tensorrt", "rtx"])
def test_no_package_of_an_extra_writes_over_another(extra: str) -> None:
    reached = names_reached(extra)
    assert {"numpy", "onnxruntime", "tokenizers"} <= reached.keys()
    assert [name for name in reached if OF_ONE_FOLDER.fullmatch(name)] == ["onnxruntime"]
    owners = defaultdict(set)
    for name, distribution in reached.items():
        for file in (distribution.files or ()) if distribution else ():
            if "__pycache__" not in file.parts and not file.parts[0].startswith(".."):
                owners[str(file)].add(name)
    assert {file: names for file, names in owners.items() if len(names) > 1} == {}


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", "[cuda]"])
def test_pip_in_a_fresh_environment_plans_one_onnxruntime(tmp_path: Path, extra: str) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    report = tmp_path / "report.json"
    words = ["install", "--dry-run", "--quiet", "--report", str(report), f"mexma-rt{extra} @ {REPOSITORY.as_uri()}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([python, "-m", "pip", *words], capture_output=True, text=True, env=environment)
    if run.returncode and "Could not find a version that satisfies the requirement hatchling" in run.stderr:
        pytest.skip("pip reaches no package index here")
    assert run.returncode == 0, run.stderr
    planned = {re.sub(r"[-_.]+", "-", one["metadata"]["name"]).lower() for one in json.loads(report.read_text())["install"]}
    assert ("torch" in planned) == (extra == "[cuda]")
    assert {name for name in planned if OF_ONE_FOLDER.fullmatch(name)} == {"onnxruntime"}
