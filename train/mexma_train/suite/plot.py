"""Draws the results of a quality suite: FLORES error and Tatoeba accuracy of every language trained on, best first.

With earlier results each language has two bars, which differ in lightness, so that the picture can be read in greyscale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mexma_rt.errors import require_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# figure of a language: (title of its panel, whether less is better)
PANELS = {
    "flores_xsim": ("FLORES xsim error, X → English, % (less is better)", True),
    "tatoeba_accuracy": ("Tatoeba accuracy, both directions, % (more is better)", False),
}
NOW, BEFORE = "#1a1a40", "#e3a172"  # relative luminance (WCAG) 0.01 and 0.43
PANEL_INCHES = 6.0
BAR_INCHES = 0.17  # height of a bar; a language has one, or two with earlier results


def figure(results: dict[str, Any], before: dict[str, Any] | None = None) -> Figure:
    """Return a figure of the results of `run.measure`, beside earlier ones if given; pyplot and its state are not touched."""
    require_extra("train", "matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    languages = {lang: figures for lang, figures in results["languages"].items() if figures["trained"]}
    panels = {name: [lang for lang in languages if name in languages[lang]] for name in PANELS}
    panels = {name: members for name, members in panels.items() if members}
    longest = max(len(members) for members in panels.values())
    height = max(2.0, BAR_INCHES * longest * (2 if before else 1.2)) + 1.2  # titles and axis
    whole = Figure(figsize=(PANEL_INCHES * len(panels), height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    for place, (name, members) in enumerate(panels.items(), start=1):
        earlier = before["languages"] if before else {}
        values = {lang: (languages[lang][name], earlier.get(lang, {}).get(name)) for lang in members}
        _draw(whole.add_subplot(1, len(panels), place), name, values, before is not None)
    title = f"Quality of {results['model']['name']}, languages trained on, {results['date']}"
    whole.suptitle(title, fontsize=13, fontweight="bold", parse_math=False)
    return whole


def _draw(axes: Axes, name: str, values: dict[str, tuple[float, float | None]], both: bool) -> None:
    title, less_is_better = PANELS[name]
    order = sorted(values, key=lambda lang: (values[lang][0] if less_is_better else -values[lang][0], lang))
    rows, high = range(len(order)), 0.4 if both else 0.75
    now = [values[lang][0] for lang in order]
    label = f"{'now, ' if both else ''}mean {sum(now) / len(now):.2f} over {len(now)} languages"
    bars = axes.barh([row - high / 2 if both else row for row in rows], now, high, color=NOW, label=label)
    axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=6.5)
    if both:
        kept = [(row, earlier) for row, lang in enumerate(order) if (earlier := values[lang][1]) is not None]
        mean = f", mean {sum(value for _, value in kept) / max(1, len(kept)):.2f} over {len(kept)} languages"
        bars = axes.barh([row + high / 2 for row, _ in kept], [v for _, v in kept], high, color=BEFORE, label=f"before{mean}")
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=6.5, color="0.35")
    axes.set_yticks(list(rows), order, fontsize=8)
    axes.set_ylim(len(order) - 0.4, -0.6)  # best on top
    most = max([*now, *(earlier for _, earlier in values.values() if earlier is not None)])
    axes.set_xlim(0, max(1e-9, most) * 1.1 if less_is_better else 108)  # room for the numbers at the ends
    axes.set_title(title, fontsize=10, pad=24)  # points: room for the legend, which would hide bars inside
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)
