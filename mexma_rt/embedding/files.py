"""Embeds files of any size to an array of vectors on disk, in the memory of one slab.

The file is read twice. The first pass checks, counts and hashes all texts, so that a bad row is reported before a model is
loaded, the array's header is right from the start, and an unfinished run is resumed only on the same texts. The second pass
embeds slab by slab. Slabs are the same in every run, and so are the bytes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from mexma_rt.bundle.manifest import FileEntry, hash_of_files
from mexma_rt.embedding import reading
from mexma_rt.embedding.prompts import named_prompt
from mexma_rt.embedding.reading import InputChangedError, Reading, Texts
from mexma_rt.embedding.report import Embedded, EmbedReport
from mexma_rt.embedding.settings import EmbedSettings
from mexma_rt.errors import FileError, InputError, require_extra
from mexma_rt.files import resumable
from mexma_rt.files.spool import reads_once, spooled
from mexma_rt.files.storage import STORAGES
from mexma_rt.files.unpacking import unpacking_bytes
from mexma_rt.progress import progress_bar
from mexma_rt.version import __version__

BYTES_PER_CHARACTER = 150  # bytes per character of a slab; measured 121, with a small vocabulary (two characters per token)
LISTED = 1000  # a report lists the indices of this many truncated texts, and counts all of them
COUNTS = ("sentences", "distinct", "tokens", "padded_tokens", "batches", "seconds", "cut")


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What a call to embed_file() did. `report` covers the whole file, including the work of an interrupted run."""

    output: str
    shape: tuple[int, int]  # of the stored array
    storage: str
    resumed: int  # rows that an interrupted run had finished
    cut: int  # texts with more than max_length tokens; `report` lists the first 1,000
    report: EmbedReport  # `distinct` is summed over slabs, so a text counts once in each slab that contains it


class ModelFiles(Protocol):
    """The parts of a model that a job's result depends on."""

    @property
    def files(self) -> Mapping[str, FileEntry]:
        """Its files and their hashes."""

    @property
    def prompts(self) -> Mapping[str, str]:
        """Its prompts by name."""


class EmbedsSlabs(Protocol):
    """The parts of an encoder that are needed here; a cluster has its own."""

    @property
    def dimensions(self) -> int:
        """D of the vectors."""

    @property
    def bundle(self) -> ModelFiles:
        """Its model."""

    def embed_with(self, texts: list[str], settings: EmbedSettings, *, progress: bool | None = None) -> Embedded:
        """As `Encoder.embed_with`."""


class FileState(resumable.WorkState):
    """The state.json of an embedding job; `done` counts rows."""

    counts: dict[str, float]  # by the names of COUNTS
    truncated: list[list[int]]  # [row, tokens] of the first truncated texts


Slab = tuple[int, Embedded, float]  # first row, vectors and report, seconds


def embed_slabs(encoder: EmbedsSlabs, rest: Reading, settings: EmbedSettings) -> Iterator[Slab]:
    """Embed the slabs here, in file order; a cluster has its own version."""
    for row, slab in rest:
        started = time.perf_counter()
        result = encoder.embed_with(slab, settings, progress=False)
        yield row, result, time.perf_counter() - started


def write_vectors(
    load: Callable[[], EmbedsSlabs],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: EmbedSettings,
    *,
    field: str | None = None,
    shard_rows: int | None = None,
    progress: bool | None = None,
    announce: Callable[[str], object] | None = None,
    over: Callable[[Any, Reading, EmbedSettings], Iterator[Slab]] = embed_slabs,  # takes what `load` gives
) -> FileReport:
    """Do the work of `mexma_rt.embed_file`, with its settings in one object.

    load: called for the encoder once the input has been checked. announce: called before a job of more than one slab with a
    text that states rows, size and memory. over: embeds the slabs, here or elsewhere.
    """
    if shard_rows is not None and (type(shard_rows) is not int or shard_rows < 1):
        raise InputError(f"shard_rows={shard_rows!r} must be a whole number of at least 1.")
    target = resumable.check_target(output, source, shard_rows)
    if shard_rows is None and target.suffix.lower() == ".parquet":
        require_extra("files", "pyarrow")
    # If possible, read before the work folder is created, so that bad input leaves no trace.
    texts = None if reads_once(source) else reading.first_reading(source, field, progress)
    with resumable.work_folder(target) as folder, spooled((source,), folder, target) as (source,):
        if texts is None:
            texts = reading.first_reading(source, field, progress)
        encoder = load()
        empty = encoder.embed_with([], settings).report  # says what runs, and rejects unusable settings
        layout = resumable.Layout(
            rows=texts.rows,
            columns=settings.columns(encoder.dimensions),
            dtype=np.dtype(STORAGES[settings.precision]),
            shard_rows=shard_rows,
            parquet=shard_rows is None and target.suffix.lower() == ".parquet",
        )
        job = _job(texts, encoder.bundle, empty, layout, settings)
        fresh = FileState(job=job, done=0, counts=dict.fromkeys(COUNTS, 0), truncated=[])
        state = resumable.resume(folder, fresh)
        resumed = state["done"]
        moved = resumable.is_moved(folder, target, layout, resumed)
        if not moved:
            if shard_rows is not None and target.exists():
                raise FileError(f"{output} already exists. Choose another name, or move it away.")
            resumable.check_rows(folder, layout, resumed)
            resumable.check_room(target, layout, resumed)
            if announce is not None and (texts.slabs > 1 or resumed):
                memory = _slab_bytes(texts, encoder.dimensions) + unpacking_bytes(source)
                announce(_announcement(layout, output, resumed, memory))
            slab = reading.SLAB_ROWS, reading.SLAB_CHARACTERS
            rest = Reading(source=str(source), field=field, texts=texts, done=resumed, slab=slab)
            with progress_bar(progress, total=texts.rows - resumed, desc="embed", unit="row") as advance:
                _write_slabs(over(encoder, rest, settings), folder, target, layout, state, advance)
            index = {"rows": layout.rows, "columns": layout.columns, "storage": settings.precision, "model": empty.model}
            resumable.finish(folder, target, layout, index)
    return FileReport(
        output=str(output),
        shape=(layout.rows, layout.columns),
        storage=settings.precision,
        resumed=resumed,
        cut=int(state["counts"]["cut"]),
        report=_report(empty, state),
    )


