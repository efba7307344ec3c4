"""The log of a run: whole lines with every digit, cut back to the saved state at a resume, also after a real kill."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mexma_rt.errors import FileError, MissingExtraError
from mexma_train import logs
from mexma_train.logs import RunLog, read_log, truncate

STAGES = ["warmup", "mexma"]
TERMS = {"loss": 0.1 + 0.2, "grad_norm": 1 / 3, "lr": 1e-4}
RESULTS = {"fra": {"xsim": 100 / 7, "accuracy": 85.0}, "mean": {"xsim": 100 / 7, "accuracy": 85.0}}


def open_log(folder: Path, name: str = "mexma", **changes: object) -> RunLog:
    values: dict[str, Any] = {"total": 100, "first": 0, "pairs_per_update": 300, "every": 20, "tensorboard": False} | changes
    return RunLog(folder, name=name, **values)


def write_run(folder: Path) -> bytes:
    """Both stages, 3 lines and an evaluation each; the bytes of the log."""
    for name in STAGES:
        with open_log(folder, name) as log:
            for update in (20, 40, 60):
                log.add(update, TERMS | {"loss": update / 7}, tokens=1000)
                if update == 40:
                    log.add_evaluation(update, RESULTS)
    return (folder / "log.jsonl").read_bytes()


def places(folder: Path) -> list[tuple[str, int]]:
    return [(line["stage"], line["update"]) for line in read_log(folder)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Seconds that pass only when the test says so; the process started at 5."""
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(logs, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(logs, "_PROCESS_START", 5.0)
    return clock


# Writing


def test_a_line_has_terms_with_all_digits_and_speeds_since_the_line_before(tmp_path: Path, clock: SimpleNamespace) -> None:
    with open_log(tmp_path / "new" / "run", first=10, pairs_per_update=300) as log:
        clock.now += 4
        log.add(20, TERMS, tokens=50_000)
        clock.now += 8
        log.add(40, {"loss": 2.5}, tokens=60_000)
    text = (tmp_path / "new" / "run" / "log.jsonl").read_text(encoding="utf-8")
    assert '"loss": 0.30000000000000004, "grad_norm": 0.3333333333333333, "lr": 0.0001}\n' in text
    speeds = {"pairs_per_second": 10 * 300 / 4, "tokens_per_second": 12_500.0, "seconds": 9.0}
    assert [json.loads(line) for line in text.splitlines()] == [
        {"stage": "mexma", "update": 20, **speeds, **TERMS},
        {"stage": "mexma", "update": 40, "pairs_per_second": 750.0, "tokens_per_second": 7500.0, "seconds": 17.0, "loss": 2.5},
    ]


@given(loss=st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=50, deadline=None)
def test_every_number_comes_back_bit_by_bit(tmp_path_factory: pytest.TempPathFactory, loss: float) -> None:
    folder = tmp_path_factory.mktemp("run")
    with open_log(folder) as log:
        log.add(1, {"loss": loss}, tokens=1)
        log.add_evaluation(1, {"fra": {"xsim": loss}})
    line, evaluation = read_log(folder)
    for found in (line["loss"], evaluation["evaluation"]["fra"]["xsim"]):
        assert found.hex() == loss.hex()


def test_an_evaluation_is_a_line_of_its_own(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.add_evaluation(50, RESULTS)
    assert read_log(tmp_path) == [{"stage": "mexma", "update": 50, "evaluation": RESULTS}]


def test_paused_time_does_not_count_in_the_speed(tmp_path: Path, clock: SimpleNamespace) -> None:
    with open_log(tmp_path) as log:
        clock.now += 2
        with log.pause():
            clock.now += 60
        clock.now += 2
        log.add(20, {}, tokens=400)
    (line,) = read_log(tmp_path)
    assert line["tokens_per_second"] == 100
    assert line["pairs_per_second"] == 20 * 300 / 4
    assert line["seconds"] == 69  # but in the run's duration


def test_what_is_not_finite_is_null_and_the_line_is_json(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.add(20, {"loss": 1.0, "grad_norm": math.inf, "align": math.nan}, tokens=1)

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse)
    assert (line["loss"], line["grad_norm"], line["align"]) == (1.0, None, None)


def test_a_line_is_on_disk_when_add_returns(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.add(20, TERMS, tokens=1)
        assert places(tmp_path) == [("mexma", 20)]
        log.add_evaluation(20, RESULTS)
        assert places(tmp_path) == [("mexma", 20)] * 2


def test_lines_are_due_every_so_many_updates_and_at_the_end(tmp_path: Path) -> None:
    log = open_log(tmp_path, total=50, every=20)
    assert [update for update in range(1, 51) if log.due(update)] == [20, 40, 50]


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="part of mexma-rt[train]")
    with open_log(tmp_path / "run", main=False, tensorboard=True) as log:
        log.advance(20, loss=1.0)
        log.add(20, TERMS, tokens=1)
        log.add_evaluation(20, RESULTS)
    assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with (
        pytest.raises(FileError, match=r"log\.jsonl cannot be written: Is a directory.* mexma-train resume"),
        open_log(tmp_path),
    ):
        pass


# The progress bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_is_on_a_terminal_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(stream: io.StringIO, main: bool = True) -> str:
        monkeypatch.setattr("sys.stderr", stream)
        with open_log(tmp_path, first=5, total=10, main=main) as log:
            log.advance(6, loss="2.718")
            time.sleep(0.15)  # tqdm draws at most every 0.1 s
            log.advance(9)
        return stream.getvalue()

    shown = run(Terminal())
    assert "mexma:  50%" in shown and "5/10" in shown
    assert "9/10" in shown and "loss=2.718" in shown.rsplit("9/10", 1)[1]  # the postfix stays until the next
    assert run(io.StringIO()) == ""
    assert run(Terminal(), main=False) == ""


# Reading and truncating


def test_only_a_line_without_its_end_is_left_out(tmp_path: Path) -> None:
    """The file is really cut, at each of the bytes of its last line."""
    data = write_run(tmp_path)
    path = tmp_path / "log.jsonl"
    *whole, last = data.splitlines(keepends=True)
    for size in range(len(last)):
        path.write_bytes(b"".join(whole) + last[:size])
        assert places(tmp_path)[-1] == ("mexma", 40), size
        assert len(read_log(tmp_path)) == 7
        truncate(tmp_path, STAGES, "mexma", 60)
        assert path.read_bytes() == b"".join(whole)
    path.write_bytes(b"".join(whole) + last)
    assert places(tmp_path)[-1] == ("mexma", 60)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (b'{"stage": "mexma", "upd', "it is not JSON"),
        (b"", "it is not JSON"),
        (b"\x00\xff", "it is not JSON"),
        (b"3", "it has no stage and update"),
        (b'{"stage": "mexma"}', "it has no stage and update"),
    ],
)
def test_a_damaged_line_elsewhere_is_named(tmp_path: Path, damage: bytes, why: str) -> None:
    lines = write_run(tmp_path).split(b"\n")
    path = tmp_path / "log.jsonl"
    for place in (2, len(lines) - 1):  # in the middle, and as the last line with its end
        path.write_bytes(b"\n".join([*lines[:place], damage, *lines[place:]]))
        for call in (lambda: read_log(tmp_path), lambda: truncate(tmp_path, STAGES, "mexma", 0)):
            with pytest.raises(FileError, match=rf"log\.jsonl, line {place + 1} is not a line .*: {why}") as caught:
                call()
            assert f"sed -i {place + 1}d {path}" in str(caught.value)
    subprocess.run(str(caught.value).rsplit("Remove it: ", 1)[1], shell=True, check=True)  # what the error says to type
    assert len(read_log(tmp_path)) == 8


