"""Builds graphs on first use: of standard operators, for where a compact bundle's own are unsupported, and of faster ones.

A bundle may carry the *structure* of a graph (`structure/fp32.onnx`, a few kilobytes): every operator but no weights, which
stay in the compact graph (weights.py). `built_graph` writes the weights beside a copy of the structure, in the user's cache:
MEXMA_RT_CACHE, or XDG_CACHE_HOME/mexma-rt, or ~/.cache/mexma-rt. fp32 and fp16 are for GPUs and other runtimes, int8 (rows.py)
for CPUs with VNNI, where it is faster than w4.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import numpy as np

from mexma_rt.bundle.manifest import Bundle, hash_of_files
from mexma_rt.bundle.onnxfile import DTYPES, Tensor, initialisers, raw_bytes, read_tensor
from mexma_rt.bundle.rows import LOWEST_GELU, row_codes
from mexma_rt.bundle.weights import WORDS, holder, weights_of
from mexma_rt.errors import BundleError, FileError
from mexma_rt.files.atomic import sha256_of
from mexma_rt.files.folders import new_folder

STRUCTURES = {"fp32": "structure/fp32.onnx", "fp16": "structure/fp16.onnx", "int8": "structure/int8.onnx"}
GRAPH, DATA, HASH = "model.onnx", "weights.data", "weights.sha256"


def buildable(bundle: Bundle) -> tuple[str, ...]:
    """Return the precisions without a graph in the bundle that can be built from it, those for GPUs and the fastest first."""
    return tuple(p for p in ("fp16", "fp32", "int8") if p not in bundle.graphs and STRUCTURES[p] in bundle.files)


def runnable(bundle: Bundle) -> tuple[str, ...]:
    """Return the precisions whose graph is in the bundle or can be built from it."""
    return (*bundle.graphs, *buildable(bundle))


def built_graph(bundle: Bundle, precision: str) -> Path:
    """Return the path of a buildable precision's graph in the cache, building it unless it is there and undamaged.

    Raises FileError (the cache cannot be written), BundleError (structure and weights do not fit).
    """
    folder = cache_folder() / f"{bundle.name.replace('/', '-')}-{hash_of_files(bundle.files)}-{precision}"
    if _whole(folder):
        return folder / GRAPH
    try:
        with new_folder(folder, check=_must_not_be_whole) as work:
            write_built(bundle.folder / STRUCTURES[precision], bundle.folder / bundle.graphs[holder(bundle)], work)
    except FileError as error:
        if not _whole(folder):  # otherwise another process was faster
            raise FileError(
                f"{error} It is the {precision} graph of {bundle.name!r}, built once, on first use: make room, or set the "
                "environment variable MEXMA_RT_CACHE to another folder."
            ) from error
    return folder / GRAPH


def write_built(structure: Path, graph: Path, folder: Path) -> None:
    """Write `model.onnx` (a copy of the structure), its weights and their SHA-256 into an existing folder.

    Raises BundleError unless the graph has every weight of the structure in its shape.
    """
    own, held = initialisers(structure), initialisers(graph)
    wanted = {name: tensor for name, tensor in own.items() if tensor.location == DATA}
    left = set(wanted)
    with (folder / DATA).open("wb") as file:

        def put(name: str, content: bytes) -> None:
            file.seek(wanted[name].start)
            file.write(content)
            left.discard(name)

        inverse = {name: read_tensor(structure, own[name]) for name in own if name.endswith(".inverse_smoothing")}
        biases = {f"{name}.shifted": read_tensor(graph, held[name]) for name in held if f"{name}.shifted" in wanted}
        for name, tensor in wanted.items():
            if name in held and (held[name].kind, held[name].shape) == (tensor.kind, tensor.shape):
                put(name, raw_bytes(graph, held[name]))
        for name, numbers in weights_of(graph, words=any(name.startswith(WORDS) for name in left)):
            for part, array in _forms_of(name, numbers, left, inverse, biases):
                put(part, _bytes(structure, wanted[part], array))
    if left:
        raise BundleError(f"{graph} lacks weights of {structure} (first: {sorted(left)[0]}). Export the bundle again.")
    shutil.copyfile(structure, folder / GRAPH)
    (folder / HASH).write_text(sha256_of(folder / DATA) + " " + sha256_of(folder / GRAPH) + "\n", encoding="ascii")


def cache_folder() -> Path:
    """Return the folder for graphs that are built on first use."""
    named, home = os.environ.get("MEXMA_RT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    return (Path(home) if home else Path("~/.cache").expanduser()) / "mexma-rt"


def _forms_of(
    name: str,
    numbers: np.ndarray,
    wanted: Set[str],
    inverse_smoothing: Mapping[str, np.ndarray],
    biases: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (tensor of the structure, its numbers) for each wanted form of a weight [N, K]."""
    if name in wanted:
        yield name, numbers
    if f"{name}.columns" in wanted:
        yield f"{name}.columns", numbers.T
    if f"{name}.codes" in wanted:
        inverse = inverse_smoothing.get(f"{name.rpartition('.self.')[0] or name}.inverse_smoothing")
        codes, scales = row_codes(numbers, None if inverse is None else 1 / inverse)
        yield f"{name}.codes", codes.T
        yield f"{name}.scales", scales
        bias = f"{name.removesuffix('.weight')}.bias.shifted"
        if bias in wanted:
            yield bias, biases[bias] - LOWEST_GELU * (codes * scales[:, None]).sum(axis=1)


def _bytes(structure: Path, tensor: Tensor, numbers: np.ndarray) -> bytes:
    content = np.ascontiguousarray(numbers, dtype=DTYPES[tensor.kind]).tobytes()
    if numbers.shape != tensor.shape or len(content) != tensor.stop - tensor.start:
        raise BundleError(
            f"{structure} needs {tensor.name} in the shape {list(tensor.shape)}, but the compact graph has "
            f"{list(numbers.shape)}. Export the bundle again."
        )
    return content


def _must_not_be_whole(folder: Path) -> None:
    if _whole(folder):
        raise FileError(f"{folder} was made by another process.")


def _whole(folder: Path) -> bool:
    """Whether the folder's files match the hashes written with them."""
    try:
        said = (folder / HASH).read_text(encoding="ascii").split()
        return said == [sha256_of(folder / DATA), sha256_of(folder / GRAPH)]
    except (OSError, ValueError):
        return False
