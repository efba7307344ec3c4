"""The parity gate: does an exported graph give the vectors of its source checkpoint, on real sentences?

Shapes: n sentences, B rows of a batch, L tokens, D dimensions. All cosines are taken in float64 over raw sentence vectors.
Plain cosine flatters when a model's vectors are nearly parallel; the centred cosine, after subtracting the mean source
vector of the set, is therefore reported beside it (information, not gated).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mexma_export.reopen import Runner
from mexma_rt.bundle.golden import LEAST_COSINE
from mexma_rt.bundle.graphs import XLMR, SpecialIds
from mexma_rt.errors import InputError, MexmaError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 16  # rows; sorted by length, so that padding is as in use
PROBES = 32  # sentences that are run alone and with extra padding
PER_BUCKET = 3  # inputs of each exact length


class ParityError(MexmaError):
    """An exported graph does not give the vectors of its checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    lang: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a graph must reach. `min_cosine` holds for every sentence, every length bucket and every way of batching."""

    min_cosine: float
    mean_cosine: float
    min_token_cosine: float | None = None  # over all token states; None: reported only


# The lowest cosine is the one that the runtime holds an engine to (`mexma doctor`).
LEAST = {precision: Thresholds(min_cosine=least, mean_cosine=least) for precision, least in LEAST_COSINE.items()}
THRESHOLDS: dict[str, Thresholds] = {
    # fp32 differs by the order of additions only: 1 - cosine about 1e-12 measured. fused is fp32 by other operators
    **{precision: replace(LEAST[precision], min_token_cosine=0.99999) for precision in ("fp32", "fused")},
    # fp16 has 11 bits: 1 - cosine was at most 3.1e-6 for a trained model (62 languages, lengths to 512, torch and onnxruntime)
    "fp16": replace(LEAST["fp16"], min_token_cosine=0.9999),
    "int8": replace(LEAST["int8"], mean_cosine=0.999),
    "w8": replace(LEAST["w8"], mean_cosine=0.999),
    "w4": replace(LEAST["w4"], mean_cosine=0.999),
    "mixed": replace(LEAST["mixed"], mean_cosine=0.9995),  # between the two; it has only the embeddings' rounding
}


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Agreement of one graph with the checkpoint. Bucket keys are lengths in tokens, `<s>` and `</s>` included."""

    precision: str
    sentences: int
    languages: int
    min_cosine: float
    mean_cosine: float
    max_abs_error: float
    min_centred_cosine: float
    mean_centred_cosine: float
    min_token_cosine: float
    first_state_min_cosine: float  # <s> among the token states: other numbers where a graph computes the two apart
    first_state_mean_cosine: float
    batch_min_cosine: float  # the graph against itself: a sentence alone, and inside a batch
    padding_min_cosine: float  # the graph against itself: a sentence alone, and with padding behind it
    padded_row_finite: bool  # a row without any real token gives finite numbers
    buckets: dict[int, float]  # exact length -> lowest cosine
    by_language: dict[str, float]  # language -> lowest cosine
    worst: dict[str, Any]  # lang, text, cosine
    thresholds: Thresholds
    failures: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return not self.failures

    def summary(self) -> dict[str, Any]:
        """The entry of the manifest."""
        keys = ["sentences", "languages", "min_cosine", "mean_cosine", "max_abs_error"]
        return {key: getattr(self, key) for key in keys} | {"passed": self.passed}

    def full(self) -> dict[str, Any]:
        """The entry of parity.json; None for what is no number, such as the centred cosine of one sentence alone."""
        entry: dict[str, Any] = _without_nan(asdict(self))
        return entry | {"passed": self.passed}


