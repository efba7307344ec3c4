"""Folders that appear complete or not at all: written under a hidden name beside the target, then synced and renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from mexma_rt.errors import FileError, InputError, MexmaError
from mexma_rt.files.atomic import move_folder
from mexma_rt.files.endings import check_folder_name

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # out of disk, over quota, over the file size limit


def must_be_new(target: Path) -> None:
    """Raise InputError if the target exists."""
    if target.exists():
        raise InputError(f"{target} already exists. Name another folder, or delete it first.")


@contextlib.contextmanager
def new_folder(target: Path, *, check: Callable[[Path], object] = must_be_new, tidy: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends without an error; an existing target is replaced whole.

    `check(target)` raises an error if the target must not be written. It runs before the block and again before the rename,
    because another process may have been faster. An error or Ctrl-C leaves nothing behind. A kill leaves the hidden folder
    `.NAME.HOST-PID-TOKEN.partial`, which nothing reads; `tidy` first removes those left by dead processes of this machine.
    Raises FileError for every OSError, including those from the block, and InputError for a name with a file's extension.
    """
    check_folder_name(target)
    target = target.absolute()
    check(target)
    if tidy:
        _remove_leftovers(target)
    work = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise FileError(f"{target.parent}: cannot write there ({error.strerror}). Choose another place.") from error
    try:
        yield work
        check(target)
        move_folder(work, target)
    except OSError as error:
        if isinstance(error, MexmaError):
            raise
        raise FileError(_not_written(target, error)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _not_written(target: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    where = f" ({Path(error.filename).name})" if isinstance(error.filename, str) else ""
    remedy = "Fix the cause, then run the command again."
    if error.errno in FULL:
        free = shutil.disk_usage(target.parent).free / 1e6
        remedy = (
            f"{target.parent} has {free:,.0f} MB free (a quota or ulimit -f may be lower). Make room, or choose another place."
        )
    return f"{target} was not written: {reason}{where}. Any earlier folder of that name is unchanged. {remedy}"


def _remove_leftovers(target: Path) -> None:
    """Remove the folders of dead processes. Process ids mean nothing on another machine, so folders of other hosts stay."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]{{8}}\.partial")
    for path in target.parent.glob(".*.partial"):
        if (found := pattern.fullmatch(path.name)) and not _is_running(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    """Whether another process with this id is alive; True on Windows, where os.kill would end it."""
    if pid == os.getpid():  # a restarted container hands out the same ids again
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, but another user's
        return True
    return True
