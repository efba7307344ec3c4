"""The heat map of `mexma xsim --all-pairs` can be read: every number stands out from the colour of its cell."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="plots are drawn with matplotlib (pip: mexma-rt[plot])")

from matplotlib.colors import to_rgb
from matplotlib.typing import ColorType

from mexma_rt.evaluation import heat_map


def luminance(colour: ColorType) -> float:
    """Relative luminance of WCAG 2.1, from sRGB."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("most", [0.2, 0.9, 5.0, 60.0])
def test_every_number_stands_out_from_its_cell(most: float) -> None:
    """Where the greatest error was far below 1 %, the top of the scale, white numbers stood on yellow."""
    errors = np.linspace(0, most, 64).reshape(8, 8)
    np.fill_diagonal(errors, np.nan)
    axes = heat_map(errors, [f"l{i}" for i in range(8)], "title").axes[0]
    (image,) = axes.images
    assert len(axes.texts) == 56
    for text in axes.texts:
        column, row = map(int, text.get_position())
        value = image.get_array()[row, column]
        assert text.get_text() == f"{value:.1f}"
        cell, ink = sorted((luminance(image.cmap(image.norm(value))[:3]), luminance(text.get_color())))
        assert (ink + 0.05) / (cell + 0.05) >= 3.0
