"""Folders that appear complete or not at all: written under a hidden name beside the target, synced and renamed at the end."""

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

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the quota, the largest file that is allowed


def must_be_new(target: Path) -> None:
    """Raise InputError if anything has this name."""
    if target.exists():
        raise InputError(f"{target} exists already. Name another folder, or delete it first.")


@contextlib.contextmanager
def new_folder(target: Path, *, check: Callable[[Path], object] = must_be_new, tidy: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends without an error; an existing target is replaced whole.

    `check(target)` raises what forbids this, as does a name that ends as a file's. It is called before the block, and again
    before the renaming, because another process may have been faster. After an error or Ctrl-C nothing new is left. A kill
    leaves the hidden folder `.NAME.HOST-PID-TOKEN.partial`, which nothing reads; `tidy` first removes those of dead processes
    of this machine. Raises FileError for every OSError, also of the block.
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
    remedy = "Fix the cause, then run it again."
    if error.errno in FULL:
        free = shutil.disk_usage(target.parent).free / 1e6
        remedy = f"{target.parent} has {free:,.0f} MB free (quota and ulimit -f count too). Make room, or choose another place."
    return f"{target} was not written: {reason}{where}. What stood under that name before is unchanged. {remedy}"


def _remove_leftovers(target: Path) -> None:
    """Process numbers mean something on one machine only, so folders of other hosts stay."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]{{8}}\.partial")
    for path in target.parent.glob(".*.partial"):
        if (found := pattern.fullmatch(path.name)) and not _is_running(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    """Whether another process of this number lives; where that cannot be told without harm (Windows: os.kill ends it), yes."""
    if pid == os.getpid():  # a restarted container gives the same numbers again
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return True
