"""Splits a batch into executions of an engine: an optimisation profile for each range of rows, and the shape to pad to.

This part of the TensorRT back end uses numpy only, so it can be tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from mexma_rt.backends.sidecar import Profile
from mexma_rt.errors import BackendError

SHORTEST = 2  # an empty text is <s> </s>; engines are built for 2 or more tokens
# Tensor cores prefer fp16 matrices in multiples of 8 (NVIDIA, Deep Learning Performance Guide). An encoder's have rows x tokens
# rows, so a length is padded only as far as that product needs; always padding the length would turn 30 tokens into 32.
ALIGN = 8
# A profile with at most this many tokens always runs at its full shape, as a CUDA graph: launching kernels would cost more
# than the padding. An initial value, not measured.
GRAPH_CELLS = 256


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One execution: rows start:stop of the batch, with the profile of this index, at this shape (rows, tokens)."""

    profile: int
    start: int
    stop: int
    shape: tuple[int, int]


def runs_as_graph(profile: Profile) -> bool:
    """Whether a profile always runs at its full shape, so that one CUDA graph serves every execution."""
    return profile.batch * profile.length <= GRAPH_CELLS


def plan(rows: int, length: int, profiles: Sequence[Profile]) -> list[Piece]:
    """Plan the executions for a batch [rows, length], in row order, without gaps or overlaps.

    The remaining rows go to the smallest profile (rows x tokens; the shorter one if equal) that holds them all; if none does,
    as many as fit go to the profile with the most rows. Raises BackendError for a length that no profile has.
    """
    long_enough = [index for index, profile in enumerate(profiles) if profile.length >= length]
    if not long_enough:
        longest = max(profile.length for profile in profiles)
        raise BackendError(
            f"Sentences of {length} tokens are longer than the engine was built for: its profiles, rows x tokens, are "
            f"{', '.join(map(str, profiles))}. Load with max_length={longest}, or build it again with a longer profile: "
            f"--profiles {','.join(map(str, profiles))},32x{length}"
        )
    pieces: list[Piece] = []
    start = 0
    while start < rows:
        left = rows - start
        if holding := [index for index in long_enough if profiles[index].batch >= left]:
            chosen = min(holding, key=lambda index: (profiles[index].batch * profiles[index].length, profiles[index].length))
        else:
            chosen = max(long_enough, key=lambda index: (profiles[index].batch, -profiles[index].length))
        profile = profiles[chosen]
        stop = start + min(left, profile.batch)
        step = ALIGN // gcd(stop - start, ALIGN)
        aligned = -(-max(length, SHORTEST) // step) * step
        shape = (stop - start, min(aligned, profile.length))
        if runs_as_graph(profile):
            shape = (profile.batch, profile.length)
        pieces.append(Piece(profile=chosen, start=start, stop=stop, shape=shape))
        start = stop
    return pieces


def pad(rows: np.ndarray, into: np.ndarray, value: int) -> None:
    """Copy rows [b, l] to the top left of `into` [B, L], and fill the rest with `value`."""
    count, length = rows.shape
    into[:count, :length] = rows
    into[:count, length:] = value
    into[count:] = value
