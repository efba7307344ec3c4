"""Writes an array to disk in slabs; after a kill at any point, a rerun resumes and produces identical bytes.

Unfinished work is kept in one folder beside the output, `.NAME.part`: `data` (the array, or a folder of shards), `state.json`
(the job, and how many rows are on disk) and `lock`. A slab is synced before the state counts it, so counted rows survive a
crash. The output gets its name once it is complete.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, TypeVar, cast

import numpy as np

from mexma_rt.errors import FileError, InputError, require_extra, typed
from mexma_rt.files.atomic import atomic_write, check_output, move_file, move_folder, open_file
from mexma_rt.files.endings import check_ending, check_folder_name

INDEX = "vectors.json"  # in a folder of shards
TABLE_ROWS = 8192  # rows of a parquet row group


class WorkState(TypedDict):
    """What state.json holds for every kind of work; each kind adds its own keys."""

    job: Mapping[str, object]  # everything that the result's bytes depend on
    done: int  # units on disk: rows, pairs of blocks, parts


State = TypeVar("State", bound=WorkState)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape and format of the stored array: one .npy file, shards of `shard_rows` rows, or a parquet table."""

    rows: int
    columns: int
    dtype: np.dtype
    shard_rows: int | None
    parquet: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row."""
        return self.columns * self.dtype.itemsize

    @property
    def disk_bytes(self) -> int:
        """Peak disk use in bytes; a parquet table is made from the array, so both exist for a while."""
        return self.rows * self.row_bytes * (2 if self.parquet else 1)

    def shards(self, start: int = 0, stop: int | None = None) -> list[tuple[str, int, int]]:
        """Return (name, first row, end row) of the shards that overlap rows start:stop (default: all); at least one."""
        size = self.shard_rows or max(1, self.rows)
        numbers = range(start // size, max(1, -(-(self.rows if stop is None else stop) // size)))
        return [(f"vectors-{i:05}.npy", i * size, min((i + 1) * size, self.rows)) for i in numbers]


def check_target(output: str | os.PathLike[str], source: str | os.PathLike[str], shard_rows: int | None) -> Path:
    """Return the output's resolved path. Raises FileError or InputError if it cannot be written; called before any work."""
    path = Path(output).resolve()
    if shard_rows is None:
        check_output(output, [source])
        if open_file(output) is not None or (path.exists() and not path.is_file()):
            raise FileError(
                f"{output} is a device, a pipe or an open file, but vectors must go to a regular file, so that an interrupted "
                "run can resume. Name a file."
            )
        check_ending(output, "vectors are written as .npy or .parquet", (".npy", ".parquet"))
        return path
    check_folder_name(output)
    if not path.is_dir():  # a run killed just before its last step may have left the folder
        check_output(path, [source])
        if path.exists():
            raise FileError(f"{output} is a file, but shards are written to a folder. Choose another name.")
    return path


def work_folder(target: Path) -> contextlib.AbstractContextManager[Path]:
    """Yield an output's folder `.NAME.part`, locked. After an error it is kept only if its state counts finished work."""

    def counts(work: Path) -> bool:
        state = read_state(work)
        return state is not None and bool(state["done"])

    return locked_folder(target, "part", counts)


