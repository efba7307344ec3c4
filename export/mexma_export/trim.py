"""Trims a vocabulary: keeps the pieces that a corpus uses and those that any other text needs, and removes the rest.

Of all ways to cut a word into pieces, a Unigram tokenizer takes the one with the highest sum of scores. Removing pieces that
are not part of it cannot change it, so text made of kept pieces keeps its pieces and its vectors. Other text falls back to
shorter pieces, down to single characters, all of which are kept.

The full model stays in memory as the reference of the parity gate. It shares its encoder with the trimmed one: only the kept
part of the word embeddings is held twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mexma_export.usage import LanguageUse, pieces_of
from mexma_export.useful import usefulness
from mexma_rt.bundle.graphs import BOS, EOS, UNK
from mexma_rt.bundle.manifest import WEIGHTS
from mexma_rt.errors import BundleError, InputError
from mexma_rt.files.atomic import sha256_of
from mexma_rt.files.lines import text_lines

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import XLMRobertaModel

    from mexma_export.checkpoint import Checkpoint
    from mexma_export.sentences import Sentence

SLAB = 1000  # lines tokenised at once: enough to keep the tokenizer's threads busy
SPECIALS = 4  # <s> <pad> </s> <unk> at ids 0 to 3, which is required
# Tensors with a row per piece; the last three belong to a masked language model's head.
PER_PIECE = ("embeddings.word_embeddings.weight", "lm_head.decoder.weight", "lm_head.decoder.bias", "lm_head.bias")


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """A text file that decided which pieces are kept."""

    name: str  # without its folder, which may be private
    lines: int
    sha256: str  # of the file as it is, compressed or not


@dataclass(frozen=True, kw_only=True)
class Trim:
    """A trimmed tokenizer and its mapping to the source: piece i has the id kept[i] there."""

    tokenizer: Tokenizer
    kept: np.ndarray  # int64 [V], ascending
    corpus: tuple[CorpusFile, ...]
    languages: tuple[LanguageUse, ...]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What trimming did to a bundle. Bytes are those of the word embeddings as float32.

    The gate compares every graph with the untrimmed model, on the same pieces: a sentence that lost pieces enters both with
    its new ones.
    """

    pieces: int
    source_pieces: int
    embedding_bytes: int
    source_embedding_bytes: int
    corpus: tuple[CorpusFile, ...]
    languages: tuple[LanguageUse, ...]  # of --languages, and what each one alone costs on held-out text
    gate_sentences: int
    gate_sentences_that_lost_pieces: int
    lost_by_language: dict[str, int]  # gate sentences that lost pieces, for languages with any


def trim_vocabulary(
    tokenizer: Tokenizer, corpus: Sequence[str | Path] = (), languages: Sequence[str] = (), *, pieces: int | None = None
) -> Trim:
    """Keep the pieces that text uses, in their order; returns the trimmed tokenizer and what was kept.

    Kept are the pieces that the lines of `corpus` (UTF-8 files, plain, .gz or .xz) use, or if `pieces` is given, that many of
    the most useful ones (see `usefulness`); and those that `languages` (ISO 639-3) use according to a shipped table (see
    usage.py). Always kept are special and added tokens (the first four stay at 0 to 3, `<mask>` stays last); pieces of a single
    character; pieces with a character that has no piece of its own; the byte pieces of a tokenizer that falls back to bytes;
    and a piece of the lowest score, from which the score of `<unk>` is computed.

    Raises BundleError (not a Unigram tokenizer), InputError (no text, not UTF-8, unknown language, no table for this tokenizer,
    too few or many `pieces`), FileError (a file that cannot be read).
    """
    data = json.loads(tokenizer.to_str())
    if (kind := data["model"]["type"]) != "Unigram":
        raise BundleError(
            f"The tokenizer is of the type {kind}, but only Unigram tokenizers such as XLM-R's can be trimmed: pieces of other "
            "types are built from each other. Export without --trim-vocab and --languages."
        )
    around = tokenizer.encode("").ids
    if data["model"]["unk_id"] != UNK or (around and (around[0], around[-1]) != (BOS, EOS)):
        raise BundleError("Only tokenizers with XLM-R's special tokens at 0 to 3 can be trimmed. Export without --trim-vocab.")
    needed = _needed(data)
    by_table, known = pieces_of(tokenizer, languages) if languages else (set(), ())
    counts, files, sample = _counts(tokenizer, [Path(path) for path in corpus])
    if pieces is None:
        used = set(np.flatnonzero(counts.sum(axis=0)).tolist())
    else:
        texts, scores = zip(*data["model"]["vocab"], strict=True)
        used = _best(usefulness(counts, np.array(scores), texts), needed | by_table, pieces)
    kept = np.array(sorted(needed | used | by_table), dtype=np.int64)
    trim = Trim(tokenizer=_without_others(data, kept), kept=kept, corpus=files, languages=known)
    _check(tokenizer, trim, sample)
    return trim


