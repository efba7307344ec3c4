"""Embeds files of any size to an array of vectors on disk, in the memory of one slab.

The file is read twice. The first reading checks every row, counts them and hashes their texts, so that a bad row is reported
before a model is loaded, the array's header is right from the start, and an unfinished run is resumed only on the same
texts. The second embeds slab by slab. Slabs are the same in every run, and so are the bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mexma_rt.bundle.manifest import hash_of_files
from mexma_rt.embedding.prompts import named_prompt
from mexma_rt.embedding.report import Embedded, EmbedReport
from mexma_rt.errors import FileError, InputError, require_extra
from mexma_rt.files import resumable
from mexma_rt.files.spool import reads_once, spooled
from mexma_rt.files.storage import STORAGES, check_storage, stored_columns
from mexma_rt.files.texts import read_texts
from mexma_rt.files.unpacking import unpacking_bytes
from mexma_rt.progress import progress_bar

if TYPE_CHECKING:
    from mexma_rt.embedding.encoder import Encoder

# A slab is embedded at once: enough sentences to sort them by length, at most so much text that its tokens stay small.
SLAB_ROWS = 8192
SLAB_CHARACTERS = 1_000_000
BYTES_PER_CHARACTER = 150  # bytes per character of a slab; measured 121, with a small vocabulary (two characters per token)
LISTED = 1000  # indices of cut texts that a report lists; it counts all of them
COUNTS = ("sentences", "distinct", "tokens", "padded_tokens", "batches", "seconds", "cut")


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What a call to embed_file() did. `report` covers the whole file, including the work of an interrupted run."""

    output: str
    shape: tuple[int, int]  # of the stored array
    storage: str
    resumed: int  # rows that an interrupted run had finished
    cut: int  # texts of more than max_length tokens; `report` lists the first 1,000 of them
    report: EmbedReport  # distinct is summed over slabs, so a text counts once in each slab that has it


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What the first reading found."""

    rows: int
    slabs: int
    largest_slab: int  # characters
    sha256: str


def embed_slabs(encoder: Encoder, reading: Reading, keywords: dict[str, Any]) -> Iterator[tuple[int, Embedded, float]]:
    """Yield (first row, vectors and report, seconds) of every slab, in file order; a cluster has its own version."""
    for row, slab in reading:
        started = time.perf_counter()
        result = encoder.embed_report(slab, progress=False, **keywords)
        yield row, result, time.perf_counter() - started


def embed_file(
    load: Callable[[], Encoder],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    field: str | None = None,
    normalize: bool = True,
    precision: str = "float32",
    truncate_dim: int | None = None,
    batch_tokens: int | None = None,
    shard_rows: int | None = None,
    progress: bool | None = None,
    prompt: str | None = None,
    announce: Callable[[str], object] | None = None,
    over: Callable[[Any, Reading, dict[str, Any]], Iterator[tuple[int, Embedded, float]]] = embed_slabs,
) -> FileReport:
    """See `mexma_rt.embed_file`. `load` is called for the encoder once the input has been checked. Before a job of more
    than one slab, `announce` is called with a text: rows, size and memory. `over` embeds the slabs, here or elsewhere.
    """
    check_storage(precision, normalize)
    if shard_rows is not None and (type(shard_rows) is not int or shard_rows < 1):
        raise InputError(f"shard_rows={shard_rows!r} must be a whole number of at least 1.")
    target = resumable.check_target(output, source, shard_rows)
    if shard_rows is None and target.suffix.lower() == ".parquet":
        require_extra("files", "pyarrow")
    texts = None if reads_once(source) else _first_reading(source, field, progress)  # bad input leaves no trace, no folder
    with resumable.work_folder(target) as folder, spooled((source,), folder, target) as (source,):
        if texts is None:
            texts = _first_reading(source, field, progress)
        encoder = load()
        keywords: dict[str, Any] = {"normalize": normalize, "precision": precision, "truncate_dim": truncate_dim}
        keywords |= {"batch_tokens": batch_tokens, "prompt": prompt}
        empty = encoder.embed_report([], **keywords).report  # says what runs, and rejects unusable arguments
        layout = resumable.Layout(
            rows=texts.rows,
            columns=stored_columns(int(truncate_dim or encoder.dimensions), precision),
            dtype=np.dtype(STORAGES[precision]),
            shard_rows=shard_rows,
            parquet=shard_rows is None and target.suffix.lower() == ".parquet",
        )
        put_before = named_prompt(encoder.bundle.prompts, prompt)  # the text: a manifest may change what a name stands for
        job = _job(texts, encoder, empty, layout, **(keywords | {"prompt": put_before}))
        state = resumable.resume(folder, job) or {"job": job, "done": 0, "counts": dict.fromkeys(COUNTS, 0), "truncated": []}
        resumed = state["done"]
        moved = resumable.is_moved(folder, target, layout, resumed)
        if not moved:
            if shard_rows is not None and target.exists():
                raise FileError(f"{output} exists already. Choose another name, or move it away.")
            resumable.check_rows(folder, layout, resumed)
            resumable.check_room(target, layout, resumed)
            if announce is not None and (texts.slabs > 1 or resumed):
                announce(_announcement(texts, encoder, layout, source, output, resumed))
            reading = Reading(source=str(source), field=field, texts=texts, done=resumed, slab=(SLAB_ROWS, SLAB_CHARACTERS))
            with progress_bar(progress, total=texts.rows - resumed, desc="embed", unit="row") as advance:
                _write_slabs(over(encoder, reading, keywords), folder, target, layout, state, advance)
            index = {"rows": layout.rows, "columns": layout.columns, "storage": precision, "model": job["model"]}
            resumable.finish(folder, target, layout, index)
    return FileReport(
        output=str(output),
        shape=(layout.rows, layout.columns),
        storage=precision,
        resumed=resumed,
        cut=state["counts"]["cut"],
        report=_report(empty, state),
    )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Second pass: yields (first row, texts) of every slab after the first `done` rows; works in another process too."""

    source: str
    field: str | None
    texts: Texts
    done: int
    slab: tuple[int, int]  # most rows, most characters

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """Raises InputChangedError at the end if the texts have changed since the first pass."""
        digest, row = hashlib.sha256(), 0
        for slab in _slabs(read_texts(self.source, self.field), *self.slab):
            _hash(digest, slab)
            if row + len(slab) > self.texts.rows:
                break
            if row >= self.done:
                yield row, slab
            row += len(slab)
        if digest.hexdigest() != self.texts.sha256:
            raise InputChangedError(
                "The input changed while it was read, so its vectors may be of two versions, and none were kept. Type the "
                "command again, and leave the input as it is until the end."
            )


