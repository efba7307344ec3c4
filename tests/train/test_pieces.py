"""Folders in pieces: the same bytes back, whatever happens on the way, and the whole journey of a run at toy scale."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mexma_rt.errors import FileError, InputError
from mexma_train.pieces import local_shards, pack, unpack

REPOSITORY = Path(__file__).parents[2]
SMALL = 0.004  # megabytes a piece: the toy shards take some 16 kB


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def packed(toy_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pieces = tmp_path_factory.mktemp("pieces") / "packed"
    pack(toy_shards, pieces, megabytes=SMALL)
    assert len(list(pieces.glob("piece-*.bin"))) >= 3
    return pieces


def test_shards_come_back_byte_for_byte(toy_shards: Path, packed: Path, tmp_path: Path) -> None:
    unpack([packed], tmp_path / "shards")
    assert contents(tmp_path / "shards") == contents(toy_shards)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_the_manifest_says_what_is_where(toy_shards: Path, packed: Path) -> None:
    manifest = json.loads((packed / "pieces.json").read_text())
    assert (manifest["format"], manifest["lossy"]) == (1, None)
    for folder, kind in ((toy_shards, "files"), (packed, "pieces")):
        stated = {part["name"]: (part["size"], part["sha256"]) for part in manifest[kind]}
        there = {n: (len(b), hashlib.sha256(b).hexdigest()) for n, b in contents(folder).items() if n != "pieces.json"}
        assert stated == there
    assert all(part["size"] <= SMALL * 1e6 for part in manifest["pieces"])


def test_any_folder_comes_back_and_no_piece_is_too_large(tmp_path: Path) -> None:
    """A checkpoint with weights, files that compress badly or not at all, empty, nested, of odd length; names of any script."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "run"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "model.safetensors").write_bytes(rng.standard_normal(9000).astype("<f4").tobytes() + b"odd")
    (folder / "noise.bin").write_bytes(rng.bytes(70_001))
    (folder / "empty").write_bytes(b"")
    (folder / "журнал.jsonl").write_text("one\n")
    np.save(folder / "none.npy", np.zeros(0, "<i8"))
    np.save(folder / "text.npy", np.array(["a", "bc"]))
    np.save(folder / "large.npy", rng.integers(0, 2**63, 4000, dtype=np.uint64))
    pack(folder, tmp_path / "pieces", megabytes=0.02)
    unpack([tmp_path / "pieces"], tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    sizes = [path.stat().st_size for path in (tmp_path / "pieces").glob("piece-*.bin")]
    assert max(sizes) <= 20_000 and len(sizes) <= sum(sizes) / 17_500 + 1  # an eighth is the most that a block may leave empty


def test_pieces_may_come_one_by_one_and_be_deleted(toy_shards: Path, packed: Path, tmp_path: Path) -> None:
    arriving, target = tmp_path / "arriving", tmp_path / "shards"
    arriving.mkdir()
    shutil.copy(packed / "pieces.json", arriving)
    names = sorted((path.name for path in packed.glob("piece-*.bin")), reverse=True)  # in any order
    for count, name in enumerate(names[:-1], 1):
        shutil.copy(packed / name, arriving)
        with pytest.raises(FileError) as error:
            unpack([arriving / "pieces.json", arriving / name], target)
        assert f"is not there yet: {count} of {len(names)} pieces are unpacked, missing: piece-0000.bin" in str(error.value)
        assert not target.exists()
        (arriving / name).unlink()
    shutil.copy(packed / names[-1], arriving)
    unpack([arriving], target)
    assert contents(target) == contents(toy_shards)


def test_kill_9_in_the_middle_of_unpacking_costs_a_piece(toy_shards: Path, packed: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; import mexma_train.pieces as p\n"
        "real, seen = p.decode, []\n"
        "def dying(packed, code):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 20: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(packed, code)\n"
        "p.decode = dying\n"
        f"p.unpack([{str(packed)!r}], {str(tmp_path / 'shards')!r})"
    )
    killed = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "shards").exists()
    done = list((tmp_path / ".shards.unpacking").glob("*.done"))
    assert 0 < len(done) < len(list(packed.glob("piece-*.bin")))
    later = tmp_path / "later"
    shutil.copytree(packed, later)
    for path in done:
        (later / path.stem).write_bytes(b"gone")  # what is unpacked is not read again
    unpack([later], tmp_path / "shards")
    assert contents(tmp_path / "shards") == contents(toy_shards)
    assert not (tmp_path / ".shards.unpacking").exists()


