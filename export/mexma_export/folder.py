"""Decides which folders an export may write: a new one, or with `force` one that holds a bundle."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from mexma_rt.bundle.manifest import MANIFEST
from mexma_rt.errors import FileError, InputError, typed
from mexma_rt.files import check_unicode, folders


def new_folder(target: Path, *, force: bool = False) -> AbstractContextManager[Path]:
    """Return a context manager that yields an empty folder, which becomes `target` if the block succeeds.

    Raises InputError if `target` exists and `force` is not set, or if it is anything other than a bundle or an empty folder;
    FileError if its parent folder is missing or not writable, and for any OSError in the block, such as a full disk.
    """
    return folders.new_folder(target, check=lambda path: _check_target(path, force))


def _check_target(target: Path, force: bool) -> None:
    check_unicode(target)
    if not target.parent.is_dir():
        raise FileError(f"{target.parent}: no such folder. Create it first: mkdir -p {typed(target.parent)}")
    if not target.exists():
        return
    if not force:
        raise InputError(f"{target} already exists. Type --force (force=True) to replace it, or choose another name.")
    if not target.is_dir() or (not (target / MANIFEST).is_file() and any(target.iterdir())):
        raise InputError(f"{target} exists and is not a bundle (no {MANIFEST}): it will not be replaced. Move it away.")
