"""Every way to attend against a softmax written out, sentence by sentence, in float64."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

import torch

from mexma_rt.backends.packed_attention import attend, make_layout
from mexma_rt.errors import InputError
from mexma_train.attention import choose_attention

CPU = torch.device("cpu")
LENGTHS = np.array([3, 1, 7, 2, 7])


def tensors(size: int = 8) -> list[torch.Tensor]:
    """Queries, keys and values of two heads of this size."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(20, 2, size, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def by_hand(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    out, start = np.empty_like(q), 0
    for length in LENGTHS:
        part = slice(start, start + length)
        for head in range(q.shape[1]):
            scores = q[part, head] @ k[part, head].T / np.sqrt(q.shape[2])
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[part, head] = weights / weights.sum(axis=1, keepdims=True) @ v[part, head]
        start += length
    return out


@pytest.mark.parametrize("kind", ["padded", "equal", "block"])
def test_a_sentence_sees_itself_alone(kind: str) -> None:
    q, k, v = tensors()
    out = attend(q, k, v, make_layout(LENGTHS, kind))
    np.testing.assert_allclose(out.detach().numpy(), by_hand(*(x.detach().numpy() for x in (q, k, v))), atol=1e-12)


def test_padded_groups_sentences_of_similar_length() -> None:
    """Lengths far apart: several tables, each within half as much again, and every token in its place."""
    lengths = np.array([60, 2, 17, 90, 16, 25, 1, 33])
    layout = make_layout(lengths, "padded")
    # limits 16, 24, 36, 54, 81, ...
    assert [(table.sentences, table.longest) for table in layout.tables] == [(3, 16), (1, 17), (2, 33), (1, 60), (1, 90)]
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(int(lengths.sum()), 2, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(attend(q, k, v, layout), attend(q, k, v, make_layout(lengths, "block")), atol=1e-12, rtol=0)


def test_equal_groups_sentences_of_one_length() -> None:
    layout = make_layout(LENGTHS, "equal")
    assert layout.groups == ((1, 1), (1, 2), (1, 3), (2, 7))
    # lengths 3 1 7 2 7 in order of length: tokens 3; 11, 12; 0-2; 4-10; 13-19
    assert layout.order_T.tolist() == [3, 11, 12, 0, 1, 2, *range(4, 11), *range(13, 20)]
    assert make_layout(np.sort(LENGTHS), "equal").order_T is None  # nothing to gather


def test_flex_computes_the_same_forward_on_cpu() -> None:
    """Forward only, because torch's FlexAttention has no backward on CPU; the gradient is compared on CUDA below."""
    with torch.no_grad():
        q, k, v = (x.detach().float() for x in tensors())
        out = attend(q, k, v, make_layout(LENGTHS, "flex"))
    np.testing.assert_allclose(out.numpy(), by_hand(*(x.double().numpy() for x in (q, k, v))), atol=1e-5)


@pytest.mark.parametrize("kind", ["padded", "equal"])
def test_gradients_agree_with_those_of_block(kind: str) -> None:
    gradients = []
    for way in (kind, "block"):
        inputs = tensors()
        out = attend(inputs[0], inputs[1], inputs[2], make_layout(LENGTHS, way))
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        gradients.append([x.grad for x in inputs])
    for ours, block in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, block, atol=1e-12, rtol=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="varlen and compiled flex attention need a CUDA GPU")
@pytest.mark.parametrize(("kind", "dtype", "tolerance"), [("varlen", torch.bfloat16, 3e-2), ("flex", torch.float32, 1e-4)])
def test_cuda_ways_agree_with_block_and_so_do_their_gradients(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    results = []
    for way in (kind, "block"):
        inputs = [x.detach().to("cuda", dtype).requires_grad_() for x in tensors(64)]  # flex has no heads below 16 on CUDA
        out = attend(inputs[0], inputs[1], inputs[2], make_layout(LENGTHS, way, "cuda"))
        (out * torch.linspace(-1, 1, out.numel(), device="cuda", dtype=dtype).view_as(out)).sum().backward()
        results.append([out, *(x.grad for x in inputs)])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=tolerance, rtol=tolerance)


def test_starts_are_the_first_tokens() -> None:
    assert make_layout(LENGTHS, "padded").starts_S.tolist() == [0, 3, 4, 11, 13]


def test_auto_chooses_with_a_reason_and_a_named_way_runs_or_raises() -> None:
    assert choose_attention("auto", CPU, "bf16")[0] == "equal"
    assert choose_attention("auto", torch.device("cuda"), "bf16") == (
        "varlen",
        "CUDA and bf16: flash attention without padding",
    )
    assert choose_attention("auto", torch.device("cuda"), "fp32")[0] == "flex"
    assert choose_attention("block", CPU, "fp32") == ("block", "named")
    with pytest.raises(InputError, match=r"needs a CUDA GPU and bf16 or fp16\. Type --run.attention auto"):
        choose_attention("varlen", CPU, "bf16")
    with pytest.raises(InputError, match="cannot train on CPU"):
        choose_attention("flex", CPU, "fp32")
    with pytest.raises(InputError, match="choose one of auto, varlen"):
        choose_attention("flash", CPU, "fp32")
