"""The interface of sentence-transformers (5 and 6): its names and arguments, with numpy results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from mexma_rt.checks import check_count, check_texts
from mexma_rt.embedding.output import embed_texts
from mexma_rt.embedding.prompts import named_prompt
from mexma_rt.embedding.report import warn_if_truncated
from mexma_rt.embedding.settings import EmbedSettings, check_truncate_dim
from mexma_rt.errors import InputError

if TYPE_CHECKING:
    from mexma_rt.embedding.encoder import Encoder


def encode(  # noqa: PLR0913  (the interface of sentence-transformers)
    encoder: Encoder,
    sentences: str | Iterable[str],
    *,
    batch_size: int | None = None,
    show_progress_bar: bool | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    output_value: str = "sentence_embedding",
    precision: str = "float32",
    convert_to_numpy: bool = True,
    convert_to_tensor: bool = False,
    normalize_embeddings: bool = False,
    truncate_dim: int | None = None,
) -> np.ndarray:
    """See `Encoder.encode`."""
    if convert_to_tensor or not convert_to_numpy:
        raise InputError("encode() returns numpy arrays. For a tensor, type torch.from_numpy(encoder.encode(...)).")
    if output_value != "sentence_embedding":
        raise InputError(
            f"output_value={output_value!r} is not supported: encode() returns 'sentence_embedding' only. For token vectors, "
            "type encoder.embed_tokens(sentences)."
        )
    if prompt is None:  # as there, a text takes precedence over a name
        prompt = named_prompt(encoder.bundle.prompts, prompt_name)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    check_truncate_dim(truncate_dim, encoder.dimensions)
    single = isinstance(sentences, str)
    texts = check_texts([sentences] if isinstance(sentences, str) else sentences, "sentences")
    again = normalize_embeddings or precision not in ("float32", "float16")  # the other storages keep directions only
    settings = EmbedSettings(
        normalize=again or encoder.bundle.normalize, precision=precision, truncate_dim=truncate_dim if again else None
    )
    texts = [prompt + text for text in texts] if prompt else texts
    result = embed_texts(encoder, texts, settings, max_rows=batch_size, progress=show_progress_bar)
    warn_if_truncated(result.report, stacklevel=3)
    vectors = result.vectors if again else np.ascontiguousarray(result.vectors[:, :truncate_dim])
    return vectors[0] if single else vectors