def lost_pieces(source: Tokenizer, trim: Trim, texts: Sequence[str]) -> list[bool]:
    """Return for each text whether it lost pieces. Raises BundleError if one that lost none is tokenised differently now."""
    kept, lost = set(trim.kept.tolist()), []
    for text, old, new in zip(texts, source.encode_batch_fast(texts), trim.tokenizer.encode_batch_fast(texts), strict=True):
        lost.append(not kept.issuperset(old.ids))
        if not lost[-1] and trim.kept[new.ids].tolist() != old.ids:
            raise BundleError(
                f"The trimmed tokenizer cuts {text[:80]!r} into other pieces, although all of its pieces were kept: this "
                "tokenizer cannot be trimmed. Export without --trim-vocab."
            )
    return lost


def describe(source: Tokenizer, trim: Trim, sentences: Sequence[Sentence], *, source_rows: int, dimensions: int) -> Vocabulary:
    """Report what trimming did; raises BundleError as `lost_pieces` does.

    `source_rows` counts the source's embedding rows, spare ones included; `sentences` are the gate's.
    """
    by_language: dict[str, int] = {}
    for sentence, lost in zip(sentences, lost_pieces(source, trim, [s.text for s in sentences]), strict=True):
        by_language[sentence.lang] = by_language.get(sentence.lang, 0) + lost
    return Vocabulary(
        pieces=len(trim.kept),
        source_pieces=source.get_vocab_size(),
        embedding_bytes=len(trim.kept) * dimensions * 4,
        source_embedding_bytes=source_rows * dimensions * 4,
        corpus=trim.corpus,
        languages=trim.languages,
        gate_sentences=len(sentences),
        gate_sentences_that_lost_pieces=sum(by_language.values()),
        lost_by_language={lang: n for lang, n in sorted(by_language.items()) if n},
    )


@contextmanager
def trimmed_embeddings(model: XLMRobertaModel, kept: np.ndarray | None) -> Iterator[None]:
    """Inside the block, the model has only the rows `kept` of its word embeddings. None: all rows."""
    if kept is None:
        yield
        return
    import torch

    embeddings: Any = model.embeddings
    words = embeddings.word_embeddings
    rows = words.weight.detach()[torch.from_numpy(kept)]
    embeddings.word_embeddings = torch.nn.Embedding.from_pretrained(rows, padding_idx=words.padding_idx)
    try:
        yield
    finally:
        embeddings.word_embeddings = words


