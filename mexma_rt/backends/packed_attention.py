"""Self-attention over packed sentences: T tokens of S sentences end to end, each attending only to itself. Needs torch.

Shared by training (mexma_train) and the torch back end. One function, five ways to compute the same thing:
    varlen  torch's variable-length flash attention: CUDA, bf16 or fp16; no padding anywhere
    flex    FlexAttention with a block mask: CUDA in any precision; on CPU forward only, because torch has no backward there
    block   scaled-dot-product attention under a block-diagonal mask: everywhere, but T x T cells; the reference
    padded  sentences of similar length, padded for the attention only: everywhere
    equal   sentences of equal length together, no padding: everywhere; for training on CPU, where many share a length
H heads of E dimensions each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("varlen", "flex", "block", "padded", "equal")
SHORT, STEP = 16, 1.5  # padded: one table up to SHORT tokens, then each STEP times longer than the last
FLEX_BLOCK = 128  # FlexAttention's block: T is padded to a multiple of it


@dataclass(frozen=True, kw_only=True)
class Table:
    """Sentences that are padded together, n tokens in all."""

    sentences: int
    longest: int
    tokens_N: Tensor  # int64 [n], the positions of their tokens among the packed ones
    cells_N: Tensor  # int64 [n], cell of each in the sentences x longest table
    mask: Tensor | None  # bool [sentences, 1, 1, longest]; None if all have the same length


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the sentences of a packed row lie. cumulative_S1 [S+1]: the first token of each sentence, then T."""

    kind: str
    tokens: int
    longest: int
    cumulative_S1: Tensor
    tables: tuple[Table, ...] = ()  # padded
    back_T: Any = None  # padded, equal: int64 [T], the position of each packed token in the concatenated tables or groups
    groups: tuple[tuple[int, int], ...] = ()  # equal: (sentences, their length) of each group
    order_T: Any = None  # equal: int64 [T], the packed tokens group by group; None if they already are in that order
    mask: Any = None  # block: bool [T, T]; flex: a BlockMask

    @property
    def starts_S(self) -> Tensor:
        """The position of each sentence's <s> token."""
        return self.cumulative_S1[:-1].long()

    def in_order(self) -> Layout:
        """equal: the same groups, for tokens already reordered by `order_T`, once for all layers."""
        return replace(self, order_T=None, back_T=None)


