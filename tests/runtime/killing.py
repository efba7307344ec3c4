"""kill -9 and going on: at every step of a call that touches the disk, and at any time of a real command."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mexma_rt

ROOT = Path(mexma_rt.__file__).parents[1]
STEPS = ("fsync", "unlink", "rename", "replace", "mkdir", "rmdir")


def killed_at_every_step(script: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a script that ends in `every_step(...)` in a process of its own, inside folder; returns what that printed."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}  # one thread, so that fork is safe
    command = [sys.executable, "-c", "from killing import every_step\n" + script, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def every_step(run: Callable[[], object], output: str, work: tuple[ModuleType, str], stride: int = 1) -> None:
    """For n = 1, 1 + stride...: a child is killed by SIGKILL before its n-th step (sync, rename, removal or opening of a file,
    call of the function `work`), then `run` ends the work undisturbed. Prints how many steps there are, what the second runs
    returned, and whether all left the same files as an undisturbed run.
    """
    calls, results, seen, step = 0, [], [], 1

    def counted(function: Any, last: int) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    def killed(last: int) -> bool:
        pid = os.fork()
        if pid == 0:
            for name in STEPS:
                setattr(os, name, counted(getattr(os, name), last))
            Path.open = counted(Path.open, last)  # type: ignore[method-assign]
            setattr(*work, counted(getattr(*work), last))
            run()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status in (0, signal.SIGKILL), status
        return status == signal.SIGKILL

    def left() -> dict[str, str]:
        files = sorted(path for path in Path().rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    while killed(step):
        results.append(run())
        seen.append(left())
        if Path(output).is_dir():
            shutil.rmtree(output)
        else:
            Path(output).unlink()
        step += stride
    print(json.dumps({"steps": step, "results": results, "last": left(), "equal": all(one == left() for one in seen)}))  # noqa: T201


def counted_in(state: Path) -> int:
    """What a checkpoint counts; 0 before the first one, and once the work has ended and removed it."""
    try:
        return json.loads(state.read_bytes())["done"]
    except FileNotFoundError:
        return 0


def killed_while_it_works(
    arguments: list[str], output: Path, *, total: int, times: int | None = None
) -> tuple[int, int, subprocess.CompletedProcess[str]]:
    """Start the command `mexma` beside output again and again, and kill each process once its checkpoint counts more than that
    of the one before, of `total` in all; the last one ends. Returns kills, what was counted at the last of them, and the end.
    """
    command = [sys.executable, "-c", "from mexma_rt.cli import main; main()", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    state = output.with_name(f".{output.name}.part") / "state.json"
    kills = before = 0
    while True:
        with subprocess.Popen(
            command, cwd=output.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            while process.poll() is None and kills != times:
                done = counted_in(state)
                if before < done < total:
                    process.send_signal(signal.SIGKILL)
                    before, kills = done, kills + 1
                    break
                time.sleep(0.001)
            said = process.communicate()
        if process.returncode == 0:
            return kills, before, subprocess.CompletedProcess(command, 0, *said)
        assert process.returncode == -signal.SIGKILL and not output.exists(), said
