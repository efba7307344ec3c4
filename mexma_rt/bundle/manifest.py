"""`mexma.json`, the contract between mexma-export, which writes a bundle, and the runtime, which reads it.

A bundle is a folder with the tokenizer, one ONNX graph per precision, and this manifest, which lists every other file's hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mexma_rt.bundle.golden import Golden, read_golden
from mexma_rt.bundle.graphs import XLMR, SpecialIds
from mexma_rt.bundle.thresholds import Thresholds, read_thresholds
from mexma_rt.errors import BundleError
from mexma_rt.files.storage import Ranges, read_ranges

FORMAT = "mexma-bundle"
FORMAT_VERSION = 2  # 1 is still written for bundles that a reader of version 1 computes correctly
MANIFEST = "mexma.json"
PARITY = "parity.json"  # the full report of the parity gate
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"  # for training, sentence-transformers and the torch back end
POOLINGS = ("cls", "mean")  # the state of the first token; the mean of all tokens' states

REMEDY = (
    "The bundle is incomplete or damaged: copy or download it again, or export it again with mexma-export. "
    "For the model that comes with mexma-rt, type:\n    pip install --force-reinstall --no-deps mexma-rt"
)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size and hash of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of a model folder: everything that the runtime must know before it opens any of its files."""

    name: str
    dimensions: int
    max_length: int  # default, in tokens, <s> and </s> included
    max_length_limit: int  # what the position table allows
    pooling: str = "cls"  # of POOLINGS
    dense: tuple[str, ...] = ()  # folders of the dense layers after it, in order
    normalize: bool = True  # whether the owner's own `encode` returns vectors of length 1
    prompts: Mapping[str, str] = field(default_factory=dict)  # name -> what is put before a text: "query" -> "query: "
    special_ids: SpecialIds = XLMR  # of the tokenizer
    default_precision: str
    languages: tuple[str, ...] = ()  # trained on, ISO 639-3, English included; () if the checkpoint does not say
    source: Mapping[str, Any]  # name and sha256 of the checkpoint
    graphs: Mapping[str, str]  # precision -> relative path
    parity: Mapping[str, Any]  # precision -> summary of the export's parity gate
    golden: Golden | None = None  # sentences and their vectors, which `mexma doctor` compares
    ranges: Ranges | None = None  # of int8 and uint8 vectors; bundles of earlier versions have none
    thresholds: Thresholds | None = None  # of mine and filter; None: never calibrated
    files: Mapping[str, FileEntry]  # relative path -> hash and size
    created: Mapping[str, Any] = field(default_factory=dict)  # versions of what wrote it
    vocabulary: Mapping[str, Any] | None = None  # what was trimmed

    def to_json(self) -> dict[str, Any]:
        """Return the file's content, in the order of writing; unknown entries are omitted."""
        content = {
            "format": FORMAT,
            "format_version": self._version(),
            "name": self.name,
            "dimensions": self.dimensions,
            "max_length": self.max_length,
            "max_length_limit": self.max_length_limit,
            "pooling": self.pooling,
            "dense": list(self.dense) or None,
            "normalize": None if self.normalize else False,
            "prompts": dict(self.prompts) or None,
            "special_ids": None if self.special_ids == XLMR else asdict(self.special_ids),
            "default_precision": self.default_precision,
            "languages": list(self.languages),
            "source": dict(self.source),
            "graphs": dict(self.graphs),
            "parity": dict(self.parity),
            "golden": self.golden and self.golden.to_json(),
            "ranges": self.ranges and self.ranges.to_json(),
            "thresholds": self.thresholds and self.thresholds.to_json(),
            "files": {name: {"sha256": entry.sha256, "bytes": entry.bytes} for name, entry in self.files.items()},
            "created": dict(self.created) or None,
            "vocabulary": self.vocabulary and dict(self.vocabulary),
        }
        return {key: value for key, value in content.items() if value is not None}

    def _version(self) -> int:
        """The oldest version whose readers compute this bundle correctly: 1 knows only XLM-R's <s> state, normalised."""
        return 1 if (self.pooling, self.dense, self.normalize, self.special_ids) == ("cls", (), True, XLMR) else 2

    @classmethod
    def from_json(cls, content: Any, path: Path) -> Manifest:
        """Parse the JSON read from the file `path`. Raises BundleError saying what is wrong, and where."""
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise BundleError(f"{path}: the format is {found!r}, not {FORMAT!r}: this is not a mexma-rt bundle.")
        version = _field(content, "format_version", int, path)
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{path}: the bundle has format version {version}, but this mexma-rt reads up to {FORMAT_VERSION}. "
                "Type:\n    pip install --upgrade mexma-rt"
            )
        _check(version >= 1, path, f"format_version is {version}, not 1 or more")
        files = _field(content, "files", dict, path)
        graphs = _field(content, "graphs", dict, path)
        dimensions = _field(content, "dimensions", int, path)
        try:
            ranges = read_ranges(content["ranges"], dimensions) if "ranges" in content else None
            golden = read_golden(content["golden"], dimensions) if "golden" in content else None
            thresholds = read_thresholds(content["thresholds"]) if "thresholds" in content else None
        except ValueError as error:
            raise BundleError(f"{path}: {error}. {REMEDY}") from None
        manifest = cls(
            name=_field(content, "name", str, path),
            dimensions=dimensions,
            max_length=_field(content, "max_length", int, path),
            max_length_limit=_field(content, "max_length_limit", int, path),
            pooling=_field(content, "pooling", str, path),
            dense=tuple(_safe(name, path) for name in content.get("dense", [])),
            normalize=_field({"normalize": True} | content, "normalize", bool, path),
            prompts=_prompts(content.get("prompts", {}), path),
            special_ids=_special_ids(content.get("special_ids", {}), path),
            default_precision=_field(content, "default_precision", str, path),
            languages=_languages(content.get("languages", []), path),
            source=_field(content, "source", dict, path),
            graphs={name: _safe(file, path) for name, file in graphs.items()},
            parity=_field(content, "parity", dict, path),
            golden=golden,
            ranges=ranges,
            thresholds=thresholds,
            files={_safe(name, path): _file_entry(name, entry, path) for name, entry in files.items()},
            created=content.get("created", {}),
            vocabulary=content.get("vocabulary"),
        )
        manifest.check(path)
        return manifest

    def check(self, path: Path) -> None:
        """Raise BundleError, naming the file `path`, unless the entries are consistent."""
        lengths = f"max_length {self.max_length} is not between 3 and max_length_limit {self.max_length_limit}"
        graphs = f"(graphs: {', '.join(self.graphs) or 'none'})"
        _check(self.pooling in POOLINGS, path, f"pooling is {self.pooling!r}, but only {' and '.join(POOLINGS)} are known")
        _check(self.dimensions >= 1, path, f"dimensions is {self.dimensions}, not 1 or more")
        _check(3 <= self.max_length <= self.max_length_limit, path, lengths)
        _check(
            self.default_precision in self.graphs, path, f"default_precision {self.default_precision!r} has no graph {graphs}"
        )
        layers = [f"{folder}/{part}" for folder in self.dense for part in ("config.json", WEIGHTS)]
        for file in [TOKENIZER, *self.graphs.values(), *layers]:
            _check(file in self.files, path, f"{file} is needed but not listed under files")