def make_layout(lengths_S: np.ndarray, kind: str, device: torch.device | str = "cpu") -> Layout:
    """Lay out sentences of these lengths (all at least 1)."""
    ends = np.cumsum(lengths_S)
    tokens, longest, starts = int(ends[-1]), int(lengths_S.max()), ends - lengths_S
    cumulative = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)).to(device)
    sentence_T = np.repeat(np.arange(len(lengths_S)), lengths_S)
    tables: tuple[Table, ...] = ()
    back, mask = None, None
    if kind == "padded":
        tables = tuple(_table(lengths_S, starts, chosen, device) for chosen in _of_similar_length(lengths_S))
        back = torch.argsort(torch.cat([table.tokens_N for table in tables]))
    elif kind == "equal":
        return _equal_layout(lengths_S, starts, cumulative, device)
    elif kind == "block":
        mask = torch.from_numpy(sentence_T[:, None] == sentence_T).to(device)
    elif kind == "flex":
        filled = -(-tokens // FLEX_BLOCK) * FLEX_BLOCK
        documents = torch.full((filled,), -1, dtype=torch.int32, device=device)
        documents[:tokens] = torch.from_numpy(sentence_T.astype(np.int32)).to(device)
        mask = _flex_mask(documents)
    return Layout(kind=kind, tokens=tokens, longest=longest, cumulative_S1=cumulative, tables=tables, back_T=back, mask=mask)


def _equal_layout(lengths_S: np.ndarray, starts_S: np.ndarray, cumulative: Tensor, device: torch.device | str) -> Layout:
    by_length = np.argsort(lengths_S, kind="stable")
    lengths, counts = np.unique(lengths_S, return_counts=True)
    tokens, ordered = int(lengths_S.sum()), lengths_S[by_length]
    order_T, back_T = None, None
    if (np.diff(lengths_S) < 0).any():
        place = np.arange(tokens) - np.repeat(np.cumsum(ordered) - ordered, ordered)
        order_T = torch.from_numpy(np.repeat(starts_S[by_length], ordered) + place).to(device)
        back_T = torch.argsort(order_T)
    return Layout(
        kind="equal",
        tokens=tokens,
        longest=int(lengths[-1]),
        cumulative_S1=cumulative,
        groups=tuple(zip(counts.tolist(), lengths.tolist(), strict=True)),
        order_T=order_T,
        back_T=back_T,
    )


def _of_similar_length(lengths_S: np.ndarray) -> list[np.ndarray]:
    """Group sentence numbers by length: a group's longest is at most STEP times its shortest, or SHORT tokens."""
    by_length = np.argsort(lengths_S, kind="stable")
    limits, longest = [], float(SHORT)
    while longest < lengths_S.max():
        limits.append(np.searchsorted(lengths_S[by_length], longest, side="right"))
        longest *= STEP
    return [group for group in np.split(by_length, limits) if len(group)]


def _table(lengths_S: np.ndarray, starts_S: np.ndarray, chosen: np.ndarray, device: torch.device | str) -> Table:
    lengths, longest = lengths_S[chosen], int(lengths_S[chosen].max())
    row = np.repeat(np.arange(len(chosen)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    mask = np.arange(longest) < lengths[:, None]
    return Table(
        sentences=len(chosen),
        longest=longest,
        tokens_N=torch.from_numpy(starts_S[chosen][row] + place).to(device),
        cells_N=torch.from_numpy(row * longest + place).to(device),
        mask=None if mask.all() else torch.from_numpy(mask)[:, None, None].to(device),
    )


def attend(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, layout: Layout) -> Tensor:
    """Compute softmax(q k^T / sqrt(E)) v within each sentence: [T, H, E]."""
    if layout.kind == "varlen":
        from torch.nn.attention.varlen import varlen_attn

        cumulative, longest = layout.cumulative_S1, layout.longest
        return varlen_attn(query_THE, key_THE, value_THE, cumulative, cumulative, longest, longest)  # type: ignore[return-value]
    if (
        layout.kind in ("padded", "equal")
        and query_THE.device.type == "cpu"
        and query_THE.dtype in (torch.bfloat16, torch.float16)
    ):
        # torch's half-precision flash backward on CPU took 184 ms a layer where float32 takes 32 (19,484 packed tokens, 4 heads
        # of 64, two cores with AVX512-BF16): 30 % of a step.
        with torch.autocast("cpu", enabled=False):
            return attend(query_THE.float(), key_THE.float(), value_THE.float(), layout).to(query_THE.dtype)
    if layout.kind == "padded":
        return _padded(query_THE, key_THE, value_THE, layout)
    if layout.kind == "equal":
        return _equal(query_THE, key_THE, value_THE, layout)
    query, key, value = (x.transpose(0, 1)[None] for x in (query_THE, key_THE, value_THE))
    if layout.kind == "block":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=layout.mask)[0].transpose(0, 1)
    filler = layout.mask.shape[-1] - layout.tokens
    query, key, value = (F.pad(x, (0, 0, 0, filler)) for x in (query, key, value))
    return _flex_function(query.device.type)(query, key, value, block_mask=layout.mask)[0, :, : layout.tokens].transpose(0, 1)


def _padded(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, layout: Layout) -> Tensor:
    parts = []
    for table in layout.tables:
        query, key, value = (_pad(x, table) for x in (query_THE, key_THE, value_THE))
        out_SHLE = F.scaled_dot_product_attention(query, key, value, attn_mask=table.mask)
        parts.append(out_SHLE.transpose(1, 2).flatten(0, 1).index_select(0, table.cells_N))
    return torch.cat(parts).index_select(0, layout.back_T)


def _equal(query_THE: Tensor, key_THE: Tensor, value_THE: Tensor, layout: Layout) -> Tensor:
    """Attend group by group. `split` and `cat` are each other's backward, one copy of everything; the backward of a gather per
    group would zero and sum all T tokens each time."""
    qkv = [query_THE, key_THE, value_THE]
    if layout.order_T is not None:
        qkv = [x.index_select(0, layout.order_T) for x in qkv]
    sizes = [sentences * length for sentences, length in layout.groups]
    parts = []
    for group, (sentences, length) in zip(zip(*(torch.split(x, sizes) for x in qkv), strict=True), layout.groups, strict=True):
        query, key, value = (x.view(sentences, length, *x.shape[1:]).transpose(1, 2) for x in group)
        parts.append(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(0, 1))
    out_THE = torch.cat(parts)
    return out_THE if layout.back_T is None else out_THE.index_select(0, layout.back_T)


def _pad(x_THE: Tensor, table: Table) -> Tensor:
    """Pad [T, H, E] to [S, H, L, E]. index_copy's backward is a plain read, unlike that of indexing."""
    cells = x_THE.new_zeros(table.sentences * table.longest, *x_THE.shape[1:])
    cells = cells.index_copy(0, table.cells_N, x_THE.index_select(0, table.tokens_N))
    return cells.view(table.sentences, table.longest, *x_THE.shape[1:]).transpose(1, 2)


def _flex_mask(documents_T: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def same_document(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return documents_T[q] == documents_T[k]  # the filler is its own document, so no row is empty

    length = len(documents_T)
    return create_block_mask(same_document, None, None, length, length, device=documents_T.device, BLOCK_SIZE=FLEX_BLOCK)


@functools.cache
def _flex_function(device_type: str) -> Callable[..., Tensor]:
    """FlexAttention, compiled; eager on CPU, where it serves only for comparison."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention  # type: ignore[return-value]
