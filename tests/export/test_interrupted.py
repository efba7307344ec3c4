"""A full disk and a kill in the middle: nothing half-written under the final name, and the old bundle still loads.

The gate is wide here, for what the random weights of the tiny model make of int8 is not the question.

Each test is one other process, for a limit on file sizes and a kill would hit pytest itself. The kills are forked from it
after the imports, so that torch is loaded once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mexma_rt

pytest.importorskip("torch", reason="exports need torch (pip: mexma-rt[export])")
pytestmark = [
    pytest.mark.kill,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither setrlimit nor fork nor SIGKILL"),
]

LIMITS = """
import json, os, resource, sys
from pathlib import Path
from mexma_export import Sentence, Thresholds, export_bundle
checkpoint, folder, cases = sys.argv[1:]
def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
answers = []
for name, stage, size, weights in json.loads(cases):
    try:
        export_bundle(checkpoint, Path(folder, name), precisions=["int8"], force=True, weights=weights,
            sentences=[Sentence(lang="eng", text=text) for text in ("Hello.", "The cat.")],
            thresholds={"int8": Thresholds(min_cosine=0.9, mean_cosine=0.9)},
            progress=lambda now, done, total: limit(size) if now == stage else None)
        answers.append(["written", ""])
    except Exception as error:
        answers.append([type(error).__name__, str(error)])
    limit(resource.RLIM_INFINITY)
    answers[-1].append(sorted(os.listdir(folder)))
print(json.dumps(answers))
"""

KILLS = """
import json, os, signal, sys
from pathlib import Path
import mexma_export.checkpoint, mexma_export.compact, mexma_export.half, mexma_export.reopen
from mexma_export import Sentence, Thresholds, export_bundle
checkpoint, folder, *stages = sys.argv[1:]
def die(): os.kill(os.getpid(), signal.SIGKILL)
answers = []
for stage in stages:
    child = os.fork()
    if child == 0:
        try:
            export_bundle(checkpoint, Path(folder, "bundle"), precisions=["int8"], force=True,
                sentences=[Sentence(lang="eng", text=text) for text in ("Hello.", "The cat.")],
                thresholds={"int8": Thresholds(min_cosine=0.9, mean_cosine=0.9)},
                progress=lambda name, done, total: name == stage and die())
        finally:
            os._exit(3)
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
    """A limit on the size of files (the same OSError) is met in the graph, in the weights and in the tokenizer."""
    assert (tiny_bundle / "model.safetensors").stat().st_size > 20000
    assert (tiny_bundle / "tokenizer.json").stat().st_size > 5000
    cases = [
        ("new", "export int8", 1000, True),
        ("bundle", "parity gate", 20000, True),
        ("bundle", "parity gate", 5000, False),
        ("new", "no limit", 0, True),
    ]
    done = run(LIMITS, tiny_checkpoint, folder, json.dumps(cases))
    assert done.returncode == 0, done.stderr
    *refused, written = json.loads(done.stdout)
    for (name, *_), (error, message, left) in zip(cases, refused, strict=False):
        assert error == "FileError"
        assert message.startswith(f"{folder / name} was not written: File too large")
        assert "Any earlier folder of that name is unchanged." in message
        assert "MB free (a quota or ulimit -f may be lower). Make room, or choose another place." in message
        assert left == ["bundle"]
    assert "(model.safetensors)" in refused[1][1]
    assert written == ["written", "", ["bundle", "new"]]  # without the limit the same export is good
    assert contents(folder / "bundle") == contents(tiny_bundle)
    assert_loads(folder / "bundle")


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


def test_ctrl_c_is_one_line_and_status_130(tiny_checkpoint: Path, tiny_bundle: Path, folder: Path) -> None:
    """SIGINT to the whole group, as a terminal sends it, in the middle of a real export."""
    root = Path(mexma_rt.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (root, root / "export")))}
    words = [sys.executable, "-m", "mexma_export", str(tiny_checkpoint), "bundle", "--force"]
    process = subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        for _ in range(600):
            if process.poll() is not None or any(folder.glob(".bundle.*.partial/onnx/*")):
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")
    assert "Traceback" not in said and said.splitlines()[-1] == "mexma-export: interrupted; no output file was changed."
    assert [path.name for path in folder.iterdir()] == ["bundle"]
    assert contents(folder / "bundle") == contents(tiny_bundle)
