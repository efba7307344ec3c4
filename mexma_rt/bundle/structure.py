"""Builds graphs of standard operators on first use, so that a compact bundle also runs where its own operators are unsupported.

A bundle may carry the *structure* of an fp32 or fp16 graph (`structure/fp32.onnx`, a few kilobytes): every operator but no
weights, which stay in the compact graph (weights.py). `built_graph` writes the weights beside a copy of the structure, in
the user's cache: MEXMA_RT_CACHE, or XDG_CACHE_HOME/mexma-rt, or ~/.cache/mexma-rt.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from mexma_rt.bundle.manifest import Bundle, hash_of_files
from mexma_rt.bundle.onnxfile import DTYPES, Tensor, initialisers
from mexma_rt.bundle.weights import holder, weights_of
from mexma_rt.errors import BundleError, FileError
from mexma_rt.files.atomic import sha256_of
from mexma_rt.files.folders import new_folder

STRUCTURES = {"fp32": "structure/fp32.onnx", "fp16": "structure/fp16.onnx"}
GRAPH, DATA, HASH = "model.onnx", "weights.data", "weights.sha256"


def buildable(bundle: Bundle) -> tuple[str, ...]:
    """Return the precisions without a graph in the bundle that can be built from it, the fastest on a GPU first."""
    return tuple(p for p in ("fp16", "fp32") if p not in bundle.graphs and STRUCTURES[p] in bundle.files)


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
    wanted = {name: tensor for name, tensor in initialisers(structure).items() if tensor.location == DATA}
    left = set(wanted)
    with (folder / DATA).open("wb") as file:
        for name, numbers in weights_of(graph):
            if name in wanted:
                file.seek(wanted[name].start)
                file.write(_bytes(structure, wanted[name], numbers))
                left.discard(name)
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
