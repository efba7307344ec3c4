"""mexma-rt: cross-lingual sentence embeddings in production. What this file lists is public; nothing else is.

Importing it loads no library, not even numpy: each name below is imported at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mexma_rt.doors import doors
from mexma_rt.errors import (
    BackendError,
    BundleError,
    FileError,
    InputError,
    MexmaError,
    MissingExtraError,
    ServiceBusyError,
    ServiceError,
    ThresholdWarning,
    TruncationWarning,
)
from mexma_rt.version import __version__

if TYPE_CHECKING:
    from mexma_rt import knn
    from mexma_rt.align.documents import Bead, align_documents
    from mexma_rt.align.words import WordAlignment, align_words
    from mexma_rt.embedding.encoder import Encoder
    from mexma_rt.embedding.files import FileReport
    from mexma_rt.embedding.loading import embed, embed_file, load
    from mexma_rt.embedding.report import Embedded, EmbedReport
    from mexma_rt.embedding.service import Service
    from mexma_rt.embedding.tokens import TokenVectors
    from mexma_rt.evaluation.measures import XsimResult, xsim
    from mexma_rt.mining.calibration import Calibration, calibrate
    from mexma_rt.mining.found import Pair
    from mexma_rt.mining.pairs import mine
    from mexma_rt.mining.score import score_pairs

__all__ = [
    "BackendError",
    "Bead",
    "BundleError",
    "Calibration",
    "EmbedReport",
    "Embedded",
    "Encoder",
    "FileError",
    "FileReport",
    "InputError",
    "MexmaError",
    "MissingExtraError",
    "Pair",
    "Service",
    "ServiceBusyError",
    "ServiceError",
    "ThresholdWarning",
    "TokenVectors",
    "TruncationWarning",
    "WordAlignment",
    "XsimResult",
    "__version__",
    "align_documents",
    "align_words",
    "calibrate",
    "embed",
    "embed_file",
    "knn",
    "load",
    "mine",
    "score_pairs",
    "xsim",
]


_find, _ = doors(
    "mexma_rt",
    align="Bead WordAlignment align_documents align_words",
    embedding="EmbedReport Embedded Encoder FileReport Service TokenVectors embed embed_file load",
    evaluation="XsimResult xsim",
    mining="Calibration Pair calibrate mine score_pairs",
)


def __getattr__(name: str) -> Any:
    if name == "knn":
        return importlib.import_module("mexma_rt.knn")
    if name == "approximate":  # where approximate_neighbours was documented before mexma_rt.knn exported it
        return importlib.import_module("mexma_rt.knn.approximate")
    return _find(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
