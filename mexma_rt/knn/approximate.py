"""Nearest neighbours of corpora too large for exact search: IVF-PQ finds candidates, exact inner products rank them.

All returned scores are exact; only the choice of candidate rows is approximate. `measure_recall` measures its cost on a sample.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mexma_rt.checks import check_dimensions, check_k, check_vectors
from mexma_rt.errors import FileError, InputError, require_extra, typed
from mexma_rt.files import resumable
from mexma_rt.files.atomic import atomic_write
from mexma_rt.knn import ivfpq
from mexma_rt.knn.exact import exact_scores
from mexma_rt.knn.ivfpq import Index, IvfPq
from mexma_rt.knn.keys import keys_of, merge_neighbours, neighbours_of, no_neighbours
from mexma_rt.knn.search import nearest
from mexma_rt.progress import progress_bar

QUERIES = 4096  # rows searched by one call of faiss
MERGED_ROWS = 65536  # rows whose results are merged at a time

FoundBothWays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Share of the true k nearest rows that were found, over `rows` sampled rows of each side (1.0: all)."""

    forward: float
    backward: float
    rows: int


def approximate_neighbours(
    x: np.ndarray,
    y: np.ndarray,
    k: int,
    *,
    settings: IvfPq | None = None,
    folder: str | os.PathLike[str] | None = None,
    memory_bytes: int = 1 << 30,
    progress: bool | None = None,
) -> FoundBothWays:
    """Like `mexma_rt.knn.mutual_neighbours`, from candidates of IVF-PQ indexes of x [n, D] and y [m, D], rows of length 1.

    Returns (scores_xy [n, k] float32, index_xy [n, k] int64, scores_yx [m, k], index_yx [m, k]), best first, and lower indices
    first among equal scores. Scores equal those of exact search bit for bit; every row gets k neighbours.
    settings: of the index; None uses the defaults of `IvfPq`. folder: where the indexes and the neighbours found so far are
    kept, for the next call to reuse or to resume after a kill; None uses a temporary folder.
    memory_bytes bounds training, index and vectors in memory, beyond the results. The same seed gives the same result.

    Raises InputError as mutual_neighbours does, and for unusable settings or too few rows to train; FileError for a
    folder that holds the index of other vectors; MissingExtraError without faiss.
    """
    require_extra("faiss", "faiss")
    settings = settings or IvfPq()
    x, y = check_vectors(x, "x"), check_vectors(y, "y")
    check_dimensions(x, y, "x", "y")
    check_k(k, {"x": len(x), "y": len(y)}, "rows")
    for name, side in (("x", x), ("y", y)):
        ivfpq.index_sizes(settings, len(side), side.shape[1], name, memory_bytes)
    if settings.candidates < k:
        raise InputError(
            f"candidates={settings.candidates} are too few to find k={k} neighbours among them. Type candidates={8 * k}."
        )
    with _folder(folder) as home:
        with progress_bar(progress, total=len(x) + len(y), desc="index", unit="row") as advance:
            of_x, of_y = (
                ivfpq.build(home / name, side, settings, name=name, memory_bytes=memory_bytes, advance=advance)
                for name, side in (("x", x), ("y", y))
            )
        total = len(x) * len(of_y.parts) + len(y) * len(of_x.parts)
        with progress_bar(progress, total=total, desc="neighbours", unit="row") as advance:
            forward = _search_parts(home / "xy", of_y, of_x, k, settings, advance)
            backward = _search_parts(home / "yx", of_x, of_y, k, settings, advance)
    return *neighbours_of(forward), *neighbours_of(backward)


def measure_recall(x: np.ndarray, y: np.ndarray, found: FoundBothWays, *, rows: int = 1000, seed: int = 0) -> Recall:
    """Compare with exact search on `rows` random rows of each side (all, if there are fewer).

    A neighbour counts as found if its score reaches that of the true k-th nearest (within 1e-5, for rounding): among equally
    near rows, any counts.
    """
    k = found[0].shape[1]
    rng = np.random.default_rng(seed)
    shares = []
    for queries, others, scores in ((x, y, found[0]), (y, x, found[2])):
        sample = np.sort(rng.choice(len(queries), max(k, min(rows, len(queries))), replace=False))
        exact = nearest(np.asarray(queries[sample], np.float32), others, k)[0]
        shares.append(float((scores[sample] >= exact[:, -1:] - 1e-5).mean()))
    return Recall(forward=shares[0], backward=shares[1], rows=rows)