@contextlib.contextmanager
def locked_folder(target: Path, kind: str, keep: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an output's folder `.NAME.KIND`, locked. After an error it is kept only if `keep` returns True."""
    work = target.with_name(f".{target.name}.{kind}")
    with explained(target):
        work.mkdir(exist_ok=True)
        status = work.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
        raise FileError(
            f"{work} is a link or belongs to another user, so its contents cannot be trusted. Remove it, or choose an "
            "output in a folder where nobody else writes."
        )
    try:
        with locked(work / "lock", target):
            yield work
    except _LockedError:
        raise
    except BaseException:
        if not keep(work):
            shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


class _LockedError(FileError):
    """Another process holds the lock, so the folder is not ours to remove."""


@contextlib.contextmanager
def locked(lock: Path, target: Path) -> Iterator[None]:
    """Hold a lock that the system releases when the process dies. Without flock (Windows), a second run goes unnoticed."""
    with lock.open("wb") as stream:
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except BlockingIOError:
            raise _LockedError(
                f"{target} is being written by another process. Wait for it, or choose another output."
            ) from None
        yield


def read_state(work: Path) -> WorkState | None:
    """Return the state left by an earlier run, or None. Raises FileError if it is damaged."""
    try:
        return cast(WorkState, json.loads((work / "state.json").read_bytes()))
    except FileNotFoundError:
        return None
    except ValueError:
        raise FileError(f"{work / 'state.json'} is damaged. Start over: rm -r {typed(work)}") from None


def resume(work: Path, fresh: State) -> State:
    """Return the state of an unfinished run of the same job, or `fresh` (the initial state) if there is none.

    Raises InputError if the unfinished run is of another job.
    """
    state, job = read_state(work), fresh["job"]
    if state is None:
        return fresh
    if differences := [
        f"{key}: {state['job'].get(key)!r} then, {job.get(key)!r} now"
        for key in dict.fromkeys([*state["job"], *job])
        if state["job"].get(key) != job.get(key)
    ]:
        raise InputError(
            f"{work} holds an unfinished run of another job, and the vectors of two jobs cannot be mixed. It differs in "
            f"{'; '.join(differences)}. Resume with the same input, model and settings, or start over: rm -r {typed(work)}"
        )
    return cast(State, state)


def write_state(work: Path, target: Path, state: WorkState) -> None:
    """Replace state.json, synced. Raises FileError naming `target`, the output."""
    with explained(target), atomic_write(work / "state.json") as stream:
        stream.write(json.dumps(state, ensure_ascii=False).encode())


def write_rows(work: Path, target: Path, layout: Layout, start: int, rows: np.ndarray) -> None:
    """Write and sync stored rows [n, columns] at row `start` of the array. A shard's header is written with its first row."""
    stop = start + len(rows)
    with explained(target):
        for name, first, end in layout.shards(start, stop):
            path = _shard(work, layout, name)
            part = rows[max(first - start, 0) : end - start]
            with path.open("wb" if start <= first else "r+b") as stream:
                header = _header(layout, end - first)
                if start <= first:
                    stream.write(header)
                stream.seek(len(header) + max(start - first, 0) * layout.row_bytes)
                stream.write(np.ascontiguousarray(part).data)
                stream.flush()
                os.fsync(stream.fileno())


def check_rows(work: Path, layout: Layout, done: int) -> None:
    """Raise FileError if rows counted by the state are missing."""
    for name, first, end in layout.shards():
        path = _shard(work, layout, name)
        needed = len(_header(layout, end - first)) + (min(done, end) - first) * layout.row_bytes
        if first < done and (not path.is_file() or path.stat().st_size < needed):
            raise FileError(
                f"{path} is missing or cut off, although state.json counts its rows. Start over: rm -r {typed(work)}"
            )


def is_moved(work: Path, target: Path, layout: Layout, done: int) -> bool:
    """Whether an earlier run was killed between moving the data to the output and removing its work folder."""
    return done == layout.rows and not (work / "data").exists() and target.exists()


def check_room(target: Path, layout: Layout, done: int) -> None:
    """Raise FileError if the remaining rows do not fit on the disk."""
    needed, free = layout.disk_bytes - done * layout.row_bytes, shutil.disk_usage(target.parent).free
    if needed > free:
        raise FileError(
            f"{target} needs {needed / 1e6:,.1f} MB more, but {target.parent} has {free / 1e6:,.1f} MB free. Make room, "
            "write to another disk, or store less: precision='float16' or 'int8' (command line: --storage)."
        )


def finish(work: Path, target: Path, layout: Layout, index: Mapping[str, object]) -> None:
    """Move the complete array to its final name, atomically replacing any existing file."""
    data = work / "data"
    with explained(target):
        if layout.shard_rows is not None:
            shards = [{"file": name, "rows": end - first} for name, first, end in layout.shards()]
            text = json.dumps({**index, "shards": shards}, ensure_ascii=False, indent=1)
            (data / INDEX).write_text(text + "\n", encoding="utf-8")  # synced with the folder
            move_folder(data, target)
        elif layout.parquet:
            _to_parquet(data, work / "table", layout)
            move_file(work / "table", target)
            data.unlink()
        else:
            move_file(data, target)


def _shard(work: Path, layout: Layout, name: str) -> Path:
    if layout.shard_rows is None:
        return work / "data"
    (work / "data").mkdir(exist_ok=True)
    return work / "data" / name


def _header(layout: Layout, rows: int) -> bytes:
    """The header that np.save writes for an array [rows, columns]."""
    stream = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(layout.dtype)
    fields = {"descr": descr, "fortran_order": False, "shape": (rows, layout.columns)}
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()


def _to_parquet(data: Path, table: Path, layout: Layout) -> None:
    """Write a table with one column, `vector`, of fixed-size lists. Uncompressed: vectors' bits are close to random."""
    require_extra("files", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.from_numpy_dtype(layout.dtype), layout.columns)
    schema = pa.schema([pa.field("vector", kind, nullable=False)])
    with data.open("rb") as stream, pq.ParquetWriter(table, schema, compression="none", use_dictionary=False) as writer:
        stream.seek(len(_header(layout, layout.rows)))
        for start in range(0, layout.rows, TABLE_ROWS):
            count = min(TABLE_ROWS, layout.rows - start) * layout.columns
            flat = np.frombuffer(stream.read(count * layout.dtype.itemsize), layout.dtype)
            column = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)
            writer.write_table(pa.table([column], schema=schema), row_group_size=TABLE_ROWS)


@contextlib.contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turn OSError from writing into a FileError that says how to resume."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileError):
            error = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise FileError(
            f"{target.name} cannot be written: {error.strerror or error}. Any earlier file of that name is unchanged. "
            f"Fix the cause, then run the same command again: it resumes where it stopped."
        ) from error
