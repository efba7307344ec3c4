"""Embedding and kNN on a local Ray cluster: the bytes of one machine, also when a worker is killed; bad input."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import mexma_rt
from mexma_rt import BackendError, BundleError, FileError, InputError, MissingExtraError, cluster
from mexma_rt.cli import main
from mexma_rt.cluster.embed import write_vectors_on
from mexma_rt.cluster.knn import write_neighbours_on
from mexma_rt.embedding import reading
from mexma_rt.embedding.settings import EmbedSettings
from mexma_rt.files import resumable
from mexma_rt.knn import plan as knnplan
from mexma_rt.knn.on_disk import NAMES, SearchSettings, knn_files

ROOT = Path(mexma_rt.__file__).parents[1]
SLAB = 60


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One cluster of two processors for the tests below, whose workers import what is tested; the host is left as it was."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mexma-rt[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        before = host()
        with cluster.session("local", cpus=2) as ray:
            yield ray
        assert host() == before and not ray.is_initialized() and not children(os.getpid())


def host() -> tuple[object, ...]:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    files = {path for folder in (Path.home(), Path(tempfile.gettempdir())) for path in folder.glob("*ray*")}
    levels = [logging.getLogger(name).level for name in ("", "ray", "ray.data")]
    return dict(os.environ), logging.root.handlers[:], levels, sys.excepthook, handlers, files | set(Path.home().glob(".ray*"))


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty slabs."""
    monkeypatch.setattr(reading, "SLAB_ROWS", SLAB)
    path = tmp_path / "in.txt"
    path.write_text("".join(f"Hello {i} {'world, the cat is sleeping ' * (i % 5)}\n" for i in range(20 * SLAB - 7)))
    return path