def test_pieces_that_are_not_whole_are_refused_and_the_rest_waits(toy_shards: Path, packed: Path, tmp_path: Path) -> None:
    pieces, target = Path(shutil.copytree(packed, tmp_path / "pieces")), tmp_path / "shards"
    second = pieces / "piece-0001.bin"
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    with pytest.raises(FileError, match=rf"is not complete: {len(whole) - 1} bytes of {len(whole)}\. Copy it again"):
        unpack([pieces], target)
    second.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    with pytest.raises(FileError, match=r"piece-0001\.bin is damaged, or a piece of another folder: its SHA-256"):
        unpack([pieces], target)
    assert not target.exists()
    second.write_bytes(whole)
    unpack([pieces], target)
    assert contents(target) == contents(toy_shards)


def test_pieces_of_other_shards_are_not_mixed_in(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "noise").write_bytes(os.urandom(50_000))
    pack(tmp_path / "other", tmp_path / "pieces", megabytes=SMALL)
    with pytest.raises(InputError, match=r"are of different folders\. Unpack one at a time"):
        unpack([packed, tmp_path / "pieces"], tmp_path / "shards")
    swapped = Path(shutil.copytree(packed, tmp_path / "swapped"))
    shutil.copy(tmp_path / "pieces" / "piece-0001.bin", swapped)
    with pytest.raises(FileError, match=r"piece-0001\.bin is (not complete|damaged, or a piece of another folder)"):
        unpack([swapped], tmp_path / "shards")
    with pytest.raises(FileError, match=r"is a part of other pieces than these\. Delete it, or name another folder than"):
        unpack([tmp_path / "pieces"], tmp_path / "shards")


def test_what_cannot_be_unpacked_says_why(packed: Path, tmp_path: Path) -> None:
    target = tmp_path / "shards"
    with pytest.raises(FileError, match=r"nowhere: not there\. Give pieces, or the folder"):
        unpack([tmp_path / "nowhere"], target)
    with pytest.raises(FileError, match=r"No pieces\.json in .*wrote it beside the pieces\. Copy it"):
        unpack([packed / "piece-0000.bin"], target)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt: no such piece in .*pieces\.json"):
        unpack([packed, tmp_path / "notes.txt"], target)
    manifest = json.loads((packed / "pieces.json").read_text())
    for changed, message in (
        (manifest | {"format": 2}, r"has format 2, this version of mexma-train reads 1\. Pack with the same version"),
        ({"format": 1}, r"pieces\.json is damaged: KeyError"),
        (manifest | {"files": [{"name": "../x"}]}, "names files outside of the folder"),
        (manifest | {"files": [{"name": "/etc/x"}]}, "names files outside of the folder"),
    ):
        (tmp_path / "pieces.json").write_text(json.dumps(changed))
        with pytest.raises(FileError, match=message):
            unpack([tmp_path / "pieces.json"], target)
    assert not target.exists()


def test_nothing_is_overwritten_and_nothing_is_packed_from_nothing(toy_shards: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"exists already\. Name another folder, or delete it first"):
        unpack([packed], tmp_path)
    with pytest.raises(FileError, match=r"exists already\. Name another folder, or delete it first"):
        pack(toy_shards, tmp_path)
    with pytest.raises(FileError, match="is no folder with files, so there is nothing to pack"):
        pack(tmp_path / "none", tmp_path / "pieces")
    with pytest.raises(InputError, match=r"holds no teacher\.npy, so there is nothing to round"):
        pack(toy_shards, tmp_path / "pieces", teacher_bits=8)
    assert list(tmp_path.iterdir()) == []


