"""The model that the quality suite measures: a checkpoint (torch, `probe.py`) or a bundle (`mexma_rt`, as it ships).

L pieces of a sentence, D dimensions, T packed tokens.
"""

from __future__ import annotations

import contextlib
import json
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mexma_rt.bundle.manifest import MANIFEST, TOKENIZER, WEIGHTS
from mexma_rt.bundle.opening import bundled_models
from mexma_rt.errors import FileError, InputError
from mexma_rt.files.atomic import sha256_of
from mexma_train.suite.data import ENGLISH

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from mexma_rt.backends.packed_encoder import Encoder

CONFIG = "config.json"
CHECKPOINT_MAX_TOKENS = 200  # as in `mexma-train eval` and the evaluations of a run
STATES_AT_ONCE = 32  # sentences whose token states are computed together: 6,400 tokens if each has 200
SPACE = "▁"  # SentencePiece's mark for a piece that begins a word
NO_STATES = "this engine gives sentence vectors only; measure the bundle with onnxruntime, or its checkpoint"


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A sentence as the model saw it, without <s> and </s>: pieces [L] (without space marks) and their final states [L, D]."""

    pieces: list[str]
    states_LD: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SuiteModel:
    """embed returns vectors float32 [n, D] and how many texts were cut; states is None if the model gives no token states."""

    about: dict[str, Any]  # name, kind, dimensions, weights, how texts are embedded: for results.json
    versions: dict[str, str]
    languages: tuple[str, ...]  # that the model says it was trained on; () if it does not say
    embed: Callable[[list[str]], tuple[np.ndarray, int]]
    states: Callable[[list[str]], list[Pieces]] | None


@contextlib.contextmanager
def open_model(
    name: str, *, device: str = "cpu", threads: int | None = None, precision: str = "auto", max_tokens: int | None = None
) -> Iterator[SuiteModel]:
    """Open a bundled name, a bundle folder (it has mexma.json) or a checkpoint folder (config.json, model.safetensors).

    precision is for bundles ("auto": the bundle's default). max_tokens limits a sentence, <s> and </s> included; None means
    200 for a checkpoint and the bundle's own limit. A folder that is both (an export with weights) counts as a bundle.
    Raises FileError for any other folder, InputError for a precision named with a checkpoint, and what loading raises.
    """
    folder = bundled_models().get(name) or Path(name)
    if (folder / MANIFEST).is_file():
        yield _bundle(str(folder), device, threads, precision, max_tokens)
        return
    missing = [file for file in (CONFIG, WEIGHTS, TOKENIZER) if not (folder / file).is_file()]
    if missing:
        raise FileError(_no_model(name, folder, missing))
    if precision != "auto":
        raise InputError(
            f"--precision {precision} is for bundles, but {name} is a checkpoint, which is computed in fp32. Leave it out."
        )
    from mexma_train.parallel import start_world

    with start_world(device) as world:
        yield _checkpoint(folder, world.device, threads, max_tokens)


def _no_model(name: str, folder: Path, missing: list[str]) -> str:
    bundled = ", ".join(bundled_models()) or "none in this installation"
    accepted = f"MODEL is a checkpoint folder, a bundle folder (it has {MANIFEST}) or a bundled name ({bundled})."
    if not folder.is_dir():
        return f"There is no folder or bundled model {name}. {accepted}"
    inside = f" Type: mexma-train eval --suite {folder / 'checkpoint'} ..." if (folder / "checkpoint" / CONFIG).exists() else ""
    return f"{name} has no {' and no '.join(missing)}, so it is not a checkpoint, and no {MANIFEST} either. {accepted}{inside}"


def _bundle(folder: str, device: str, threads: int | None, precision: str, max_tokens: int | None) -> SuiteModel:
    import mexma_rt
    from mexma_rt.backends import Backend
    from mexma_rt.errors import TruncationWarning

    encoder = mexma_rt.load(folder, device=device, precision=precision, threads=threads, max_length=max_tokens)

    def embed(texts: list[str]) -> tuple[np.ndarray, int]:
        result = encoder.embed_report(texts)
        return result.vectors, len(result.report.truncated)

    def states(texts: list[str]) -> list[Pieces]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # embed counts them
            found = encoder.embed_tokens(texts, normalize=False, progress=False)
        return [Pieces(pieces=[piece.replace(SPACE, "") for piece in t.pieces], states_LD=t.vectors) for t in found]

    gives_states = type(encoder.backend).run_tokens is not Backend.run_tokens
    manifest = Path(folder) / MANIFEST
    about = {
        "name": encoder.bundle.name,
        "kind": "bundle",
        "dimensions": encoder.dimensions,
        "sha256": sha256_of(manifest),  # which holds the hashes of all files
        "source_sha256": encoder.bundle.source.get("sha256"),
        "embedded_with": f"mexma_rt, {encoder.backend.name}",
        "device": encoder.backend.device,
        "precision": encoder.backend.precision,
        "max_tokens": encoder.max_length,
        "threads": threads,
    }
    return SuiteModel(
        about=about,
        versions=_versions("mexma_rt", "numpy", "onnxruntime", "tokenizers"),
        languages=_languages(manifest),
        embed=embed,
        states=states if gives_states else None,
    )


def _checkpoint(folder: Path, device: Any, threads: int | None, max_tokens: int | None) -> SuiteModel:
    import torch

    from mexma_train.attention import choose_attention
    from mexma_train.data.tokenizer import load_tokenizer
    from mexma_train.encoder import load_encoder
    from mexma_train.probe import embed_texts, tokenise

    if threads:
        torch.set_num_threads(threads)
    encoder, tokenizer = load_encoder(folder).to(device), load_tokenizer(folder / TOKENIZER)
    attention, _ = choose_attention("auto", device, "fp32")
    tokens = CHECKPOINT_MAX_TOKENS if max_tokens is None else max_tokens
    limit = encoder.config.max_position_embeddings - 2  # position numbers start at 2
    if not 3 <= tokens <= limit:
        raise InputError(
            f"max_tokens is {tokens}, but {folder.name} takes from 3 (<s>, one piece, </s>) to {limit} tokens. "
            f"Type --max-tokens {min(limit, CHECKPOINT_MAX_TOKENS)}."
        )

    def embed(texts: list[str]) -> tuple[np.ndarray, int]:
        cut = sum(len(sentence) > tokens for sentence in tokenise(tokenizer, texts, tokens + 1))
        return embed_texts(encoder, tokenizer, texts, max_tokens=tokens, attention=attention), cut

    def states(texts: list[str]) -> list[Pieces]:
        return token_states(encoder, tokenizer, texts, max_tokens=tokens, attention=attention)

    about = {
        "name": _run_name(folder.resolve()),
        "kind": "checkpoint",
        "dimensions": encoder.config.hidden_size,
        "sha256": sha256_of(folder / WEIGHTS),
        "embedded_with": f"mexma_train, torch, {attention} attention",
        "device": device.type,
        "precision": "fp32",
        "max_tokens": tokens,
        "threads": threads,
    }
    versions = _versions("mexma_rt", "numpy", "torch", "transformers", "tokenizers")
    return SuiteModel(about=about, versions=versions, languages=_languages(folder / CONFIG), embed=embed, states=states)


def _run_name(folder: Path) -> str:
    """RUN for a folder RUN/checkpoint, else the folder's own name; never a path."""
    return folder.parent.name if folder.name == "checkpoint" and folder.parent.name else folder.name


def token_states(encoder: Encoder, tokenizer: Tokenizer, texts: list[str], *, max_tokens: int, attention: str) -> list[Pieces]:
    """Return the pieces of each text and their final states, float32 and not normalised; dropout off, no gradient."""
    import torch

    from mexma_rt.backends.packed_attention import make_layout
    from mexma_rt.backends.packed_encoder import position_numbers
    from mexma_train.probe import ragged, tokenise

    sentences = tokenise(tokenizer, texts, max_tokens)
    device, training = encoder.embeddings.LayerNorm.weight.device, encoder.training
    found = []
    encoder.eval()
    with torch.no_grad():
        for start in range(0, len(sentences), STATES_AT_ONCE):
            part = sentences[start : start + STATES_AT_ONCE]
            batch = ragged(part)
            positions = position_numbers(batch.ids, batch.lengths)
            ids_T, positions_T = (torch.from_numpy(x).to(device) for x in (batch.ids, positions))
            states_TD = encoder(ids_T, positions_T, make_layout(batch.lengths, attention, device)).float().cpu().numpy()
            ends = np.cumsum(batch.lengths)
            for ids, end in zip(part, ends.tolist(), strict=True):
                pieces = [(tokenizer.id_to_token(i) or "").replace(SPACE, "") for i in ids[1:-1].tolist()]
                found.append(Pieces(pieces=pieces, states_LD=states_TD[end - len(ids) + 1 : end - 1]))
    encoder.train(training)
    return found


def _languages(path: Path) -> tuple[str, ...]:
    """The list "languages" of a manifest or config.json, without English, with which all are compared; () without a list."""
    said = json.loads(path.read_bytes()).get("languages")
    known = isinstance(said, list) and all(isinstance(lang, str) for lang in said)
    return tuple(lang for lang in said if lang != ENGLISH) if known else ()


def _versions(*modules: str) -> dict[str, str]:
    """Versions read from the modules, because onnxruntime is distributed under several package names."""
    return {"python": platform.python_version(), **{name: import_module(name).__version__ for name in modules}}
