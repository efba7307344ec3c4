"""The loaded model and its methods: texts to vectors in the order of the texts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mexma_rt.backends import Backend
from mexma_rt.bundle.manifest import Bundle
from mexma_rt.checks import check_count, check_texts
from mexma_rt.embedding import sentence_transformers as sentencetransformers
from mexma_rt.embedding.files import FileReport, write_vectors
from mexma_rt.embedding.output import embed_texts
from mexma_rt.embedding.processes import Portable, Source
from mexma_rt.embedding.prompts import Prompted, named_prompt, with_own_prompt
from mexma_rt.embedding.report import Embedded, warn_if_truncated
from mexma_rt.embedding.settings import EmbedSettings
from mexma_rt.embedding.similarity import cosines, pairwise_cosines
from mexma_rt.embedding.tokenizer import Tokenizer
from mexma_rt.embedding.tokens import TokenVectors, embed_tokens, warn_if_cut
from mexma_rt.files.storage import restore

if TYPE_CHECKING:
    from mexma_rt.embedding.service import Service


@dataclass(frozen=True, kw_only=True, repr=False)
class Encoder(Portable):
    """A loaded model, immutable, so that threads may share it. Made by `mexma_rt.load`.

    It can be sent to other processes (multiprocessing, joblib, Dask, Ray, DataLoader workers): the pickle names what it was
    loaded from, and the model is opened there on first use, with the same device, engine and precision. That raises
    BundleError if its files differ there. Each process computes with `threads`: use load(threads=1) for one per core.
    """

    bundle: Bundle
    tokenizer: Tokenizer
    backend: Backend
    max_length: int  # tokens, <s> and </s> included; longer sentences are cut
    deterministic: bool = False  # each sentence is computed alone, so that its vector depends only on its text
    source: Source | None = field(default=None, compare=False)  # what another process loads; None if not made by `load`

    @property
    def dimensions(self) -> int:
        """D of the vectors."""
        return self.bundle.dimensions

    def __repr__(self) -> str:
        if self.unopened is not None:
            return f"<Encoder {self.unopened.name}: of another process, not opened in this one yet>"
        return (
            f"<Encoder {self.bundle.name}: {self.dimensions} dimensions, max_length {self.max_length}, "
            f"{self.backend.precision} on {self.backend.device} by {self.backend.name}"
            f"{', deterministic' if self.deterministic else ''}>"
        )

    def embed(
        self,
        texts: Iterable[str],
        *,
        normalize: bool = True,
        precision: str = "float32",
        truncate_dim: int | None = None,
        batch_tokens: int | None = None,
        progress: bool | None = None,
        out: np.ndarray | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """Embed n sentences; returns [n, D] in the same order. An empty list gives [0, D].

        normalize: divide by the L2 norm (a zero vector stays zero). If the model's owner normalises, TensorRT engines always
        do, and have no raw vectors.
        precision: storage of the result (`load` sets the computation's): "float32", "float16", "int8", "uint8", "binary"
        or "ubinary", named as in sentence-transformers; int8 and uint8 use the bundle's ranges (files/storage.py).
        truncate_dim: keep the first dimensions only, normalised after the cut.
        batch_tokens: upper bound on rows x longest row in a batch; more is faster but takes more memory. None: 4,096 on the CPU
        and 16,384 on GPUs.
        progress: a bar on stderr; None shows it on a terminal if the job takes longer than a second.
        out: array or memmap [n, D] of the dtype of `precision` that receives the vectors and is returned.
        prompt: the name of one of the model's prompts (`bundle.prompts`), whose text is put before each sentence, such as
        "query" for an e5 model. MEXMA has none.

        Sentences with more than `max_length` tokens are cut, with one TruncationWarning; `embed_report` lists their indices.
        Raises InputError for unusable texts or arguments, BackendError if the engine fails.
        """
        settings = EmbedSettings(
            normalize=normalize, precision=precision, truncate_dim=truncate_dim, batch_tokens=batch_tokens, prompt=prompt
        )
        result = self.embed_with(texts, settings, progress=progress, out=out)
        warn_if_truncated(result.report, stacklevel=2)
        return result.vectors

    def embed_report(
        self,
        texts: Iterable[str],
        *,
        normalize: bool = True,
        precision: str = "float32",
        truncate_dim: int | None = None,
        batch_tokens: int | None = None,
        progress: bool | None = None,
        out: np.ndarray | None = None,
        prompt: str | None = None,
    ) -> Embedded:
        """Like `embed`, but returns the vectors with a report instead of warning."""
        settings = EmbedSettings(
            normalize=normalize, precision=precision, truncate_dim=truncate_dim, batch_tokens=batch_tokens, prompt=prompt
        )
        return self.embed_with(texts, settings, progress=progress, out=out)

    def embed_with(
        self, texts: Iterable[str], settings: EmbedSettings, *, progress: bool | None = None, out: np.ndarray | None = None
    ) -> Embedded:
        """Like `embed_report`, with the settings in one object."""
        items = settings.prompted(check_texts(texts), self.bundle.prompts)
        return embed_texts(self, items, settings, progress=progress, out=out)

    async def aembed(
        self,
        texts: Iterable[str],
        *,
        normalize: bool = True,
        precision: str = "float32",
        truncate_dim: int | None = None,
        batch_tokens: int | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """`embed` for asyncio, in a thread, in slices of 2,048 texts; returns [n, D]. The event loop stays free.

        A cancelled task ends at once, its thread after the current slice. For many small concurrent calls, see `service`.
        """
        from mexma_rt.embedding.aembed import aembed

        settings = EmbedSettings(
            normalize=normalize, precision=precision, truncate_dim=truncate_dim, batch_tokens=batch_tokens, prompt=prompt
        )
        return await aembed(self, texts, settings, stacklevel=2)

    def service(self, *, batch_texts: int = 64, queue_texts: int = 4096, queue_timeout: float | None = None) -> Service:
        """Return a queue that merges the calls of many threads and tasks into shared batches; close it, or use `with`.

            with encoder.service() as service:
                ...  # in many threads: service.embed([text]); in tasks: await service.aembed([text])

        It offers a bounded queue, fair turns and timeouts, and higher throughput if a single sentence leaves the engine idle.
        On two CPU cores it was 1.2 to 1.5 times as fast as bare calls for 64 to 192 callers, and 0.84 to 0.9 times for one to
        four (benchmarks/results/service.md).

        batch_texts: maximum texts in a shared batch: fewer for latency, more for throughput.
        queue_texts: maximum texts that may wait. Beyond that, a call waits for room for `queue_timeout` seconds (0: not at all,
        None: forever), then raises ServiceBusyError.
        """
        from mexma_rt.embedding.service import Service

        return Service(self, batch_texts=batch_texts, queue_texts=queue_texts, queue_timeout=queue_timeout)

    def embed_file(  # noqa: PLR0913  (public keywords)
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        field: str | None = None,
        normalize: bool = True,
        precision: str = "float32",
        truncate_dim: int | None = None,
        batch_tokens: int | None = None,
        shard_rows: int | None = None,
        progress: bool | None = None,
        prompt: str | None = None,
    ) -> FileReport:
        """Embed a file of any size to vectors on disk: `mexma_rt.embed_file` with this encoder."""
        settings = EmbedSettings(
            normalize=normalize, precision=precision, truncate_dim=truncate_dim, batch_tokens=batch_tokens, prompt=prompt
        )
        return write_vectors(lambda: self, source, output, settings, field=field, shard_rows=shard_rows, progress=progress)

    def embed_tokens(
        self,
        texts: Iterable[str],
        *,
        normalize: bool = True,
        batch_tokens: int | None = None,
        progress: bool | None = None,
    ) -> list[TokenVectors]:
        """Embed the tokens of n texts; returns n `TokenVectors`: vectors [t, D], character offsets [t, 2] and pieces of each.

        The vectors are the states of the model's last layer, without `<s>` and `</s>`; normalize divides each by its L2 norm.
        An empty text has no tokens. Equal texts are computed once and share their result. Besides the result, memory is needed
        for one batch. Other arguments, warnings and errors are as for `embed`; TensorRT engines have no token vectors.
        """
        cells = None if batch_tokens is None else check_count("batch_tokens", batch_tokens)
        results = embed_tokens(self, texts, normalize=normalize, batch_tokens=cells, progress=progress)
        warn_if_cut(results, self, stacklevel=2)
        return results

    def encode(self, sentences: str | Iterable[str], **options: Any) -> np.ndarray:
        """Encode as sentence-transformers would with this bundle: a str gives [D], a list gives [n, D].

        The options are batch_size, show_progress_bar, prompt, precision, normalize_embeddings and truncate_dim, as there. The
        bundle's sentence-transformers pipeline ends in a Normalize module if `bundle.normalize` is set (MEXMA's is), so its
        vectors are normalised in any case; `normalize_embeddings` matters after `truncate_dim`, where it normalises again, and
        for a model without that module, whose vectors are raw. For raw vectors of any model: embed(normalize=False).
        `prompt`, or the model's own prompt `prompt_name`, is put before each sentence. `precision` is as for `embed`: int8 and
        uint8 use the bundle's ranges.
        `batch_size` is an upper bound on sentences per batch, besides the bound on tokens. Unsupported options (tensors, token
        embeddings) raise an InputError that says what to type instead.
        """
        return sentencetransformers.encode(self, sentences, **options)

    def encode_query(self, sentences: str | Iterable[str], **options: Any) -> np.ndarray:
        """Like `encode`, with the model's prompt "query", if any, before each sentence; MEXMA has no prompts."""
        return self.encode(sentences, **with_own_prompt(options, self.bundle.prompts, "query"))

    def encode_document(self, sentences: str | Iterable[str], **options: Any) -> np.ndarray:
        """Like `encode`, with the model's prompt "document", if any, before each sentence. If the prompt has another name, type
        encode(sentences, prompt_name="passage")."""
        return self.encode(sentences, **with_own_prompt(options, self.bundle.prompts, "document"))

    def with_prompt(self, prompt: str) -> Prompted:
        """Return this encoder with one of the model's prompts (`bundle.prompts`) before every text, to pass as the `encoder` of
        mine, score_pairs, filter_bitext, calibrate and align_documents. Raises InputError for a prompt that the model lacks."""
        named_prompt(self.bundle.prompts, prompt)
        return Prompted(encoder=self, prompt=prompt)

    def get_embedding_dimension(self) -> int:
        """sentence-transformers' name for `dimensions`."""
        return self.dimensions

    get_sentence_embedding_dimension = get_embedding_dimension

    @property
    def max_seq_length(self) -> int:
        """sentence-transformers' name for `max_length`. To change it, pass max_length to `load`."""
        return self.max_length

    def similarity(self, a: np.ndarray, b: np.ndarray, *, precision: str | None = None) -> np.ndarray:
        """Return the cosines float32 [n, m] between vectors [n, d] and [m, d] of this model, each in any storage.

        A single vector [d] counts as one row. A zero vector has the cosine 0. `precision` as for `restore`.
        """
        return cosines(*(self.restore(np.atleast_2d(x), precision=precision) for x in (a, b)))

    def similarity_pairwise(self, a: np.ndarray, b: np.ndarray, *, precision: str | None = None) -> np.ndarray:
        """Return the cosines float32 [n] of row i of a with row i of b; arguments as for `similarity`."""
        return pairwise_cosines(*(self.restore(np.atleast_2d(x), precision=precision) for x in (a, b)))

    def restore(self, vectors: np.ndarray, *, precision: str | None = None) -> np.ndarray:
        """Turn stored vectors [n, d] of this model into float32 [n, d] with the same directions (binary: +1 and -1).

        precision: how the array is stored, needed only if its type and columns leave that open (int8 rows with half the
        dimensions could also be bits). Sign bits of a `truncate_dim` that is not a multiple of 8 come back with their padding.
        """
        return restore(np.asarray(vectors), self.dimensions, self.bundle.ranges, precision)
