"""Word rows in product-quantised codes: coded once, found again bit for bit, and computed by the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

pytest.importorskip("faiss", reason="codes are made with faiss-cpu (mexma-rt[faiss])")

from mexma_export.blockwise import WORDS_WEIGHT, export_blocks, product_names
from mexma_export.reopen import open_graph
from mexma_export.sensitivity import EXACT, FINEST, rounded
from mexma_export.word_codes import WordCodes, code_rows, find_codes, stored_without_loss
from mexma_rt.bundle.weights import weights_of
from mexma_rt.errors import InputError


def grid_table(rows: int, width: int = 64, seed: int = 0) -> np.ndarray:
    """A table on a 4-bit grid (blocks of 32: -8 to 7 times an fp16 scale)."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(-7, 8, (rows, width // 32, 32)).astype(np.float32)
    steps[..., 0] = -8
    scales = rng.uniform(0.01, 0.02, (rows, width // 32, 1)).astype(np.float16).astype(np.float32)
    return (steps * scales).reshape(rows, width)


def test_rows_before_the_first_stay_and_the_others_are_of_256_parts_a_place() -> None:
    table = grid_table(4096)
    coded = code_rows(table, 1024)
    assert coded.dtype == np.float32 and np.array_equal(coded[:1024], table[:1024])
    for place in range(16):
        assert len(np.unique(coded[1024:, place * 4 : place * 4 + 4], axis=0)) <= 256
    # 8 bits for 4 numbers of a normal distribution leave about a tenth of their squares; here numbers are nearly uniform
    error = ((coded - table)[1024:] ** 2).sum() / (table[1024:] ** 2).sum()
    assert 0.01 < error < 0.15


def test_no_part_has_a_nearer_one_in_its_book() -> None:
    table = grid_table(3072, width=32)
    coded = code_rows(table, 0)
    for place in (slice(0, 4), slice(28, 32)):
        book = np.unique(coded[:, place], axis=0)
        distances = ((table[::16, None, place].astype(np.float64) - book) ** 2).sum(axis=2).min(axis=1)
        own = ((table[::16, place].astype(np.float64) - coded[::16, place]) ** 2).sum(axis=1)
        np.testing.assert_allclose(own, distances, atol=1e-9)


@pytest.mark.parametrize("first", [0, 1024])
def test_codes_are_found_again_bit_for_bit(first: int) -> None:
    coded = code_rows(grid_table(4096), first)
    found = find_codes(coded)
    assert found is not None and found.first == first
    assert found.codes.dtype == np.uint8 and found.books.dtype == np.float16
    assert np.array_equal(found.rows, coded[first:])
    assert stored_without_loss(coded)


def test_rows_by_hand() -> None:
    books = np.zeros((2, 256, 4), np.float16)
    books[0, 7], books[1, 255] = [1, 2, 3, 4], [-1, 0.5, 0, 8]
    codes = WordCodes(first=0, codes=np.array([[7, 0], [0, 255]], np.uint8), books=books)
    assert codes.rows.tolist() == [[1, 2, 3, 4, 0, 0, 0, 0], [0, 0, 0, 0, -1, 0.5, 0, 8]]


def test_a_table_that_was_not_coded_has_no_codes() -> None:
    assert find_codes(grid_table(4096)) is None
    assert find_codes(np.zeros((300, 8), np.float32)) is None  # too few rows to be worth books
    assert find_codes(np.ones((2000, 6), np.float32)) is None  # rows of 6 numbers have no parts of 4


def test_rows_that_fp16_cannot_hold_are_not_called_codes() -> None:
    table = np.tile(np.array([1 + 2**-20, 0, 0, 0], np.float32), (4096, 2))  # one part a place, but no number of fp16
    assert find_codes(table) is None


def test_coding_again_changes_nothing_and_is_deterministic() -> None:
    table = grid_table(4096)
    assert np.array_equal(code_rows(table, 1024), code_rows(table, 1024))


@pytest.mark.parametrize(("rows", "width", "first"), [(4096, 64, 1000), (4096, 64, 4096), (4096, 64, -1024), (4096, 62, 0)])
def test_what_cannot_be_coded_is_named(rows: int, width: int, first: int) -> None:
    with pytest.raises(InputError, match="cannot be coded"):
        code_rows(np.zeros((rows, width), np.float32), first)


@pytest.mark.parametrize("first", [0, 1024])
def test_the_graph_computes_with_the_rows_and_gives_them_back(first: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 3000,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    model = XLMRobertaModel(
        XLMRobertaConfig(**shape, max_position_embeddings=40, type_vocab_size=1), add_pooling_layer=False
    ).eval()
    table = code_rows(grid_table(3000), first)
    model.embeddings.word_embeddings.weight.data = torch.from_numpy(table)
    forms = {WORDS_WEIGHT: EXACT} | dict.fromkeys(product_names(model), FINEST)
    export_blocks(model, tmp_path / "graph.onnx", forms)

    held = dict(weights_of(tmp_path / "graph.onnx"))
    assert np.array_equal(held[WORDS_WEIGHT], table)
    assert (tmp_path / "graph.onnx").stat().st_size < 3000 * 64 * 4 / 4 + 200_000  # a quarter of float32 words, and the rest

    ids = np.random.default_rng(1).integers(4, 3000, (3, 20))
    ids[0, :6] = [4, 1022, 1023, 1024, 1025, 2999]  # both sides of the first coded row, and the last one
    ids[1, 12:] = 1  # <pad>
    mask = (ids != 1).astype(np.int64)
    vectors, states = open_graph(tmp_path / "graph.onnx")(ids, mask)
    with torch.no_grad(), rounded(model, forms):
        wanted = model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
    np.testing.assert_allclose(states[mask == 1], wanted[mask == 1], atol=2e-5)
    first_states = wanted[:, 0] / np.linalg.norm(wanted[:, 0], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), first_states, atol=2e-5)
