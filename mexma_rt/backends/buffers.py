"""The memory that one batch needs to go through an engine: page-locked on the host, and on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mexma_rt.backends.cuda import Cuda
from mexma_rt.backends.sidecar import Profile, Sidecar, TensorInfo


@dataclass(frozen=True, kw_only=True, eq=False)
class Buffers:
    """What one batch occupies from packing to vectors, sized for the largest profile.

    Addresses never change, as CUDA graphs require.
    """

    dimensions: int
    ids: np.ndarray  # page-locked int64 [cells]
    mask: np.ndarray
    vectors: np.ndarray  # page-locked float32 [rows * dimensions]
    addresses: Mapping[str, int]  # of each input and output on the device
    done: Any  # the event recorded after the vectors' download
    graphs: dict[int, Any]  # index of a profile -> its CUDA graph on these buffers

    def views(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return input_ids and attention_mask of `shape`, and vectors [rows, dimensions]."""
        rows, cells = shape[0], shape[0] * shape[1]
        vectors = self.vectors[: rows * self.dimensions].reshape(rows, self.dimensions)
        return self.ids[:cells].reshape(shape), self.mask[:cells].reshape(shape), vectors


def new_buffers(cuda: Cuda, sidecar: Sidecar, dimensions: int) -> Buffers:
    """Allocate buffers for the engine that a sidecar describes. Raises BackendError if memory is short."""
    cells = max(profile.batch * profile.length for profile in sidecar.profiles)
    rows = max(profile.batch for profile in sidecar.profiles)
    tensors = (*sidecar.inputs, *sidecar.outputs)
    return Buffers(
        dimensions=dimensions,
        ids=cuda.pinned(cells, np.int64),
        mask=cuda.pinned(cells, np.int64),
        vectors=cuda.pinned(rows * dimensions, np.float32),
        addresses={tensor.name: cuda.memory(_largest_bytes(tensor, sidecar.profiles)) for tensor in tensors},
        done=cuda.event(),
        graphs={},
    )


def _largest_bytes(tensor: TensorInfo, profiles: Sequence[Profile]) -> int:
    """Return the bytes of a tensor [-1, ...] or [-1, -1, ...] (rows, tokens, ...) in the profile where it is largest."""
    free = [(profile.batch, profile.length) for profile in profiles]
    shapes = [[size if size >= 0 else largest[axis] for axis, size in enumerate(tensor.shape)] for largest in free]
    return max(math.prod(shape) for shape in shapes) * np.dtype(tensor.dtype).itemsize
