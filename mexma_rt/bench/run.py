"""Compares the speed of routes from texts to vectors: rounds are interleaved, and ratios are taken within a round.

A machine's speed drifts, so the median of ratios within rounds is more reliable than a single figure.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mexma_rt.backends import BATCH_TOKENS
from mexma_rt.bundle.manifest import TOKENIZER, Bundle
from mexma_rt.bundle.opening import open_bundle
from mexma_rt.embedding.packing import pack
from mexma_rt.embedding.tokenizer import Tokenizer
from mexma_rt.errors import InputError

GEMM_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class Route:
    """A way from texts to vectors: the command of a process that speaks the protocol of worker.py."""

    name: str
    command: tuple[str, ...]
    comparable: bool = True  # has the same weights, so its cosine to the first route is meaningful


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one route did with one file of texts."""

    texts: str
    route: str
    seconds: tuple[float, ...]  # of each round
    sentences_per_second: float  # median
    tokens_per_second: float
    ratio: float  # median over rounds of the first route's seconds to this one's
    ratio_range: tuple[float, float]
    lowest_cosine: float | None  # to the first route in fp32
    mean_cosine: float | None
    peak_mb: float | None
    gemm_share: float | None  # of the machine's measured sgemm: matrix products of real tokens, without attention
    single_ms: tuple[float, float] | None  # p50 and p99 of one text at a time, first file only


def our_routes(bundle: Bundle, model: str, device: str = "cpu") -> list[Route]:
    """Return this runtime in each precision of a bundle: on the CPU all but fp16, which it would compute in fp32; on cuda fp32
    and fp16."""
    command = (sys.executable, "-m", "mexma_rt.bench.worker", model)
    names = [name for name in bundle.graphs if (name in ("fp32", "fp16") if device.startswith("cuda") else name != "fp16")]
    return [Route(name=f"mexma embed, {name}", command=(*command, name, device)) for name in names]


