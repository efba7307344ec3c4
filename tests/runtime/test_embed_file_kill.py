"""kill -9 at every step of embed_file that touches the disk, and at any time of the real command: the same bytes after all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mexma_rt

ROOT = Path(mexma_rt.__file__).parents[1]

# A process of its own, with one thread, so that fork is safe: each child is killed by SIGKILL before its k-th step (sync,
# rename, removal of a file, slab), then a second child runs undisturbed. What the second one leaves is printed.
EVERY_STEP = """
import hashlib, json, os, shutil, signal, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from mexma_rt import stream, work
from mexma_rt.errors import FileError
from mexma_rt.report import Embedded, EmbedReport

stream.SLAB_ROWS = 3
work.TABLE_ROWS = 4
output, settings = sys.argv[1], json.loads(sys.argv[2])
Path("in.txt").write_text("".join(f"text {i}\\n" for i in range(10)))


class Encoder:
    dimensions, bundle = 8, SimpleNamespace(files={})
    def embed_report(self, texts, **keywords):
        vectors = [np.frombuffer(hashlib.sha256(text.encode()).digest(), "u1")[:8] / 256 for text in texts]
        report = EmbedReport(
            model="m", sentences=len(texts), distinct=len(texts), tokens=1, padded_tokens=1, batches=1, max_length=9,
            truncated=(), truncated_lengths=(), seconds=0.0, backend="b", device="d", precision="p", reason="r")
        return Embedded(vectors=np.array(vectors, keywords["precision"]).reshape(-1, 8), report=report)


def run():
    try:
        report = stream.embed_file(Encoder, "in.txt", output, **settings)
    except FileError as error:  # killed after the last step but before its traces were gone: the folder is complete
        assert "exists already" in str(error) and "shard_rows" in settings, error
        return 10
    assert report.report.sentences == 10 and report.shape[0] == 10, report
    return report.resumed


def counted(function, last):
    def call(*arguments, **keywords):
        counter[0] += 1
        if counter[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call


def killed_at(last):
    pid = os.fork()
    if pid == 0:
        for name in ("fsync", "unlink", "rename", "replace", "mkdir", "rmdir"):
            setattr(os, name, counted(getattr(os, name), last))
        Path.open = counted(Path.open, last)
        work.write_rows = counted(work.write_rows, last)
        run()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


def left():
    files = sorted(path for path in Path().rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


counter, seen, resumed, step = [0], [], [], 0
while True:
    step += 1
    if not killed_at(step):
        break
    resumed.append(run())
    seen.append(left())
    shutil.rmtree(output) if Path(output).is_dir() else os.unlink(output)
print(json.dumps({"steps": step, "resumed": resumed, "last": left(), "equal": all(one == left() for one in seen)}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("output", "settings"),
    [("v.npy", {}), ("v", {"shard_rows": 4}), ("v.parquet", {"precision": "float16"})],
)
def test_killed_at_every_step(tmp_path: Path, output: str, settings: dict[str, object]) -> None:
    if output.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="part of mexma-rt[files]")
    command = [sys.executable, "-c", EVERY_STEP, output, json.dumps(settings)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["equal"], result
    assert result["steps"] > 25 and {0, 3, 6, 9, 10} == set(result["resumed"])
    expected = (
        {"in.txt", output} if "." in output else {"in.txt", *(f"v/vectors-0000{i}.npy" for i in range(3)), "v/vectors.json"}
    )
    assert set(result["last"]) == expected


def test_the_command_killed_while_it_works(tmp_path: Path, tiny_bundle: Path) -> None:
    rows = 20_000
    text = tmp_path / "in.txt"
    text.write_text("".join(f"Hello {i} {i % 7} world\n" for i in range(rows)))
    code = "from mexma_rt.cli import main; main()"
    command = [sys.executable, "-c", code, "embed", "in.txt", "-o", "v.npy", "--json", "--threads=1", f"--model={tiny_bundle}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    state = tmp_path / ".v.npy.part" / "state.json"
    kills, before = 0, 0
    while True:  # each process is killed once it has finished a slab more than the one before
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            while process.poll() is None:
                done = json.loads(state.read_bytes())["done"] if state.exists() else 0
                if before < done < rows:
                    process.send_signal(signal.SIGKILL)
                    before, kills = done, kills + 1
                    break
                time.sleep(0.001)
            output, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL and not (tmp_path / "v.npy").exists(), errors
    report = json.loads(output)
    assert kills >= 1 and report["resumed"] >= before and report["sentences"] == rows
    assert "where a run was interrupted" in errors.decode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "v.npy"]
    mexma_rt.load(tiny_bundle, threads=1).embed_file(text, tmp_path / "whole.npy")
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert np.load(tmp_path / "v.npy", mmap_mode="r").shape == (rows, 32)