def search_part(queries: np.ndarray, part: tuple[Any, np.ndarray], first: int, k: int, settings: IvfPq) -> np.ndarray:
    """Keys (keys.py) [q, k] of the best rows of a loaded part for queries [q, D]; `first` is the index of its row 0.

    A pure function: parts can be searched anywhere in any order, and merge_neighbours puts the results together.
    """
    import faiss

    index, vectors = part
    count = min(settings.candidates, len(vectors))
    keys = np.empty((len(queries), k), np.uint64)
    for start in range(0, len(queries), QUERIES):
        block = np.ascontiguousarray(queries[start : start + QUERIES], np.float32)
        probes, everywhere = (_probes(faiss, number) for number in (min(settings.nprobe, index.nlist), index.nlist))
        rows = index.search(block, count, params=probes)[1]
        short = (rows[:, : min(k, len(vectors))] < 0).any(axis=1)  # their lists had fewer than k rows: search all lists
        if short.any():
            rows[short] = index.search(block[short], count, params=everywhere)[1]
        query, place = np.nonzero(rows >= 0)
        found = no_neighbours(len(block), max(count, k))
        found[query, place] = keys_of(exact_scores(block, vectors, query, rows[query, place]), rows[query, place] + first)
        keys[start : start + QUERIES] = np.sort(found, axis=1)[:, :k]
    return keys


def _probes(faiss: Any, nprobe: int) -> Any:
    return faiss.SearchParametersIVF(nprobe=nprobe)


def _search_parts(
    folder: Path, index: Index, queries: Index, k: int, settings: IvfPq, advance: Callable[[int], object]
) -> np.ndarray:
    """Keys [q, k] of all parts of `index`. The result so far is saved in `folder` after each part."""
    folder.mkdir(exist_ok=True)
    job: dict[str, object] = {
        "k": k,
        "nlist": index.nlist,
        "m": index.m,
        "nprobe": settings.nprobe,
        "candidates": settings.candidates,
    }
    job |= {"seed": settings.seed, "queries": list(queries.sha256), "vectors": list(index.sha256)}
    state = resumable.resume(folder, resumable.WorkState(job=job, done=0))
    done = state["done"]
    best = _load(folder, done) if done else no_neighbours(len(queries.vectors), k)
    advance(len(best) * done)
    for number in range(done, len(index.parts)):
        part, first = index.load(number), index.parts[number][0]
        for start in range(0, len(best), MERGED_ROWS):
            block = slice(start, start + MERGED_ROWS)
            best[block] = merge_neighbours(best[block], search_part(queries.vectors[block], part, first, k, settings))
            advance(len(best[block]))
        with atomic_write(_kept(folder, number + 1)) as stream:
            np.save(stream, best, allow_pickle=False)
        state["done"] = number + 1
        resumable.write_state(folder, folder, state)
        _kept(folder, number).unlink(missing_ok=True)
    return best


def _kept(folder: Path, done: int) -> Path:
    return folder / f"found-{done:05}.npy"


def _load(folder: Path, done: int) -> np.ndarray:
    try:
        keys: np.ndarray = np.load(_kept(folder, done), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"{_kept(folder, done)} is damaged ({error}). Start the search over: rm -r {typed(folder)}") from None
    return keys


@contextlib.contextmanager
def _folder(folder: str | os.PathLike[str] | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="mexma-ivfpq-") as name:
            yield Path(name)
        return
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise FileError(f"{path} is a file, but an index is a folder. Choose another name.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path} cannot be created: {error.strerror}.") from None
    with resumable.locked(path / "lock", path):
        for leftover in path.rglob(".*.tmp"):  # left by a run that was killed while writing
            leftover.unlink()
        yield path
