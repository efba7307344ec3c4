"""What `pip install 'mexma-rt[cuda]'` puts on the disk: one onnxruntime, and no file of one package over that of another."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import venv
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

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


# ---- by hand: pytest -m slow tests/test_install.py

LOOK = """
import json
from importlib.metadata import distributions
from pathlib import Path

owners, wrong = {}, []
for one in distributions():
    for file in one.files or ():
        owners.setdefault(str(one.locate_file(file).resolve()), set()).add(one.metadata["Name"])
        if file.size is not None and file.name != "RECORD" and one.locate_file(file).stat().st_size != file.size:
            wrong.append(str(file))
import onnxruntime
print(json.dumps({
    "names": sorted(one.metadata["Name"].lower() for one in distributions()),
    "shared": [file for file, names in owners.items() if len(names) > 1],
    "wrong": wrong,
    "providers": onnxruntime.get_available_providers(),
}))
"""
LOAD = "import mexma_rt; encoder = mexma_rt.load(); print(encoder.embed(['Hello']).shape, encoder.backend.reason)"


class Fresh:
    """A virtual environment of a tool's making, in which lines are typed as a user would."""

    def __init__(self, folder: Path, tool: str) -> None:
        venv.create(folder, with_pip=tool != "uv")
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.environment |= {"VIRTUAL_ENV": str(folder), "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}
        self.pip = "uv pip" if tool == "uv" else "python -m pip"
        if tool != "uv":
            self.typed(f"python -m pip install --quiet --upgrade {tool}")

    def typed(self, line: str) -> None:
        run = self.run(line, shell=True)
        if run.returncode and re.search("Could not find a version|Failed to fetch|error sending request", run.stderr):
            pytest.skip("no package index is reached here")
        assert run.returncode == 0, run.stdout + run.stderr

    def python(self, code: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run([str(self.bin / "python"), *words, "-c", code])

    def look(self) -> dict[str, Any]:
        run = self.python(LOOK)
        assert run.returncode == 0, run.stderr
        found: dict[str, Any] = json.loads(run.stdout)
        return found

    def run(self, line: str | list[str], *, shell: bool = False) -> subprocess.CompletedProcess[str]:
        return subprocess.run(line, shell=shell, capture_output=True, text=True, env=self.environment)


def stand_in_of_torch(folder: Path) -> None:
    """An empty wheel: the real one, of gigabytes, shares no file with ours, as the test above shows where it is installed."""
    name = "torch-2.10.99"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch/__init__.py", "")
        wheel.writestr(f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.10.99\n")
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        names = ("torch/__init__.py", *(f"{name}.dist-info/{file}" for file in ("METADATA", "WHEEL", "RECORD")))
        wheel.writestr(f"{name}.dist-info/RECORD", "".join(f"{file},,\n" for file in names))


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["pip==23.0", "pip", "uv"])
def test_the_extra_in_a_fresh_environment(tmp_path: Path, tool: str) -> None:
    """It leaves one whole onnxruntime; a second one beside it is told at every load, and the lines that are told repair it."""
    if shutil.which(tool.partition("=")[0]) is None:
        pytest.skip(f"{tool} is not installed")
    stand_in_of_torch(tmp_path)
    fresh = Fresh(tmp_path / "env", tool)
    fresh.typed(f"{fresh.pip} install --no-index --find-links {tmp_path} torch")
    fresh.typed(f"{fresh.pip} install 'mexma-rt[cuda] @ {REPOSITORY.as_uri()}'")
    found = fresh.look()
    assert {"torch", "safetensors", "mexma-rt"} <= set(found["names"])
    assert [name for name in found["names"] if OF_ONE_FOLDER.fullmatch(name)] == ["onnxruntime"]
    assert (found["shared"], found["wrong"]) == ([], []) and "CPUExecutionProvider" in found["providers"]
    assert fresh.python(LOAD, "-W", "error").stdout.startswith("(1, 384)")

    fresh.typed(f"{fresh.pip} install --no-deps onnxruntime-gpu")
    assert fresh.look()["shared"]
    loaded = fresh.python(LOAD)
    assert loaded.stdout.startswith("(1, 384)") and "are both installed and overwrite each other" in loaded.stdout
    repair(fresh, loaded.stderr)

    fresh.typed(f"{fresh.pip} install --no-deps onnxruntime-gpu")
    fresh.typed(f"{fresh.pip} uninstall {'' if tool == 'uv' else '-y'} onnxruntime-gpu")
    broken = fresh.python(LOAD)
    assert broken.returncode and "uninstalling one of them deletes the other's. Type:" in broken.stderr
    repair(fresh, broken.stderr)


def repair(fresh: Fresh, said: str) -> None:
    (line,) = re.findall(r"^    (.*pip uninstall .* install onnxruntime)$", said, re.MULTILINE)
    fresh.typed(line)
    found = fresh.look()
    assert (found["shared"], found["wrong"]) == ([], []) and "onnxruntime-gpu" not in found["names"]
    assert fresh.python(LOAD, "-W", "error").stdout.startswith("(1, 384)")


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
