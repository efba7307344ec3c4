"""Opens the teachers of `mexma-train teach`, which turn texts into vectors: an ONNX file that takes strings, or a bundle."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mexma_rt.bundle.manifest import MANIFEST
from mexma_rt.embedding.packing import pack
from mexma_rt.errors import BackendError, FileError, InputError, require_extra
from mexma_rt.files.atomic import sha256_of

# An int8 graph such as USE-multilingual's quantises activations by the range of the whole batch, so a vector depends on the
# rest of its batch: between alone and in a batch of 64, the cosine is 0.9988 on average and 0.9955 at worst (2,000 English
# lines sorted by length, onnxruntime 1.32; 0.9987 and 0.9950 in file order). The batches of a call therefore depend only on
# its texts.
BATCH_TEXTS = 64
BATCH_CHARACTERS = 64 * 512  # fewer texts if they are long


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A model to learn from. `embed`: n >= 1 texts -> vectors float32 [n, D_t], and how many texts it had to cut."""

    name: str
    sha256: str  # of the .onnx file, or of a bundle's manifest, which holds those of its files
    embed: Callable[[list[str]], tuple[np.ndarray, int]]


def open_teacher(model: str | Path, threads: int | None = None) -> Teacher:
    """Open a teacher: an .onnx file with one string input [n] and one float output [n, D_t], or whatever mexma_rt.load takes.

    The .onnx file runs on the CPU. One with text operators of its own, such as USE-multilingual, needs onnxruntime-extensions.
    Raises FileError, InputError, BackendError, MissingExtraError (all say what to type), and what mexma_rt.load raises.
    """
    if Path(model).suffix == ".onnx":
        return _open_onnx(Path(model), threads)
    import mexma_rt

    encoder = mexma_rt.load(model, threads=threads)

    def embed(texts: list[str]) -> tuple[np.ndarray, int]:
        result = encoder.embed_report(texts, progress=False)
        return result.vectors, len(result.report.truncated)

    return Teacher(name=encoder.bundle.name, sha256=sha256_of(encoder.bundle.folder / MANIFEST), embed=embed)


def _open_onnx(path: Path, threads: int | None) -> Teacher:
    from mexma_rt.backends.quiet import import_onnxruntime

    onnxruntime = import_onnxruntime()
    if not path.is_file():
        raise FileError(f"{path} is not a file. Check the name; the current folder is {Path.cwd()}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: one for each core
    if importlib.util.find_spec("onnxruntime_extensions"):
        import onnxruntime_extensions

        options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no other base class
        if "is not a registered function/op" in str(error):
            require_extra("teach", "onnxruntime_extensions")
        raise FileError(f"onnxruntime cannot open {path}: {error}. Copy or export it again.") from None
    sides = (session.get_inputs(), session.get_outputs())
    kinds = [[(end.type, len(end.shape)) for end in side] for side in sides]
    if kinds != [[("tensor(string)", 1)], [("tensor(float)", 2)]]:
        ends = [", ".join(f"{end.name} {end.type} {end.shape}" for end in side) for side in sides]
        raise InputError(
            f"{path} is not a teacher: its inputs are {ends[0]}, its outputs {ends[1]}; it must have one tensor(string) [n] "
            "and one tensor(float) [n, D]. Of a model that takes ids, make a bundle (mexma-export) and give that."
        )
    name = sides[0][0].name

    def embed(texts: list[str]) -> tuple[np.ndarray, int]:
        batches = pack(np.array([len(text) for text in texts]), BATCH_CHARACTERS, BATCH_TEXTS)
        parts = []
        for rows in batches:
            try:
                parts.append(session.run(None, {name: np.array([texts[row] for row in rows], dtype=object)})[0])
            except Exception as error:
                raise BackendError(
                    f"{path} failed in a batch of {len(rows)} texts like {texts[rows[0]]!r:.80}: {error}"
                ) from error
        vectors = np.empty((len(texts), parts[0].shape[1]), np.float32)
        vectors[np.concatenate(batches)] = np.concatenate(parts)
        return vectors, 0

    return Teacher(name=path.name, sha256=sha256_of(path), embed=embed)
