"""What all plots share: colours, the check before long work, and writing the file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mexma_rt.errors import InputError, require_extra
from mexma_rt.files.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
COLOURS = ("#1a1a40", "#e07b39", "#6fb1a0", "#8064a2", "#c9b458", "#888888")  # also distinct in lightness


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raise InputError or MissingExtraError if the plot cannot be drawn; called before long work."""
    if Path(path).suffix.removeprefix(".") not in FORMATS:
        raise InputError(f"{path}: a picture's name must end in .png, .svg or .pdf. Type another name.")
    require_extra("plot", "matplotlib")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a plot, complete or absent. It holds no dates, so equal results give equal files."""
    kind = Path(path).suffix.removeprefix(".")
    stream = io.BytesIO()
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    figure.savefig(stream, format=kind, dpi=150, metadata=metadata)
    with atomic_write(path) as output:
        output.write(stream.getvalue())