def _write_slabs(
    results: Iterable[Slab],
    folder: Path,
    target: Path,
    layout: resumable.Layout,
    state: FileState,
    advance: Callable[[int], object],
) -> None:
    """Write the rows that the state does not count yet; the state is updated and saved after each slab."""
    try:
        for row, result, seconds in results:
            resumable.write_rows(folder, target, layout, row, result.vectors)
            counts = _counts(result.report) | {"seconds": seconds}
            state["counts"] = {name: state["counts"][name] + counts[name] for name in COUNTS}
            cut = zip(result.report.truncated, result.report.truncated_lengths, strict=True)
            state["truncated"] = [*state["truncated"], *([row + i, length] for i, length in cut)][:LISTED]
            state["done"] = row + len(result.vectors)
            resumable.write_state(folder, target, state)
            advance(len(result.vectors))
    except InputChangedError:
        (folder / "state.json").unlink(missing_ok=True)
        raise


def _job(
    texts: Texts, model: ModelFiles, empty: EmbedReport, layout: resumable.Layout, settings: EmbedSettings
) -> dict[str, object]:
    """Return everything that the output's bytes depend on, for JSON; a run is resumed only if all of it is equal."""
    job = {
        "rows": texts.rows,
        "texts": texts.sha256[:16],
        "model": empty.model,
        "model files": hash_of_files(model.files),
        "max_length": empty.max_length,
        "back end": empty.backend,
        "device": empty.device,
        "deterministic": empty.deterministic,
        **asdict(settings),
        "prompt": named_prompt(model.prompts, settings.prompt),  # its text: a manifest may change what a name means
        "storage": settings.precision,
        "precision": empty.precision,
        "shard_rows": layout.shard_rows,
        "parquet": layout.parquet,
        "version": __version__,
        "slab": [reading.SLAB_ROWS, reading.SLAB_CHARACTERS],
    }
    return cast(dict[str, object], json.loads(json.dumps(job, default=int)))  # numpy's whole numbers as Python's


def _counts(report: EmbedReport) -> dict[str, float]:
    return {name: getattr(report, name, 0) for name in COUNTS} | {"cut": len(report.truncated)}


def _report(empty: EmbedReport, state: FileState) -> EmbedReport:
    counts: dict[str, Any] = {name: value for name, value in state["counts"].items() if name != "cut"}
    indices, lengths = zip(*state["truncated"], strict=True) if state["truncated"] else ((), ())
    return replace(empty, **counts, truncated=tuple(indices), truncated_lengths=tuple(lengths))


def _announcement(layout: resumable.Layout, output: str | os.PathLike[str], done: int, memory: int) -> str:
    return (
        f"{output}: {layout.rows:,} rows x {layout.columns} {layout.dtype}, {layout.rows * layout.row_bytes / 1e6:,.1f} MB on "
        f"disk; besides the model about {memory / 1e6:,.0f} MB of memory, whatever the number of rows."
        + (
            f" Resumes after row {done:,}, where a run was interrupted."
            if done
            else " If interrupted, run the same command again: it resumes."
        )
    )


def _slab_bytes(texts: Texts, dimensions: int) -> int:
    """Estimate the memory of the largest slab: texts, tokens, the tokenizer's objects, and three arrays of vectors."""
    return texts.largest_slab * BYTES_PER_CHARACTER + 3 * reading.SLAB_ROWS * dimensions * 4