class InputChangedError(FileError):
    """The input changed between the two passes, so there is nothing to resume."""


def _write_slabs(
    results: Iterable[tuple[int, Embedded, float]],
    folder: Path,
    target: Path,
    layout: resumable.Layout,
    state: dict[str, Any],
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


def _first_reading(source: str | os.PathLike[str], field: str | None, progress: bool | None) -> Texts:
    digest, rows, slabs, largest = hashlib.sha256(), 0, 0, 0
    with progress_bar(progress, total=None, desc="check", unit="row") as advance:
        for slab in _slabs(read_texts(source, field), SLAB_ROWS, SLAB_CHARACTERS):
            largest = max(largest, _hash(digest, slab))
            rows, slabs = rows + len(slab), slabs + 1
            advance(len(slab))
    return Texts(rows=rows, slabs=slabs, largest_slab=largest, sha256=digest.hexdigest())


def _slabs(texts: Iterable[str], most_rows: int, most_characters: int) -> Iterator[list[str]]:
    """Yield consecutive texts in slabs, bounded in texts and (beyond the first) in characters; without texts, an empty slab."""
    slab: list[str] = []
    characters = 0
    for text in texts:
        characters += len(text)
        if slab and (len(slab) == most_rows or characters > most_characters):
            yield slab
            slab, characters = [], len(text)
        slab.append(text)
    yield slab


def _hash(digest: Any, slab: list[str]) -> int:
    """Add the lengths and the texts of a slab; returns its characters."""
    lengths = np.fromiter(map(len, slab), dtype="<i8", count=len(slab))
    digest.update(lengths.tobytes())
    digest.update("".join(slab).encode())
    return int(lengths.sum())


def _job(texts: Texts, encoder: Encoder, empty: EmbedReport, layout: resumable.Layout, **settings: Any) -> dict[str, Any]:
    """What the bytes of the output depend on, for JSON: a run is resumed only if all of it is equal."""
    from mexma_rt.version import __version__

    job = {
        "rows": texts.rows,
        "texts": texts.sha256[:16],
        "model": empty.model,
        "model files": hash_of_files(encoder.bundle.files),
        "max_length": empty.max_length,
        "back end": empty.backend,
        "device": empty.device,
        "deterministic": empty.deterministic,
        **settings,
        "storage": settings["precision"],
        "precision": empty.precision,
        "shard_rows": layout.shard_rows,
        "parquet": layout.parquet,
        "version": __version__,
        "slab": [SLAB_ROWS, SLAB_CHARACTERS],
    }
    return json.loads(json.dumps(job, default=int))  # numpy's whole numbers as Python's


def _counts(report: EmbedReport) -> dict[str, Any]:
    return {name: getattr(report, name, 0) for name in COUNTS} | {"cut": len(report.truncated)}


def _report(empty: EmbedReport, state: dict[str, Any]) -> EmbedReport:
    counts = {name: value for name, value in state["counts"].items() if name != "cut"}
    indices, lengths = zip(*state["truncated"], strict=True) if state["truncated"] else ((), ())
    return replace(empty, **counts, truncated=tuple(indices), truncated_lengths=tuple(lengths))


def _announcement(
    texts: Texts,
    encoder: Encoder,
    layout: resumable.Layout,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    done: int,
) -> str:
    slab = _slab_bytes(texts, encoder.dimensions) + unpacking_bytes(source)
    return (
        f"{output}: {texts.rows:,} rows x {layout.columns} {layout.dtype}, {layout.rows * layout.row_bytes / 1e6:,.1f} MB on "
        f"disk; beside the model about {slab / 1e6:,.0f} MB of memory, whatever the number of rows."
        + (
            f" Goes on after row {done:,}, where a run was interrupted."
            if done
            else " If interrupted, run the same command again: it resumes."
        )
    )


def _slab_bytes(texts: Texts, dimensions: int) -> int:
    """An estimate for the largest slab: texts, tokens and the tokenizer's objects, and three arrays of vectors."""
    return texts.largest_slab * BYTES_PER_CHARACTER + 3 * SLAB_ROWS * dimensions * 4
