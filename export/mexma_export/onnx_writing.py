"""Writes the ONNX file that the onnx library would write, but with weights taken directly from numpy arrays.

onnx holds weights as bytes of its own and copies them again for writing: a table of 384 MB took 1.3 GB of memory on top of the
model itself. The wire format is that of protocol buffers (protobuf.dev/programming-guides/encoding): a message is its fields in
order of their numbers, and a field that holds bytes or a message is a key, a length and the content.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # field numbers in ModelProto, GraphProto and TensorProto (onnx.proto3)
ONE_FILE_BYTES = 1_800_000_000  # protobuf cannot hold more than 2 GiB
SMALL = 1024  # bytes: smaller arrays always stay in the first file


def write_model(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a model to `path`; `arrays` has the data of its initialisers by name, and the others hold their own.

    If the arrays exceed 1.8 GB, they go to `<name>.data` beside it, and `model` is changed to refer to that file.
    """
    if sum(array.nbytes for array in arrays.values()) > ONE_FILE_BYTES:
        arrays = _move_out(model, arrays, path.with_name(f"{path.name}.data"))
    heads = [(tensor.SerializeToString(), arrays.get(tensor.name)) for tensor in model.graph.initializer]
    sizes = [len(head) + (0 if array is None else len(_key(RAW_DATA, array.nbytes)) + array.nbytes) for head, array in heads]
    (before, after), (first, last) = _around(model, GRAPH), _around(model.graph, INITIALIZER)
    length = len(first) + sum(len(_key(INITIALIZER, size)) + size for size in sizes) + len(last)
    with path.open("wb") as file:
        file.write(before + _key(GRAPH, length) + first)
        for (head, array), size in zip(heads, sizes, strict=True):
            file.write(_key(INITIALIZER, size) + head)
            if array is not None:
                file.write(_key(RAW_DATA, array.nbytes))
                _write(file, array)
        file.write(last + after)


def _move_out(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Write large arrays to a second file and their offsets into the model; returns the small arrays."""
    with path.open("wb") as file:
        for tensor in model.graph.initializer:
            array = arrays.get(tensor.name)
            if array is None or array.nbytes < SMALL:
                continue
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": path.name, "offset": file.tell(), "length": array.nbytes}.items():
                tensor.external_data.add(key=key, value=str(value))
            _write(file, array)
    return {name: array for name, array in arrays.items() if array.nbytes < SMALL}


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """Serialise the fields of a message before and after the one with this number."""
    parts = []
    for behind in (False, True):
        part = type(message)()
        part.CopyFrom(message)
        for field, _ in part.ListFields():
            if field.number == number or (field.number > number) is not behind:
                part.ClearField(field.name)
        parts.append(part.SerializeToString())
    return parts[0], parts[1]


def _key(number: int, length: int) -> bytes:
    """Encode the key and length of a field that holds bytes."""
    out, value = bytearray([number << 3 | 2]), length
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _write(file: BinaryIO, array: np.ndarray) -> None:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    file.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
