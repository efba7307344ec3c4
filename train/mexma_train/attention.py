"""Self-attention of packed sentences: T tokens of S sentences end to end, each sentence sees itself alone.

One function, four ways to compute the same thing (tests/train/test_attention.py):
    varlen  torch's variable-length flash attention: CUDA, bf16 or fp16; no padding anywhere
    flex    FlexAttention with a block mask: CUDA in any precision; on CPU forward only, because torch has no backward there
    block   scaled-dot-product attention under a block-diagonal mask: everywhere, but T x T cells; the others' yardstick
    padded  sentences padded to the longest for the attention alone: everywhere; the fast one on CPU
H heads of E dimensions each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mexma_rt.errors import InputError

KINDS = ("varlen", "flex", "block", "padded")
FLEX_BLOCK = 128  # FlexAttention's block: T is filled up to a multiple of it


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the sentences of a packed row lie. cumulative_S1 [S+1]: first token of each sentence, and T."""

    kind: str
    tokens: int
    longest: int
    cumulative_S1: Tensor
    cells_T: Any = None  # padded: int64 [T], cell of each token in the S x longest table
    mask: Any = None  # padded: bool [S, 1, 1, longest]; block: bool [T, T]; flex: a BlockMask

    @property
    def starts_S(self) -> Tensor:
        """Token number of each sentence's <s>."""
        return self.cumulative_S1[:-1].long()


def choose_attention(kind: str, device: torch.device, precision: str) -> tuple[str, str]:
    """The way to attend, and why. "auto" chooses; a named way is taken or raises InputError."""
    half = precision in ("bf16", "fp16")
    if kind == "auto":
        if device.type == "cpu":
            return "padded", "CPU: FlexAttention has no backward there, and block masks cost T x T cells"
        if half:
            return "varlen", f"CUDA and {precision}: flash attention without padding"
        return "flex", f"CUDA and {precision}: flash attention needs bf16 or fp16"
    if kind not in KINDS:
        raise InputError(f"run.attention is {kind!r}; choose one of auto, {', '.join(KINDS)}.")
    if kind == "varlen" and (device.type != "cuda" or not half):
        raise InputError(
            f"run.attention is varlen, but the device is {device} and mexma.precision {precision}: flash attention needs a "
            "CUDA GPU and bf16 or fp16. Type --run.attention auto."
        )
    if kind == "flex" and device.type == "cpu":
        raise InputError("run.attention is flex, but torch's FlexAttention cannot train on CPU. Type --run.attention padded.")
    return kind, "named"


def make_layout(lengths_S: np.ndarray, kind: str, device: torch.device | str = "cpu") -> Layout:
    """The layout of sentences of these lengths (all at least 1)."""
    ends = np.cumsum(lengths_S)
    tokens, longest, starts = int(ends[-1]), int(lengths_S.max()), ends - lengths_S
    cumulative = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)).to(device)
    sentence_T = np.repeat(np.arange(len(lengths_S)), lengths_S)
    cells, mask = None, None
    if kind == "padded":
        cells = torch.from_numpy(sentence_T * longest + np.arange(tokens) - starts[sentence_T]).to(device)
        mask = torch.from_numpy(np.arange(longest) < lengths_S[:, None])[:, None, None].to(device)
    elif kind == "block":
        mask = torch.from_numpy(sentence_T[:, None] == sentence_T).to(device)
    elif kind == "flex":
        filled = -(-tokens // FLEX_BLOCK) * FLEX_BLOCK
        documents = torch.full((filled,), -1, dtype=torch.int32, device=device)
        documents[:tokens] = torch.from_numpy(sentence_T.astype(np.int32)).to(device)
        mask = _flex_mask(documents)
    return Layout(kind=kind, tokens=tokens, longest=longest, cumulative_S1=cumulative, cells_T=cells, mask=mask)


def attend(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, layout: Layout) -> Tensor:
    """softmax(q k^T / sqrt(E)) v inside each sentence: [T, H, E]."""
    if layout.kind == "varlen":
        from torch.nn.attention.varlen import varlen_attn

        cumulative, longest = layout.cumulative_S1, layout.longest
        return varlen_attn(query_THE, key_THE, value_THE, cumulative, cumulative, longest, longest)  # type: ignore[return-value]
    if layout.kind == "padded" and query_THE.device.type == "cpu" and query_THE.dtype in (torch.bfloat16, torch.float16):
        # torch's half-precision flash backward on CPU took 184 ms a layer where float32 takes 32 (19,484 packed tokens, 4 heads
        # of 64, two cores with AVX512-BF16): 30 % of a step.
        with torch.autocast("cpu", enabled=False):
            return _padded(query_THE.float(), key_THE.float(), value_THE.float(), layout).to(query_THE.dtype)
    if layout.kind == "padded":
        return _padded(query_THE, key_THE, value_THE, layout)
    query, key, value = (x.transpose(0, 1)[None] for x in (query_THE, key_THE, value_THE))
    if layout.kind == "block":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=layout.mask)[0].transpose(0, 1)
    filler = layout.mask.shape[-1] - layout.tokens
    query, key, value = (F.pad(x, (0, 0, 0, filler)) for x in (query, key, value))
    return _flex_function(query.device.type)(query, key, value, block_mask=layout.mask)[0, :, : layout.tokens].transpose(0, 1)


def _padded(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, layout: Layout) -> Tensor:
    query, key, value = (_pad(x, layout) for x in (query_THE, key_THE, value_THE))
    out_SHLE = F.scaled_dot_product_attention(query, key, value, attn_mask=layout.mask)
    return out_SHLE.transpose(1, 2).flatten(0, 1).index_select(0, layout.cells_T)


def _pad(x_THE: Tensor, layout: Layout) -> Tensor:
    """[T, H, E] -> [S, H, L, E]. index_copy, whose backward is a plain read, unlike that of indexing."""
    sentences = len(layout.cumulative_S1) - 1
    table = x_THE.new_zeros(sentences * layout.longest, *x_THE.shape[1:])
    return table.index_copy(0, layout.cells_T, x_THE).unflatten(0, (sentences, layout.longest)).transpose(1, 2)


def _flex_mask(documents_T: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def same_document(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return documents_T[q] == documents_T[k]  # the filler is a document of its own, so that no row is empty

    length = len(documents_T)
    return create_block_mask(same_document, None, None, length, length, device=documents_T.device, BLOCK_SIZE=FLEX_BLOCK)


@functools.cache
def _flex_function(device_type: str) -> Callable[..., Tensor]:
    """FlexAttention is fast only compiled; eager on CPU, where it only serves the comparison."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention  # type: ignore[return-value]
