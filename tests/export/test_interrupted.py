"""A full disk and a kill in the middle: nothing half-written under the final name, and the old bundle still loads.

Each test is one other process, for a limit on file sizes and a kill would hit pytest itself. The kills are forked from it
after the imports, so that torch is loaded once.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mexma_rt

pytest.importorskip("torch", reason="exports need torch (pip: mexma-rt[export])")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither setrlimit nor fork nor SIGKILL")

SIZES = """
import json, resource, sys
from pathlib import Path
from mexma_export import Sentence, export_bundle
checkpoint, folder, *sizes = sys.argv[1:]
answers = []
for size in sizes:
    for target in (Path(folder, "new"), Path(folder, "bundle")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.RLIM_INFINITY))
        try:
            export_bundle(checkpoint, target, precisions=["int8"], force=True, sentences=[Sentence(lang="eng", text="Hello.")])
            answers.append(["none", ""])
        except Exception as error:
            answers.append([type(error).__name__, str(error)])
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps(answers))
"""

KILLS = """
import json, os, signal, sys
from pathlib import Path
import mexma_export.checkpoint, mexma_export.compact, mexma_export.half, mexma_export.reopen
from mexma_export import Sentence, export_bundle
checkpoint, folder, *stages = sys.argv[1:]
def die(): os.kill(os.getpid(), signal.SIGKILL)
answers = []
for stage in stages:
    child = os.fork()
    if child == 0:
        export_bundle(checkpoint, Path(folder, "bundle"), precisions=["int8"], force=True,
            sentences=[Sentence(lang="eng", text="Hello.")], progress=lambda name, done, total: name == stage and die())
        os._exit(0)
    answers.append(os.waitpid(child, 0)[1])
print(json.dumps(answers))
"""

KILL_BETWEEN_THE_RENAMES = """
import os, signal, sys
from pathlib import Path
from mexma_export.folder import new_folder
rename = Path.rename
def kill_at_the_second(self, to):
    if self.suffix == ".partial":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, to)
Path.rename = kill_at_the_second
with new_folder(Path(sys.argv[1]), force=True) as work:
    (work / "mexma.json").write_text("new")
"""


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A folder that holds the bundle "bundle"."""
    shutil.copytree(tiny_bundle, tmp_path / "place" / "bundle")
    return tmp_path / "place"


def contents(bundle: Path) -> dict[str, bytes]:
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def assert_loads(bundle: Path) -> None:
    """Its hashes are right, and it computes."""
    assert np.isfinite(mexma_rt.load(bundle, device="cpu").embed(["Hello world"])).all()


def test_a_full_disk_leaves_the_old_bundle_and_nothing_new(tiny_checkpoint: Path, tiny_bundle: Path, folder: Path) -> None:
    """A limit on the size of files is met where a full disk is: in the graph, in the weights, in the tokenizer."""
    graph, weights, tokenizer = (
        (tiny_bundle / name).stat().st_size for name in ("onnx/model_int8.onnx", "model.safetensors", "tokenizer.json")
    )
    done = run(SIZES, tiny_checkpoint, folder, 1000, weights - 1, 1 << 30)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    print(graph, weights, tokenizer, answers, done.stderr)
    assert False


def test_a_kill_in_any_stage_leaves_the_old_bundle(tiny_checkpoint: Path, tiny_bundle: Path, folder: Path) -> None:
    stages = ["export int8", "parity gate", "fresh process"]
    done = run(KILLS, tiny_checkpoint, folder, *stages)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [signal.SIGKILL] * len(stages)
    assert contents(folder / "bundle") == contents(tiny_bundle)
    assert_loads(folder / "bundle")
    left = [path.name for path in folder.iterdir() if path.name != "bundle"]
    assert len(left) == len(stages) and all(name.startswith(".bundle.") and name.endswith(".partial") for name in left)


def test_a_kill_between_the_two_renames_keeps_the_old_bundle_beside(tiny_bundle: Path, folder: Path) -> None:
    """The one moment without a bundle under the name: the old one is whole, under a name that says what it is."""
    done = run(KILL_BETWEEN_THE_RENAMES, folder / "bundle")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "bundle").exists()
    (old,) = folder.glob(".bundle.*.old")
    assert contents(old) == contents(tiny_bundle)
    assert_loads(old)
