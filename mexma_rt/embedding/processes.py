"""Sends an encoder to another process: its pickle names what it was loaded from, and it is opened there on first use.

It is not opened during unpickling, where an error would end a worker of `multiprocessing.Pool`, which then starts another one,
forever.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mexma_rt.bundle.manifest import hash_of_files
from mexma_rt.bundle.opening import bundled_models
from mexma_rt.errors import BundleError, InputError

if TYPE_CHECKING:
    from typing_extensions import Self

    from mexma_rt.embedding.encoder import Encoder

PARTS = ("bundle", "tokenizer", "backend")  # the parts of an encoder that must be opened
KEPT = 2  # models that a worker keeps open between two tasks, each of which unpickles its own encoder


@dataclass(frozen=True, kw_only=True)
class Source:
    """Arguments of `load` that the encoder itself does not keep."""

    model: str  # a bundled name, an absolute path, or a hub name
    offline: bool
    threads: int | None

    @classmethod
    def of(cls, model: str | os.PathLike[str], *, offline: bool, threads: int | None) -> Source:
        """Make one from arguments of `load`; a path becomes absolute."""
        path = Path(model).expanduser()
        is_path = not (isinstance(model, str) and model in bundled_models()) and path.is_dir()
        return cls(model=str(path.absolute()) if is_path else os.fspath(model), offline=offline, threads=threads)


@dataclass(frozen=True, kw_only=True)
class Pickled:
    """What an encoder's pickle holds: the arguments of `load`, with what `auto` chose, the hash of its files,
    and its prompts."""

    source: Source
    name: str
    files: str  # hash_of_files
    prompts: tuple[tuple[str, str], ...]  # the manifest's, which that hash does not cover
    revision: str | None
    folder: str
    device: str
    backend: str
    precision: str
    max_length: int
    deterministic: bool

    @classmethod
    def of(cls, encoder: Encoder) -> Pickled:
        """Describe an encoder. Raises InputError if `load` did not make it."""
        if encoder.source is None:
            raise InputError(
                "This encoder was not made by mexma_rt.load, so no other process can reopen it. Load one in each process."
            )
        bundle, backend = encoder.bundle, encoder.backend
        return cls(
            source=encoder.source,
            name=bundle.name,
            files=hash_of_files(bundle.files),
            prompts=tuple(sorted(bundle.prompts.items())),
            revision=bundle.revision,
            folder=str(bundle.folder),
            device=backend.device,
            backend=backend.name,
            precision=backend.precision,
            max_length=encoder.max_length,
            deterministic=encoder.deterministic,
        )

    def open(self) -> Encoder:
        """Return this process's encoder: one that is already open, or a new one. Raises what `load` raises, and BundleError if
        its files or prompts differ from the first process's."""
        with _lock:
            encoder = _live.get(self)
            if encoder is None:
                encoder = self._load()
                _kept.append(encoder)
            return encoder

    def _load(self) -> Encoder:
        from mexma_rt.embedding.loading import load

        encoder = load(
            self.source.model,
            device=self.device,
            backend=self.backend,
            precision=self.precision,
            max_length=self.max_length,
            threads=self.source.threads,
            deterministic=self.deterministic,
            revision=self.revision,
            # A commit in this machine's cache is complete.
            offline=self.source.offline or (self.revision is not None and Path(self.folder).is_dir()),
        )
        if (found := hash_of_files(encoder.bundle.files)) != self.files:
            raise BundleError(
                f"The model {self.source.model} in this process (files {found}) differs from the one in the process that the "
                f"encoder comes from ({self.files}), and mixed vectors would be worthless. Put the same model in both places, "
                "and load the encoder again."
            )
        if (prompts := tuple(sorted(encoder.bundle.prompts.items()))) != self.prompts:
            raise BundleError(
                f"The model {self.source.model} in this process has the prompts {dict(prompts)}, but the one in the process "
                f"that the encoder comes from has {dict(self.prompts)}. Put the same mexma.json in both places, and load the "
                "encoder again."
            )
        _live[self] = encoder
        return encoder


# Shared with forked processes: onnxruntime sessions stay usable after a fork.
_live: weakref.WeakValueDictionary[Pickled, Encoder] = weakref.WeakValueDictionary()
_kept: deque[Encoder] = deque(maxlen=KEPT)
_lock = threading.Lock()


class Portable:
    """Makes an encoder picklable. After unpickling it lacks the PARTS until one of them is accessed."""

    def __reduce__(self) -> tuple[Any, tuple[Pickled, type]]:
        return _unpickled, (self.__dict__.get("_pickled") or self._as_pickled(), type(self))

    def _as_pickled(self) -> Pickled:
        encoder: Any = self
        what = Pickled.of(encoder)
        with _lock:
            _live.setdefault(what, encoder)
        return what

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    @property
    def unopened(self) -> Pickled | None:
        """What has yet to be opened, or None."""
        return None if PARTS[0] in self.__dict__ else self.__dict__["_pickled"]

    if not TYPE_CHECKING:  # type checkers would accept misspelt names

        def __getattr__(self, name: str) -> Any:
            what = self.__dict__.get("_pickled")
            if name not in PARTS or what is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            opened = what.open()
            self.__dict__.update({part: getattr(opened, part) for part in PARTS})
            return self.__dict__[name]


def _unpickled(what: Pickled, kind: type[Encoder]) -> Encoder:
    """Return the encoder that is already open here, or one that opens on first use."""
    with _lock:
        live = _live.get(what)
    if live is not None:
        return live
    encoder = object.__new__(kind)
    encoder.__dict__.update(_pickled=what, max_length=what.max_length, deterministic=what.deterministic, source=what.source)
    return encoder
