"""Finds the files that an ONNX file refers to, without an ONNX library, so that a graph reads only verified bytes.

A tensor may keep its bytes in another file, named in the graph. onnxruntime looks for it beside the graph; recent versions
refuse a path that leaves that folder, but none knows which files the manifest has hashes for. The walk follows the wire
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
    """Raise BundleError unless the manifest lists every file that a graph of the bundle refers to."""
    path = bundle.folder / graph
    for location in sorted(external_files(path)):
        beside = (PurePosixPath(graph).parent / location).as_posix()
        if ".." in PurePosixPath(location).parts or beside not in bundle.files:
            raise BundleError(
                f"{path} keeps weights in {location!r}, which the manifest does not list. It could hold anything, so the graph "
                "is not opened. Get the bundle from a source that you trust, or export it again with mexma-export."
            )


def external_files(path: Path) -> set[str]:
    """Return the locations named by the tensors of an ONNX file, verbatim. Raises BundleError if it is not an ONNX file."""
    with mapped(path) as view:
        try:
            return set(_locations(view, "model", 0, len(view)))
        except (IndexError, ValueError, RecursionError) as error:
            raise BundleError(f"{path} is not an ONNX file ({error}). Export the bundle again with mexma-export.") from None


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
