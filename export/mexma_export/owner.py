"""Compares a loaded checkpoint with its owner's code: both must compute the same vectors.

The graphs are compared with the loaded checkpoint (parity.py), which shares our interpretation of the folder, so a misread
pooling, a missing layer or a wrong tokenizer would pass. The loaded checkpoint itself is therefore compared first: with
sentence-transformers' `encode` if the folder is one of theirs, otherwise with transformers' AutoModel.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from mexma_export.checkpoint import Checkpoint, quiet_transformers
from mexma_export.memory import give_back, set_aside, take_back
from mexma_export.parity import pad_rows
from mexma_export.pipeline import MODULES
from mexma_export.precisions import torch_runner
from mexma_export.sentences import Sentence
from mexma_export.verdict import ParityError
from mexma_rt.backends.checkpoint import POSITIONS, TIED, TYPES, WORDS, read_tensors
from mexma_rt.errors import BundleError

SAMPLE, BATCH = 128, 16  # sentences; a misreading shows in every one
LONGER = 2  # a batch ends before a row of more than this times its first row's length, which would make the rest padding
LARGEST = 1e-4  # |difference| / |vector|: summation order causes 1e-6 (12 layers), a wrong pooling 0.1 and more


@dataclass(frozen=True, kw_only=True)
class Reference:
    """How well the loaded checkpoint agrees with its owner's code. An error is |difference| / |vector|."""

    computed_by: str
    sentences: int
    largest_error: float
    lowest_cosine: float

    def to_json(self) -> dict[str, object]:
        """Its entry in parity.json."""
        return asdict(self)


