"""Plots of xsim over many languages: a bar per language, or a heat map of all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mexma_rt.evaluation.folder import Comparison
from mexma_rt.files.pictures import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR, CELL = 0.2, 0.2  # inches per language


def bars(rows: Sequence[Comparison], title: str, mean: float) -> Figure:
    """Draw one bar per language, best first; with by_type in the rows, each bar is stacked by what was found instead."""
    from matplotlib.figure import Figure

    ordered = sorted(rows, key=lambda row: (row.xsim, row.language))
    places = np.arange(len(ordered))
    figure = Figure(figsize=(7.5, max(2.2, BAR * len(ordered) + 1.3)), layout="constrained")
    axes = figure.add_subplot()
    kinds: list[str | None] = list(ordered[0].by_type or [None])
    left = np.zeros(len(ordered))
    for number, kind in enumerate(kinds):
        part = [100 * row.by_type[kind] / row.sentences if row.by_type and kind else row.xsim for row in ordered]
        drawn = axes.barh(places, part, 0.78, left=left, color=COLOURS[number % len(COLOURS)], label=kind)
        left += part
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}  # keeps the mean's line from crossing numbers
    axes.bar_label(drawn, [f"{row.xsim:.2f}" for row in ordered], padding=3, fontsize=7, bbox=behind)
    axes.axvline(mean, color="0.4", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)
    axes.set_yticks(places, [row.language for row in ordered], fontsize=8)
    axes.set_ylim(len(ordered) - 0.5, -0.5)
    axes.set_xlim(0, max(float(left.max()) * 1.12, 1.0))
    axes.set_xlabel(f"error, % (lower is better); dashed: mean of the languages, {mean:.2f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", parse_math=False)
    if kinds != [None]:
        axes.legend(frameon=False, fontsize=8, title="found instead", loc="lower right")
    return figure


def heat_map(errors: np.ndarray, languages: Sequence[str], title: str) -> Figure:
    """Draw errors [L, L] in percent, row X -> column Y, NaN on the diagonal; languages are ordered by mean error."""
    from matplotlib.figure import Figure

    order = np.argsort(np.nanmean(errors, axis=0) + np.nanmean(errors, axis=1), kind="stable")
    names, size = [languages[i] for i in order], max(5.0, CELL * len(languages) + 1.8)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    top = max(1.0, float(np.nanmax(errors)))
    image = axes.imshow(errors[np.ix_(order, order)], cmap="cividis_r", vmin=0, vmax=top)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("found (Y)")
    axes.set_ylabel("searched with (X)")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", parse_math=False)
    if len(names) <= 16:
        digits = 8 if len(names) <= 10 else 6
        for i, row in enumerate(order):
            for j, column in enumerate(order):
                if i != j:
                    dark = errors[row, column] > 0.55 * top
                    text = f"{errors[row, column]:.1f}"
                    axes.text(j, i, text, ha="center", va="center", fontsize=digits, color="white" if dark else "black")
    figure.colorbar(image, ax=axes, shrink=0.75, aspect=40, pad=0.01, label="error X → Y, %")
    return figure
