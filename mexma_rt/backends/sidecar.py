"""The JSON beside an engine (`rtx.engine` -> `rtx.engine.json`): what it was built from, with, and for.

An engine runs only with the library version that built it and on the GPU architectures (SM) it was built for; elsewhere it
fails late, with unhelpful errors. So the sidecar is read and checked before the engine is deserialised.
Needs neither TensorRT nor a GPU.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mexma_rt.bundle.manifest import Bundle
from mexma_rt.bundle.structure import STRUCTURES, buildable
from mexma_rt.bundle.weights import holder
from mexma_rt.errors import BackendError, BundleError, FileError
from mexma_rt.files.atomic import sha256_of

FORMAT = "mexma-engine"
FORMAT_VERSION = 2  # engines of version 1 also returned all token states, and raw vectors


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """An input or output: numpy's name for the type, and the shape with -1 for free dimensions."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The shapes of one optimisation profile: 1 to `batch` rows of 2 to `length` tokens, fastest at exactly batch x length."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Description of an engine file."""

    library: str  # the Python module: "tensorrt" or "tensorrt_rtx"
    version: str  # of the library, in full
    sm: tuple[int, ...]  # compute capabilities: 89 is 8.9
    precision: str  # of the matrix products
    matmuls: int  # matrix products counted ...
    half_matmuls: int  # ... those in fp16 ...
    counted_in: str  # ... in the built "engine", or in the strongly typed "network" that it was built from
    profiles: tuple[Profile, ...]  # in the engine's order
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    normalized: bool  # whether its sentence vectors have length 1
    graph_sha256: str  # of the ONNX graph, see graph_hash and manifest_graph_hash
    engine_sha256: str
    engine_bytes: int
    build_seconds: float
    built: str  # date and time, UTC, ISO 8601


def engine_path(bundle: Path, engine: str) -> Path:
    """Return the path of a bundle's engine for "tensorrt" or "rtx"."""
    return bundle / "engines" / f"{engine}.engine"


def sidecar_path(engine: Path) -> Path:
    """Return the path of an engine's sidecar: its name with .json appended."""
    return engine.with_name(engine.name + ".json")


def graph_hash(graph: Path) -> str:
    """Return an ONNX graph's SHA-256; if its weights are in `<name>.data`, the SHA-256 of "graph's hash data's hash"."""
    data = graph.with_name(graph.name + ".data")
    return _joined(sha256_of(graph), sha256_of(data) if data.is_file() else None)


def manifest_graph_hash(bundle: Bundle, precision: str) -> str:
    """Return `graph_hash` of a bundle's graph from its manifest, whose hashes `open_bundle` has compared with the files.

    For a graph that is built from a structure: the SHA-256 of "structure's hash hash of the graph with its weights".
    """
    if precision in buildable(bundle):
        return _joined(bundle.files[STRUCTURES[precision]].sha256, manifest_graph_hash(bundle, holder(bundle)))
    graph = bundle.graphs[precision]
    data = bundle.files.get(f"{graph}.data")
    return _joined(bundle.files[graph].sha256, data.sha256 if data else None)


def _joined(graph: str, data: str | None) -> str:
    return graph if data is None else hashlib.sha256(f"{graph} {data}".encode()).hexdigest()


def read_sidecar(engine: Path) -> Sidecar:
    """Read the sidecar of an engine file; the engine itself is not opened.

    Raises FileError (no engine, no sidecar) and BundleError (not a sidecar, of a newer format, or incomplete).
    """
    path = sidecar_path(engine)
    if not engine.is_file():
        raise FileError(f"{engine}: no such engine. {_rebuild()}")
    if not path.is_file():
        raise FileError(
            f"{engine} has no {path.name} beside it, so its library, GPU and graph are unknown, and it is "
            f"not loaded. Copy both files. {_rebuild()}"
        )
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise BundleError(
            f"{path}: not valid JSON ({error}). Copy it again together with {engine.name}. {_rebuild()}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleError(f"{path}: not the description of an engine (its format is not {FORMAT!r}). {_rebuild()}")
    if content.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {content.get('format_version')!r}, but this mexma-rt reads {FORMAT_VERSION}. {_rebuild()}"
        )
    try:
        return _from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{path}: {what}. The file was changed or truncated. {_rebuild()}") from error