@pytest.mark.parametrize(
    ("stage", "update", "kept"),
    [
        ("mexma", 60, 8),
        ("mexma", 59, 7),
        ("mexma", 40, 7),
        ("mexma", 39, 5),
        ("mexma", 0, 4),
        ("warmup", 45, 3),
        ("warmup", 0, 0),
    ],
)
def test_what_came_after_the_saved_state_is_dropped(tmp_path: Path, stage: str, update: int, kept: int) -> None:
    """An evaluation goes with its update; the bytes of what stays are the same."""
    data = write_run(tmp_path)
    truncate(tmp_path, STAGES, stage, update)
    assert (tmp_path / "log.jsonl").read_bytes() == b"".join(data.splitlines(keepends=True)[:kept])
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_that_needs_no_cut_is_not_touched(tmp_path: Path) -> None:
    truncate(tmp_path, STAGES, "mexma", 60)
    assert list(tmp_path.iterdir()) == []  # no log yet
    write_run(tmp_path)
    before = (tmp_path / "log.jsonl").stat()
    truncate(tmp_path, STAGES, "mexma", 60)
    after = (tmp_path / "log.jsonl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_truncating_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_run(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(FileError, match=r"No space left on device.*unchanged"):
        truncate(tmp_path, STAGES, "mexma", 20)
    assert (tmp_path / "log.jsonl").read_bytes() == data
    assert len(list(tmp_path.iterdir())) == 1


def test_a_stage_of_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(FileError, match=r"line 5 is not a line .* its stage is 'mexma', but this run has warmup, other"):
        truncate(tmp_path, ["warmup", "other"], "other", 60)


def test_no_log_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"log\.jsonl does not exist: .* is not the folder of a run"):
        read_log(tmp_path)
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(FileError, match=r"log\.jsonl cannot be read: Is a directory\. Type: ls -l"):
        read_log(tmp_path)


