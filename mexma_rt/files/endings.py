"""Checks that an output's file extension matches what will be written."""

from __future__ import annotations

import os
from pathlib import Path

from mexma_rt.errors import InputError

FORMATS = {
    *(".gz", ".xz", ".zst", ".bz2", ".zip", ".lz4", ".7z", ".tar", ".tgz"),
    *(".txt", ".tsv", ".csv", ".json", ".jsonl", ".ndjson", ".html", ".htm", ".md", ".xml", ".yaml", ".yml"),
    *(".npy", ".npz", ".parquet", ".arrow", ".feather", ".h5", ".hdf5", ".mat", ".pkl", ".pickle", ".faiss", ".sqlite"),
    *(".pt", ".pth", ".bin", ".model", ".gguf", ".safetensors", ".onnx"),
    *(".xlsx", ".xls", ".ods", ".docx", ".pdf", ".png", ".svg", ".jpg"),
}


def check_ending(path: str | os.PathLike[str], written: str, allowed: tuple[str, ...]) -> None:
    """Raise InputError if the name has the extension of a format that is not in `allowed`.

    written: "a table is written as .tsv, .jsonl or .parquet". Names without an extension, or with one that is no known format
    (x.fra-eng), are allowed.
    """
    ending = Path(path).suffix.lower()
    if ending in FORMATS and ending not in allowed:
        raise InputError(f"{path}: {written}, depending on its name. Type another ending.")


def check_folder_name(path: str | os.PathLike[str]) -> None:
    """Raise InputError if the name of an output folder has a file's extension."""
    if (ending := Path(path).suffix).lower() in FORMATS:
        raise InputError(f"This writes a folder, but {path} looks like the name of a file. Leave out {ending}.")


def check_unicode(folder: str | os.PathLike[str]) -> None:
    """Raise InputError if a model's folder has a name of other bytes than UTF-8."""
    name = os.fspath(folder)
    if visible(name) != name:
        raise InputError(
            f"{visible(name)} is not valid UTF-8, and onnxruntime, tokenizers and safetensors open no files below such a name. "
            "Rename the folder."
        )


def visible(name: str) -> str:
    r"""Return a file's name as valid Unicode: bytes that are not UTF-8 become \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
