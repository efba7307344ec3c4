"""Plot of `mexma bench embed`: the speed of each route relative to the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mexma_rt.files.pictures import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ratio_bars(runs: Sequence[dict[str, Any]]) -> Figure:
    """Draw each run's ratios to its base: one panel per run, one colour per file of texts, one row of bars per route.

    runs: `bench.run.as_data` with the model's name under "model". A route that failed on a file has no bar there.
    """
    from matplotlib.figure import Figure

    routes = [list(dict.fromkeys(row["route"] for row in run["rows"])) for run in runs]
    sizes = [0.25 * len(names) * max(2, len(run["files"])) ** 0.5 + 0.8 for names, run in zip(routes, runs, strict=True)]
    figure = Figure(figsize=(9, sum(sizes)), layout="constrained")
    panels = figure.subplots(len(runs), 1, squeeze=False, height_ratios=sizes)
    for run, names, panel in zip(runs, routes, panels[:, 0], strict=True):
        files = list(run["files"])
        height = 0.8 / len(files)
        for index, file in enumerate(files):
            ratios = {row["route"]: row["ratio"] for row in run["rows"] if row["texts"] == file}
            places = [names.index(name) + index * height for name in ratios]
            panel.barh(places, list(ratios.values()), height, label=file, color=COLOURS[index % len(COLOURS)])
        panel.set_yticks([number + 0.4 - height / 2 for number in range(len(names))], names, fontsize=8)
        panel.invert_yaxis()
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title(f"{run['model']}: speed relative to {run['base']}", fontsize=9)
        panel.legend(fontsize=8)
    return figure
