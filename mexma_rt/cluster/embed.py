"""Embeds slabs of a file with the actors of a Ray Data pipeline: read here, computed anywhere, written here in order.

The slabs, and so the batches and the bytes, are the same as on one machine. Reading is one task on the driver's machine, so
only that machine needs the input; the model must have the same name on every machine (bundled, a shared folder, or the hub).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mexma_rt.backends import ENGINES
from mexma_rt.bundle.manifest import FileEntry
from mexma_rt.cluster import explained, session, worker_threads
from mexma_rt.embedding.encoder import Encoder
from mexma_rt.embedding.files import FileReport, Slab, write_vectors
from mexma_rt.embedding.reading import Reading
from mexma_rt.embedding.report import Embedded, EmbedReport
from mexma_rt.embedding.settings import EmbedSettings
from mexma_rt.errors import BackendError

Row = dict[str, np.ndarray]  # a row of Ray Data


@dataclass(frozen=True, kw_only=True)
class Model:
    """What every worker must have, and what the job depends on."""

    files: Mapping[str, FileEntry]
    prompts: Mapping[str, str]
    report: EmbedReport  # for no texts: device, back end and precision

    @classmethod
    def of(cls, encoder: Encoder) -> Model:
        """Describe this process's encoder."""
        return cls(
            files=dict(encoder.bundle.files),
            prompts=dict(encoder.bundle.prompts),
            report=encoder.embed_report([]).report,
        )

    @property
    def ran(self) -> list[str]:
        """What runs, which must be the same everywhere."""
        report = self.report
        return [report.model, str(report.max_length), report.backend, report.device, report.precision]


@dataclass(frozen=True, kw_only=True)
class ClusterEncoder:
    """The parts of an encoder that `write_vectors` needs, for a model that the cluster's workers load."""

    ray: Any
    options: dict[str, Any]  # of mexma_rt.load, back end, device and precision as one worker's `auto` chose them
    dimensions: int
    bundle: Model
    workers: int

    @classmethod
    def of(cls, ray: Any, options: dict[str, Any]) -> ClusterEncoder:
        """Load the model in one worker, to find out what runs."""
        threads = worker_threads(ray, options.get("threads"))
        options = {**options, "threads": threads}
        with explained(ray):
            model, dimensions = ray.get(ray.remote(_facts).options(**_resources(options)).remote(options))
        report = model.report
        chosen = {"device": report.device, "backend": report.backend, "precision": report.precision}
        return cls(
            ray=ray,
            options={**options, **chosen},
            dimensions=dimensions,
            bundle=model,
            workers=max(1, int(ray.cluster_resources()["CPU"]) // threads),
        )

    def embed_with(self, texts: list[str], settings: EmbedSettings, *, progress: bool | None = None) -> Embedded:
        """Called without texts only: rejects unusable settings."""
        assert not texts
        with explained(self.ray):
            task = self.ray.remote(_empty).options(**_resources(self.options))
            report = self.ray.get(task.remote(self.options, settings))
        return Embedded(vectors=np.empty((0, self.dimensions), np.float32), report=report)

    def embed_slabs(self, rest: Reading, settings: EmbedSettings) -> Iterator[Slab]:
        """Yield every slab that is not done, in file order, with the seconds that its worker took."""
        import ray.data

        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        rest = replace(rest, source=str(Path(rest.source).absolute()))  # tasks have their own current folder
        with _context(ray.data), explained(ray):
            slabs = ray.data.from_items([{"reading": 0}]).map_batches(
                _read,  # type: ignore[arg-type]
                batch_size=None,
                fn_args=(rest,),
                num_cpus=0.01,
                label_selector=here,
            )
            done = slabs.map_batches(
                _worker(options=self.options, settings=settings, expected=self.bundle),
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


def _read(batch: Row, rest: Reading) -> Iterator[Row]:
    for row, slab in rest:
        yield {"row": np.array([row]), "texts": np.array([json.dumps(slab, ensure_ascii=False)], object)}


def _worker(*, options: dict[str, Any], settings: EmbedSettings, expected: Model) -> type:
    """Bind the actor's arguments: Ray would put them into the object store, which may be gone after a restart."""

    class Worker(_Worker):
        def __init__(self) -> None:
            super().__init__(options, settings, expected)

    return Worker


def _load(options: dict[str, Any]) -> Encoder:
    from mexma_rt.embedding.loading import load

    return load(**options)


def _facts(options: dict[str, Any]) -> tuple[Model, int]:
    encoder = _load(options)
    return Model.of(encoder), encoder.dimensions


def _empty(options: dict[str, Any], settings: EmbedSettings) -> EmbedReport:
    return _load(options).embed_with([], settings).report


class _Worker:
    """An actor: the model, loaded once."""

    def __init__(self, options: dict[str, Any], settings: EmbedSettings, expected: Model) -> None:
        self.encoder, self.settings = _load(options), settings
        here = Model.of(self.encoder)
        if (here.files, here.prompts, here.ran) != (expected.files, expected.prompts, expected.ran):
            what = f"{here.ran} here, {expected.ran} on the first one"
            if here.ran == expected.ran:
                what = f"the {'prompts' if here.files == expected.files else 'files'} of {here.report.model!r} differ"
            raise BackendError(
                "The machines of the cluster do not run the same model in the same way, and mixed vectors would be worthless: "
                f"{what}. Install the same mexma-rt and the same model everywhere."
            )

    def __call__(self, batch: Row) -> Row:
        started = time.perf_counter()
        result = self.encoder.embed_with(json.loads(batch["texts"][0]), self.settings, progress=False)
        vectors = np.ascontiguousarray(result.vectors)
        return {
            "row": batch["row"],
            "rows": np.array([len(vectors)]),
            "dtype": np.array([vectors.dtype.str], object),
            "vectors": np.array([vectors.tobytes()], object),
            "report": np.array([json.dumps(asdict(result.report))], object),
            "seconds": np.array([time.perf_counter() - started]),
        }


def write_vectors_on(
    address: str,
    options: dict[str, Any],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: EmbedSettings,
    *,
    field: str | None = None,
    shard_rows: int | None = None,
    progress: bool | None = None,
    announce: Callable[[str], object] | None = None,
) -> FileReport:
    """Run `mexma_rt.embed_file` on the Ray cluster at `address` (see `session`). If this process is killed, the same call
    resumes, with or without a cluster.

    options: for `mexma_rt.load` in the workers. `threads` (4) is the number of processors per worker; with `device` "cuda" each
    gets a GPU. The other arguments are those of `write_vectors`. The bytes are the same as on one machine with the same kind of
    processor and as many threads.
    """
    with session(address) as ray:
        return write_vectors(
            lambda: ClusterEncoder.of(ray, options),
            source,
            output,
            settings,
            field=field,
            shard_rows=shard_rows,
            progress=progress,
            announce=announce,
            over=ClusterEncoder.embed_slabs,
        )
