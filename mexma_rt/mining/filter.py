"""Drops pairs that fail text checks or score too low, recording the reason; bitexts of any size."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from mexma_rt.errors import FileError, InputError
from mexma_rt.files import resumable
from mexma_rt.files.atomic import check_output
from mexma_rt.files.spool import spooled
from mexma_rt.files.tables import check_table, table
from mexma_rt.files.unpacking import is_stdin
from mexma_rt.mining.background import Background, model_identity, open_background
from mexma_rt.mining.bitext import KEPT, REASONS, SCORE, Bitext, first_reading, slabs
from mexma_rt.mining.pairs import MineSettings
from mexma_rt.mining.thresholds import resolved
from mexma_rt.mining.warnings import MiningWarning
from mexma_rt.progress import progress_bar

if TYPE_CHECKING:
    from mexma_rt.embedding import Prompted
    from mexma_rt.embedding.encoder import Encoder

BACKGROUND = 16_384  # pairs sampled as the background, if none is given
KEPT_COLUMNS = {"score": float, "line": int, "source": str, "target": str}
DROPPED_COLUMNS = {"reason": str} | KEPT_COLUMNS


@dataclass(frozen=True, kw_only=True)
class FilterReport:
    """What a call to `filter_bitext` did. dropped: pairs by the first reason that applies, in the order of `bitext.REASONS`."""

    output: str
    pairs: int
    kept: int
    dropped: dict[str, int]
    threshold: float  # the lowest score kept
    margin: str
    k: int
    length_ratio: float  # the median of target by source characters (10 added to both)
    background: int  # its number of distinct source lines
    resumed: int  # pairs that an interrupted run had already scored
    model: str
    warnings: tuple[MiningWarning, ...] = ()


def filter_bitext(  # noqa: PLR0913  (public keywords)
    load: Callable[[], Encoder | Prompted],
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dropped: str | os.PathLike[str] | None = None,
    margin: str = "ratio",
    k: int = 4,
    threshold: float | None = None,
    top: float | None = None,
    max_ratio: float = 3.0,
    background: str | os.PathLike[str] | None = None,
    background_lines: int = BACKGROUND,
    progress: bool | None = None,
) -> FilterReport:
    """Write the good pairs of two line-aligned files, in order, to a table; return a report with the dropped pairs by reason.

    load: called for the encoder once the input has been checked. output, dropped: tables (.tsv, .jsonl, .parquet) with score,
    line (from 1), source, target, and for `dropped` the reason. Drops, in this order: blank sides, identical sides, repeats of
    an earlier pair, length ratios more than max_ratio times off the median, and scores below `threshold` (None takes the
    margin's threshold from the encoder's bundle, or the bundled model's); with `top`, scores below the best share (0 to 1) of
    all pairs, ties kept.
    background: a file written by `Background.save`; without one, a sample of `background_lines` pairs of the bitext itself.

    Memory does not grow with the bitext (6 bytes per pair are on disk, memory-mapped). A killed run resumes when the same call
    is made again. Raises InputError, FileError, BundleError, MissingExtraError.
    """
    settings = MineSettings(margin=margin, k=k, threshold=threshold)
    _check_arguments(source, target, output, dropped, threshold, top, max_ratio)
    final = Path(output).resolve()
    with resumable.work_folder(final) as folder, spooled((source, target), folder, final) as (source, target):
        bitext = first_reading(source, target, folder, background_lines, max_ratio)
        if background is None and not bitext.sample:
            counts = np.bincount(bitext.reasons, minlength=len(REASONS)).tolist()
            why = ", ".join(f"{count:,} {REASONS[reason]}" for reason, count in enumerate(counts) if count and reason != KEPT)
            raise InputError(
                f"No pair is left to score: all {bitext.pairs:,} pairs were dropped ({why}). Check the input files."
            )
        encoder = load()
        given = None if background is None else open_background(background)
        if given is not None:
            given.check(k=k, model=model_identity(encoder))
        job = _job(bitext, encoder, given, background_lines, margin=margin, k=k, max_ratio=max_ratio)
        state = resumable.resume(folder, resumable.WorkState(job=job, done=0))
        resumed = state["done"]
        layout = resumable.Layout(rows=bitext.pairs, columns=1, dtype=np.dtype(np.float32), shard_rows=None, parquet=False)
        resumable.check_rows(folder, layout, resumed)
        around = given or _background(folder, bitext, encoder, k, made=resumed > 0)
        scoring = _Scoring(
            encoder=encoder, around=around, margin=margin, bitext=bitext, folder=folder, final=final, layout=layout
        )
        _score(source, target, scoring, state, progress)
        scores = np.load(folder / "data", mmap_mode="r")[:, 0]
        settings, foreign = resolved(settings, encoder)
        least = settings.least_score if top is None else _share_threshold(scores, math.floor(top * bitext.pairs))
        counts = _write(source, target, output, dropped, bitext, scores, least)
    return FilterReport(
        output=str(output),
        pairs=bitext.pairs,
        kept=int(counts[KEPT]),
        dropped={name: int(count) for name, count in zip(REASONS[1:], counts[1:], strict=True)},
        threshold=least,
        margin=margin,
        k=k,
        length_ratio=math.exp(bitext.middle),
        background=len(around.source),
        resumed=resumed,
        model=around.model,
        warnings=(foreign,) if foreign is not None and top is None else (),
    )


def _check_arguments(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    output: str | os.PathLike[str],
    dropped: str | os.PathLike[str] | None,
    threshold: float | None,
    top: float | None,
    max_ratio: float,
) -> None:
    if is_stdin(source) and is_stdin(target):
        raise InputError("Only one of the two sides can be standard input. Name a file for the other.")
    if threshold is not None and top is not None:
        raise InputError("threshold and top both say which pairs to keep. Pass only one of them.")
    if top is not None and not 0 < top <= 1:
        raise InputError(f"top={top!r} must be the share of pairs to keep: above 0 and at most 1, such as 0.8.")
    if not max_ratio > 1:
        raise InputError(f"max_ratio={max_ratio!r} must be a number above 1 (how much lengths may differ), such as 3.")
    for path in (output, dropped):
        if path is not None:
            check_table(path)
            check_output(path, [source, target])
    if dropped is not None and Path(dropped).resolve() == Path(output).resolve():
        raise InputError(f"{dropped} cannot have both the kept and the dropped pairs. Choose another name for one of them.")


def _job(
    bitext: Bitext, encoder: Encoder | Prompted, given: Background | None, lines: int, **settings: object
) -> dict[str, object]:
    """Return what the scores depend on; not the threshold, which is applied at the end."""
    around = lines if given is None else f"given, {len(given.source)} and {len(given.target)} lines, {given.source_keys[:2]}"
    job = {"pairs": bitext.pairs, "texts": bitext.sha256[:16], "model": model_identity(encoder), "background": around}
    return cast(dict[str, object], json.loads(json.dumps({**job, **settings}, default=str)))


def _background(folder: Path, bitext: Bitext, encoder: Encoder | Prompted, k: int, made: bool) -> Background:
    """Make the background from the sample, or reuse the one from an interrupted run that had scored pairs."""
    path = folder / "background.npz"
    if not made:
        src, tgt = [a for a, _ in bitext.sample], [b for _, b in bitext.sample]
        x, y = (encoder.embed_report(lines).vectors for lines in (src, tgt))
        Background.of(src, tgt, x, y, k=k, model=model_identity(encoder)).save(path)
    return open_background(path)


@dataclass(frozen=True, kw_only=True)
class _Scoring:
    """What scores the pairs, and where the scores are kept."""

    encoder: Encoder | Prompted
    around: Background
    margin: str
    bitext: Bitext
    folder: Path
    final: Path
    layout: resumable.Layout


def _score(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    scoring: _Scoring,
    state: resumable.WorkState,
    progress: bool | None,
) -> None:
    """Score the pairs that the state does not count yet, slab by slab; pairs already dropped get -inf."""
    start, stop, bitext, encoder = 0, 0, scoring.bitext, scoring.encoder
    with progress_bar(progress, total=bitext.pairs - state["done"], desc="filter", unit="pair") as advance:
        for slab in slabs(source, target):
            stop = start + len(slab)
            if stop > bitext.pairs:
                break
            if start >= state["done"]:
                scores = np.full(len(slab), -np.inf, np.float32)
                good = np.flatnonzero(bitext.reasons[start:stop] == KEPT)
                if len(good):
                    src, tgt = ([slab[row][side] for row in good.tolist()] for side in (0, 1))
                    x, y = (encoder.embed_report(lines, progress=False).vectors for lines in (src, tgt))
                    scores[good] = scoring.around.scores(src, tgt, x, y, margin=scoring.margin)
                resumable.write_rows(scoring.folder, scoring.final, scoring.layout, start, scores[:, None])
                state["done"] = stop
                resumable.write_state(scoring.folder, scoring.final, state)
                advance(len(slab))
            start = stop
    if start != bitext.pairs or stop > bitext.pairs:
        raise FileError("The bitext changed while it was read. Run the command again, and leave the files alone until it ends.")


def _share_threshold(scores: np.ndarray, count: int) -> float:
    """Return the count-th largest score (or the lowest finite one, if there are fewer), in the memory of 65,536 counts."""
    if count == 0:
        return math.inf
    first = 0
    for digits in (0, 1):  # upper and lower half of the order-preserving 32 bits
        counts = np.zeros(65_536, np.int64)
        for start in range(0, len(scores), 1 << 20):
            block = np.array(scores[start : start + (1 << 20)])
            keys = _ordered(block[np.isfinite(block)])
            part = keys >> 16 if digits == 0 else (keys & 0xFFFF)[keys >> 16 == first]
            counts += np.bincount(part, minlength=65_536)
        from_top = np.cumsum(counts[::-1])
        if digits == 0 and from_top[-1] < count:
            count = int(from_top[-1])
            if count == 0:
                return math.inf
        place = 65_535 - int(np.searchsorted(from_top, count))
        count -= int(from_top[65_535 - place] - counts[place])
        first = place if digits == 0 else (first << 16) + place
    bits = np.uint32(first ^ 0x80000000 if first & 0x80000000 else first ^ 0xFFFFFFFF)
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _ordered(scores: np.ndarray) -> np.ndarray:
    """Return int64 keys that sort like the float32 numbers."""
    bits = scores.view(np.uint32).astype(np.int64)
    return np.where(bits & 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)


def _write(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    output: str | os.PathLike[str],
    dropped: str | os.PathLike[str] | None,
    bitext: Bitext,
    scores: np.ndarray,
    least: float,
) -> np.ndarray:
    """Write both tables; return the number of pairs for each reason."""
    counts, line = np.zeros(len(REASONS), np.int64), 0
    with table(output, KEPT_COLUMNS) as keep, table(dropped, DROPPED_COLUMNS) if dropped else nullcontext() as drop:
        for slab in slabs(source, target):
            reasons = np.array(bitext.reasons[line : line + len(slab)])
            block = np.asarray(scores[line : line + len(slab)])
            reasons[(reasons == KEPT) & ~(block >= least)] = SCORE
            counts += np.bincount(reasons, minlength=len(REASONS))
            for reason, score, (a, b) in zip(reasons.tolist(), block.tolist(), slab, strict=True):
                line += 1
                if reason == KEPT:
                    keep((score, line, a, b))
                elif drop is not None:
                    drop((REASONS[reason], score if math.isfinite(score) else None, line, a, b))
    return counts
