"""Writes files that are complete or absent. Also `read_lines`, which reads a small text file whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from mexma_rt.errors import FileError, InputError, typed
from mexma_rt.files.lines import text_lines
from mexma_rt.files.unpacking import is_stdin


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """All lines of a UTF-8 file (plain, .gz, .xz or .zst; "-" is standard input); see `mexma_rt.files.lines.text_lines`."""
    return list(text_lines(path))


def check_output(path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Raise FileError or InputError if path cannot be written or is one of the inputs; called before long work."""
    if os.fspath(path) == "":
        raise FileError("The name of the output is empty, perhaps because a shell variable is not set.")
    _check_name(os.fspath(path))
    path = Path(path)
    if path.is_dir():
        raise FileError(f"{path} is a folder, but the output must be a file. Type {path / 'NAME'} instead.")
    direct = _is_special(path) or open_file(path) is not None
    folder = path.resolve().parent
    if not direct and not folder.is_dir():
        raise FileError(f"{path} cannot be written: the folder {folder} does not exist. Type: mkdir -p {typed(folder)}")
    for name in inputs:
        if not is_stdin(name) and path.exists() and Path(name).exists() and path.samefile(name):
            raise InputError(f"{path} is both an input and the output. Choose another name for the output.")
    if direct and not path.exists():
        raise FileError(f"{path} cannot be written: no file is open under this name.")
    if not os.access(path if direct else folder, os.W_OK):
        raise FileError(f"{path} cannot be written: no permission in {folder}. Choose another folder for the output.")


def _check_name(path: str) -> None:
    """Raise FileError for a name that no file can have, or that means something other than the file it would create."""
    if path == "-":
        raise FileError("An output cannot be called -. To write a table to standard output, type /dev/stdout.")
    if path.endswith(("/", os.sep)) and not Path(path).is_dir():
        raise FileError(f"{path} names a folder, but the output must be a file. Type {Path(path)} instead.")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:  # too long, or with a NUL
        raise FileError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from None


def open_file(path: str | os.PathLike[str]) -> int | None:
    """Return the file descriptor behind a name such as /dev/stdout or /dev/fd/3; None for other names.

    Such a file is written to at its current position: the shell may be appending to it (>> log), or have deleted it.
    """
    name = {"/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}.get(os.fspath(path), os.fspath(path))
    found = re.fullmatch(r"(?:/dev/fd/|/proc/self/fd/)(\d+)", name)
    return int(found[1]) if found and os.name == "posix" else None


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that appears under the name `path`, complete and synced, when the block ends without an error.

    Until then it has a temporary name in the same folder. An error or Ctrl-C leaves nothing behind and an existing file
    untouched. Links are followed; a device, a pipe or an open file (/dev/stdout) is written to directly. Raises FileError.
    """
    number = open_file(path)
    if number is not None or _is_special(Path(path)):
        with _unwritten(path, ""), Path(path).open("wb") if number is None else os.fdopen(os.dup(number), "wb") as stream:
            if number == 1 and sys.stdout is not None:
                sys.stdout.flush()  # keeps earlier prints ahead of these bytes
            yield stream
        return
    final = Path(path).resolve()
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    with _unwritten(path, " Any earlier file of that name is unchanged."):
        try:
            temporary.unlink(missing_ok=True)  # left by a killed process with this id, or a planted link
            with temporary.open("xb") as stream:  # x never follows a link
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(final)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


@contextlib.contextmanager
def _unwritten(path: str | os.PathLike[str], kept: str) -> Iterator[None]:
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}.{kept}") from error


def move_file(work: Path, target: Path) -> None:
    """Sync the file `work` and rename it to `target` in the same folder, atomically replacing any existing file."""
    _sync(work)
    work.replace(target)
    _sync(target.parent)


def move_folder(work: Path, target: Path) -> None:
    """Sync the folder `work` and rename it to `target` beside it, replacing any existing folder as a whole.

    At any moment, even in a crash, either `target` is the old folder or the new one, or the old one is still there as NAME.old.
    """
    for path in [work, *work.rglob("*")]:
        _sync(path)  # otherwise a crash after the rename could leave names without their bytes
    old = work.with_suffix(".old")
    replaced = target.exists()
    if replaced:
        target.rename(old)
    try:
        work.rename(target)
    except OSError:
        if replaced:
            old.rename(target)
        raise
    if replaced:
        shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file()


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file, reading it in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
