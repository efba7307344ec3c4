"""Exports checkpoints to bundles; a bundle is written only if its graphs pass a parity gate.

    from mexma_export import export_bundle
    report = export_bundle("runs/mini", "bundles/mini")        # or: mexma-export runs/mini bundles/mini

Importing the package loads no library: each name below is imported on first use. `export_bundle` needs torch and onnx, and
says what to install if they are missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mexma_rt.doors import doors

if TYPE_CHECKING:
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

__getattr__, _ = doors(
    "mexma_export",
    bundle="ExportReport export_bundle",
    sentences="Sentence load_sentences",
    verdict="THRESHOLDS Parity ParityError Thresholds",
)