def measure(
    routes: Sequence[Route],
    files: Sequence[Path],
    *,
    model: str,
    rounds: int,
    singles: int = 100,
    base: str | None = None,
    tell: Callable[[str], object] = lambda _: None,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[list[Row], dict[str, Any]]:
    """Return rows for every file and route, and facts: the files' padding and tokens, the GEMM peak, routes that did not start.

    `base` names the route that ratios refer to (by default the first). Each route warms up on every file before it is timed.
    `around` returns the context in which all timed rounds of a file run: on a shared machine, one that keeps it quiet.
    """
    bundle = open_bundle(model)
    tokenizer = Tokenizer(bundle.folder / TOKENIZER, bundle.special_ids)
    lengths = {file: tokenizer.encode(read_lines(file), bundle.max_length).lengths for file in files}
    facts: dict[str, Any] = {"failed": {}, "files": {}}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        workers: dict[str, _Worker] = {}
        for route in routes:
            tell(f"load {route.name}")
            try:
                workers[route.name] = stack.enter_context(_Worker(route))
            except InputError as error:
                facts["failed"][route.name] = str(error)
        if not workers:
            raise InputError(f"No route started: {facts['failed']}")
        base = base if base in workers else next(iter(workers))
        rows: list[Row] = []
        for number, file in enumerate(files):
            taken = _take(file, workers, rounds, singles if number == 0 else 0, f"{folder}/v.npy", tell, around)
            facts["files"][file.stem] = _describe(lengths[file], taken)
            rows += _rows(file, lengths[file], [route for route in routes if route.name in workers], base, taken, bundle)
        facts["base"], facts["start"] = base, cold_start(model)
        facts["notes"] = {name: worker.notes for name, worker in workers.items()}
    return rows, facts


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """The workers' answers for one file, by route, and the sgemm rates measured in between."""

    vectors: dict[str, np.ndarray]
    peaks: dict[str, float | None]
    seconds: dict[str, list[float]]
    singles: dict[str, tuple[float, float]]
    flops: float


def _take(
    file: Path,
    workers: Mapping[str, _Worker],
    rounds: int,
    singles: int,
    scratch: str,
    tell: Callable[[str], object],
    around: Callable[[], AbstractContextManager[object]],
) -> _Taken:
    """Warm up on the file, then run rounds in which every route takes a turn, then one text at a time."""
    vectors, peaks = {}, {}
    for name, worker in workers.items():
        tell(f"{file.stem}: warm up {name}")
        peaks[name] = worker.ask(texts=str(file), vectors=scratch)["peak_mb"]
        vectors[name] = np.load(scratch)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    flops, alone = [], {}
    with around():
        for number in range(rounds):
            tell(f"{file.stem}: round {number + 1} of {rounds}")
            flops.append(gemm_flops())
            for name, worker in workers.items():
                seconds[name].append(worker.ask(texts=str(file))["seconds"])
        if singles:
            tell(f"{file.stem}: one text at a time")
            for name, worker in workers.items():
                alone[name] = _percentiles(worker.ask(texts=str(file), singles=singles)["seconds"])
    return _Taken(vectors=vectors, peaks=peaks, seconds=seconds, singles=alone, flops=statistics.median(flops))


def _describe(lengths: np.ndarray, taken: _Taken) -> dict[str, Any]:
    batches = pack(lengths, BATCH_TOKENS)
    cells = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    tokens = int(lengths.sum())
    return {"sentences": len(lengths), "tokens": tokens, "padding": cells / tokens, "gemm_gflops": taken.flops / 1e9}


def _rows(file: Path, lengths: np.ndarray, routes: Sequence[Route], base: str, taken: _Taken, bundle: Bundle) -> Iterator[Row]:
    reference = taken.vectors[next((route.name for route in routes if "fp32" in route.name), base)]
    work = flops_per_token(bundle)
    for route in routes:
        seconds = taken.seconds[route.name]
        cosines = _cosines(taken.vectors[route.name], reference) if route.comparable else None
        ratios = [a / b for a, b in zip(taken.seconds[base], seconds, strict=True)]
        rate = int(lengths.sum()) / statistics.median(seconds)
        yield Row(
            texts=file.stem,
            route=route.name,
            seconds=tuple(seconds),
            sentences_per_second=len(lengths) / statistics.median(seconds),
            tokens_per_second=rate,
            ratio=statistics.median(ratios),
            ratio_range=(min(ratios), max(ratios)),
            lowest_cosine=None if cosines is None else float(cosines.min()),
            mean_cosine=None if cosines is None else float(cosines.mean()),
            peak_mb=taken.peaks[route.name],
            gemm_share=rate * work / taken.flops if route.comparable and work else None,
            single_ms=taken.singles.get(route.name),
        )


def read_lines(file: Path) -> list[str]:
    """The lines of a file, as the routes read them."""
    return file.read_text(encoding="utf-8").rstrip("\n").split("\n")


def gemm_flops() -> float:
    """Measure numpy's float32 matrix product in operations per second: the best of three."""
    a = np.ones((GEMM_SIZE, GEMM_SIZE), np.float32)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * GEMM_SIZE**3 / best


def cold_start(model: str, times: int = 3) -> dict[str, float]:
    """Measure median seconds in new processes: `import mexma_rt`, and from its start to a model's first vector."""
    code = (
        "import time; a = time.perf_counter(); import mexma_rt; b = time.perf_counter(); import sys; "
        "mexma_rt.load(sys.argv[1], device='cpu').embed(['Hello world']); print(b - a, time.perf_counter() - a)"
    )
    seconds = [subprocess.check_output([sys.executable, "-c", code, model], text=True).split() for _ in range(times)]
    imported, first = np.median(np.array(seconds, dtype=float), axis=0)
    return {"import": float(imported), "first vector": float(first)}


def flops_per_token(bundle: Bundle) -> int | None:
    """Return the full model's matrix product operations per token (without attention), from the bundle's config.json."""
    try:
        config = json.loads((bundle.folder / "config.json").read_bytes())
        width, inner, layers = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    except (OSError, ValueError, KeyError):
        return None
    return int(layers * 2 * (4 * width**2 + 2 * width * inner))


def as_table(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Format the rows as Markdown tables, one per file."""
    lines = []
    for name, file in facts["files"].items():
        lines += [
            f"**{name}**: {file['sentences']:,} texts, {file['tokens'] / file['sentences']:.1f} tokens each, our padding "
            f"{file['padding']:.3f}; sgemm here {file['gemm_gflops']:.0f} GFLOP/s",
            "",
            "| route | sentences/s | tokens/s | ratio (min-max of rounds) | cosine to fp32: lowest, mean | share of sgemm | "
            "peak MB | one text: p50, p99 ms |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in (row for row in rows if row.texts == name):
            cosine = "" if row.lowest_cosine is None else f"{row.lowest_cosine:.5f}, {row.mean_cosine:.5f}"
            share = "" if row.gemm_share is None else f"{row.gemm_share:.0%}"
            single = "" if row.single_ms is None else f"{row.single_ms[0]:.1f}, {row.single_ms[1]:.1f}"
            lines.append(
                f"| {row.route} | {row.sentences_per_second:,.0f} | {row.tokens_per_second:,.0f} | {row.ratio:.2f} "
                f"({row.ratio_range[0]:.2f}-{row.ratio_range[1]:.2f}) | {cosine} | {share} | {row.peak_mb or 0:,.0f} | "
                f"{single} |"
            )
        lines.append("")
    start = facts["start"]
    lines.append(
        f"New process: import {start['import']:.2f} s, first vector after {start['first vector']:.2f} s (medians of 3).\n"
    )
    lines += [f"- {name} did not run: {why}" for name, why in facts["failed"].items()]
    return "\n".join(lines).rstrip()


def as_data(rows: Sequence[Row], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The rows and the facts, for JSON."""
    return {**facts, "rows": [asdict(row) for row in rows]}


def _cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    found: np.ndarray = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return found


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return float(p50), float(p99)


class _Worker:
    """A route's process. Raises InputError, with the last line that it wrote, if it ends."""

    def __init__(self, route: Route) -> None:
        self._route = route

    def __enter__(self) -> _Worker:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            self._route.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8"
        )
        try:
            self.notes = self._answer()
        except InputError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._errors.close()

    def ask(self, **job: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().rpartition("\n")[2]
            raise InputError(f"{self._route.name} ended with status {self._process.returncode}: {last[:300]}")
        answer: dict[str, Any] = json.loads(line)
        return answer
