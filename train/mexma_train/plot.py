"""Draws a run from its log.jsonl: every loss term, the learning rate, the speed and the evaluations over the updates.

Each stage has its own block of panels with its own updates. The curves of a panel differ in dash or width as well as in
lightness, so that the picture can be read in greyscale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mexma_rt.errors import InputError, require_extra
from mexma_rt.files.atomic import atomic_write, check_output
from mexma_train.evaluate import MEAN
from mexma_train.logs import LOG, Line, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
COLUMNS = 4  # panels in a row
PANEL_INCHES = (3.6, 2.5)  # a row of four is as wide as a large screen at 120 dots per inch
NAMED_SETS = 3  # of more test sets, the curves are thin and unnamed
STAGES = {"warmup": "Warm start", "ranking": "Ranking", "mexma": "MEXMA"}
NO_CURVES = ("stage", "update", "seconds")  # keys of a line of the log that are not drawn

STYLES = (  # relative luminance (WCAG) 0.01, 0.30, 0.37 and 0.16, and four dashes
    {"color": "#1a1a40", "linestyle": "-"},
    {"color": "#e07b39", "linestyle": "--"},
    {"color": "#6fb1a0", "linestyle": "-."},
    {"color": "#8064a2", "linestyle": ":"},
)
ONE_OF_MANY = {"color": "0.65", "linestyle": "-", "linewidth": 0.7, "marker": ".", "markersize": 3}
MEAN_STYLE = {"color": "black", "linestyle": "-", "linewidth": 2.2, "marker": "o", "markersize": 4}

# (title, unit of the y axis, {term of the log: its name in the legend})
TERMS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Total loss", "loss", {"loss": "total"}),
    ("Masked tokens (MLM)", "cross entropy, nats", {"mlm_source": "text (source)", "mlm_target": "English (target)"}),
    ("Alignment", "loss, unweighted", {"align": "align"}),
    ("KoLeo", "−log distance to the nearest", {"koleo": "koleo"}),
    ("Contrastive (InfoNCE)", "cross entropy, nats", {"contrastive": "contrastive"}),
    ("Pairs that find each other in the batch", "share", {"accuracy": "accuracy"}),
    ("Learning rate", "rate", {"lr": "lr"}),
    ("Gradient norm before clipping", "L2 norm, log scale", {"grad_norm": "grad_norm"}),
    ("Speed in pairs", "pairs per second", {"pairs_per_second": "pairs"}),
    ("Speed in tokens", "tokens per second", {"tokens_per_second": "tokens"}),
)

# measure of the log: (title, unit of the y axis)
MEASURES = {
    "xsim": ("xsim, text → English (less is better)", "error, %"),
    "accuracy": ("Retrieval accuracy, both directions", "%"),
    "mlm_accuracy": ("Masked tokens predicted right", "%"),
    "alignment": ("Alignment of the test pairs", "mean squared distance"),
    "uniformity": ("Uniformity of the test sentences", "log of the mean potential"),
}


@dataclass(frozen=True, kw_only=True)
class _Curve:
    label: str | None  # in the legend
    updates: list[int]
    values: list[float]  # NaN, a gap in the curve, where the log has null
    style: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Panel:
    title: str
    unit: str
    curves: list[_Curve]
    log: bool = False


def plot(folder: Path, target: Path) -> None:
    """Draw the log of the run in `folder`, which may still be going on, to `target`, a .png, .svg or .pdf.

    Raises FileError if there is no log or target cannot be written, InputError for another suffix or a log without lines,
    MissingExtraError without matplotlib. An older picture stays as it was until the new one is complete.
    """
    folder, target = Path(folder), Path(target)
    suffix = target.suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise InputError(
            f"{target} ends in {target.suffix or 'nothing'}, but a plot is .png, .svg or .pdf. "
            f"Type: {target.with_suffix('.png')}"
        )
    lines = read_log(folder)  # first: without a run, its folder is not to be made for the picture
    check_output(target, [folder / LOG])
    if not lines:
        raise InputError(
            f"{folder / LOG} has no lines yet: the first is written after run.log_every updates. Wait for it, then plot again."
        )
    drawn = figure(lines)
    drawn.suptitle(f"Run {folder.resolve().name}", fontsize=13, fontweight="bold", parse_math=False)
    with atomic_write(target) as stream:
        drawn.savefig(stream, format=suffix, dpi=120)


def figure(lines: list[Line]) -> Figure:
    """Return a figure of log lines (at least one, as `read_log` returns them); pyplot and its state are not touched."""
    require_extra("train", "matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    stages = list(dict.fromkeys(line["stage"] for line in lines))
    blocks = {stage: _panels([line for line in lines if line["stage"] == stage]) for stage in stages}
    rows = [math.ceil(len(panels) / COLUMNS) for panels in blocks.values()]
    columns = min(COLUMNS, max(len(panels) for panels in blocks.values()))
    size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * sum(rows) + 0.5 * len(rows))
    whole = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))  # inches
    parts = whole.subfigures(len(stages), 1, squeeze=False, height_ratios=rows)[:, 0]
    for part, (stage, panels), count in zip(parts, blocks.items(), rows, strict=True):
        part.suptitle(STAGES.get(stage, stage), fontsize=12)
        last = max(line["update"] for line in lines if line["stage"] == stage)
        for place, panel in enumerate(panels, start=1):
            axes = part.add_subplot(count, columns, place)
            _draw(axes, panel)
            axes.set_xlim(0, last * 1.02)  # the same for all panels of a stage
    return whole


def _panels(lines: list[Line]) -> list[_Panel]:
    """The panels of one stage, for exactly the terms and measures that its lines contain."""
    steps = [line for line in lines if "evaluation" not in line]
    evaluations = [line for line in lines if "evaluation" in line]
    known = {term for _, _, terms in TERMS for term in terms}
    others = dict.fromkeys(term for line in steps for term in line if term not in known and term not in NO_CURVES)
    panels = []
    for title, unit, terms in (*TERMS, *((term, term, {term: term}) for term in others)):
        curves = []
        for (term, label), style in zip(terms.items(), STYLES, strict=False):
            updates, values = _series([(line["update"], line) for line in steps], term)
            curves += [_Curve(label=label, updates=updates, values=values, style=style)] if updates else []
        panels.append(_Panel(title=title, unit=unit, curves=curves, log="grad_norm" in terms))
    for measure, (title, unit) in MEASURES.items():
        panels.append(_Panel(title=title, unit=unit, curves=_measure_curves(evaluations, measure)))
    return [panel for panel in panels if panel.curves]


def _measure_curves(evaluations: list[Line], measure: str) -> list[_Curve]:
    """A curve for each test set, and a thick one for their mean if there are several."""
    names = dict.fromkeys(name for line in evaluations for name in line["evaluation"])
    sets = [name for name in names if name != MEAN]
    curves = []
    for number, name in enumerate([*sets, MEAN] if len(sets) > 1 else sets):
        label: str | None = name
        if name == MEAN:
            style, label = MEAN_STYLE, f"mean of {len(sets)} test sets"
        elif len(sets) <= NAMED_SETS:
            style = STYLES[number + 1] | {"marker": "sv^"[number], "markersize": 4}  # the mean is the solid one
        else:
            style, label = ONE_OF_MANY, None if number else f"each of {len(sets)} test sets"
        updates, values = _series([(line["update"], line["evaluation"].get(name, {})) for line in evaluations], measure)
        curves += [_Curve(label=label, updates=updates, values=values, style=style)] if updates else []
    return curves


def _series(rows: list[tuple[int, Line]], name: str) -> tuple[list[int], list[float]]:
    """The updates of the rows that have `name`, and its values there."""
    found = [(update, row[name]) for update, row in rows if name in row]
    return [update for update, _ in found], [math.nan if value is None else value for _, value in found]


def _draw(axes: Axes, panel: _Panel) -> None:
    from matplotlib.ticker import LogFormatter, MaxNLocator

    for curve in panel.curves:
        style = {"linewidth": 1.4, **curve.style}
        if len(curve.updates) == 1:  # a line of one point is invisible
            style.setdefault("marker", "o")
        axes.plot(curve.updates, curve.values, label=curve.label or "_", **style)  # "_": not in the legend
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())  # 10 and 0.3 instead of powers
        axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    else:
        axes.ticklabel_format(axis="y", scilimits=(-3, 6))
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("updates", fontsize=8)
    axes.set_ylabel(panel.unit, fontsize=8)
    axes.tick_params(which="both", labelsize=8)
    axes.yaxis.get_offset_text().set_fontsize(8)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    if len(panel.curves) > 1:
        for text in axes.legend(fontsize=7, framealpha=0.8).get_texts():
            text.set_parse_math(False)  # a $ in the name of a test set is a $