def test_files_that_came_out_different_are_not_handed_over(packed: Path, tmp_path: Path) -> None:
    """As if the disk had lost what was written, or the packing version had another code."""
    pieces = Path(shutil.copytree(packed, tmp_path / "pieces"))
    manifest = json.loads((pieces / "pieces.json").read_text())
    next(file for file in manifest["files"] if file["name"] == "order.npy")["sha256"] = "0" * 64
    (pieces / "pieces.json").write_text(json.dumps(manifest))
    with pytest.raises(FileError, match=r"order\.npy came out with other bytes than were packed"):
        unpack([pieces], tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["pieces"]


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files, as a full disk would, which only POSIX can")
def test_a_full_disk_is_one_message_and_unpacking_goes_on_afterwards(toy_shards: Path, packed: Path, tmp_path: Path) -> None:
    def limited(call: str) -> str:
        code = (
            "import resource; from mexma_train.pieces import *\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))\n"  # Python ignores the signal: an OSError
            f"try:\n    {call}\nexcept FileError as error:\n    print(error)"
        )
        return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout

    said = limited(f"pack({str(toy_shards)!r}, {str(tmp_path / 'pieces')!r})")
    assert "pieces cannot be written: File too large. Nothing is left of it." in said
    assert list(tmp_path.iterdir()) == []
    said = limited(f"unpack([{str(packed)!r}], {str(tmp_path / 'shards')!r})")
    assert "shards cannot be written: File too large. What is unpacked waits in" in said
    assert not (tmp_path / "shards").exists()
    unpack([packed], tmp_path / "shards")
    assert contents(tmp_path / "shards") == contents(toy_shards)


def test_a_rounded_teacher_is_called_lossy_and_the_rest_is_exact(toy_shards: Path, tmp_path: Path) -> None:
    from mexma_train.cli import main

    shards = Path(shutil.copytree(toy_shards, tmp_path / "shards"))
    rows = np.random.default_rng(0).standard_normal((540, 24)).astype("<f2")
    np.save(shards / "teacher.npy", rows)
    command = ["pack", str(shards), str(tmp_path / "pieces"), "--megabytes", "0.01", "--teacher-bits", "8"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0 and "NOT lossless: teacher.npy is rounded to 8 bits a number" in result.output
    manifest = json.loads((tmp_path / "pieces" / "pieces.json").read_text())
    assert manifest["lossy"] == "teacher.npy is rounded to 8 bits a number"
    unpack([tmp_path / "pieces"], tmp_path / "back")
    before, after = contents(shards), contents(tmp_path / "back")
    assert {name for name in before if before[name] != after[name]} == {"teacher.npy"} and before.keys() == after.keys()
    assert before["teacher.npy"][:128] == after["teacher.npy"][:128]
    exact, got = rows.astype(np.float64), np.load(tmp_path / "back" / "teacher.npy").astype(np.float64)
    cosines = (exact * got).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(got, axis=1)
    assert cosines.min() > 0.999 and (exact != got).any()
    pack(shards, tmp_path / "lossless", megabytes=SMALL)
    unpack([tmp_path / "lossless"], tmp_path / "same")
    assert contents(tmp_path / "same") == before
    np.save(shards / "teacher.npy", rows.astype("<f4"))
    with pytest.raises(InputError, match=r"teacher\.npy is float32 \[540, 24\]; --teacher-bits rounds float16"):
        pack(shards, tmp_path / "wrong", teacher_bits=8)


def test_shards_in_pieces_are_unpacked_once(toy_shards: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert local_shards(toy_shards, out) == toy_shards
    assert local_shards(packed, out, main=False) == out / "shards" and not out.exists()
    with pytest.raises(InputError, match=r"holds pieces, and this writes nothing\. Type first: mexma-train unpack .* SHARDS"):
        local_shards(packed, None)
    assert local_shards(packed, out) == out / "shards"
    written = (out / "shards" / "order.npy").stat().st_mtime_ns
    assert local_shards(packed, out) == out / "shards"
    assert (out / "shards" / "order.npy").stat().st_mtime_ns == written
    (out / "shards" / "order.npy").write_bytes(b"other")
    with pytest.raises(FileError, match=r"is not what .* holds: order\.npy differ\. Delete it, or name another OUT"):
        local_shards(packed, out)


RECIPE = """
from mexma_train.config import *
RECIPE = Recipe(
    name="toy",
    model=ModelConfig(hidden_size=32, layers=2, heads=4, intermediate_size=64, head_layers=1, head_heads=4,
                      head_intermediate_size=64),
    warmup=WarmupConfig(steps=3, batch_pairs=64, lr=0.05),
    mexma=MexmaConfig(steps=3, batch_pairs=16, lr=1e-4),
)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")
    (tmp_path / "recipe.py").write_text(RECIPE)
    return tmp_path / "recipe.py"


def call(*words: object) -> Any:
    from mexma_train.cli import main

    return CliRunner().invoke(main, [str(word) for word in words])


def test_prepare_writes_pieces_and_run_reads_them(pairs_tsv: Path, toy_tokenizer: Path, recipe: Path, tmp_path: Path) -> None:
    shards, pieces, out = tmp_path / "shards", tmp_path / "pieces", tmp_path / "out"
    prepared = ("prepare", pairs_tsv, shards, "--tokenizer", toy_tokenizer, "--pieces", pieces)
    assert call(*prepared).exit_code == 0
    shutil.move(shards, tmp_path / "original")
    assert "exists already. Name another folder" in call(*prepared).output and not shards.exists()
    assert "holds pieces, and this writes nothing" in call("run", recipe, pieces, out, "--dry-run").output
    assert "finished" in call("run", recipe, pieces, out).output
    assert contents(out / "shards") == contents(tmp_path / "original")
    assert "finished" in call("run", recipe, tmp_path / "original", tmp_path / "plain").output
    weights = [folder / "checkpoint" / "model.safetensors" for folder in (out, tmp_path / "plain")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    again = call("run", recipe, pieces, out)
    assert again.exit_code == 1 and "holds a run already" in again.output


def test_unpack_names_what_is_missing_with_status_1(packed: Path, tmp_path: Path) -> None:
    some = (packed / "pieces.json", packed / "piece-0001.bin")
    result = call("unpack", *some, tmp_path / "shards")
    assert result.exit_code == 1
    assert "mexma-train: " in result.output and "missing: piece-0000.bin" in result.output and "Traceback" not in result.output
    assert "complete" in call("unpack", packed, tmp_path / "shards").output


def test_the_journey_of_a_run_to_another_machine_and_back(
    pairs_tsv: Path, packed: Path, toy_shards: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """benchmarks/gpu_mini.py, step by step on the CPU: the machine is lost in the middle, and nothing of the run is."""
    spec = importlib.util.spec_from_file_location("gpu_mini", REPOSITORY / "benchmarks" / "gpu_mini.py")
    assert spec and spec.loader
    gpu_mini = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(gpu_mini)
    monkeypatch.setattr(gpu_mini, "PIECE_MEGABYTES", 0.03)
    monkeypatch.setattr(gpu_mini, "OUT_BYTES", 75_000)  # two pieces
    carry, out = tmp_path / "carry", tmp_path / "sent"

    def step(machine: str, *words: object) -> list[Path]:
        """Run a step; what it sent arrives here, in a folder of its own."""
        shutil.rmtree(out, ignore_errors=True)
        gpu_mini.main(["--root", str(tmp_path / machine), "--carry", str(carry), *map(str, words)])
        assert sum(path.stat().st_size for path in out.glob("*")) <= 75_000 and len(list(out.glob("*"))) <= 8
        return sorted(out.glob("*"))

    def receive(machine: str, what: str, pieces: Path) -> None:
        for name in sorted(path.name for path in pieces.glob("piece-*")):
            shutil.rmtree(carry, ignore_errors=True)
            (carry / what).mkdir(parents=True)
            for part in ("pieces.json", name):
                shutil.copy(pieces / part, carry / what)
            try:
                step(machine, "receive", what)
            except SystemExit as missing:
                assert missing.code == 1

    def send(machine: str, what: str) -> Path:
        home, first, total = tmp_path / "home" / what, 0, 1
        home.mkdir(parents=True)
        while first < total:
            for path in step(machine, "send", what, "--first", first, "--out", out):
                shutil.copy(path, home)
            total = len(json.loads((home / "pieces.json").read_text())["pieces"])
            first = len(list(home.glob("piece-*.bin")))
        assert total > 2  # it took several commands
        return home

    tests = tmp_path / "tests"
    tests.mkdir()
    rows = [line.split("\t") for line in pairs_tsv.read_text(encoding="utf-8").splitlines()[:40]]
    (tests / "toys.tsv").write_text("".join(f"{row[2]}\t{row[3]}\n" for row in rows), encoding="utf-8")
    pack(tests, tmp_path / "tests-pieces", megabytes=SMALL)

    train = ("train", recipe, "--device", "cpu", "--run.log-every", 1)
    receive("first", "shards", packed)
    step("first", *train, "--minutes", 0)
    state = send("first", "state")
    receive("second", "shards", packed)  # the first machine is lost
    receive("second", "run", state)
    for _ in range(3):
        step("second", *train, "--minutes", 0)
    step("second", *train)
    receive("second", "tests", tmp_path / "tests-pieces")
    (evaluation,) = step("second", "evaluate", "--device", "cpu", "--out", out)
    assert set(json.loads(evaluation.read_text())) == {"toys", "mean"}
    home = send("second", "checkpoint")
    unpack([home / name.name for name in home.iterdir() if name.name != "log.jsonl"], tmp_path / "checkpoint")

    assert "finished" in call("run", recipe, toy_shards, tmp_path / "whole", "--run.log-every", 1).output
    assert contents(tmp_path / "checkpoint") == contents(tmp_path / "whole" / "checkpoint")
    lines = [json.loads(line) for line in (home / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if "loss" in line] == ["warmup"] * 3 + ["mexma"] * 3
