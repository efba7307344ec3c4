"""Mining from vector files larger than memory: the search of pairs.py in bounded memory.

The neighbours come from `knn_files`, which is resumable, and are kept in the folder `.NAME.mining` beside the pairs until those
are written, so that a killed run resumes with them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mexma_rt.checks import check_dimensions_of, check_k, check_texts
from mexma_rt.errors import FileError, InputError, typed
from mexma_rt.files import resumable
from mexma_rt.files.atomic import sha256_of
from mexma_rt.knn import on_disk as knnfiles
from mexma_rt.knn.on_disk import SearchSettings
from mexma_rt.knn.vector_files import VectorFiles, open_vectors
from mexma_rt.mining.candidates import ScoredNeighbours
from mexma_rt.mining.found import Search
from mexma_rt.mining.pairs import MineSettings
from mexma_rt.mining.sides import Side, compared_rows
from mexma_rt.mining.warnings import find_warnings

ROWS = 65_536  # copied at a time


@contextlib.contextmanager
def search_files(
    source_vectors: str | os.PathLike[str],
    target_vectors: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: MineSettings,
    searching: SearchSettings = SearchSettings(),  # noqa: B008  (frozen)
    *,
    src: Iterable[str] | None = None,
    tgt: Iterable[str] | None = None,
    announce: Callable[[str], object] | None = None,
    ray: str | None = None,
) -> Iterator[Search]:
    """Yield a `Search` over vectors [n, D] and [m, D] in .npy files or folders of shards; `output` is the file for its pairs.

    src, tgt: the lines of the vectors, held in memory; without them pairs have positions only, and equal lines are not
    recognised. With them, vectors of blank and repeated lines are skipped, and the others copied beside the output.
    settings: its index must be "exact". searching: how to search neighbours; always by cosine and with the k of `settings`. Its
    memory_bytes bound the whole process during the search, and a quarter of them the sorting of candidates; besides, 26 bytes
    per row of both sides are needed. ray: search on the Ray cluster at this address (`mexma_rt.cluster.session`), with the same
    result; on its machines the vectors, and with src and tgt the output's folder, must have the same paths. The other arguments
    and the errors are those of `mine` and `knn_files`.
    """
    search = _search_on(ray, searching.device)
    searching = replace(searching, k=settings.k, metric="cosine")
    final = Path(output).resolve()
    x, y = open_vectors(source_vectors, unit=True), open_vectors(target_vectors, unit=True)
    check_dimensions_of((x.rows, x.columns), (y.rows, y.columns), x.name, y.name)
    sides = _side(x, src, "source", settings.unify), _side(y, tgt, "target", settings.unify)
    check_k(settings.k, {side.name: len(side.pool) for side in sides}, "rows")
    with resumable.locked_folder(final, "mining", _has_neighbours) as folder:
        files = [_compared(vectors, side, folder) for vectors, side in zip((x, y), sides, strict=True)]
        place = folder / "neighbours"
        if place.exists():  # a killed run has finished them
            _check_found(place, files, settings.k)
        else:
            search(files[0].name, files[1].name, place, searching, announce=announce)
        neighbours = ScoredNeighbours.of(*knnfiles.open_neighbours(place), margin=settings.margin)
        rows: Any = [_Rows(vectors) for vectors in files]  # sliced like arrays
        yield Search(
            source=sides[0],
            target=sides[1],
            neighbours=neighbours,
            retrieval=settings.retrieval,
            threshold=settings.least_score,
            dimensions=x.columns,
            warnings=find_warnings(sides[0], sides[1], rows[0], rows[1], neighbours),
            sort_memory=searching.memory_bytes // 4,
        )


def _has_neighbours(folder: Path) -> bool:
    return any(path.name.endswith(("neighbours", "neighbours.part")) for path in folder.iterdir())


def _search_on(ray: str | None, device: str) -> Callable[..., object]:
    """Return `write_neighbours` for here or for a cluster; raise if the cluster cannot be used."""
    if ray is None:
        return knnfiles.write_neighbours
    from mexma_rt.cluster import check_address
    from mexma_rt.cluster.knn import check_device, write_neighbours_on

    check_device(device)
    check_address(ray)
    return partial(write_neighbours_on, ray)


def _side(vectors: VectorFiles, texts: Iterable[str] | None, name: str, unify: bool) -> Side:
    if texts is None:
        rows = np.arange(vectors.rows)
        return Side(name=name, size=vectors.rows, texts=None, vectors=None, pool=rows, place=rows)
    lines = check_texts(texts, name)
    if len(lines) != vectors.rows:
        raise InputError(
            f"{name} has {len(lines):,} lines and {vectors.name} {vectors.rows:,} rows: give one row for each line."
        )
    pool, place = compared_rows(lines, unify)
    return Side(name=name, size=len(lines), texts=lines, vectors=None, pool=pool, place=place)


def _compared(vectors: VectorFiles, side: Side, folder: Path) -> VectorFiles:
    """Return the vectors of the compared rows; a copy unless all rows are compared."""
    if len(side.pool) == side.size:
        return vectors
    path = folder / f"{side.name}.npy"
    with resumable.explained(path):
        copy = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(side.pool), vectors.columns))
        done = 0
        for start in range(0, side.size, ROWS):
            rows = side.pool[np.searchsorted(side.pool, start) : np.searchsorted(side.pool, start + ROWS)] - start
            block = vectors.read(start, min(start + ROWS, side.size))
            copy[done : done + len(rows)] = block[rows]
            done += len(rows)
        copy.flush()
    return open_vectors(path, unit=True)


def _check_found(place: Path, files: list[VectorFiles], k: int) -> None:
    """Raise FileError unless the finished neighbours belong to these vectors and their hashes match."""
    now = {"source": files[0].check()[0][:16], "target": files[1].check()[0][:16], "k": int(k)}
    try:
        index = json.loads((place / knnfiles.INDEX).read_bytes())
        same, whole = all(index[name] == value for name, value in now.items()), True
        if same:
            arrays = knnfiles.open_neighbours(place)
            whole = [array.shape for array in arrays] == [(side.rows, k) for side in files for _ in range(2)]
            hashes = {name: sha256_of(place / f"{name}.npy") for name in knnfiles.NAMES}
            whole = whole and index["sha256"] == hashes
    except (OSError, ValueError, KeyError, TypeError, FileError):
        same, whole = True, False
    if not same:
        raise FileError(
            f"{place} has the neighbours of other vectors or another k, left by a killed run. Start over: "
            f"rm -r {typed(place.parent)}"
        )
    if not whole:
        raise FileError(f"{place}, left by a killed run, is damaged. Start over: rm -r {typed(place.parent)}")


class _Rows:
    """Vectors on disk that are read by slice or by rows, like an array in memory."""

    def __init__(self, files: VectorFiles) -> None:
        self.files = files

    def __len__(self) -> int:
        return self.files.rows

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            return self.files.read(rows.start or 0, min(len(self), rows.stop))
        return np.concatenate([self.files.read(row, row + 1) for row in rows.tolist()])
