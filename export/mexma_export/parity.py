"""The parity gate: checks that an exported graph computes the same vectors as its source checkpoint on real sentences.

Shapes: n sentences, B rows per batch, L tokens, D dimensions. All cosines are computed in float64 over raw sentence vectors.
The plain cosine looks too good if a model's vectors are nearly parallel, so the centred cosine, after subtracting the set's
mean source vector, is measured too. verdict.py says what a graph must reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import numpy as np

from mexma_export.reopen import LateGraph, Runner
from mexma_export.sentences import Sentence
from mexma_export.verdict import THRESHOLDS, Parity, ParityError, Thresholds, failures_of
from mexma_rt.bundle.graphs import XLMR, SpecialIds
from mexma_rt.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 16  # rows, sorted by length: padded as in use
PROBES = 32  # sentences that are also run alone and with extra padding
PER_BUCKET = 3  # inputs per exact length


def check_parity(
    graphs: Mapping[str, Runner],
    reference: Runner,
    tokenizer: Tokenizer,
    sentences: Sequence[Sentence],
    *,
    max_length: int,
    length_limit: int,
    special: SpecialIds = XLMR,
    plain: bool = True,
    thresholds: Mapping[str, Thresholds] = THRESHOLDS,
    out: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Parity]:
    """Compare every graph (precision -> runner) with the reference: {precision: Parity}.

    A graph that fails does not raise an error; see `Parity.failures`. `plain`: the sentence vector is the state of `<s>`, which
    must then agree among the token states, too. Sentences are cut at `max_length` tokens; buckets go up to `length_limit`.
    `out` [n, D] receives the reference's raw sentence vectors. `progress(done, total)` counts batches.

    Raises InputError without sentences, ParityError for a graph whose shapes are not the checkpoint's.
    """
    if not sentences:
        raise InputError("The parity gate needs at least one sentence; sentences=None uses the 562 shipped ones.")
    encoded = [e.ids for e in tokenizer.encode_batch([sentence.text for sentence in sentences])]
    ids = [row if len(row) <= max_length else [*row[: max_length - 1], special.eos] for row in encoded]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    long_inputs = _bucket_inputs(ids, max_length, length_limit, special)
    probes = order[:: max(1, len(order) // PROBES)]
    inputs = [*(pad_rows([ids[i] for i in rows], special.pad) for rows in batches), *long_inputs.values()]
    wanted, results = np.empty((0, 0)), dict[str, Parity]()
    steps = iter(range(1, len(inputs) * (1 + len(graphs)) + 1))

    def advance() -> None:
        if progress:
            progress(next(steps), len(inputs) * (1 + len(graphs)))

    # One graph after another, so that only one is in memory; the reference's token states are kept in a file.
    with TemporaryFile() as states:
        shapes, long_vectors = list[tuple[int, ...]](), dict[int, np.ndarray]()
        for step, batch in enumerate(inputs):
            vectors, tokens = _run(reference, batch, special.pad)
            if step < len(batches):
                wanted = wanted if step else np.empty((len(ids), vectors.shape[1]))
                wanted[batches[step]] = vectors
                shapes.append(tokens.shape)
                states.write(np.ascontiguousarray(tokens, np.float32).tobytes())
            else:
                long_vectors[batch.shape[1]] = vectors
            advance()
        if isinstance(reference, LateGraph):
            reference.close()
        if out is not None:
            out[:] = wanted
        for name, graph in graphs.items():
            run = _Run(graph, len(ids), special.pad)
            states.seek(0)
            for rows, batch, shape in zip(batches, inputs, shapes, strict=False):
                tokens = np.frombuffer(states.read(4 * math.prod(shape)), np.float32).reshape(shape)
                run.add(name, rows, batch, wanted[rows], tokens)
                advance()
            for length, batch in long_inputs.items():
                run.buckets[length] = float(_cosine(_run(graph, batch, special.pad)[0], long_vectors[length]).min())
                advance()
            results[name] = run.judge(name, wanted, sentences, [ids[i] for i in probes], probes, thresholds[name], plain)
            if isinstance(graph, LateGraph):
                graph.close()
    return results


class _Run:
    """The results of one graph, collected batch by batch."""

    def __init__(self, graph: Runner, n: int, pad: int) -> None:
        self.graph, self.pad = graph, pad
        self.vectors: list[np.ndarray | None] = [None] * n
        self.first_states: list[np.ndarray] = []
        self.min_token_cosine = np.inf
        self.buckets: dict[int, float] = {}

    def add(self, name: str, rows: Sequence[int], batch: np.ndarray, wanted: np.ndarray, reference_tokens: np.ndarray) -> None:
        vectors, tokens = _run(self.graph, batch, self.pad)
        if tokens.shape != reference_tokens.shape or vectors.shape != wanted.shape:
            raise ParityError(
                f"The {name} graph returns shapes {vectors.shape} and {tokens.shape}, the checkpoint "
                f"{wanted.shape} and {reference_tokens.shape}: this is not an export of that model."
            )
        real = batch != self.pad
        self.min_token_cosine = np.minimum(self.min_token_cosine, _cosine(tokens[real], reference_tokens[real]).min())
        self.first_states.append(_cosine(tokens[:, 0], reference_tokens[:, 0]))
        for row, vector in zip(rows, vectors, strict=True):
            self.vectors[row] = vector

    def _alone(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        return _run(self.graph, pad_rows(rows, self.pad), self.pad)

    def judge(
        self,
        name: str,
        wanted: np.ndarray,
        sentences: Sequence[Sentence],
        probe_ids: list[list[int]],
        probes: Sequence[int],
        limits: Thresholds,
        plain: bool,
    ) -> Parity:
        got = np.stack(self.vectors).astype(np.float64)  # type: ignore[arg-type]
        cosine, mean = _cosine(got, wanted), wanted.mean(axis=0)
        first = np.concatenate(self.first_states)
        centred = _cosine(got - mean, wanted - mean)
        alone = np.concatenate([self._alone([row])[0] for row in probe_ids])
        padded = np.concatenate([self._alone([row, [self.pad] * (len(row) + 9)])[0][:1] for row in probe_ids])
        empty = self._alone([probe_ids[-1], []])
        worst = int(np.argmin(np.nan_to_num(cosine, nan=-1.0)))
        by_language: dict[str, float] = {}
        for sentence, value in zip(sentences, cosine, strict=True):
            by_language[sentence.lang] = min(float(value), by_language.get(sentence.lang, 1.0))
        parity = Parity(
            precision=name,
            sentences=len(sentences),
            languages=len(by_language),
            min_cosine=float(cosine.min()),
            mean_cosine=float(cosine.mean()),
            max_abs_error=float(np.abs(got - wanted).max()),
            min_centred_cosine=float(centred.min()),
            mean_centred_cosine=float(centred.mean()),
            min_token_cosine=float(self.min_token_cosine),
            first_state_min_cosine=float(first.min()),
            first_state_mean_cosine=float(first.mean()),
            batch_min_cosine=float(_cosine(alone, got[list(probes)]).min()),
            padding_min_cosine=float(_cosine(padded, alone).min()),
            padded_row_finite=bool(np.isfinite(empty[0]).all() and np.isfinite(empty[1]).all()),
            buckets=self.buckets,
            by_language=dict(sorted(by_language.items())),
            worst={"lang": sentences[worst].lang, "text": sentences[worst].text, "cosine": float(cosine[worst])},
            thresholds=limits,
        )
        return replace(parity, failures=failures_of(parity, plain=plain))


def _bucket_inputs(ids: Sequence[Sequence[int]], max_length: int, limit: int, special: SpecialIds) -> dict[int, np.ndarray]:
    """Return {length: ids [3, length]}: sentences joined and cut to exactly that length, each row from another place."""
    stream = [token for row in ids for token in row[1:-1]] or [special.eos]
    starts = [len(stream) * k // PER_BUCKET for k in range(PER_BUCKET)]
    stream *= 1 + -(-limit // len(stream))  # long enough for a cut of `limit` from every start
    lengths = {2, max_length, limit} | {2**k for k in range(3, 20) if 2**k <= limit}
    return {
        n: np.array([[special.bos, *stream[s : s + n - 2], special.eos] for s in starts], dtype=np.int64)
        for n in sorted(lengths)
    }


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> np.ndarray:
    """Pad rows of ids on the right: int64 [B, L]."""
    batch = np.full((len(rows), max(len(row) for row in rows)), pad, dtype=np.int64)
    for i, row in enumerate(rows):
        batch[i, : len(row)] = row
    return batch


def _run(runner: Runner, batch: np.ndarray, pad: int) -> tuple[np.ndarray, np.ndarray]:
    return runner(batch, (batch != pad).astype(np.int64))


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine along the last axis, in float64; NaN where a vector is zero or not finite."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.asarray((a * b).sum(axis=-1) / np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1)))
