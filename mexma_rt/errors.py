"""Every error a user can meet. Each message says what happened, what it means and what to type.

One base class, so that a service can catch `MexmaError`; each leaf is also the built-in that a caller would expect.
"""

from __future__ import annotations

import importlib.util
import os
import shlex


class MexmaError(Exception):
    """Base of all errors raised on purpose by mexma-rt."""


class InputError(MexmaError, ValueError):
    """The data or an argument cannot be used: wrong type, wrong shape, NaN, unreadable text."""


class FileError(MexmaError, OSError):
    """A file or folder is missing, unreadable or unwritable."""


class BundleError(MexmaError, ValueError):
    """A model folder is incomplete, damaged or of another format."""


class BackendError(MexmaError, RuntimeError):
    """A named device, back end or precision cannot run here."""


class ServiceError(MexmaError, RuntimeError):
    """A service of an encoder takes no calls: it is closed, or belongs to another process."""


class ServiceBusyError(MexmaError, TimeoutError):
    """A call to a service was not taken, or not answered, within its time."""


class MissingExtraError(MexmaError, ImportError):
    """An optional dependency is not installed; the message is the pip line."""


class TruncationWarning(UserWarning):
    """Some texts were longer than the model's maximum length and were cut; the report says which."""


class ThresholdWarning(UserWarning):
    """Pairs were chosen by a threshold that was found for another model; `mexma calibrate` finds the model's own."""


class LineEndWarning(UserWarning):
    """A file has other line ends than those that are read, so that its lines may not be what its owner takes for them."""


class EmptyPipeWarning(UserWarning):
    """A pipe gave nothing: most often because the command that should have written it failed."""


def typed(path: str | os.PathLike[str]) -> str:
    """A path as one word of a command that a message asks to type: `rm -r my folder` would delete two others."""
    return shlex.quote(os.fspath(path))


def require_extra(extra: str, *modules: str) -> None:
    """Raise MissingExtraError unless every top-level module of an optional extra can be found (nothing is imported)."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, and this needs "
            f"{'it' if len(missing) == 1 else 'them'}. Type:\n    pip install 'mexma-rt[{extra}]'"
        )
