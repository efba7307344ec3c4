"""`embed` for asyncio: runs in a thread, slice by slice, so that the event loop stays free and tasks can be cancelled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mexma_rt.checks import check_texts
from mexma_rt.embedding.report import warn_if_truncated
from mexma_rt.embedding.settings import EmbedSettings

if TYPE_CHECKING:
    from mexma_rt.embedding.encoder import Encoder

# Texts in a slice. A call of this size pads as little as any larger one (packing.py), and takes at most seconds on small
# models; the thread keeps working that long after a cancellation.
SLICE = 2048


async def aembed(encoder: Encoder, texts: Iterable[str], settings: EmbedSettings, *, stacklevel: int) -> np.ndarray:
    """Do the work of `Encoder.aembed`; `stacklevel` as for warn_if_truncated."""
    import asyncio

    items = check_texts(texts)
    done = []
    for start in range(0, max(1, len(items)), SLICE):
        embed = asyncio.to_thread(encoder.embed_with, items[start : start + SLICE], settings, progress=False)
        done.append(await embed)
    cut = [
        (number * SLICE + index, length)
        for number, result in enumerate(done)
        for index, length in zip(result.report.truncated, result.report.truncated_lengths, strict=True)
    ]
    if cut:
        indices, lengths = zip(*cut, strict=True)
        report = replace(done[0].report, sentences=len(items), truncated=indices, truncated_lengths=lengths)
        warn_if_truncated(report, stacklevel=stacklevel + 1)
    return done[0].vectors if len(done) == 1 else np.concatenate([result.vectors for result in done])
