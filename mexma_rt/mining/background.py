"""A background corpus saved to a file, so that a bitext of any size can be scored in comparable chunks.

A margin compares a pair with its neighbours, so scores depend on the rest of the corpus. Scores against one background are
comparable across chunks: a sentence's neighbourhood is its k nearest among its own partner and the background's lines of the
other side.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mexma_rt.bundle.manifest import hash_of_files
from mexma_rt.checks import check_dimensions, check_k, check_texts, check_vectors
from mexma_rt.errors import FileError, InputError, typed
from mexma_rt.files.atomic import atomic_write
from mexma_rt.files.first_bytes import ZIP
from mexma_rt.files.lines import damage_explained
from mexma_rt.knn.margin import margin_scores
from mexma_rt.knn.search import nearest, unit_rows
from mexma_rt.mining.sides import compared_rows

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Background:
    """Distinct lines of both sides: unit vectors float32 [p, D], [q, D] and hashes of their texts, uint64, ascending."""

    source: np.ndarray
    target: np.ndarray
    source_keys: np.ndarray
    target_keys: np.ndarray
    k: int
    model: str  # the model that made the vectors, see `model_identity`

    @classmethod
    def of(
        cls, src: Sequence[str], tgt: Sequence[str], x: np.ndarray, y: np.ndarray, *, k: int = 4, model: str = ""
    ) -> Background:
        """Make one from lines (not necessarily pairs) and their vectors x [n, D], y [m, D], without blanks and repeats."""
        (x, source_keys), (y, target_keys) = (
            _distinct(check_texts(lines, name), check_vectors(vectors, f"{name}_vectors"), name)
            for lines, vectors, name in ((src, x, "source"), (tgt, y, "target"))
        )
        check_dimensions(x, y, "source_vectors", "target_vectors")
        check_k(k, {"source": len(x), "target": len(y)}, "distinct sentences")
        return cls(source=x, target=y, source_keys=source_keys, target_keys=target_keys, k=int(k), model=model)

    def scores(
        self, src: Sequence[str], tgt: Sequence[str], x: np.ndarray, y: np.ndarray, *, margin: str = "ratio"
    ) -> np.ndarray:
        """Return the margin score, float32 [n], of each pair (src[i], tgt[i]) of vectors x, y [n, D]; -inf if a side is blank.

        If the background is the bitext itself, these are the scores of `score_pairs`.
        """
        if len({len(src), len(tgt), len(x), len(y)}) != 1:
            raise InputError(f"Pairs need as many lines as vectors: {len(src)}, {len(tgt)} lines and {len(x)}, {len(y)} rows.")
        check_dimensions(x, self.source, "source_vectors", "the background")
        check_dimensions(y, self.target, "target_vectors", "the background")
        x, y = unit_rows(check_vectors(x, "source_vectors")), unit_rows(check_vectors(y, "target_vectors"))
        cosine = np.einsum("nd,nd->n", x, y)
        x_mean = self._means(x, cosine, self.target, np.isin(_keys(tgt), self.target_keys))
        y_mean = self._means(y, cosine, self.source, np.isin(_keys(src), self.source_keys))
        scores = margin_scores(cosine, x_mean, y_mean, margin).astype(np.float32)
        scores[[not (a.strip() and b.strip()) for a, b in zip(src, tgt, strict=True)]] = -np.inf
        return scores

    def _means(self, vectors: np.ndarray, own: np.ndarray, others: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Return the mean of each row's k best cosines, among `others` and, unless already `there`, its partner."""
        best = nearest(vectors, others, self.k)[0].astype(np.float64)
        last = np.where(there, best[:, -1], np.maximum(best[:, -1], own))
        means: np.ndarray = (best[:, :-1].sum(axis=1) + last) / self.k
        return means

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file (nothing pickled), complete or absent. Raises FileError."""
        about = {"format": FORMAT, "k": self.k, "model": self.model}
        about["hash"] = _hash(self, about)
        with atomic_write(path) as stream:
            np.savez(
                stream,
                about=np.frombuffer(json.dumps(about).encode(), np.uint8),
                source=self.source,
                target=self.target,
                source_keys=self.source_keys,
                target_keys=self.target_keys,
            )

    def check(self, *, k: int, model: str) -> None:
        """Raise InputError if scores with this k and model would not be comparable with the background's."""
        for name, then, now in (("k", self.k, k), ("the model", self.model, model)):
            if then != now:
                raise InputError(
                    f"The background was made with another value of {name}: {then!r} then, {now!r} now. Scores would not be "
                    "comparable. Use the same value, or make a new background."
                )


def open_background(path: str | os.PathLike[str]) -> Background:
    """Read what `Background.save` wrote. Raises FileError if the file is missing, damaged or something else."""
    if Path(path).is_fifo():
        raise InputError(
            f"{path} is a pipe, but a background is read in any order. Write it to a file first: cat {typed(path)} > NEW"
        )
    try:
        with damage_explained(path), Path(path).open("rb") as stream:
            if stream.read(len(ZIP)) != ZIP:  # numpy would take it for a pickle and suggest loading it unsafely
                raise zipfile.BadZipFile
        with damage_explained(path), np.load(Path(path), allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            names = ("source", "target", "source_keys", "target_keys")
            found = Background(**{name: arrays[name] for name in names}, k=about["k"], model=about["model"])
    except (KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        raise FileError(f"{path} is not a background. Make one: mexma score SOURCE TARGET --save-background {path}") from None
    if about.get("format") != FORMAT or about.get("hash") != _hash(found, about):
        raise FileError(f"{path} is damaged or from another version of mexma-rt. Make it again.")
    return found


def model_identity(encoder: Any) -> str:
    """Return an encoder's name, length limit, file hash and any prompt: equal if and only if vectors are comparable."""
    bundle = getattr(encoder, "bundle", None)
    if bundle is None:
        return type(encoder).__name__
    name = f"{getattr(bundle, 'name', '?')} {getattr(encoder, 'max_length', '?')} {hash_of_files(bundle.files)}"
    prompt = getattr(encoder, "prompt", None)
    return name if prompt is None else f"{name}, prompt {bundle.prompts[prompt]!r}"


def _distinct(lines: list[str], vectors: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    if len(lines) != len(vectors):
        raise InputError(f"{name} has {len(lines)} sentences and {len(vectors)} vectors: give one row for each sentence.")
    rows, _ = compared_rows(lines, unify=True)
    return unit_rows(vectors[rows]), np.sort(_keys([lines[row] for row in rows.tolist()]))


def _keys(lines: Sequence[str]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(line.encode(), digest_size=8).digest() for line in lines)
    return np.frombuffer(digests, "<u8")


def _hash(background: Background, about: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([about["k"], about["model"]]).encode())
    for array in (background.source, background.target, background.source_keys, background.target_keys):
        digest.update(str((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()
