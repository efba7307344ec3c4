"""Distillation targets: a teacher's vector of every English segment of a shard folder, computed once and stored with the ids.

    teacher.npy float16 [E, D]                row e belongs to English segment e; rows have length 1
    teacher.projection.npy float64 [D_t, D]   the rows are the teacher's vectors times this, scaled to length 1
    teacher.json    teacher, sha256, dimensions before and after, share of the second moment kept, counts; written last
The teacher's vectors are projected on their top D principal axes: of all projections to D dimensions, this one changes the
inner products of the sampled vectors least (Eckart and Young, 1936). They are not centred, because inner products are not.
Any rotation of the rows keeps inner products too, and the axes may be rotated on another machine. To train a model further that
learnt from other rows, give it as `like`: the rotation is then the one that brings the rows nearest to its vectors (orthogonal
Procrustes, Schönemann 1966). The bundled model with the axes of another machine: mean cosine 0.29, rotated towards it 0.83.

The teacher reads the text that the shards' own tokenizer decodes from the ids, not the original line. What is lost is what NFKC
changes ("…" becomes "..."), control characters, runs of white space and characters without a piece. Of 20,000 English lines,
2.0 % came back changed, with XLM-R's tokenizer and with one of 64,000 pieces (tokenizer.py): only by NFKC and white space,
except that with the latter 0.03 % of the lines lost a character ("↓", "📱").
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mexma_rt.errors import FileError, InputError, MexmaError, typed
from mexma_rt.files.atomic import atomic_write, move_file
from mexma_rt.progress import progress_bar
from mexma_train.data.shards import TEACHER, Shards, open_shards
from mexma_train.data.tokenizer import load_tokenizer
from mexma_train.teacher_model import Teacher, open_teacher

FORMAT = 1
WORK, PROGRESS = ".teacher", "progress.json"  # the vectors are written in this folder, and moved out of it at the end
SAMPLE = 100_000  # segments whose vectors decide the axes
SLAB_SEGMENTS = 8192  # between two records of progress: about eight seconds of USE on one core ...
SLAB_TOKENS = 1_000_000  # ... or fewer segments if they are long; a segment's text is never cut here


@dataclass(frozen=True, kw_only=True)
class Taught:
    """What teacher.json says, and whether this call made it (False: it was already complete)."""

    about: dict[str, Any]
    made: bool


def begun(folder: Path) -> bool:
    """Whether a call on these shards was interrupted after it had chosen the axes, so that the next one resumes."""
    return (folder / WORK / PROGRESS).is_file()


def teach(
    folder: str | Path,
    model: str | Path,
    *,
    dimensions: int = 256,
    like: str | Path | None = None,
    threads: int | None = None,
    progress: bool | None = None,
) -> Taught:
    """Store the vectors [E, dimensions] of the teacher `model` (see `open_teacher`) in the shard folder.

    They are not projected if the teacher has at most `dimensions`; a vector of length 0 stays 0 and is counted. `like` names a
    model, as `model` does, with as many dimensions as the rows will have: they are rotated towards its vectors. After a kill
    the next call resumes, to the same bytes (on the same machine, with the same number of threads). Raises FileError if the
    folder holds the vectors of another teacher or cannot be written; InputError for dimensions below 1, a `like` of another
    size, and vectors that are not finite or all zero; and what open_shards and open_teacher raise.
    """
    if dimensions < 1:
        raise InputError(f"dimensions is {dimensions}; at least 1 is needed.")
    shards = open_shards(folder)
    teacher = open_teacher(model, threads)
    pupil = None if like is None else open_teacher(like, threads)
    work = shards.folder / WORK
    if shards.teacher is not None:
        about = json.loads((shards.folder / TEACHER[0]).read_text(encoding="utf-8"))
        _refuse_another(about, teacher, pupil, dimensions, "rm -f " + " ".join(typed(shards.folder / name) for name in TEACHER))
        shutil.rmtree(work, ignore_errors=True)  # all that a kill at the very end of a call can leave
        return Taught(about=about, made=False)
    texts = _Texts(shards)
    try:
        if begun(shards.folder):
            about = json.loads((work / PROGRESS).read_text(encoding="utf-8"))
            _refuse_another(about, teacher, pupil, dimensions, f"rm -r {typed(work)}")
        else:
            about = _begin(work, teacher, pupil, texts, dimensions, progress)
        if about["done"] < about["segments"]:
            _write(work, teacher, texts, about, progress)
        del about["done"]
        _write_json(work / TEACHER[0], about)
        for name in reversed(TEACHER):  # teacher.json last, because it makes the others valid
            if (work / name).exists():  # otherwise a call that was killed here has moved it
                move_file(work / name, shards.folder / name)
        shutil.rmtree(work)
    except OSError as error:
        if isinstance(error, MexmaError):
            raise
        raise FileError(
            f"The vectors in {work} cannot be written: {error.strerror or error}. What was written is kept: once the cause is "
            "fixed, the same command resumes from it."
        ) from error
    return Taught(about=about, made=True)


def _refuse_another(about: dict[str, Any], teacher: Teacher, pupil: Teacher | None, dimensions: int, delete: str) -> None:
    wanted = min(dimensions, about["teacher_dimensions"])
    if (about["sha256"], about["dimensions"]) != (teacher.sha256, wanted):
        raise FileError(
            f"These shards already have vectors of {about['teacher']} (SHA-256 {about['sha256'][:12]}..., "
            f"{about['dimensions']} dimensions), not of {teacher.name} ({teacher.sha256[:12]}..., {wanted}). To replace them, "
            f"delete them first. Type:\n    {delete}"
        )
    if about.get("like_sha256") != (pupil and pupil.sha256):
        names = (about.get("like"), pupil and pupil.name)
        there, here = (f"rotated towards {name}" if name else "not rotated" for name in names)
        raise FileError(
            f"The vectors of {about['teacher']} in these shards are {there}, but this call wants them {here}. To replace them, "
            f"delete them first. Type:\n    {delete}"
        )


def _begin(
    work: Path, teacher: Teacher, pupil: Teacher | None, texts: _Texts, dimensions: int, progress: bool | None
) -> dict[str, Any]:
    """Choose the axes, and make a work folder whose progress.json says that nothing is done yet."""
    shutil.rmtree(work, ignore_errors=True)  # left by a call that was killed before it had chosen them
    before = teacher.embed(["."])[0].shape[1]
    if pupil and (size := pupil.embed(["."])[0].shape[1]) != min(dimensions, before):
        raise InputError(
            f"like: {pupil.name} has {size} dimensions, but the rows would have {min(dimensions, before)} (the smaller of "
            "dimensions= and the teacher's own), so they cannot be rotated towards it."
        )
    rows = np.arange(0)
    projection, share = np.eye(before), 1.0
    if dimensions < before or pupil:
        rows = np.sort(np.random.default_rng(0).choice(len(texts), min(SAMPLE, len(texts)), replace=False))
    if dimensions < before:
        moment = _moment(teacher, teacher, texts, rows, "teach: axes", progress)
        projection, share = principal_axes(moment, dimensions)
    rotated = {}
    if pupil:
        moment = _moment(teacher, pupil, texts, rows, "teach: rotation", progress)
        projection = projection @ nearest_rotation(projection.T @ moment)
        rotated = {"like": pupil.name, "like_sha256": pupil.sha256}
    work.mkdir()
    with atomic_write(work / TEACHER[2]) as file:
        np.save(file, projection)
    about = {
        "format": FORMAT,
        "teacher": teacher.name,
        "sha256": teacher.sha256,
        "teacher_dimensions": before,
        "dimensions": projection.shape[1],
        "share_kept": share,  # of the mean squared length of the sampled vectors
        "sample": len(rows),
        "segments": len(texts),  # this and the next identify the shards
        "tokens": len(texts.ids),
        "zero_vectors": 0,
        "cut_texts": 0,  # at a bundle's maximum length; an ONNX graph does not report it
        **rotated,
        "done": 0,
    }
    _write_json(work / PROGRESS, about)
    return about


def _moment(teacher: Teacher, other: Teacher, texts: _Texts, rows: np.ndarray, what: str, progress: bool | None) -> np.ndarray:
    """Sum over these segments of the outer products of the two models' normalised vectors: float64 [D_t, D_o]."""
    moment: np.ndarray | float = 0.0
    with progress_bar(progress, total=len(rows), desc=what, unit="segments") as advance:
        for slab in texts.slabs(rows):
            vectors = _unit(_vectors(teacher, texts, slab)[0])
            others = vectors if other is teacher else _unit(_vectors(other, texts, slab)[0])
            moment = moment + vectors.T @ others
            advance(len(slab))
    return np.asarray(moment)


