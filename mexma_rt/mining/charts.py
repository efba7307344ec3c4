"""Charts of the mining report, as inline SVG that takes its colours from the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite, log2

import numpy as np

CELLS = 40  # of the length map, in each direction
LONGEST = 11.0  # log2 of characters at the edge of the map: 2,048
RATIO_BINS = np.linspace(-6, 6, 1201)  # log2 of the ratio of lengths, in steps of 0.7 %


@dataclass(kw_only=True)
class Lengths:
    """Characters of the two sides of pairs, counted in cells of log2."""

    cells: np.ndarray = field(default_factory=lambda: np.zeros((CELLS, CELLS), np.int64))  # [source, target]
    counts: np.ndarray = field(default_factory=lambda: np.zeros(len(RATIO_BINS), np.int64))
    pairs: int = 0

    def add(self, source: int, target: int) -> None:
        """Count one pair of lengths."""
        x, y = log2(max(1, source)), log2(max(1, target))
        place = [min(CELLS - 1, int(value / LONGEST * CELLS)) for value in (x, y)]
        self.cells[place[0], place[1]] += 1
        self.counts[min(len(RATIO_BINS) - 1, max(0, round((y - x + 6) * 100)))] += 1
        self.pairs += 1

    def ratios(self) -> tuple[float, float, float]:
        """Quartiles of the length ratio target / source."""
        reached = np.cumsum(self.counts)
        places = (int(np.searchsorted(reached, share * self.pairs)) for share in (0.25, 0.5, 0.75))
        low, middle, high = (float(2 ** RATIO_BINS[place]) for place in places)
        return low, middle, high


def histogram(edges: np.ndarray, everything: np.ndarray, kept: np.ndarray, threshold: float) -> str:
    """Draw bars of kept pairs in front of bars of all best candidates, with the threshold as a line."""
    width, height, left, bottom = 620, 430, 46, 34
    top = max(1, int(everything.max()), int(kept.max()))
    step, plot = (width - left - 8) / len(kept), height - bottom - 22

    def x(value: float) -> float:
        place: float = left + (value - edges[0]) / (edges[-1] - edges[0]) * (width - left - 8)
        return place

    def bars(counts: np.ndarray, name: str) -> Iterator[str]:
        for place, count in enumerate(counts.tolist()):
            if count:
                tall = max(1.0, count / top * plot)
                label = f"{edges[place]:.3f} to {edges[place + 1]:.3f}: {count:,}"
                yield (
                    f'<rect class="{name}" x="{left + place * step + 0.5:.1f}" y="{height - bottom - tall:.1f}" '
                    f'width="{step - 1:.1f}" height="{tall:.1f}" rx="1"><title>{label}</title></rect>'
                )

    parts = [f'<svg class="wide" viewBox="0 0 {width} {height}" role="img" aria-label="Histogram of scores">']
    for count in sorted({top // 2, top} - {0}):
        y = height - bottom - count / top * plot
        parts.append(f'<line class="axis" x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{count:,}</text>')
    parts += [*bars(everything, "rest"), *bars(kept, "kept")]
    parts.append(f'<line class="axis" x1="{left}" x2="{width - 8}" y1="{height - bottom}" y2="{height - bottom}"/>')
    for value in _ticks(float(edges[0]), float(edges[-1])):
        parts.append(f'<text x="{x(value):.1f}" y="{height - bottom + 18}" text-anchor="middle">{value:g}</text>')
    if isfinite(threshold):
        at, side = x(threshold), "end" if x(threshold) > width * 0.7 else "start"
        shift = -6 if side == "end" else 6
        parts.append(f'<line class="threshold" x1="{at:.1f}" x2="{at:.1f}" y1="6" y2="{height - bottom}"/>')
        label = f"threshold {threshold:g}"
        parts.append(f'<text class="threshold-text" x="{at + shift:.1f}" y="15" text-anchor="{side}">{label}</text>')
    return "".join(parts) + "</svg>"


def length_map(lengths: Lengths, middle: float) -> str:
    """Draw cells of source by target characters, both in log2; the dotted line is the median ratio."""
    size, left, bottom = 380, 46, 40
    plot = size - left - bottom + 30
    used = np.flatnonzero(lengths.cells.sum(axis=0) + lengths.cells.sum(axis=1))
    first, last = max(0, int(used[0]) - 1), min(CELLS, int(used[-1]) + 2)
    step, unit = plot / (last - first), LONGEST / CELLS

    def place(log: float) -> float:
        return (log / unit - first) * step

    parts = [f'<svg viewBox="0 0 {left + plot + 8:.0f} {plot + bottom + 8:.0f}" role="img" aria-label="Lengths of pairs">']
    most = lengths.cells.max()
    for i, j in np.argwhere(lengths.cells):
        count = int(lengths.cells[i, j])
        shade = 0.12 + 0.88 * (np.log1p(count) / np.log1p(most))
        parts.append(
            f'<rect class="cell" fill-opacity="{shade:.2f}" x="{left + (i - first) * step:.1f}" '
            f'y="{8 + plot - (j - first + 1) * step:.1f}" width="{step + 0.2:.1f}" height="{step + 0.2:.1f}">'
            f"<title>{count:,} pairs</title></rect>"
        )
    low, high = first * unit, last * unit
    ends = (max(low, low - middle), min(high, high - middle))  # where the median ratio's line enters and leaves the map
    points = " ".join(f"{left + place(end):.1f},{8 + plot - place(end + middle):.1f}" for end in ends)
    parts.append(f'<polyline class="ideal" points="{points}"/>')
    parts.append(f'<path class="axis" fill="none" d="M{left} 8V{8 + plot:.0f}H{left + plot:.0f}"/>')
    for power in range(int(np.ceil(low)), int(np.floor(high)) + 1):
        at = place(power)
        parts.append(f'<text x="{left + at:.1f}" y="{plot + 24:.0f}" text-anchor="middle">{2**power}</text>')
        parts.append(f'<text x="{left - 6}" y="{12 + plot - at:.1f}" text-anchor="end">{2**power}</text>')
    parts.append(f'<text x="{left + plot / 2:.0f}" y="{plot + 42:.0f}" text-anchor="middle">source, characters</text>')
    parts.append(
        f'<text transform="translate(12 {8 + plot / 2:.0f}) rotate(-90)" text-anchor="middle">target, characters</text>'
    )
    return "".join(parts) + "</svg>"


def _ticks(low: float, high: float) -> list[float]:
    """Return four to nine round numbers between two."""
    rough = (high - low) / 6
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(float(number * step), 10) for number in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