def compare_with_owner(source: Checkpoint, sentences: Sequence[Sentence], max_length: int) -> Reference:
    """Compare the vectors of some of `sentences`, and of one text long enough to be cut at `max_length` tokens.

    Raises ParityError naming the text whose vectors differ most, BundleError if the owner's code cannot load the folder.
    """
    texts = [sentence.text for sentence in sentences[:: max(1, len(sentences) // SAMPLE)]]
    long = " ".join(texts)
    texts.append(" ".join([long] * (1 + 2 * max_length // max(1, len(source.tokenizer.encode(long).ids)))))
    ours = _ours(source, texts, max_length)
    set_aside(source)  # the owner's code loads the weights itself; two copies would double the memory
    with quiet_transformers():
        theirs, code, ids = _theirs(source, texts, max_length)
    give_back()
    take_back(source)
    if ids is not None:
        _check_ids(source, texts, ids, max_length, code)
    if theirs.shape != ours.shape:
        raise ParityError(f"{source.folder}: {code} returns vectors of {theirs.shape[1]} numbers, this export {ours.shape[1]}.")
    lengths = np.linalg.norm(theirs, axis=1)
    errors = np.linalg.norm(ours - theirs, axis=1) / lengths
    cosines = (ours * theirs).sum(axis=1) / lengths / np.linalg.norm(ours, axis=1)
    worst = int(np.argmax(np.nan_to_num(errors, nan=np.inf)))
    if not errors[worst] <= LARGEST:
        raise ParityError(
            f"{source.folder}: this export and the model owner's code, {code}, compute different vectors: those of "
            f"{texts[worst][:80]!r} have the cosine {cosines[worst]:.6f} and differ by {errors[worst]:.2g} of their length "
            f"(allowed: {LARGEST:g}). No bundle was written. Please report it with config.json and the folder's other files."
        )
    return Reference(
        computed_by=code,
        sentences=len(texts),
        largest_error=float(errors.max()),
        lowest_cosine=float(min(cosines.min(), 1.0)),
    )


def _ours(source: Checkpoint, texts: Sequence[str], max_length: int) -> np.ndarray:
    """Compute the vectors with the loaded checkpoint, float64 [n, D], as the bundle's `encode` returns them."""
    run, pad = torch_runner(source), source.special_ids.pad
    rows = cut_ids(source, texts, max_length)
    vectors = _by_length(rows, lambda batch: run(*_batch(batch, pad))[0])
    return _finished(vectors, source.pipeline.normalize)


def _theirs(source: Checkpoint, texts: list[str], max_length: int) -> tuple[np.ndarray, str, list[list[int]] | None]:
    """Return (vectors float64 [n, D], the code that computed them, its token ids if it has its own tokenizer)."""
    if not (source.folder / MODULES).is_file():
        return _by_transformers(source, texts, max_length, "the last state of the first token")
    if importlib.util.find_spec("sentence_transformers") is None:
        steps = ", ".join([source.pipeline.poolings[0], *(layer.name for layer in source.pipeline.dense)])
        how = f"pooling {steps} as {MODULES} says (sentence-transformers is not installed)"
        return _by_transformers(source, texts, max_length, how)
    return _by_sentence_transformers(source, texts, max_length)


def _by_sentence_transformers(source: Checkpoint, texts: list[str], max_length: int) -> tuple[np.ndarray, str, list[list[int]]]:
    import torch
    from sentence_transformers import SentenceTransformer

    settings = {"dtype": torch.float32, "use_safetensors": True}  # never a pickle, no rounding
    try:
        model = SentenceTransformer(str(source.folder), device="cpu", local_files_only=True, model_kwargs=settings)
    except Exception as error:  # from any of the libraries that it uses
        raise _not_loaded(source, "sentence-transformers", error) from error
    if source.pipeline.max_length != max_length:
        model.max_seq_length = max_length
    parts = texts[:-1], texts[-1:]  # the long text alone: others would be padded to its length
    vectors = np.concatenate(
        [model.encode(part, batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True) for part in parts if part]
    )
    ids = model.tokenizer([text.strip() for text in texts], truncation=True, max_length=max_length)["input_ids"]
    return np.asarray(vectors, np.float64), f"sentence-transformers {version('sentence-transformers')}, encode", ids


def _by_transformers(source: Checkpoint, texts: list[str], max_length: int, how: str) -> tuple[np.ndarray, str, None]:
    import torch

    model, note = _auto_model(source)
    pad, rows = source.special_ids.pad, cut_ids(source, texts, max_length)

    def run(batch: Sequence[Sequence[int]]) -> np.ndarray:
        ids, mask = map(torch.from_numpy, _batch(batch, pad))
        with torch.inference_mode():
            states = model.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
        return _pooled(source, states.numpy(), mask.numpy())

    code = f"transformers {version('transformers')}, {type(model).__name__}{note}, {how}"
    return _finished(_by_length(rows, run), source.pipeline.normalize), code, None


def _auto_model(source: Checkpoint) -> tuple[Any, str]:
    """Return (transformers' own model of the folder in fp32, a note on the help that it needed to load, or "")."""
    import torch
    from transformers import AutoModel

    folder = source.pipeline.encoder
    try:
        loaded: Any = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        model, info = loaded
        if not _needed(info["missing_keys"]):
            return model, ""
    except Exception:  # the second attempt says what is wrong
        pass
    try:
        return _helped(source)
    except Exception as error:
        raise _not_loaded(source, "transformers", error) from error


def _helped(source: Checkpoint) -> tuple[Any, str]:
    """Load AutoModel with prefixes stripped from names, word embeddings taken from a tied head, and table sizes filled in."""
    from transformers import AutoConfig, AutoModel

    folder = source.pipeline.encoder
    held, _ = read_tensors(folder)
    tensors = {name.removeprefix(source.prefix): tensor.float() for name, tensor in held.items()}
    tied = next((name for name in held if name.endswith(TIED) and WORDS not in tensors), None)
    if tied:
        tensors[WORDS] = held[tied].float()
    sizes = {"max_position_embeddings": len(tensors[POSITIONS])} | (
        {"type_vocab_size": len(tensors[TYPES])} if TYPES in tensors else {}
    )
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True, **sizes)).float()  # type: ignore[no-untyped-call]  # transformers has no types here
    if missing := _needed(model.load_state_dict(tensors, strict=False).missing_keys):
        raise ValueError(f"it finds no weights for {missing[0]}")
    notes = [f" without the prefix {source.prefix!r} of its weights"] if source.prefix else []
    notes += [f" with {WORDS} from {tied}"] if tied else []
    return model, " and".join(notes) or " with the sizes of its tables"


def _needed(missing: Iterable[str]) -> list[str]:
    return sorted(name for name in missing if not name.startswith("pooler."))


def _pooled(source: Checkpoint, states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pool states [B, L, W] as modules.json says, in float64 and independently of head.py: [B, D]."""
    wide = states.astype(np.float64)
    rows = [row[:n] for row, n in zip(wide, mask.sum(axis=1), strict=True)]
    vectors = np.stack([row.mean(axis=0) if source.pipeline.poolings == ("mean",) else row[0] for row in rows])
    for layer in source.pipeline.dense:
        vectors = vectors @ layer.weight.T.astype(np.float64) + layer.bias
        vectors = np.tanh(vectors) if layer.activation == "Tanh" else vectors
    return vectors


def cut_ids(source: Checkpoint, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Tokenise with the checkpoint's tokenizer; a text that is too long keeps its first ids and the final special one."""
    rows = [encoding.ids for encoding in source.tokenizer.encode_batch(list(texts))]
    return [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in rows]


def _check_ids(source: Checkpoint, texts: Sequence[str], theirs: list[list[int]], max_length: int, code: str) -> None:
    rows = zip(texts, cut_ids(source, texts, max_length), theirs, strict=True)
    if other := [text for text, ours, their in rows if ours != their]:
        raise ParityError(
            f"{source.folder}: {code} cuts {len(other)} of {len(texts)} texts into other pieces than tokenizer.json does, "
            f"first {other[0][:80]!r}. It does not use the tokenizer in tokenizer.json. If that one is right, put "
            '"tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json, which uses it unchanged.'
        )


def _by_length(rows: Sequence[Sequence[int]], run: Callable[[Sequence[Sequence[int]]], np.ndarray]) -> np.ndarray:
    """Return vectors [n, D] in the order of `rows`, computed in batches of rows of similar length, to avoid padding."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    batches: list[list[int]] = []
    for row in order:
        if not batches or len(batches[-1]) == BATCH or len(rows[row]) > LONGER * len(rows[batches[-1][0]]):
            batches.append([])
        batches[-1].append(row)
    vectors = np.concatenate([run([rows[row] for row in batch]) for batch in batches])
    vectors[order] = vectors.copy()
    return vectors


def _batch(rows: Sequence[Sequence[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows of ids on the right; returns ids and mask, int64 [B, L] each."""
    return pad_rows(rows, pad), pad_rows([[1] * len(row) for row in rows], 0)


def _finished(vectors: np.ndarray, normalize: bool) -> np.ndarray:
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True) if normalize else wide


def _not_loaded(source: Checkpoint, library: str, error: Exception) -> BundleError:
    said = str(error).strip().partition("\n")[0].rstrip(".")
    return BundleError(
        f"{source.folder}: {library} {version(library)} cannot load this folder ({said}), so there is nothing to check the "
        "export against. Copy the whole folder again, or save it again with the library that made it."
    )