# Real kills and a real full disk

CHILD = """
import sys
from pathlib import Path
from mexma_train.logs import RunLog

results = {f"set{i}": {"xsim": i / 7} for i in range(200)}  # long lines are in the middle of being written most of the time
with RunLog(Path(sys.argv[1]), name="mexma", total=10**9, first=0, pairs_per_update=1, every=1, tensorboard=False) as log:
    for update in range(1, 10**9):
        log.add(update, {"loss": update / 7}, tokens=1)
        log.add_evaluation(update, results)
"""


def test_after_kill_9_the_log_is_a_whole_beginning_and_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)])
    end = time.monotonic() + 60
    path = tmp_path / "log.jsonl"
    while not (path.exists() and path.stat().st_size > 200_000) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    updates = [line["update"] for line in read_log(tmp_path)]
    assert updates == [1 + i // 2 for i in range(len(updates))] and len(updates) > 20
    truncate(tmp_path, STAGES, "mexma", 10)
    with open_log(tmp_path, first=10) as log:
        log.add(11, {"loss": 11 / 7}, tokens=1)
    lines = read_log(tmp_path)
    assert [line["update"] for line in lines] == [1 + i // 2 for i in range(20)] + [11]
    assert [line["loss"] for line in lines if "loss" in line] == [update / 7 for update in range(1, 12)]


FULL_DISK = """
import resource, sys
from pathlib import Path
from mexma_train.logs import RunLog

# A file may not grow beyond so many bytes: the system answers as on a full disk, when half of the line is written.
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with RunLog(Path(sys.argv[1]), name="mexma", total=100, first=0, pairs_per_update=1, every=1, tensorboard=False) as log:
    for update in range(1, 100):
        log.add(update, {"loss": update / 7}, tokens=1)
        print(update)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is POSIX's")
def test_a_full_disk_stops_at_once_and_the_torn_line_is_mended(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert process.returncode == 1
    assert "log.jsonl cannot be written: File too large. Make room" in process.stderr
    path = tmp_path / "log.jsonl"
    data = path.read_bytes()
    assert len(data) == 1000 and not data.endswith(b"\n")  # really torn
    written = [line["update"] for line in read_log(tmp_path)]
    assert written == [int(line) for line in process.stdout.split()] == list(range(1, len(written) + 1)) != []
    truncate(tmp_path, STAGES, "mexma", written[-1])
    assert data.startswith(path.read_bytes()) and path.read_bytes().endswith(b"\n")
    with open_log(tmp_path, first=written[-1]) as log:
        log.add(100, TERMS, tokens=1)
    assert [line["update"] for line in read_log(tmp_path)] == [*written, 100]


# TensorBoard


def events_of(folder: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="part of mexma-rt[train]"
    )
    events = accumulators.EventAccumulator(str(folder / "tensorboard" / stage))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def need_tensorboard() -> None:
    for name in ("torch", "tensorboard"):
        pytest.importorskip(name, reason="part of mexma-rt[train]")


def test_tensorboard_shows_every_term_and_every_measure(tmp_path: Path) -> None:
    need_tensorboard()
    with open_log(tmp_path, tensorboard=True) as log:
        log.add(20, TERMS, tokens=1)
        log.add(40, {"loss": 0.25}, tokens=1)
        log.add_evaluation(40, {**{f"set{i}": {"xsim": float(i)} for i in range(300)}, **RESULTS})
        (path,) = (tmp_path / "tensorboard" / "mexma").iterdir()
        size = path.stat().st_size
    assert path.stat().st_size == size  # nothing was left to the end, so a kill loses nothing
    events = events_of(tmp_path, "mexma")
    assert events["mexma/loss"] == [(20, pytest.approx(0.3)), (40, 0.25)]
    assert events["mexma/lr"] == [(20, pytest.approx(1e-4))]
    assert events["mexma/evaluation/fra/accuracy"] == [(40, 85.0)]
    assert events["mexma/evaluation/mean/xsim"] == [(40, pytest.approx(100 / 7))]
    assert {"mexma/pairs_per_second", "mexma/tokens_per_second", "mexma/grad_norm"} < set(events)


def test_a_resumed_run_replaces_the_events_after_its_state_and_no_others(tmp_path: Path) -> None:
    need_tensorboard()
    for name in STAGES:
        with open_log(tmp_path, name, tensorboard=True) as log:
            for update in (20, 40, 60):
                log.add(update, {"loss": 1.0}, tokens=1)
                log.add_evaluation(update, {"fra": {"xsim": 1.0}})
    truncate(tmp_path, STAGES, "mexma", 20)
    second = int(time.time())
    while int(time.time()) == second:  # TensorBoard reads files in the order of their names, which begin with the second
        time.sleep(0.05)
    with open_log(tmp_path, first=20, tensorboard=True) as log:
        log.add(40, {"loss": 2.0}, tokens=1)
    assert events_of(tmp_path, "mexma")["mexma/loss"] == [(20, 1.0), (40, 2.0)]
    assert events_of(tmp_path, "mexma")["mexma/evaluation/fra/xsim"] == [(20, 1.0)]
    assert events_of(tmp_path, "warmup")["warmup/loss"] == [(20, 1.0), (40, 1.0), (60, 1.0)]
    assert [(line["stage"], line["update"], line["loss"]) for line in read_log(tmp_path) if "loss" in line] == [
        *(("warmup", update, 1.0) for update in (20, 40, 60)),
        ("mexma", 20, 1.0),
        ("mexma", 40, 2.0),
    ]


def test_without_tensorboard_every_process_stops_with_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "tensorboard" else find(name, *a))
    for main in (True, False):
        with pytest.raises(MissingExtraError, match=r"tensorboard is not installed.*\n.*pip install 'mexma-rt\[train\]'"):
            open_log(tmp_path, tensorboard=True, main=main)
    open_log(tmp_path)  # needs none