def write_trimmed_weights(source: Path, target: Path, kept: np.ndarray) -> None:
    """Copy a safetensors file, keeping only the rows `kept` of every tensor with a row per piece; numbers keep their type.

    The file is mapped, so only the kept rows take memory. Raises BundleError if it has no word embeddings.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    index = torch.from_numpy(kept)
    with safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping: it has only keys())
        metadata = file.metadata()
    if not any(name.endswith(PER_PIECE[0]) for name in tensors):
        raise BundleError(f"{source} has no tensor {PER_PIECE[0]}, so it cannot be trimmed. Type --no-weights.")
    for name in tensors:
        if name.endswith(PER_PIECE):
            tensors[name] = tensors[name][index]
    save_file(tensors, target, metadata=metadata)


def write_weights(source: Checkpoint, target: Path) -> None:
    """Write a bundle's model.safetensors from a checkpoint; numbers keep their type.

    A single file in XLM-R's form is copied; from anything else, the encoder alone is written in that form. Of a trimmed
    checkpoint, only the kept rows are written.
    """
    if not source.rewritten:
        if source.kept is None:
            shutil.copyfile(source.pipeline.encoder / WEIGHTS, target)
        else:
            write_trimmed_weights(source.pipeline.encoder / WEIGHTS, target, source.kept)
        return
    import torch
    from safetensors.torch import save_file

    tensors = source.read().tensors
    if source.kept is not None:
        tensors[PER_PIECE[0]] = tensors[PER_PIECE[0]][torch.from_numpy(source.kept)]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target, metadata={"format": "pt"})


def _needed(data: dict[str, Any]) -> set[int]:
    """Return the ids that are kept for any corpus: see trim_vocabulary."""
    vocabulary = data["model"]["vocab"]
    characters = {piece for piece, _ in vocabulary if len(piece) == 1}
    needed = set(range(SPECIALS)) | {token["id"] for token in data["added_tokens"]}
    # single characters, and pieces with a character that has no piece of its own (XLM-R has none of these)
    needed |= {i for i, (piece, _) in enumerate(vocabulary) if len(piece) == 1 or not characters.issuperset(piece)}
    if data["model"].get("byte_fallback"):
        names = {f"<0x{byte:02X}>" for byte in range(256)}
        needed |= {i for i, (piece, _) in enumerate(vocabulary) if piece in names}
    # <unk> scores 10 below the lowest piece: without it, words with unknown characters might be cut differently
    needed.add(min(range(len(vocabulary)), key=lambda i: vocabulary[i][1]))
    return needed


def _best(useful: np.ndarray, needed: set[int], pieces: int) -> set[int]:
    """Return the most useful ids that are not needed anyway, as many as make `pieces` with the needed ones."""
    if not len(needed) < pieces <= len(useful):
        raise InputError(
            f"{pieces} pieces cannot be kept: the tokenizer has {len(useful)}, and {len(needed)} of them are needed for any "
            "text (single characters, special pieces and those of --languages). Type --pieces with a number in between."
        )
    by_use = np.argsort(-useful, kind="stable")
    others = by_use[~np.isin(by_use, list(needed))]
    return set(others[: pieces - len(needed)].tolist())


def _counts(tokenizer: Tokenizer, corpus: Sequence[Path]) -> tuple[np.ndarray, tuple[CorpusFile, ...], list[str]]:
    """Return (how often each file uses each piece, int64 [F, V]; the files; the first lines of each)."""
    counts = np.zeros((len(corpus), tokenizer.get_vocab_size()), np.int64)
    files, sample = [], []
    for path, count in zip(corpus, counts, strict=True):
        lines, n = text_lines(path), 0
        while slab := list(islice(lines, SLAB)):
            sample += slab if n == 0 else []
            n += len(slab)
            for encoding in tokenizer.encode_batch_fast(slab):
                np.add.at(count, encoding.ids, 1)
        count[:SPECIALS] = 0  # a sentence's own <s> and </s> are kept anyway
        if not count.any():
            raise InputError(
                f"{path}: no text that this tokenizer knows ({n} lines), so nothing says which pieces to keep. Give a text "
                "file, one sentence per line, like the texts that the model is for."
            )
        files.append(CorpusFile(name=path.name, lines=n, sha256=sha256_of(path)))
    return counts, tuple(files), sample


def _without_others(data: dict[str, Any], kept: np.ndarray) -> Tokenizer:
    """Build a tokenizer with only the pieces `kept`, in their order, and every id renumbered. Changes `data`."""
    from tokenizers import Tokenizer

    new = {int(old): i for i, old in enumerate(kept)}
    model = data["model"]
    model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in new]
    if model["unk_id"] is not None:
        model["unk_id"] = new[model["unk_id"]]
    for token in data["added_tokens"]:
        token["id"] = new[token["id"]]
    # Other processors (RobertaProcessing, BertProcessing) name only <s> and </s>, whose ids stay the same.
    processor = data["post_processor"] or {}
    for part in [processor, *processor.get("processors", [])]:
        for special in part.get("special_tokens", {}).values():
            special["ids"] = [new[old] for old in special["ids"]]
    return Tokenizer.from_str(json.dumps(data, ensure_ascii=False))


def _check(source: Tokenizer, trim: Trim, sample: Sequence[str]) -> None:
    """Raise BundleError unless every piece has its new id and the corpus's first lines are cut as before."""
    moved = [i for i, old in enumerate(trim.kept.tolist()) if trim.tokenizer.id_to_token(i) != source.id_to_token(old)]
    if moved or trim.tokenizer.get_vocab_size() != len(trim.kept):
        raise BundleError(
            f"Trimming this tokenizer would move {len(moved)} of its {len(trim.kept)} pieces to wrong ids (a piece may be "
            "listed twice in tokenizer.json). Export without --trim-vocab."
        )
    lost_pieces(source, trim, sample)
