"""Embedding on a local Ray cluster: the bytes of one machine, also when a worker is killed or the driver was; bad input."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import mexma_rt
from mexma_rt import BackendError, InputError, MissingExtraError, cluster, stream
from mexma_rt.cli import main
from mexma_rt.cluster.embed import embed_file_on

ROOT = Path(mexma_rt.__file__).parents[1]
SLAB = 150


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Twenty slabs; the workers import what is tested."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mexma-rt[ray]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(stream, "SLAB_ROWS", SLAB)
    path = tmp_path / "in.txt"
    path.write_text("".join(f"Hello {i} {'world, the cat is sleeping ' * (i % 23)}\n" for i in range(20 * SLAB - 7)))
    return path


def children(of: int) -> list[tuple[int, str]]:
    """(pid, command line) of all descendants of a process."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it ended
                continue

    def descends(pid: int) -> bool:
        return pid == of or (pid in parents and descends(parents[pid]))

    return [(pid, names[pid]) for pid in parents if pid != of and pid in names and descends(pid)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_a_worker_killed_while_it_works_costs_time_only(texts, tiny_bundle, tmp_path):
    killed = []
    state = tmp_path / ".v.npy.part" / "state.json"

    def kill() -> None:
        while not state.exists() or json.loads(state.read_bytes())["done"] < 2 * SLAB:
            time.sleep(0.01)
        for pid, name in children(os.getpid()):
            if name.startswith("ray::MapWorker"):
                os.kill(pid, signal.SIGKILL)
                killed.append((pid, json.loads(state.read_bytes())["done"]))
                return

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    before = (
        dict(os.environ),
        logging.root.handlers[:],
        sys.excepthook,
        signal.getsignal(signal.SIGTERM),
        set(Path.home().iterdir()),
    )
    report = embed_file_on("local", {"model": tiny_bundle, "threads": 1}, texts, tmp_path / "v.npy")
    after = (
        dict(os.environ),
        logging.root.handlers[:],
        sys.excepthook,
        signal.getsignal(signal.SIGTERM),
        set(Path.home().iterdir()),
    )
    assert before == after and not children(os.getpid())
    assert len(killed) == 1 and killed[0][1] < 15 * SLAB  # in the middle
    rows = 20 * SLAB - 7
    assert report.shape == (rows, 32) and report.report.sentences == rows and report.report.batches >= 20
    alone = mexma_rt.load(tiny_bundle, threads=1).embed_file(texts, tmp_path / "whole.npy")
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert (report.report.tokens, report.cut) == (alone.report.tokens, alone.cut)


def test_the_command_goes_on_where_a_run_on_one_machine_was_killed(texts, tiny_bundle, tmp_path, monkeypatch):
    real, slabs = stream.work.write_state, []

    def write_state(*arguments):
        real(*arguments)
        slabs.append(1)
        if len(slabs) == 4:
            raise KeyboardInterrupt

    encoder = mexma_rt.load(tiny_bundle, threads=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stream.work, "write_state", write_state)
        encoder.embed_file(texts, tmp_path / "v", shard_rows=1000)
    arguments = ["embed", str(texts), "-o", str(tmp_path / "v"), "--shard-rows=1000", f"--model={tiny_bundle}", "--ray=local"]
    result = CliRunner().invoke(main, [*arguments, "--threads=1", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["resumed"] == 4 * SLAB
    encoder.embed_file(texts, tmp_path / "whole", shard_rows=1000)
    names = sorted(path.name for path in (tmp_path / "v").iterdir())
    assert names == ["vectors-00000.npy", "vectors-00001.npy", "vectors-00002.npy", "vectors.json"]
    for name in names:
        assert (tmp_path / "v" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    result = CliRunner().invoke(main, [*arguments, "--threads=99"])
    assert result.exit_code == 1 and "a worker was to have 99 threads" in result.stderr


def test_without_ray_the_pip_line_comes_first(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"ray is not installed.*\n    pip install 'mexma-rt\[ray\]'"):
        embed_file_on("local", {}, tmp_path / "in.txt", tmp_path / "v.npy")


def test_addresses_that_lead_nowhere(monkeypatch, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mexma-rt[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(BackendError, match=rf"No Ray cluster answers at 127.0.0.1:{port} \(Connection refused\)"):
        embed_file_on(f"127.0.0.1:{port}", {}, tmp_path / "in.txt", tmp_path / "v.npy")
    assert time.monotonic() - started < 2 * cluster.CONNECT_SECONDS
    for address in ("10.0.0.5", "here:port", "host:99999", ""):
        with pytest.raises(InputError, match=r"is no address of a Ray cluster\. Type local, auto or HOST:PORT"):
            embed_file_on(address, {}, tmp_path / "in.txt", tmp_path / "v.npy")
    with pytest.raises(InputError, match="ray://head:10001 is the address of a Ray client"):
        embed_file_on("ray://head:10001", {}, tmp_path / "in.txt", tmp_path / "v.npy")
    assert not list(tmp_path.iterdir())
