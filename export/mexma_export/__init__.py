"""mexma_export: checkpoint -> bundle, behind a parity gate.

    from mexma_export import export_bundle
    report = export_bundle("runs/mini", "bundles/mini")        # or: mexma-export runs/mini bundles/mini

Importing the package loads neither torch nor onnx; `export_bundle` does, and says what to install where they are missing.
"""

from __future__ import annotations

from mexma_export.bundle import ExportReport, export_bundle
from mexma_export.sentences import Sentence, load_sentences
from mexma_export.verdict import THRESHOLDS, Parity, ParityError, Thresholds

__all__ = [
    "THRESHOLDS",
    "ExportReport",
    "Parity",
    "ParityError",
    "Sentence",
    "Thresholds",
    "export_bundle",
    "load_sentences",
]
