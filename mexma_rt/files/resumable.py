"""An array on its way to the disk: written in slabs, killed at any point, gone on with to the same bytes.

Everything unfinished is in one folder beside the output, `.NAME.part`: `data` (the array, or a folder of shards), `state.json`
(what is made of what, and how many rows are on the disk) and `lock`. A slab is synced before the state counts it, so what the
state counts is there after a crash. The output appears under its name when all of it is there.
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
from typing import Any

import numpy as np

from mexma_rt.errors import FileError, InputError, require_extra
from mexma_rt.files.atomic import atomic_write, check_output, move_file, move_folder

INDEX = "vectors.json"  # in a folder of shards
TABLE_ROWS = 8192  # rows of a parquet row group


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The stored array [rows, columns], in one .npy file, or in shards of `shard_rows` rows, or as a parquet table."""

    rows: int
    columns: int
    dtype: np.dtype
    shard_rows: int | None
    parquet: bool

    @property
    def row_bytes(self) -> int:
        return self.columns * self.dtype.itemsize

    @property
    def disk_bytes(self) -> int:
        """While it is written: a parquet table is made of the array, so both are there for a while."""
        return self.rows * self.row_bytes * (2 if self.parquet else 1)

    def shards(self, start: int = 0, stop: int | None = None) -> list[tuple[str, int, int]]:
        """(name, first row, end row) of each shard that has rows of start:stop (all, if left out); there is at least one."""
        size = self.shard_rows or max(1, self.rows)
        numbers = range(start // size, max(1, -(-(self.rows if stop is None else stop) // size)))
        return [(f"vectors-{i:05}.npy", i * size, min((i + 1) * size, self.rows)) for i in numbers]


def check_target(output: str | os.PathLike[str], source: str | os.PathLike[str], shard_rows: int | None) -> Path:
    """The real path of the output. Raises FileError or InputError if it cannot be written: called before any work."""
    path = Path(output).resolve()
    if shard_rows is None:
        check_output(output, [source])
        if path.exists() and not path.is_file():
            raise FileError(f"{output} is a device or a pipe, but vectors are written to a file that can be gone on with.")
    elif path.suffix in (".npy", ".parquet"):
        raise InputError(
            f"A folder is written here, of several arrays, and {output} is a file's name. Leave out {path.suffix}."
        )
    elif not path.is_dir():  # a folder may be that of a run that ended just before its last step
        check_output(output, [source])
        if path.exists():
            raise FileError(f"{output} is a file, but shards are written to a folder. Choose another name.")
    return path


def work_folder(target: Path) -> contextlib.AbstractContextManager[Path]:
    """The folder `.NAME.part` of an output, locked; after an error it stays only if its state counts something as done."""

    def counts(work: Path) -> bool:
        state = read_state(work)
        return state is not None and bool(state["done"])

    return locked_folder(target, "part", counts)


@contextlib.contextmanager
def locked_folder(target: Path, kind: str, keep: Callable[[Path], bool]) -> Iterator[Path]:
    """The folder `.NAME.KIND` of an output, locked; after an error it stays only if `keep` finds something to go on with."""
    work = target.with_name(f".{target.name}.{kind}")
    with explained(target):
        work.mkdir(exist_ok=True)
        status = work.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
        raise FileError(
            f"{work} is a link or belongs to another user, and what is in it could lead anywhere. Remove it, or choose an "
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
    """Not ours to clean up."""


@contextlib.contextmanager
def locked(lock: Path, target: Path) -> Iterator[None]:
    """The lock ends with the process, however it ends. Where the system has none of this kind, two runs are not noticed."""
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


def read_state(work: Path) -> dict[str, Any] | None:
    """What an earlier run left, if anything."""
    try:
        return json.loads((work / "state.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise FileError(f"{work / 'state.json'} is damaged. Start anew: rm -r {work}") from None


def resume(work: Path, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of an unfinished run of the same job. Raises InputError, saying what differs, if it was another job's."""
    state = read_state(work)
    if state is None:
        return None
    if differences := [
        f"{key}: {state['job'].get(key)!r} then, {job.get(key)!r} now"
        for key in dict.fromkeys([*state["job"], *job])
        if state["job"].get(key) != job.get(key)
    ]:
        raise InputError(
            f"{work} holds an unfinished run of another job, and mixed vectors would be worthless. It differs in "
            f"{'; '.join(differences)}. Go on with the same input, model and settings, or start anew: rm -r {work}"
        )
    return state


def write_state(work: Path, target: Path, state: Mapping[str, Any]) -> None:
    with explained(target), atomic_write(work / "state.json") as stream:
        stream.write(json.dumps(state, ensure_ascii=False).encode())


def write_rows(work: Path, target: Path, layout: Layout, start: int, rows: np.ndarray) -> None:
    """Put stored rows [n, columns] at row `start` of the array, synced. A shard begins with its header, at its first row."""
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
    """Raise FileError if the rows that the state counts are not there."""
    for name, first, end in layout.shards():
        path = _shard(work, layout, name)
        needed = len(_header(layout, end - first)) + (min(done, end) - first) * layout.row_bytes
        if first < done and (not path.is_file() or path.stat().st_size < needed):
            raise FileError(f"{path} is missing or cut off, although state.json counts its rows. Start anew: rm -r {work}")


def is_moved(work: Path, target: Path, layout: Layout, done: int) -> bool:
    """Whether a run ended between its last step, moving the data to the output, and the removal of its folder."""
    return done == layout.rows and not (work / "data").exists() and target.exists()


def check_room(target: Path, layout: Layout, done: int) -> None:
    """Raise FileError if the disk has not enough room for the rows that are missing."""
    needed, free = layout.disk_bytes - done * layout.row_bytes, shutil.disk_usage(target.parent).free
    if needed > free:
        raise FileError(
            f"{target} needs {needed / 1e6:,.1f} MB of room, but {target.parent} has {free / 1e6:,.1f} MB left. Make room, "
            "write to another disk, or store less: precision='float16' or 'int8' (command line: --storage)."
        )


def finish(work: Path, target: Path, layout: Layout, index: Mapping[str, Any]) -> None:
    """Move the complete array to its name; what stood there is replaced at once."""
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
    """As np.save writes it for an array [rows, columns]."""
    stream = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(layout.dtype)
    fields = {"descr": descr, "fortran_order": False, "shape": (rows, layout.columns)}
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()


def _to_parquet(data: Path, table: Path, layout: Layout) -> None:
    """The column `vector` of fixed-size lists. Not compressed: the bits of vectors are close to random."""
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
    """The system's errors at writing, in words."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileError):
            error = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise FileError(
            f"{target.name} cannot be written: {error.strerror or error}. What stood under that name before is unchanged. "
            f"Once that is mended, the same command goes on where it stopped."
        ) from error
