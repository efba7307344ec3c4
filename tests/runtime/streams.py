"""Many runs of a command with standard streams as no test runner has them: full, closed, or left by their reader."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mexma_rt

ROOT = Path(mexma_rt.__file__).parents[1]
STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}


@dataclass(frozen=True, kw_only=True)
class Run:
    """How one run ended."""

    status: int
    stdout: str
    stderr: str


def runs(entry: str, commands: Sequence[Sequence[str]], folder: Path, **streams: str) -> list[Run]:
    """Run each command line with `entry` ("package.module:function") in a process of its own, inside `folder`.

    streams: stdin=, stdout= or stderr= "closed", "left" (a pipe that nobody reads) or the name of a file such as /dev/full.
    The imports are made once and the processes forked, each with its streams set up as Python does at its start.
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "train"), str(ROOT / "export"), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}  # one thread, so that fork is safe
    request = json.dumps([entry, [list(map(str, command)) for command in commands], streams])
    code = "import streams; streams.serve()"
    done = subprocess.run(
        [sys.executable, "-c", code], input=request, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [Run(**each) for each in json.loads(done.stdout)]


def serve() -> None:
    """In the process of `runs`."""
    entry, commands, streams = json.load(sys.stdin)
    module, _, function = entry.partition(":")
    main = getattr(importlib.import_module(module), function)
    ended = [_run(main, command, streams) for command in commands]
    print(json.dumps(ended))  # noqa: T201


def _run(main: object, command: list[str], streams: dict[str, str]) -> dict[str, object]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            _set_up(streams, out.fileno(), err.fileno())
            sys.argv = [getattr(main, "name", "command"), *command]
            sys.excepthook = lambda *error: os.write(err.fileno(), f"Traceback {error}".encode()) and None
            status = 1
            try:
                main()  # type: ignore[operator]
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException as error:
                os.write(err.fileno(), f"Traceback: {error!r}".encode())
            try:
                sys.stdout and sys.stdout.flush()  # as at the end of the interpreter, which then has status 120
            except (OSError, ValueError):
                status = 120
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = []
        for stream in (out, err):
            stream.seek(0)
            said.append(stream.read().decode())
        return {"status": status, "stdout": said[0], "stderr": said[1]}


def _set_up(streams: dict[str, str], out: int, err: int) -> None:
    places = {"stdin": os.open(os.devnull, os.O_RDONLY), "stdout": out, "stderr": err}
    for name, place in places.items():
        number, wanted = STREAMS[name], streams.get(name)
        if wanted is None:
            os.dup2(place, number)
        elif wanted == "closed":
            os.close(number)
        elif wanted == "left":
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, number)
        else:
            os.dup2(os.open(wanted, os.O_RDWR), number)
        mode, closed = "r" if number == 0 else "w", wanted == "closed"
        stream = None if closed else open(number, mode, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
