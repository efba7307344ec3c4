"""Reads the tensors of an ONNX file without an ONNX library.

The wire format is protocol buffers (protobuf.dev/programming-guides/encoding) with the fields of onnx.proto3. Reads only what
`mexma-export` writes: initialisers of the main graph, as raw bytes, in the file itself or in one beside it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mexma_rt.errors import BundleError

FLOAT, UINT8, INT8, HALF, INT4 = 1, 2, 3, 10, 22  # TensorProto.DataType
DTYPES: dict[int, np.dtype] = {FLOAT: np.dtype("<f4"), UINT8: np.dtype("u1"), INT8: np.dtype("i1"), HALF: np.dtype("<f2")}


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An initialiser: its bytes are file[start:stop], or another file's if `location` names one ("" otherwise)."""

    name: str
    shape: tuple[int, ...]
    kind: int  # TensorProto.DataType
    location: str
    start: int
    stop: int


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """Map a file into memory and yield its bytes. Raises BundleError if it is empty."""
    if path.stat().st_size == 0:
        raise BundleError(f"{path} is empty, so it is not an ONNX file. Export the bundle again with mexma-export.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        view = memoryview(content)
        try:
            yield view
        finally:
            view.release()


def initialisers(path: Path) -> dict[str, Tensor]:
    """Return the main graph's tensors by name. Raises BundleError if the file is not an ONNX file."""
    with mapped(path) as view:
        try:
            graphs = [(a, b) for number, _, a, b in fields(view, 0, len(view)) if number == 7]
            found = [
                _tensor(view, a, b) for start, stop in graphs for number, _, a, b in fields(view, start, stop) if number == 5
            ]
        except (IndexError, ValueError) as error:
            raise BundleError(f"{path} is not an ONNX file ({error}). Export the bundle again with mexma-export.") from None
    return {tensor.name: tensor for tensor in found}


def read_tensor(path: Path, tensor: Tensor) -> np.ndarray:
    """Read the numbers of an initialiser of the file `path`; INT4 as int8 from -8 to 7. Raises BundleError."""
    raw = raw_bytes(path, tensor)
    count = int(np.prod(tensor.shape, dtype=np.int64))
    try:
        if tensor.kind == INT4:  # two per byte, both signed, the first in the lower half
            pairs = np.frombuffer(raw, np.uint8, (count + 1) // 2)
            nibbles = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1)[:count].astype(np.int8)
            return ((nibbles ^ 8) - 8).reshape(tensor.shape)
        return np.frombuffer(raw, DTYPES[tensor.kind], count).reshape(tensor.shape)
    except (KeyError, ValueError) as error:
        raise BundleError(
            f"{path}: the tensor {tensor.name} of type {tensor.kind} and shape {list(tensor.shape)} cannot be read from "
            f"{len(raw)} bytes ({type(error).__name__}). Export the bundle again with mexma-export."
        ) from None


def raw_bytes(path: Path, tensor: Tensor) -> bytes:
    """Read the bytes of an initialiser of the file `path`."""
    source = path.parent / tensor.location if tensor.location else path
    with source.open("rb") as file:
        file.seek(tensor.start)
        return file.read(tensor.stop - tensor.start)


def fields(view: memoryview, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, value, start, stop) of each field; a length-delimited field has the value -1.

    Raises ValueError or IndexError for bytes that are not a message.
    """
    while start < stop:
        key, start = _varint(view, start)
        wire, value, begin = key & 7, 0, start
        if wire == 0:
            value, start = _varint(view, start)
        elif wire in (1, 5):
            start += 8 if wire == 1 else 4
        elif wire == 2:
            length, begin = _varint(view, start)
            value, start = -1, begin + length
            if start > stop:
                raise ValueError("a field is longer than its message")
        else:
            raise ValueError(f"a field has the wire type {wire}")
        yield key >> 3, value, begin, start
    if start != stop:
        raise ValueError("a field is longer than its message")


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


def _packed(view: memoryview, start: int, stop: int) -> list[int]:
    numbers = []
    while start < stop:
        number, start = _varint(view, start)
        numbers.append(number)
    return numbers


def _tensor(view: memoryview, start: int, stop: int) -> Tensor:
    name, kind, begin, end = "", 0, 0, 0
    shape: list[int] = []
    entries: dict[str, str] = {}
    for number, value, a, b in fields(view, start, stop):
        if number == 1:  # dims, packed or one by one
            shape += _packed(view, a, b) if value == -1 else [value]
        elif number == 2:
            kind = value
        elif number == 8:
            name = bytes(view[a:b]).decode()
        elif number == 9:
            begin, end = a, b
        elif number == 13:
            parts = {n: bytes(view[c:d]).decode() for n, _, c, d in fields(view, a, b)}
            entries[parts.get(1, "")] = parts.get(2, "")
    location = entries.get("location", "")
    if location:
        begin = int(entries.get("offset", "0"))
        end = begin + int(entries.get("length", "0"))
    return Tensor(name=name, shape=tuple(shape), kind=kind, location=location, start=begin, stop=end)
