"""Write a folder in one piece: everything happens in a hidden folder beside the target, which is renamed at the end.

Whatever fails before the rename leaves the target as it was (absent, or the old bundle) and no temporary folder. After a kill
the hidden folder stays (`.NAME.xxxxxxxx.partial`): nothing reads it, and it may be deleted.
"""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mexma_rt.bundle.manifest import MANIFEST
from mexma_rt.errors import FileError, InputError, MexmaError
from mexma_rt.files.atomic import move_folder

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the quota, the largest file that is allowed


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on a normal exit sync it and rename it to `target`.

    Raises InputError if `target` exists and `force` is not set, or if what exists is not a bundle (only a bundle or an
    empty folder is ever replaced); FileError if the folder around it is missing or not writable, and for every OSError of the
    work itself, a full disk before all.
    """
    target = target.absolute()
    _check_target(target, force)
    work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        work.mkdir()
    except OSError as error:
        raise FileError(f"{target.parent}: cannot write there ({error.strerror}). Choose another place.") from error
    try:
        yield work
        _check_target(target, force)  # somebody may have made it meanwhile
        move_folder(work, target)
    except OSError as error:
        if isinstance(error, MexmaError):
            raise
        raise FileError(_not_written(target, error)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_target(target: Path, force: bool) -> None:
    if not target.parent.is_dir():
        raise FileError(f"{target.parent}: no such folder. Make it first: mkdir -p {target.parent}")
    if not target.exists():
        return
    if not force:
        raise InputError(f"{target} exists already. Type --force (force=True) to replace it, or choose another name.")
    if not target.is_dir() or (not (target / MANIFEST).is_file() and any(target.iterdir())):
        raise InputError(f"{target} exists and is not a bundle (no {MANIFEST}): it will not be replaced. Move it away.")


def _not_written(target: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    where = f" ({Path(error.filename).name})" if isinstance(error.filename, str) else ""
    remedy = "Mend that, and run it again."
    if error.errno in FULL:
        free = shutil.disk_usage(target.parent).free / 1e6
        remedy = f"{target.parent} has {free:,.0f} MB free (quota and ulimit -f count too). Make room, or choose another place."
    return f"{target} was not written: {reason}{where}. What stood under that name before is unchanged. {remedy}"
