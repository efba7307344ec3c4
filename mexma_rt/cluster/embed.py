"""Embeds slabs of a file with the actors of a Ray Data pipeline: read here, computed anywhere, written here in order.

The slabs, and so the batches and the bytes, are those of one machine. Reading is one task on the driver's machine, so that only
it needs the input; the model must be found under the same name on every machine (bundled, a shared folder, or the hub).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mexma_rt.backends import ENGINES
from mexma_rt.cluster import explained, session, worker_threads
from mexma_rt.embedding import files as embed_file
from mexma_rt.embedding.report import Embedded, EmbedReport
from mexma_rt.errors import BackendError


@dataclass(frozen=True, kw_only=True)
class ClusterEncoder:
    """What `embed_file` needs of an encoder, for one that the workers of a cluster load."""

    ray: Any
    options: dict[str, Any]  # of mexma_rt.load, back end, device and precision as one worker's `auto` chose them
    dimensions: int
    bundle: Any
    empty: EmbedReport
    workers: int

    @classmethod
    def of(cls, ray: Any, options: dict[str, Any]) -> ClusterEncoder:
        """Load the model in one worker, to find out what runs."""
        threads = worker_threads(ray, options.get("threads"))
        options = {**options, "threads": threads}
        with explained(ray):
            facts = ray.get(ray.remote(_facts).options(**_resources(options)).remote(options))
        report: EmbedReport = facts["empty"]
        chosen = {"device": report.device, "backend": report.backend, "precision": report.precision}
        return cls(
            ray=ray,
            options={**options, **chosen},
            dimensions=facts["dimensions"],
            bundle=SimpleNamespace(files=facts["files"], prompts=facts["prompts"]),
            empty=report,
            workers=max(1, int(ray.cluster_resources()["CPU"]) // threads),
        )

    def embed_report(self, texts: list[str], **keywords: Any) -> Embedded:
        """Called without texts only: rejects unusable arguments."""
        assert not texts
        with explained(self.ray):
            report = self.ray.get(self.ray.remote(_empty).options(**_resources(self.options)).remote(self.options, keywords))
        return Embedded(vectors=np.empty((0, self.dimensions), np.float32), report=report)

    def embed_slabs(self, reading: embed_file.Reading, keywords: dict[str, Any]) -> Iterator[tuple[int, Embedded, float]]:
        """(first row, vectors and report, seconds of the worker) of every slab that is not done, in the order of the file."""
        import ray.data

        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        reading = replace(reading, source=str(Path(reading.source).absolute()))  # tasks have a current folder of their own
        files = {path: entry.sha256 for path, entry in self.bundle.files.items()}
        worker = {"options": self.options, "keywords": keywords, "expected": (asdict(self.empty), files, self.bundle.prompts)}
        with _context(ray.data), explained(ray):
            slabs = ray.data.from_items([{"reading": 0}]).map_batches(
                _read,  # type: ignore[arg-type]
                batch_size=None,
                fn_args=(reading,),
                num_cpus=0.01,
                label_selector=here,
            )
            done = slabs.map_batches(
                _worker(**worker),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=self.workers),
                **_resources(self.options),
            )
            for row in done.iter_rows():
                report = EmbedReport(**json.loads(row["report"]))
                vectors = np.frombuffer(row["vectors"], row["dtype"]).reshape(row["rows"], -1)
                yield int(row["row"]), Embedded(vectors=vectors, report=report), float(row["seconds"])


def _resources(options: dict[str, Any]) -> dict[str, Any]:
    """Resources of a worker: its threads, and a GPU if one was requested by device or by an engine that needs one."""
    on_gpu = str(options.get("device")).startswith("cuda") or options.get("backend") in ENGINES
    return {"num_cpus": options["threads"], "num_gpus": 1 if on_gpu else 0}


def _context(data: Any) -> Any:
    """Configure Ray Data: no bars, file order, and one block per slab, so that workers share them evenly."""
    context = data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.issue_detectors_config.detectors = []  # they advise on settings of Ray Data
    context.target_max_block_size = 1
    return data.DataContext.current(context)


def _read(batch: dict[str, Any], reading: embed_file.Reading) -> Iterator[dict[str, Any]]:
    for row, slab in reading:
        yield {"row": np.array([row]), "texts": np.array([json.dumps(slab, ensure_ascii=False)], object)}


def _worker(**arguments: Any) -> type:
    """The actor with its arguments bound: Ray would put them into the object store, which may be gone at a restart."""

    class Worker(_Worker):
        def __init__(self) -> None:
            super().__init__(**arguments)

    return Worker


def _load(options: dict[str, Any]) -> Any:
    from mexma_rt.embedding.encoder import load

    return load(**options)


def _facts(options: dict[str, Any]) -> dict[str, Any]:
    encoder = _load(options)
    bundle = encoder.bundle
    facts = {"dimensions": encoder.dimensions, "files": dict(bundle.files), "prompts": dict(bundle.prompts)}
    return facts | {"empty": encoder.embed_report([]).report}


def _empty(options: dict[str, Any], keywords: dict[str, Any]) -> EmbedReport:
    return _load(options).embed_report([], **keywords).report


class _Worker:
    """An actor: the model, loaded once."""

    def __init__(
        self,
        options: dict[str, Any],
        keywords: dict[str, Any],
        expected: tuple[dict[str, Any], dict[str, str], dict[str, str]],
    ) -> None:
        self.encoder, self.keywords = _load(options), keywords
        report = asdict(self.encoder.embed_report([]).report)
        files = {path: entry.sha256 for path, entry in self.encoder.bundle.files.items()}
        names = ("model", "max_length", "backend", "device", "precision")
        same_files = (files, dict(self.encoder.bundle.prompts)) == expected[1:]
        if not same_files or any(report[name] != expected[0][name] for name in names):
            raise BackendError(
                "The machines of the cluster do not run the same model in the same way, and mixed vectors would be worthless: "
                f"{[report[name] for name in names]} here, {[expected[0][name] for name in names]} on the first one. "
                "Install the same mexma-rt and the same model everywhere."
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        result = self.encoder.embed_report(json.loads(batch["texts"][0]), progress=False, **self.keywords)
        vectors = np.ascontiguousarray(result.vectors)
        return {
            "row": batch["row"],
            "rows": np.array([len(vectors)]),
            "dtype": np.array([vectors.dtype.str], object),
            "vectors": np.array([vectors.tobytes()], object),
            "report": np.array([json.dumps(asdict(result.report))], object),
            "seconds": np.array([time.perf_counter() - started]),
        }


def embed_file_on(
    address: str, options: dict[str, Any], source: str | os.PathLike[str], output: str | os.PathLike[str], **settings: Any
) -> embed_file.FileReport:
    """`mexma_rt.embed_file` on the Ray cluster at `address` (see `session`): the same bytes, and after a kill of this process
    the same call resumes, with or without a cluster.

    options: of `mexma_rt.load`, for the workers. `threads` (4) is the number of processors of each; a `device` "cuda" takes a
    GPU for each. settings: of `embed_file`. The bytes are those of one machine of the same kind of processor with as many
    threads.
    """
    with session(address) as ray:
        return embed_file.embed_file(
            lambda: ClusterEncoder.of(ray, options),  # type: ignore[arg-type, return-value]
            source,
            output,
            over=ClusterEncoder.embed_slabs,
            **settings,
        )
