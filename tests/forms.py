"""Tiny random models of the forms that people bring, in folders as sentence-transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path

CLS: dict[str, object] = {"pooling_mode_cls_token": True, "word_embedding_dimension": 32}
MEAN: dict[str, object] = {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32}


def sentence_transformers(folder: Path, pooling: dict[str, object] | None, *more: str) -> None:
    """modules.json as sentence-transformers writes it, and the pooling's own file (None: left out)."""
    kinds = ["Transformer", "Pooling", *more]
    paths = ["", "1_Pooling", *(f"{i}_{kind}" for i, kind in enumerate(more, 2))]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
