"""What the phases of gpu_once.py share without torch: their flags, and how they tell what they found."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

# What else is printed, by Python or by a library in C, must not stand between the lines of JSON.
_results = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


def flags(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU")
    return parser


def say(**record: Any) -> None:
    """One line of JSON, at once: what a phase has told is kept if it is stopped."""
    _results.write(json.dumps({"phase": Path(sys.argv[0]).stem, **record}) + "\n")
    _results.flush()
