"""Which other files an ONNX file refers to, read without an ONNX library, so that a graph reaches no byte that is not verified.

A tensor may keep its bytes in another file, named in the graph. onnxruntime looks for it beside the graph; recent versions
refuse a path that leads out of that folder, and none knows which files the manifest has hashes of. The walk follows the wire
format of protocol buffers (protobuf.dev/programming-guides/encoding) along the fields of onnx.proto3 that can hold a tensor.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mexma_rt.bundle.manifest import Bundle
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
    """The locations that the tensors of an ONNX file name, as they are written there. Raises BundleError if it is none."""
    if path.stat().st_size == 0:
        raise BundleError(f"{path} is empty: it is no ONNX file. Export the bundle again with mexma-export.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        view = memoryview(content)
        try:
            return set(_locations(view, "model", 0, len(view)))
        except (IndexError, ValueError, RecursionError) as error:
            raise BundleError(f"{path} is no ONNX file ({error}). Export the bundle again with mexma-export.") from None
        finally:
            view.release()


def _locations(view: memoryview, kind: str, start: int, stop: int) -> Iterator[str]:
    if kind == "entry":
        texts = {number: bytes(view[a:b]).decode() for number, a, b in _messages(view, start, stop)}
        if texts.get(1) == "location":
            yield texts.get(2, "")
        return
    children = _CHILDREN[kind]
    for number, a, b in _messages(view, start, stop):
        if number in children:
            yield from _locations(view, children[number], a, b)


def _messages(view: memoryview, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, stop) of the fields with a length; the others are numbers, and skipped."""
    while start < stop:
        key, start = _varint(view, start)
        wire = key & 7
        if wire == 0:
            _, start = _varint(view, start)
        elif wire in (1, 5):
            start += 8 if wire == 1 else 4
        elif wire == 2:
            length, start = _varint(view, start)
            if start + length > stop:
                raise ValueError("a field is longer than what holds it")
            yield key >> 3, start, start + length
            start += length
        else:
            raise ValueError(f"a field has the wire type {wire}")
    if start != stop:
        raise ValueError("a field is longer than what holds it")


def _varint(view: memoryview, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
