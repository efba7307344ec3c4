"""Handles Ctrl-C, and standard streams that are full, closed or abandoned by their reader.

Python would print a traceback, or exit with status 0 although the result is lost. These commands print one line to standard
error and exit with status 1 (130 for Ctrl-C). Standard error carries only messages: if it cannot be written, they continue.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from mexma_rt.errors import FileError

CLOSED = (
    "standard output is closed, so the result would be lost, and nothing was done. Add > FILE, or > /dev/null if only the "
    "output files matter."
)
RESUMES = "no output file was changed; the same command resumes where it stopped"
STARTS_OVER = "no output file was changed; no part was finished yet, so the same command starts over"


class OutputError(FileError):
    """Standard output cannot be written."""


@contextlib.contextmanager
def interrupted(kept: str | Callable[[], str]) -> Iterator[None]:
    """Set what the command prints if Ctrl-C interrupts this block: what is kept, and how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept if isinstance(kept, str) else kept()) from None


def resumes(output: str | os.PathLike[str], kind: str = "part") -> Callable[[], str]:
    """Return a message for `interrupted`, depending on whether an output's folder `.NAME.KIND` holds finished work."""
    work = Path(output).resolve()
    return lambda: RESUMES if work.with_name(f".{work.name}.{kind}").exists() else STARTS_OVER


class EdgesCommand(click.Command):
    """A command, or group of commands, that handles Ctrl-C and its streams; its `name` starts every such line."""

    def invoke(self, ctx: click.Context) -> Any:
        """See click."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            click.echo(f"{self.name}: interrupted; {stop.args[0] if stop.args else 'no output file was changed'}.", err=True)
            ctx.exit(130)

    def main(self, *arguments: Any, **keywords: Any) -> Any:
        """See click."""
        if not keywords.get("standalone_mode", True) or sys.stdout is not sys.__stdout__:  # the streams belong to someone else
            return super().main(*arguments, **keywords)
        closed = sys.stdout is None
        output = open_streams()
        warnings.showwarning = _Told()
        try:
            if closed:
                raise OutputError(CLOSED)
            try:
                super().main(*arguments, **keywords)
            finally:
                output.flush()
        except OutputError as error:
            click.echo(f"{self.name}: {error}", err=True)
            sys.exit(1)


class _Told(set[str]):
    """Shows each warning once (a file may be read twice), without its place in the source, which means nothing to a user."""

    def __call__(self, message: Warning | str, *place: Any, **named: Any) -> None:
        if str(message) not in self:
            self.add(str(message))
            click.echo(f"warning: {message}", err=True)


def open_streams() -> io.TextIOWrapper:
    """Make sys.stdin, stdout and stderr UTF-8 streams whose errors are handled as this module promises; return stdout.

    A file opened later must not get the number of a closed stream, or text meant for the stream would go into the file. So
    closed streams are opened on the null device, in the wrong direction for input and output, so that using them is an error.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        if not _is_open(number):
            os.open(os.devnull, flags)  # gets the lowest free number
    if sys.stdin is None or type(getattr(getattr(sys.stdin, "buffer", None), "raw", None)) is io.FileIO:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Input(0)), encoding="utf-8")
    output = sys.stdout = _stream(sys.stdout, _Output(1))
    sys.stderr = _stream(sys.stderr, _News(2))
    return output


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _stream(old: Any, raw: io.FileIO) -> io.TextIOWrapper:
    if old is not None and isinstance(old, io.TextIOWrapper):
        old.flush()
        if type(getattr(old.buffer, "raw", old.buffer)) is not io.FileIO:  # the Windows console writes its own way
            old.reconfigure(encoding="utf-8", errors="backslashreplace")
            return old
    lines = raw.fileno() == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=lines)


class _Input(io.FileIO):
    """Standard input: waits while a pipe is empty that another process has made non-blocking; that is not its end."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "r", closefd=False)

    def readinto(self, buffer: Any) -> int:
        while (count := super().readinto(buffer)) is None:
            select.select([self], [], [])
        return int(count)


class _Output(io.FileIO):
    """Standard output: the first error is raised as OutputError, and later writes are dropped."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.broken = False

    def write(self, data: Any) -> int:
        try:
            return len(data) if self.broken else _write_all(super().write, self, data)
        except OSError as error:
            self.broken = True
            if error.errno == errno.EPIPE:
                what = "standard output was closed by the process that reads it before everything was printed"
            else:
                what = f"standard output cannot be written: {error.strerror or error}. What was printed is incomplete"
            raise OutputError(f"{what}. A file named as an output is complete, or was not touched.") from None


class _News(io.FileIO):
    """Standard error: what cannot be written is dropped."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)

    def write(self, data: Any) -> int:
        try:
            return _write_all(super().write, self, data)
        except OSError:
            return len(data)


def _write_all(write: Any, raw: io.FileIO, data: Any) -> int:
    """Like `write`, but wait while a pipe is full that another process has made non-blocking."""
    while (written := write(data)) is None:
        select.select([], [raw], [])
    return int(written)
