"""First pass over a bitext of any size: checks each pair's text and samples the pairs that pass."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import median

import numpy as np

from mexma_rt.errors import InputError
from mexma_rt.files.lines import sentence_lines
from mexma_rt.files.unpacking import shown_name

REASONS = ("kept", "blank", "identical", "duplicate", "length ratio", "score")
KEPT, BLANK, IDENTICAL, DUPLICATE, LENGTH, SCORE = range(6)
SLAB = 4096  # pairs read at a time
PARTS = 64  # files of hashes; finding duplicates needs memory for one at a time: 24 bytes per 64 pairs
SMOOTH = 10  # characters added to both lengths, so that short lines may differ by more
HASH = np.dtype([("hash", "S16"), ("line", "<i8")])

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Bitext:
    """What the first pass found. reasons: uint8 per pair, memory-mapped. middle: log of the median length ratio."""

    pairs: int
    sha256: str
    reasons: np.ndarray
    middle: float
    sample: Pairs


def slabs(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Iterator[Pairs]:
    """Yield the pairs of two line-aligned files, a slab at a time. Raises InputError if one has more lines than the other."""
    left, right = sentence_lines(source), sentence_lines(target)
    slab: Pairs = []
    count = 0
    for a in left:
        b = next(right, None)
        if b is None:
            raise InputError(_uneven(target, count, source))
        slab.append((a, b))
        count += 1
        if len(slab) == SLAB:
            yield slab
            slab = []
    if next(right, None) is not None:
        raise InputError(_uneven(source, count, target))
    if slab:
        yield slab


def length_ratio(a: str, b: str) -> float:
    """Return the log of the smoothed length ratio of b to a."""
    return log((len(b.strip()) + SMOOTH) / (len(a.strip()) + SMOOTH))


def first_reading(
    source: str | os.PathLike[str], target: str | os.PathLike[str], folder: Path, sample: int, max_ratio: float
) -> Bitext:
    """Check every pair's text: blank, identical sides, a repeat of an earlier pair, then the length ratio.

    A pair's ratio may be up to `max_ratio` times larger or smaller than the bitext's median, so it does not matter if one
    language needs more characters than the other. folder: for files of 1 + 24 bytes per pair. sample: number of random pairs to
    draw with a fixed seed, none blank or with identical sides.
    """
    rng, good = random.Random(0), 0
    chosen: Pairs = []
    digest, pairs = hashlib.sha256(), 0
    parts = [(folder / f"hashes-{part:02}").open("wb") for part in range(PARTS)]
    try:
        with (folder / "reasons").open("wb") as stream:
            for slab in slabs(source, target):
                hashes = np.empty(len(slab), HASH)
                reasons = bytearray()
                for place, (a, b) in enumerate(slab):
                    line = len(a.encode()).to_bytes(8, "little") + a.encode() + b.encode()
                    key = hashlib.blake2b(line, digest_size=16).digest()
                    digest.update(key)
                    hashes[place] = key, pairs + place
                    blank = not a.strip() or not b.strip()
                    reasons.append(BLANK if blank else IDENTICAL if a.strip() == b.strip() else KEPT)
                    if reasons[-1] == KEPT:
                        good += 1
                        if len(chosen) < sample:
                            chosen.append((a, b))
                        elif (at := rng.randrange(good)) < sample:
                            chosen[at] = (a, b)
                stream.write(reasons)
                bucket = np.frombuffer(hashes["hash"].tobytes().ljust(16 * len(slab), b"\0"), np.uint8)[::16] % PARTS
                for part in np.unique(bucket).tolist():
                    parts[part].write(hashes[bucket == part].tobytes())
                pairs += len(slab)
    finally:
        for part_file in parts:
            part_file.close()
    if not pairs:
        raise InputError(f"{shown_name(source)} and {shown_name(target)} are empty: there is nothing to filter.")
    marks = np.memmap(folder / "reasons", np.uint8, mode="r+", shape=(pairs,))
    _mark_duplicates(folder, marks)
    middle = median(length_ratio(a, b) for a, b in chosen) if chosen else 0.0
    start = 0
    for slab in slabs(source, target):
        for place, (a, b) in enumerate(slab[: pairs - start]):
            if marks[start + place] == KEPT and abs(length_ratio(a, b) - middle) > log(max_ratio):
                marks[start + place] = LENGTH
        start += len(slab)
    marks.flush()
    return Bitext(pairs=pairs, sha256=digest.hexdigest(), reasons=marks, middle=middle, sample=chosen)


def _mark_duplicates(folder: Path, marks: np.ndarray) -> None:
    """Mark all but the first of equal pairs; one file of hashes is in memory at a time."""
    for part in range(PARTS):
        path = folder / f"hashes-{part:02}"
        hashes = np.fromfile(path, HASH)
        order = np.lexsort((hashes["line"], hashes["hash"]))
        again = order[1:][hashes["hash"][order[1:]] == hashes["hash"][order[:-1]]]
        lines = hashes["line"][again]
        marks[lines[marks[lines] == KEPT]] = DUPLICATE
        path.unlink()


def _uneven(short: str | os.PathLike[str], lines: int, other: str | os.PathLike[str]) -> str:
    return (
        f"{shown_name(short)} ends after {lines:,} lines, but {shown_name(other)} continues: the files must be line-aligned, "
        "one pair per line. To find pairs in files that are not aligned, use mexma mine."
    )
