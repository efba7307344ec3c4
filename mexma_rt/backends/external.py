"""Finds the files that an ONNX file refers to, without an ONNX library, so that a graph reads only verified bytes.

A tensor may keep its bytes in another file, named in the graph. onnxruntime looks for it beside the graph; recent versions
refuse a path that leads out of that folder, and none knows which files the manifest has hashes of. The walk follows the wire
format of protocol buffers (protobuf.dev/programming-guides/encoding) along the fields of onnx.proto3 that can hold a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mexma_rt.bundle.manifest import Bundle
from mexma_rt.bundle.onnxfile import fields, mapped
from mexma_rt.errors import BundleError

_CHILDREN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def check_external_files(bundle: Bundle, graph: str) -> None:
    """Raise BundleError unless every file that a graph of the bundle refers to is one that the manifest lists."""
    path = bundle.folder / graph
    for location in sorted(external_files(path)):
        beside = (PurePosixPath(graph).parent / location).as_posix()
        if ".." in PurePosixPath(location).parts or beside not in bundle.files:
            raise BundleError(
                f"{path} keeps weights in {location!r}, which the manifest does not list: they could be anything, so the graph "
                "is not opened. Get the bundle from a source that you trust, or export it again with mexma-export."
            )


def external_files(path: Path) -> set[str]:
    """The locations that the tensors of an ONNX file name, as written there. Raises BundleError for another kind of file."""
    with mapped(path) as view:
        try:
            return set(_locations(view, "model", 0, len(view)))
        except (IndexError, ValueError, RecursionError) as error:
            raise BundleError(f"{path} is no ONNX file ({error}). Export the bundle again with mexma-export.") from None


def _locations(view: memoryview, kind: str, start: int, stop: int) -> Iterator[str]:
    if kind == "entry":
        texts = {number: bytes(view[a:b]).decode() for number, _, a, b in fields(view, start, stop)}
        if texts.get(1) == "location":
            yield texts.get(2, "")
        return
    children = _CHILDREN[kind]
    for number, value, a, b in fields(view, start, stop):
        if number in children and value == -1:
            yield from _locations(view, children[number], a, b)
