"""A loaded model for mteb (version 2): `mteb.evaluate(MtebEncoder(encoder), tasks)`.

mteb requires torch and passes batches of texts; of the two, this file imports only mteb's class for a model's description.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from mexma_rt.embedding.settings import EmbedSettings
from mexma_rt.embedding.similarity import pairwise_cosines
from mexma_rt.errors import InputError, require_extra

if TYPE_CHECKING:
    from mexma_rt.embedding.encoder import Encoder


class MtebEncoder:
    """mteb's EncoderProtocol for an Encoder. Results are filed under `name` ("organisation/model") and `revision`."""

    def __init__(self, encoder: Encoder, *, name: str | None = None, revision: str | None = None) -> None:
        """Raises MissingExtraError without mteb."""
        require_extra("bench", "mteb")
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        self.encoder = encoder
        bundle = encoder.bundle
        graph = bundle.graphs.get(encoder.backend.precision, bundle.graphs[bundle.default_precision])
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name or f"mexma-rt/{bundle.name}",
                # Without a revision, the hash identifies the bytes.
                "revision": revision or bundle.files[graph].sha256[:16],
                "embed_dim": encoder.dimensions,
                "max_tokens": encoder.max_length,
                "framework": ["ONNX"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": False,
            }
        )

    def encode(  # noqa: PLR0913  (mteb's interface)
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = False,
        normalize: bool = True,
        precision: str = "float32",
        truncate_dim: int | None = None,
        **unused: Any,
    ) -> np.ndarray:
        """mteb's batches ({"text": [...]}) -> vectors [n, D]; the settings are those of `Encoder.embed`.

        All texts are packed together regardless of mteb's batches, so `batch_size` has no effect. Other keywords that mteb
        passes to every model are ignored. Texts that are too long are truncated without a warning.
        """
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                raise InputError(
                    f"Task {getattr(task_metadata, 'name', '?')} has {', '.join(batch)}, and this model reads text."
                )
            texts += batch["text"]
        settings = EmbedSettings(normalize=normalize, precision=precision, truncate_dim=truncate_dim)
        return self.encoder.embed_with(texts, settings, progress=show_progress_bar).vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Cosines [n, m] between vectors [n, D] and [m, D], numpy or torch."""
        return self.encoder.similarity(np.asarray(embeddings1), np.asarray(embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Cosines [n] of the pairs of vectors [n, D] and [n, D]."""
        rows = [self.encoder.restore(np.atleast_2d(np.asarray(vectors))) for vectors in (embeddings1, embeddings2)]
        return pairwise_cosines(*rows)