def load_sentences(path: Path | None = None) -> list[Sentence]:
    """Read `lang<TAB>text` lines (UTF-8; # starts a comment line); None: the 562 shipped sentences in 57 languages.

    The shipped ones are articles of the Universal Declaration of Human Rights, in the public domain.
    """
    source = path or Path(__file__).with_name("parity_sentences.tsv")
    sentences = []
    for number, raw in enumerate(source.read_bytes().splitlines(), start=1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{source}, line {number}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
        lang, tab, text = line.partition("\t")
        if line.startswith("#") or not line.strip():
            continue
        if not (lang and tab and text.strip()):
            raise InputError(f"{source}, line {number}: not 'language<TAB>text': {line.strip()[:80]!r}")
        sentences.append(Sentence(lang=lang, text=text))
    if not sentences:
        raise InputError(f"{source}: no sentences. The gate needs lines of 'language<TAB>text'.")
    return sentences


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
    """Compare every graph (precision -> runner) with the reference; failing is data here (`Parity.failures`).

    `plain`: the sentence vector is the state of `<s>`, which must then agree among the token states too; of any other pooling
    that state is one of many. Sentences are cut at `max_length` tokens; buckets go up to `length_limit`. `out` [n, D] receives
    the reference's raw sentence vectors. `progress(done, total)` counts batches.
    """
    if not sentences:
        raise InputError("The parity gate needs at least one sentence; sentences=None takes the 562 shipped ones.")
    encoded = [e.ids for e in tokenizer.encode_batch([sentence.text for sentence in sentences])]
    ids = [row if len(row) <= max_length else [*row[: max_length - 1], special.eos] for row in encoded]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    long_inputs = _bucket_inputs(ids, max_length, length_limit, special)
    probes = order[:: max(1, len(order) // PROBES)]
    total = len(batches) + len(long_inputs) + len(graphs)

    runs = {name: _Run(graph, len(ids), special.pad) for name, graph in graphs.items()}
    wanted = np.empty((0, 0))
    for step, rows in enumerate(batches):
        batch = _pad([ids[i] for i in rows], special.pad)
        vectors, tokens = _run(reference, batch, special.pad)
        wanted = wanted if step else np.empty((len(ids), vectors.shape[1]))
        wanted[rows] = vectors
        for name, run in runs.items():
            run.add(name, rows, batch, vectors, tokens)
        if out is not None:
            out[rows] = vectors
        if progress:
            progress(step + 1, total)
    for step, (length, batch) in enumerate(long_inputs.items(), start=len(batches)):
        vectors, _ = _run(reference, batch, special.pad)
        for run in runs.values():
            run.buckets[length] = float(_cosine(_run(run.graph, batch, special.pad)[0], vectors).min())
        if progress:
            progress(step + 1, total)
    results = {}
    for step, (name, run) in enumerate(runs.items(), start=total - len(graphs)):
        results[name] = run.judge(name, wanted, sentences, [ids[i] for i in probes], probes, thresholds[name], plain)
        if progress:
            progress(step + 1, total)
    return results


def require_passed(results: Mapping[str, Parity]) -> None:
    """Raise ParityError for the first graph that failed: figure, threshold, worst sentence, and what to try."""
    for precision, parity in results.items():
        if parity.passed:
            continue
        worst = parity.worst
        others = [name for name in results if name != precision and results[name].passed and name in LEAST_COSINE]
        if precision == "int8" and "mixed" not in results:
            others.append("mixed")  # int8 embeddings and fp32 products: what int8 products disturb may pass there
        remedy = (
            f"--precision {','.join(others)} writes the bundle without this graph"
            if others
            else "the exporter and this model do not fit: please report it with the model's config.json"
        )
        raise ParityError(
            f"The {precision} graph does not give the checkpoint's vectors, so no bundle was written: "
            f"{'; '.join(parity.failures)}. Worst sentence: {worst['lang']} {worst['text'][:80]!r} at cosine "
            f"{worst['cosine']:.6f}. What to try: {remedy}."
        )


class _Run:
    """What one graph gave, collected batch by batch."""

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
                f"The {name} graph gives shapes {vectors.shape} and {tokens.shape}, the checkpoint "
                f"{wanted.shape} and {reference_tokens.shape}: this is not an export of that model."
            )
        real = batch != self.pad
        self.min_token_cosine = np.minimum(self.min_token_cosine, _cosine(tokens[real], reference_tokens[real]).min())
        self.first_states.append(_cosine(tokens[:, 0], reference_tokens[:, 0]))
        for row, vector in zip(rows, vectors, strict=True):
            self.vectors[row] = vector

    def _alone(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        return _run(self.graph, _pad(rows, self.pad), self.pad)

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
        figures: dict[str, Any] = {
            "min_cosine": float(cosine.min()),
            "mean_cosine": float(cosine.mean()),
            "min_token_cosine": float(self.min_token_cosine),
            "first_state_min_cosine": float(first.min()),
            "first_state_mean_cosine": float(first.mean()),
            "batch_min_cosine": float(_cosine(alone, got[list(probes)]).min()),
            "padding_min_cosine": float(_cosine(padded, alone).min()),
            "padded_row_finite": bool(np.isfinite(empty[0]).all() and np.isfinite(empty[1]).all()),
            "buckets": self.buckets,
        }
        return Parity(
            precision=name,
            sentences=len(sentences),
            languages=len(by_language),
            max_abs_error=float(np.abs(got - wanted).max()),
            min_centred_cosine=float(centred.min()),
            mean_centred_cosine=float(centred.mean()),
            by_language=dict(sorted(by_language.items())),
            worst=asdict(sentences[worst]) | {"cosine": float(cosine[worst])},
            thresholds=limits,
            failures=_failures(figures, limits, plain),
            **figures,
        )


def _failures(figures: Mapping[str, Any], limits: Thresholds, plain: bool) -> tuple[str, ...]:
    """Each figure below its threshold as a phrase; NaN is below every threshold."""
    checks = [
        ("lowest cosine", figures["min_cosine"], limits.min_cosine),
        ("mean cosine", figures["mean_cosine"], limits.mean_cosine),
        ("lowest cosine of a sentence alone against itself in a batch", figures["batch_min_cosine"], limits.min_cosine),
        ("lowest cosine with padding against without", figures["padding_min_cosine"], limits.min_cosine),
    ]
    if plain:
        checks += [
            ("lowest cosine of <s> among the token states", figures["first_state_min_cosine"], limits.min_cosine),
            ("mean cosine of <s> among the token states", figures["first_state_mean_cosine"], limits.mean_cosine),
        ]
    if limits.min_token_cosine is not None:
        checks.append(("lowest cosine of a token state", figures["min_token_cosine"], limits.min_token_cosine))
    checks += [(f"lowest cosine at {n} tokens", value, limits.min_cosine) for n, value in figures["buckets"].items()]
    phrases = [f"{what} {value:.6f}, threshold {limit}" for what, value, limit in checks if not value >= limit]
    if not figures["padded_row_finite"]:
        phrases.append("a fully padded row gives NaN or infinite numbers")
    return tuple(phrases)


def _bucket_inputs(ids: Sequence[Sequence[int]], max_length: int, limit: int, special: SpecialIds) -> dict[int, np.ndarray]:
    """Length -> ids [3, length]: sentences joined and cut to exactly that length, each row from another place of the set."""
    stream = [token for row in ids for token in row[1:-1]] or [special.eos]
    starts = [len(stream) * k // PER_BUCKET for k in range(PER_BUCKET)]
    stream *= 1 + -(-limit // len(stream))  # long enough for a cut of `limit` from every start
    lengths = {2, max_length, limit} | {2**k for k in range(3, 20) if 2**k <= limit}
    return {
        n: np.array([[special.bos, *stream[s : s + n - 2], special.eos] for s in starts], dtype=np.int64)
        for n in sorted(lengths)
    }


def _without_nan(value: Any) -> Any:
    """Numbers and dictionaries of them, with None for NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _pad(rows: Sequence[Sequence[int]], pad: int) -> np.ndarray:
    """Rows of ids -> int64 [B, L], padded on the right."""
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
        return (a * b).sum(axis=-1) / np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