def nearest_rotation(moment: np.ndarray) -> np.ndarray:
    """Return the orthogonal R [D, D] that maximises the sum of <x R, y> over pairs of rows, if `moment` sums x^T y."""
    left, _, right = np.linalg.svd(moment)
    return np.asarray(left @ right)


def principal_axes(moment: np.ndarray, dimensions: int) -> tuple[np.ndarray, float]:
    """Return the top eigenvectors [D_t, dimensions] of a second moment [D_t, D_t], and their share of its trace.

    Each has the sign that makes its largest component positive, because solvers may return either. Raises InputError if the
    moment is 0.
    """
    values, vectors = np.linalg.eigh(moment)
    if values[-1] <= 0:
        raise InputError("The teacher gave only vectors of length 0. Check that the model makes sentence vectors.")
    axes = vectors[:, ::-1][:, :dimensions]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(dimensions)]
    return axes * np.sign(largest), float(values[::-1][:dimensions].sum() / values.sum())


def _write(work: Path, teacher: Teacher, texts: _Texts, about: dict[str, Any], progress: bool | None) -> None:
    """Write the rows from about["done"] on; after each slab, `about` and progress.json record how many are on the disk.

    The file is written, not mapped: a full disk is then an error, where it would kill a process that writes to a map. What a
    killed call wrote after its last record is overwritten with the same bytes.
    """
    projection = np.load(work / TEACHER[2])
    path, shape = work / TEACHER[1], (about["segments"], about["dimensions"])
    with (
        path.open("r+b" if about["done"] else "wb") as file,
        progress_bar(progress, total=len(texts) - about["done"], desc="teach", unit="segments") as advance,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        file.seek(2 * about["dimensions"] * about["done"], os.SEEK_CUR)
        for slab in texts.slabs(range(about["done"], len(texts))):
            raw, cut = _vectors(teacher, texts, slab)
            rows = _unit(raw @ projection)
            file.write(rows.astype("<f2").tobytes())
            file.flush()
            os.fsync(file.fileno())
            about["done"] += len(slab)
            about["cut_texts"] += cut
            about["zero_vectors"] += int((~rows.any(axis=1)).sum())
            _write_json(work / PROGRESS, about)
            advance(len(slab))


def _vectors(teacher: Teacher, texts: _Texts, rows: np.ndarray) -> tuple[np.ndarray, int]:
    decoded = texts.decode(rows)
    vectors, cut = teacher.embed(decoded)
    if not (finite := np.isfinite(vectors).all(axis=1)).all():
        bad = int(np.flatnonzero(~finite)[0])
        raise InputError(
            f"{teacher.name} gave a vector that is not finite for English segment {rows[bad]}, {decoded[bad][:80]!r}. Use "
            "another teacher, or prepare the shards again without that line."
        )
    return vectors, cut


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1 in float64; a row of zeros stays."""
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1))


def _write_json(path: Path, about: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(about, ensure_ascii=False, indent=1) + "\n").encode())


class _Texts:
    """The English segments of a shard folder as texts, decoded from their ids on demand."""

    def __init__(self, shards: Shards) -> None:
        self.ids, self.offsets = shards.english_ids, shards.english_offsets
        self.tokenizer = load_tokenizer(shards.tokenizer_path)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def decode(self, rows: np.ndarray) -> list[str]:
        spans = zip(self.offsets[rows], self.offsets[rows + 1], strict=True)
        return self.tokenizer.decode_batch([self.ids[start:end].tolist() for start, end in spans], skip_special_tokens=True)

    def slabs(self, rows: np.ndarray | range) -> Iterator[np.ndarray]:
        """Yield these segments in slabs of at most SLAB_SEGMENTS segments and, unless it is a single one, SLAB_TOKENS tokens.

        Starting at the first segment of a later slab gives the same slabs from there on.
        """
        while len(rows):
            slab = np.asarray(rows[:SLAB_SEGMENTS])
            tokens = np.cumsum(self.offsets[slab + 1] - self.offsets[slab])
            slab = slab[: max(1, int(np.searchsorted(tokens, SLAB_TOKENS, side="right")))]
            yield slab
            rows = rows[len(slab) :]
