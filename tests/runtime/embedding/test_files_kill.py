"""kill -9 at every step of embed_file that touches the disk, and at any time of the real command: the same bytes after all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import mexma_rt

from ..killing import killed_at_every_step, killed_while_it_works

EVERY_STEP = """
import hashlib, json, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from mexma_rt.embedding import reading
from mexma_rt.embedding.files import write_vectors
from mexma_rt.embedding.settings import EmbedSettings
from mexma_rt.files import resumable
from mexma_rt.errors import FileError
from mexma_rt.embedding.report import Embedded, EmbedReport

reading.SLAB_ROWS = 3
resumable.TABLE_ROWS = 4
output, settings = sys.argv[1], json.loads(sys.argv[2])
made = EmbedSettings(precision=settings.get("precision", "float32"))
Path("in.txt").write_text("".join(f"text {i}\\n" for i in range(10)))


class Encoder:
    dimensions, bundle = 8, SimpleNamespace(files={}, prompts={})
    def embed_with(self, texts, settings, progress=None):
        vectors = [np.frombuffer(hashlib.sha256(text.encode()).digest(), "u1")[:8] / 256 for text in texts]
        report = EmbedReport(
            model="m", sentences=len(texts), distinct=len(texts), tokens=1, padded_tokens=1, batches=1, max_length=9,
            truncated=(), truncated_lengths=(), seconds=0.0, backend="b", device="d", precision="p", reason="r")
        return Embedded(vectors=np.array(vectors, settings.precision).reshape(-1, 8), report=report)


def run():
    try:
        report = write_vectors(Encoder, "in.txt", output, made, shard_rows=settings.get("shard_rows"))
    except FileError as error:  # killed after the last step but before its traces were gone: the folder is complete
        assert "already exists" in str(error) and "shard_rows" in settings, error
        return 10
    assert report.report.sentences == 10 and report.shape[0] == 10, report
    return report.resumed


every_step(run, output, (resumable, "write_rows"))
"""


@pytest.mark.kill
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("output", "settings"),
    [("v.npy", {}), ("v", {"shard_rows": 4}), ("v.parquet", {"precision": "float16"})],
)
def test_killed_at_every_step(tmp_path: Path, output: str, settings: dict[str, object]) -> None:
    if output.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="part of mexma-rt[files]")
    result = killed_at_every_step(EVERY_STEP, tmp_path, output, json.dumps(settings))
    assert result["equal"], result
    assert result["steps"] > 25 and {0, 3, 6, 9, 10} == set(result["results"])
    expected = (
        {"in.txt", output} if "." in output else {"in.txt", *(f"v/vectors-0000{i}.npy" for i in range(3)), "v/vectors.json"}
    )
    assert set(result["last"]) == expected


@pytest.mark.kill
def test_the_command_killed_while_it_works(tmp_path: Path, tiny_bundle: Path) -> None:
    rows = 20_000
    text = tmp_path / "in.txt"
    text.write_text("".join(f"Hello {i} {i % 7} world\n" for i in range(rows)))
    arguments = ["embed", "in.txt", "-o", "v.npy", "--json", "--threads=1", f"--model={tiny_bundle}"]
    kills, before, ended = killed_while_it_works(arguments, tmp_path / "v.npy", total=rows)
    report = json.loads(ended.stdout)
    assert kills >= 1 and report["resumed"] >= before and report["sentences"] == rows
    assert "where a run was interrupted" in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "v.npy"]
    mexma_rt.load(tiny_bundle, threads=1).embed_file(text, tmp_path / "whole.npy")
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert np.load(tmp_path / "v.npy", mmap_mode="r").shape == (rows, 32)