@dataclass(frozen=True, kw_only=True)
class Bundle(Manifest):
    """A model folder whose manifest has been read; `open_bundle` returns one whose files are verified too."""

    folder: Path
    revision: str | None = None  # of a hub model: the commit that its branch or tag pointed to, for pinning


def manifest_text(content: Any) -> str:
    """Format JSON the way manifests and reports are written: indented, with a list's numbers on one line."""
    text = json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)
    text = re.sub(r"(?<=[\[,])\n\s+(?=-?\d)", " ", text)  # no string has a line break
    return re.sub(r"\[ (?=-?\d)", "[", re.sub(r"(?<=\d)\n\s+\]", "]", text)) + "\n"


def hash_of_files(files: Mapping[str, FileEntry]) -> str:
    """Return 16 hex digits, equal for two bundles exactly if all their files, and so their vectors, are equal."""
    hashes = {path: entry.sha256 for path, entry in sorted(files.items())}
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]


def _check(condition: bool, path: Path, problem: str) -> None:
    if not condition:
        raise BundleError(f"{path}: {problem}. {REMEDY}")


def _field(manifest: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    value = manifest.get(key)
    _check(type(value) is kind, path, f"{key} is {value!r}, not of type {kind.__name__}")
    return value


def _languages(value: Any, path: Path) -> tuple[str, ...]:
    valid = isinstance(value, list) and all(isinstance(lang, str) and lang for lang in value)
    _check(valid, path, f"languages is {value!r}, not a list of language codes")
    return tuple(value)


def _prompts(value: Any, path: Path) -> dict[str, str]:
    valid = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    _check(valid, path, f"prompts is {value!r}, not a mapping of names to texts")
    return dict(value)


def _special_ids(value: Any, path: Path) -> SpecialIds:
    names = {entry.name for entry in fields(SpecialIds)}
    valid = isinstance(value, dict) and value.keys() <= names and all(type(i) is int and i >= 0 for i in value.values())
    _check(valid, path, f"special_ids is {value!r}, not ids of {', '.join(sorted(names))}")
    return SpecialIds(**value)


def _file_entry(name: str, entry: Any, path: Path) -> FileEntry:
    sha256, size = (entry.get("sha256"), entry.get("bytes")) if isinstance(entry, dict) else (None, None)
    valid = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) and type(size) is int
    _check(bool(valid), path, f"the entry of {name} under files is {entry!r}, not a sha256 and a number of bytes")
    return FileEntry(sha256=str(sha256), bytes=int(size or 0))


def _safe(file: Any, path: Path) -> str:
    """Check that a relative posix path stays inside the folder; judged by its text only, because hub caches use links."""
    valid = isinstance(file, str) and file and not set(file) & set("\\:\0")
    valid = valid and not any(part in ("", ".", "..") for part in file.split("/"))
    _check(bool(valid), path, f"the path {file!r} does not stay inside the bundle folder")
    return str(file)
