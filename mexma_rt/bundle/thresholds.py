"""The thresholds of a model, which `mexma calibrate` finds and writes into its manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SCORES, COUNTS = ("ratio", "distance", "absolute"), ("k", "pairs", "seed")


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The lowest score of a pair to keep, per margin, and how these were found."""

    ratio: float
    distance: float
    absolute: float
    k: int  # neighbours that made the neighbourhoods
    pairs: int  # in the sample
    seed: int
    prompt: str | None = None  # name of the prompt put before every text

    def by_margin(self) -> Mapping[str, float]:
        """Return the scores by margin name."""
        return {name: getattr(self, name) for name in SCORES}

    def to_json(self) -> dict[str, Any]:
        """The entry `thresholds` of a manifest."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_thresholds(value: Any) -> Thresholds:
    """Parse the manifest's entry `thresholds`. Raises ValueError saying what is wrong."""
    entry: dict[str, Any] = value if isinstance(value, dict) else {}
    scores = [entry.get(name) for name in SCORES]
    counts = [entry.get(name) for name in COUNTS]
    if not all(type(score) in (int, float) and math.isfinite(score) for score in scores):  # type: ignore[arg-type]
        raise ValueError(f"thresholds is {value!r}, not a number for each of {', '.join(SCORES)}")
    if not all(type(count) is int for count in counts):
        raise ValueError(f"thresholds is {value!r}, without the whole numbers {', '.join(COUNTS)}")
    if not isinstance(prompt := entry.get("prompt"), str | None):
        raise ValueError(f"thresholds is {value!r}, whose prompt is not a name")
    return Thresholds(prompt=prompt, **{name: entry[name] for name in (*SCORES, *COUNTS)})