def check_sidecar(
    sidecar: Sidecar, engine: Path, *, library: str, version: str, sm: int, graph_sha256: str | None = None
) -> None:
    """Raise unless `engine` may be deserialised here: by this library and version, on a GPU of this SM, for this graph.

    `graph_sha256` is the hash of the bundle's fp16 graph (None: the graph is not here, so it is not compared). Raises
    BackendError (library, version, SM: the engine is intact, but not for this machine) and BundleError (another graph, damaged
    or replaced bytes). The bytes are checked last, because that is slow.
    """
    if sidecar.library != library:
        raise BackendError(f"{engine} is an engine of {sidecar.library}, but was given to {library}. {_rebuild(library)}")
    if sidecar.version != version:
        raise BackendError(
            f"{engine} was built by {library} {sidecar.version}, but {version} is installed: an engine works with one "
            f"version only. {_rebuild(library)}\nor install the old one: pip install '{_package(library)}=={sidecar.version}'"
        )
    if sm not in sidecar.sm:
        raise BackendError(
            f"{engine} was built for SM {', '.join(map(str, sidecar.sm))}, but this GPU has SM {sm}. {_rebuild(library, sm)}"
        )
    if graph_sha256 is not None and sidecar.graph_sha256 != graph_sha256:
        raise BundleError(
            f"{engine} was built from the graph with SHA-256 {sidecar.graph_sha256}, but the graph here has {graph_sha256}: "
            f"it holds another model's weights. {_rebuild(library)}"
        )
    size = engine.stat().st_size
    if size != sidecar.engine_bytes:
        raise BundleError(
            f"{engine} has {size} bytes, but {sidecar_path(engine).name} says {sidecar.engine_bytes}: it is truncated, or from "
            f"another build. Copy both files again. {_rebuild(library)}"
        )
    if (found := sha256_of(engine)) != sidecar.engine_sha256:
        raise BundleError(
            f"{engine} has SHA-256 {found}, but {sidecar_path(engine).name} says {sidecar.engine_sha256}: it is damaged, or "
            f"from another build. Copy both files again. {_rebuild(library)}"
        )


def _rebuild(library: str | None = None, sm: int | None = None) -> str:
    name = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}.get(library or "", "tensorrt|rtx")
    target = f" --sm {sm}" if sm is not None and name == "rtx" else ""
    return f"Build it again: mexma-export engine BUNDLE {name}{target}"


def _package(library: str) -> str:
    return library.replace("_", "-") + "-cu13"


def _from_json(content: dict[str, Any]) -> Sidecar:
    """Parse a sidecar, checking every value's type. Raises KeyError, or ValueError with the wrong value."""

    def get(key: str, *types: type, where: dict[str, Any] = content) -> Any:
        value = where[key]
        if not isinstance(value, types) or isinstance(value, bool) != (types == (bool,)):
            raise ValueError(f"{key} is {value!r}")
        return value

    def rows(key: str, make: Callable[[dict[str, Any]], Any]) -> tuple[Any, ...]:
        if not (value := get(key, list)) or not all(isinstance(row, dict) for row in value):
            raise ValueError(f"{key} is {value!r}")
        return tuple(make(row) for row in value)

    def numbers(key: str, where: dict[str, Any] = content) -> tuple[int, ...]:
        if not (value := get(key, list, where=where)) or not all(type(number) is int for number in value):
            raise ValueError(f"{key} is {value!r}")
        return tuple(value)

    def tensor(row: dict[str, Any]) -> TensorInfo:
        return TensorInfo(name=get("name", str, where=row), dtype=get("dtype", str, where=row), shape=numbers("shape", row))

    def profile(row: dict[str, Any]) -> Profile:
        return Profile(batch=get("batch", int, where=row), length=get("length", int, where=row))

    texts: Sequence[str] = ["library", "version", "precision", "counted_in", "graph_sha256", "engine_sha256", "built"]
    counts: Sequence[str] = ["matmuls", "half_matmuls", "engine_bytes"]
    return Sidecar(
        **{key: get(key, str) for key in texts},
        **{key: get(key, int) for key in counts},
        sm=numbers("sm"),
        profiles=rows("profiles", profile),
        inputs=rows("inputs", tensor),
        outputs=rows("outputs", tensor),
        normalized=get("normalized", bool),
        build_seconds=float(get("build_seconds", int, float)),
    )
