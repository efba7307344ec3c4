"""Write a folder in one piece: everything happens in a hidden folder beside the target, which is renamed at the end.

Whatever fails before the rename leaves the target as it was (absent, or the old bundle) and no temporary folder.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mexma_rt.errors import FileError, InputError
from mexma_rt.files import move_folder


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on a normal exit sync it and rename it to `target`.

    Raises InputError if `target` exists and `force` is not set, or if what exists is not a bundle (only a bundle or an
    empty folder is ever replaced); FileError if the folder around it is missing or not writable.
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
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_target(target: Path, force: bool) -> None:
    if not target.parent.is_dir():
        raise FileError(f"{target.parent}: no such folder. Make it first: mkdir -p {target.parent}")
    if not target.exists():
        return
    if not force:
        raise InputError(f"{target} exists already. Type --force (force=True) to replace it, or choose another name.")
    if not target.is_dir() or (not (target / "mexma.json").is_file() and any(target.iterdir())):
        raise InputError(f"{target} exists and is not a bundle (no mexma.json): it will not be replaced. Move it away.")
