"""Copies inputs that can be read only once (standard input, pipes, <(process substitution)) where they must be read twice."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mexma_rt.errors import EmptyPipeWarning, FileError, InputError
from mexma_rt.files.lines import damage_explained
from mexma_rt.files.resumable import explained
from mexma_rt.files.unpacking import is_stdin, shown_name

Name = str | os.PathLike[str]


def reads_once(path: Name) -> bool:
    """Whether an input is a pipe: bytes once read are gone, and its name may mean another pipe in another process."""
    if is_stdin(path):
        return True
    with damage_explained(path):
        return Path(path).is_fifo()


@contextlib.contextmanager
def spooled(sources: tuple[Name, ...], folder: Path, target: Path) -> Iterator[tuple[Name, ...]]:
    """Yield the sources as files that can be read again: themselves, or copies in `folder`, the work folder of `target`.

    Errors inside the block name the sources, not the copies. Raises FileError if a source cannot be read or copied.
    """
    copies = {source: folder / f"input-{number}" for number, source in enumerate(sources) if reads_once(source)}
    _copy_all(copies, target)
    try:
        yield tuple(copies.get(source, source) for source in sources)
    except (FileError, InputError) as error:
        text = str(error)
        for source, copy in copies.items():
            text = text.replace(str(copy), shown_name(source))
        if text == str(error):
            raise
        raise type(error)(text) from error.__cause__


@contextlib.contextmanager
def side_by_side(*sources: Name) -> Iterator[tuple[Name, ...]]:
    """Yield the sources, readable in any order: themselves, or copies if more than one is a pipe.

    If one process writes to two pipes, it blocks when one is full, and would wait for ever if the other were read first.
    """
    if sum(map(reads_once, sources)) < 2:
        yield sources
        return
    with tempfile.TemporaryDirectory(prefix="mexma-") as folder, spooled(sources, Path(folder), Path(folder)) as copies:
        yield copies


def _copy_all(copies: dict[Name, Path], target: Path) -> None:
    """Copy all at once, standard input (or else the first) in this thread, so that Ctrl-C stops it and the rest with it."""
    order = sorted(copies, key=lambda source: not is_stdin(source))
    failed: dict[Name, BaseException] = {}

    def try_to_copy(source: Name) -> None:
        try:
            _copy(source, copies[source], target)
        except BaseException as error:
            failed[source] = error

    threads = [threading.Thread(target=try_to_copy, args=(source,), daemon=True) for source in order[1:]]
    for thread in threads:
        thread.start()
    for source in order[:1]:
        _copy(source, copies[source], target)
    for thread in threads:
        thread.join()
    for source in copies:
        if source in failed:
            raise failed[source]


def _copy(source: Name, copy: Path, target: Path) -> None:
    with explained(target):
        stream = copy.open("wb")
    with stream:
        for block in _blocks(source):
            with explained(target):
                stream.write(block)
                stream.flush()
        if not stream.tell():
            warnings.warn(
                f"{shown_name(source)} is empty: check whether the command that writes to it has failed.",
                EmptyPipeWarning,
                stacklevel=2,
            )


def _blocks(source: Name) -> Iterator[bytes]:
    with damage_explained(source), contextlib.ExitStack() as stack:
        stream: BinaryIO = sys.stdin.buffer if is_stdin(source) else stack.enter_context(Path(source).open("rb"))
        while block := stream.read1(2**20):  # type: ignore[attr-defined]  # one Ctrl-D ends it; read() would ask again
            yield block