def children(of: int) -> list[tuple[int, str]]:
    """(pid, command line) of all descendants of a process."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if "multiprocessing.resource_tracker" in names[int(folder.name)]:  # of an earlier test's processes, not of Ray
                    del parents[int(folder.name)]
            except OSError:  # it ended
                continue

    def descends(pid: int) -> bool:
        return pid == of or (pid in parents and descends(parents[pid]))

    return [(pid, names[pid]) for pid in parents if pid != of and pid in names and descends(pid)]


def killed(name: str, when: Callable[[], bool]) -> list[int]:
    """Starts to wait for a moment, to kill one worker of that name then; the list gets its pid."""
    pids: list[int] = []

    def kill() -> None:
        while not when():
            time.sleep(0.005)
        while not pids:
            for pid, line in children(os.getpid()):
                if line.startswith(name) and not pids:
                    os.kill(pid, signal.SIGKILL)
                    pids.append(pid)

    threading.Thread(target=kill, daemon=True).start()
    return pids


def done(state: Path) -> int:
    try:
        return json.loads(state.read_bytes())["done"]
    except FileNotFoundError:
        return 0


in_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")


@pytest.mark.cluster
@in_proc
def test_a_worker_killed_while_it_embeds_costs_time_only(texts: Path, tiny_bundle: Path, tmp_path: Path, ray_here: Any) -> None:
    state = tmp_path / ".v.npy.part" / "state.json"
    pids = killed("ray::MapWorker", lambda: done(state) >= 2 * SLAB)
    report = write_vectors_on("local", {"model": tiny_bundle, "threads": 1}, texts, tmp_path / "v.npy", EmbedSettings())
    assert len(pids) == 1 and ray_here.is_initialized()
    rows = 20 * SLAB - 7
    assert report.shape == (rows, 32) and report.report.sentences == rows and report.report.batches >= 20
    alone = mexma_rt.load(tiny_bundle, threads=1).embed_file(texts, tmp_path / "whole.npy")
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert (report.report.tokens, report.cut) == (alone.report.tokens, alone.cut)


@pytest.mark.cluster
@in_proc
def test_a_worker_killed_while_it_searches_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_here: Any
) -> None:
    monkeypatch.setattr(knnplan, "INNER_ROWS", 1500)
    rng = np.random.default_rng(0)
    for name, rows in (("x", 9000), ("y", 12000)):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((rows, 64)).astype(np.float32))
    paths = (tmp_path / "x.npy", tmp_path / "y.npy")
    pids = killed("ray::_pairs", lambda: done(tmp_path / ".found.part" / "state.json") >= 1)
    monkeypatch.chdir(tmp_path)
    report = write_neighbours_on("local", "x.npy", "y.npy", tmp_path / "found", SearchSettings(checkpoint_seconds=1e-9))
    assert len(pids) == 1 and (report.source_rows, report.target_rows) == (9000, 12000)
    knn_files(*paths, tmp_path / "alone")
    for name in NAMES:
        assert (tmp_path / "found" / f"{name}.npy").read_bytes() == (tmp_path / "alone" / f"{name}.npy").read_bytes()
    index = np.load(tmp_path / "found" / "source_index.npy")
    x, y = (np.load(path).astype(np.float64) for path in paths)
    similar = (x[:200] / np.linalg.norm(x[:200], axis=1)[:, None]) @ (y / np.linalg.norm(y, axis=1)[:, None]).T
    np.testing.assert_array_equal(index[:200], np.argsort(-similar, axis=1)[:, :4])


@pytest.mark.cluster
@in_proc
def test_mining_on_a_cluster_gives_the_same_bytes_and_a_killed_worker_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_here: Any
) -> None:
    monkeypatch.setattr(knnplan, "INNER_ROWS", 1500)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    y = rng.standard_normal((12_000, 64)).astype(np.float32)
    for name, vectors in (("x", y[:9000] + rng.standard_normal((9000, 64)) / 2), ("y", y)):
        np.save(f"{name}.npy", vectors.astype(np.float32))
        lines = [" " if i == 7 else f"{name} {i - i % 50 if i < 100 else i}" for i in range(len(vectors))]  # left out, copied
        Path(f"{name}.txt").write_text("\n".join(lines) + "\n")
    command = ["mine", "x.txt", "y.txt", "--source-vectors", "x.npy", "--target-vectors", "y.npy", "--threshold", "1.2"]
    pids = killed("ray::_pairs", lambda: (tmp_path / ".ray.tsv.mining" / ".neighbours.part").exists())
    result = CliRunner().invoke(main, [*command, "-o", "ray.tsv", "--ray", "local", "--json"])
    assert result.exit_code == 0 and len(pids) == 1, result.output
    report = json.loads(result.stdout)
    assert report["source"]["repeated"] == 97 and 5000 < report["found"] < 9000
    assert CliRunner().invoke(main, [*command, "-o", "alone.tsv"]).exit_code == 0
    assert Path("ray.tsv").read_bytes() == Path("alone.tsv").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_mining_on_a_cluster_that_cannot_be_used_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mexma-rt[ray]'")
    monkeypatch.chdir(tmp_path)
    for name in "xy":
        np.save(f"{name}.npy", np.random.default_rng(3).standard_normal((20, 8)))
    vectors = ["--source-vectors", "x.npy", "--target-vectors", "y.npy", "-o", "p.tsv"]
    for arguments, status, message in (
        ([*vectors, "--ray", "nowhere"], 1, "'nowhere' is not the address of a Ray cluster"),
        ([*vectors, "--ray", "local", "--device", "cuda"], 1, "device='cuda' is not supported on a Ray cluster"),
        (["a.txt", "b.txt", "--ray", "local"], 2, "Make them first: mexma embed a.txt -o source.npy --ray local"),
    ):
        result = CliRunner().invoke(main, ["mine", *arguments])
        assert result.exit_code == status and message in " ".join(result.stderr.split()), result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy"]


@pytest.mark.cluster
def test_a_search_on_a_cluster_goes_on_where_one_machine_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_here: Any
) -> None:
    monkeypatch.setattr(knnplan, "INNER_ROWS", 256)
    rng = np.random.default_rng(1)
    for name in "xy":
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((1500, 8)).astype(np.float32))
    paths = (str(tmp_path / "x.npy"), str(tmp_path / "y.npy"))
    real, states = resumable.write_state, []

    def write_state(*arguments: Any) -> None:
        real(*arguments)
        states.append(1)
        if len(states) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resumable, "write_state", write_state)
        knn_files(*paths, tmp_path / "found", announce=lambda text: None, checkpoint_seconds=1e-9)
    result = CliRunner().invoke(main, ["knn", *paths, "-o", str(tmp_path / "found"), "--ray=local", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["resumed"] == pytest.approx(2 / 6)
    knn_files(*paths, tmp_path / "alone")
    for name in NAMES:
        assert (tmp_path / "found" / f"{name}.npy").read_bytes() == (tmp_path / "alone" / f"{name}.npy").read_bytes()
    result = CliRunner().invoke(main, ["knn", *paths, "-o", str(tmp_path / "found"), "--ray=local"])
    assert result.exit_code == 1 and "already exists" in result.stderr
    (tmp_path / "y.npy").write_bytes(b"")
    result = CliRunner().invoke(main, ["knn", *paths, "-o", str(tmp_path / "new"), "--ray=local"])
    assert result.exit_code == 1 and "y.npy" in result.stderr and not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="device='cuda' is not supported on a Ray cluster"):
        write_neighbours_on("local", *paths, tmp_path / "new", SearchSettings(device="cuda"))


@pytest.mark.cluster
def test_the_command_goes_on_where_a_run_on_one_machine_was_stopped(
    texts: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_here: Any
) -> None:
    real, slabs = resumable.write_state, []

    def write_state(*arguments: Any) -> None:
        real(*arguments)
        slabs.append(1)
        if len(slabs) == 4:
            raise KeyboardInterrupt

    encoder = mexma_rt.load(tiny_bundle, threads=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resumable, "write_state", write_state)
        encoder.embed_file(texts, tmp_path / "v", shard_rows=500)
    arguments = ["embed", str(texts), "-o", str(tmp_path / "v"), "--shard-rows=500", f"--model={tiny_bundle}", "--ray=local"]
    result = CliRunner().invoke(main, [*arguments, "--threads=1", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["resumed"] == 4 * SLAB
    encoder.embed_file(texts, tmp_path / "whole", shard_rows=500)
    names = sorted(path.name for path in (tmp_path / "v").iterdir())
    assert names == ["vectors-00000.npy", "vectors-00001.npy", "vectors-00002.npy", "vectors.json"]
    for name in names:
        assert (tmp_path / "v" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    result = CliRunner().invoke(main, [*arguments, "--threads=99"])
    assert result.exit_code == 1 and "each worker needs 99 threads" in result.stderr


@pytest.mark.cluster
def test_what_goes_wrong_in_a_worker_is_said_as_if_it_had_gone_wrong_here(
    texts: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_here: Any
) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        write_vectors_on("local", {"model": str(tmp_path / "nowhere")}, texts, tmp_path / "v.npy", EmbedSettings())
    real = reading.first_reading

    def first_reading(source: str | os.PathLike[str], *arguments: Any) -> Any:
        found = real(source, *arguments)
        Path(source).write_text(Path(source).read_text().replace("Hello 700 ", "Hullo 700 "))
        return found

    monkeypatch.setattr(reading, "first_reading", first_reading)
    with pytest.raises(FileError, match="The input changed while it was read"):
        write_vectors_on("local", {"model": tiny_bundle, "threads": 1}, texts, tmp_path / "v.npy", EmbedSettings())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt"]


@pytest.mark.cluster
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read_here_and_gives_the_bytes_of_the_file(
    texts: Path, tiny_bundle: Path, tmp_path: Path, ray_here: Any
) -> None:
    """Also where another process's name for it (/dev/fd/63, -) would be another file: a worker never opens it."""
    options = {"model": tiny_bundle, "threads": 1}
    write_vectors_on("local", options, texts, tmp_path / "file.npy", EmbedSettings())
    os.mkfifo(tmp_path / "pipe")
    reader, writer = os.pipe()

    def write(name: str | Path | int) -> None:
        with open(name, "wb") as stream:  # noqa: PTH123  (a name or a number)
            stream.write(texts.read_bytes())

    for source, written, target in ((tmp_path / "pipe",) * 2 + ("pipe.npy",), (f"/dev/fd/{reader}", writer, "fd.npy")):
        thread = threading.Thread(target=write, args=(written,), daemon=True)
        thread.start()
        report = write_vectors_on("local", options, source, tmp_path / target, EmbedSettings())
        assert report.shape[0] == 20 * SLAB - 7
        assert (tmp_path / target).read_bytes() == (tmp_path / "file.npy").read_bytes()
        thread.join(timeout=60)
    os.close(reader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fd.npy", "file.npy", "in.txt", "pipe", "pipe.npy"]


def test_without_ray_the_pip_line_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"ray is not installed.*\n    pip install 'mexma-rt\[ray\]'"):
        write_vectors_on("local", {}, tmp_path / "in.txt", tmp_path / "v.npy", EmbedSettings())


