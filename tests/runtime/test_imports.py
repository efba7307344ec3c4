"""The runtime is thin and leaves the host alone: what it may import, what its import loads, what a session changes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "mexma_rt"
EXPORT = ROOT / "export" / "mexma_export"
TRAIN = ROOT / "train" / "mexma_train"


def imported(file: Path) -> set[str]:
    """Top-level names of every import in a file, wherever it stands (also `import_module("...")` of a literal)."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            names |= {
                arg.value.partition(".")[0] for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            }
    return names


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        (RUNTIME, {"torch", "transformers", "safetensors", "onnx", "mexma_train", "mexma_export"}),
        (EXPORT, {"mexma_train"}),
        (TRAIN, {"mexma_export"}),
    ],
    ids=["runtime", "export", "train"],
)
def test_the_seams_hold(package: Path, forbidden: set[str]) -> None:
    files = sorted(package.rglob("*.py"))
    assert files
    # Modules that are loaded only where torch was asked for, or a GPU where cupy will do as well.
    optional = {RUNTIME / "knn" / name: {"torch"} for name in ("gpu.py", "gpu_arrays.py")}
    for name in ("torch.py", "packed_attention.py", "packed_encoder.py", "checkpoint.py", "torch_head.py"):
        optional[RUNTIME / "backends" / name] = {"torch", "safetensors"}
    found = {file.name: sorted(imported(file) & forbidden - optional.get(file, set())) for file in files}
    broken = {name: names for name, names in found.items() if names}
    assert broken == {}


def test_the_check_of_imports_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    import torch.nn\n    from transformers.x import y\n    import_module('onnx.z')\n")
    assert imported(file) == {"torch", "transformers", "onnx"}


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result


def test_import_loads_no_library() -> None:
    code = "import sys, json, mexma_rt; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    loaded = set(json.loads(run(code).stdout))
    heavy = {"numpy", "onnxruntime", "tokenizers", "huggingface_hub", "click", "tqdm", "torch", "transformers", "matplotlib"}
    assert loaded & heavy == set()
    # Nothing at all but the standard library beside what the interpreter's start loads.
    bare = set(json.loads(run(code.replace("mexma_rt", "math")).stdout))
    assert loaded - bare - set(sys.stdlib_module_names) == {"mexma_rt"}


SESSION = """
import os, socket, sys, threading, logging, signal
class Blocked(socket.socket):
    def __init__(self, *args, **kwargs):
        raise AssertionError("the network was used")
socket.socket = Blocked
before = dict(os.environ), logging.root.handlers[:], logging.root.level, signal.getsignal(signal.SIGINT)
import mexma_rt
encoder = mexma_rt.load(sys.argv[1])
encoder.embed(["Hello world", "Bonjour le monde"])
encoder.encode("Hello")
after = dict(os.environ), logging.root.handlers[:], logging.root.level, signal.getsignal(signal.SIGINT)
assert after == before, (before, after)
assert threading.active_count() == 1
"""


def test_a_session_uses_no_network_changes_nothing_and_says_nothing(tiny_bundle: Path) -> None:
    result = run(SESSION, str(tiny_bundle))
    assert (result.stdout, result.stderr) == ("", "")


def test_onnxruntime_keeps_no_device_id_and_reports_nothing(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "CI",
        "ORT_DISABLE_TELEMETRY",
        "ORT_RUNNING_UNIT_TESTS",
        "XDG_CACHE_HOME",
    ):  # each of them turns it off, or moves it
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run("import sys, mexma_rt; mexma_rt.load(sys.argv[1]).embed(['Hello world'])", str(tiny_bundle))
    assert list(tmp_path.iterdir()) == []  # a plain `import onnxruntime` of 1.29 and later makes .cache/Microsoft here


def test_the_hub_client_is_loaded_only_for_a_hub_name(tiny_bundle: Path) -> None:
    code = "import sys, mexma_rt; mexma_rt.load(sys.argv[1]); print('huggingface_hub.file_download' in sys.modules)"
    assert run(code, str(tiny_bundle)).stdout.strip() == "False"