def test_addresses_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mexma-rt[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(BackendError, match=rf"No Ray cluster answers at 127.0.0.1:{port} \(Connection refused\)"):
        write_vectors_on(f"127.0.0.1:{port}", {}, tmp_path / "in.txt", tmp_path / "v.npy", EmbedSettings())
    assert time.monotonic() - started < 2 * cluster.CONNECT_SECONDS
    for address in ("10.0.0.5", "here:port", "host:99999", ""):
        with pytest.raises(InputError, match=r"is not the address of a Ray cluster\. Type local, auto or HOST:PORT"):
            write_vectors_on(address, {}, tmp_path / "in.txt", tmp_path / "v.npy", EmbedSettings())
    with pytest.raises(InputError, match="ray://head:10001 is the address of a Ray client"):
        write_vectors_on("ray://head:10001", {}, tmp_path / "in.txt", tmp_path / "v.npy", EmbedSettings())
    assert not list(tmp_path.iterdir())


def test_a_worker_gets_a_gpu_where_it_needs_one() -> None:
    from mexma_rt.cluster.embed import _resources

    asked = [{"device": "cuda"}, {"device": "cuda:1"}, {"backend": "tensorrt"}, {"backend": "rtx", "device": "auto"}]
    assert [_resources({"threads": 3} | one) for one in asked] == [{"num_cpus": 3, "num_gpus": 1}] * 4
    for one in ({}, {"device": "auto", "backend": "auto"}, {"backend": "torch"}, {"device": "cpu"}):
        assert _resources({"threads": 3} | one) == {"num_cpus": 3, "num_gpus": 0}
