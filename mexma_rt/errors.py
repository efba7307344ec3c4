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
    """A service accepts no calls: it is closed, or belongs to another process."""


class ServiceBusyError(MexmaError, TimeoutError):
    """A call to a service was not accepted, or not answered, in time."""


class MissingExtraError(MexmaError, ImportError):
    """An optional dependency is not installed; the message is the pip line."""


class TruncationWarning(UserWarning):
    """Some texts were longer than the model's maximum length and were cut; the report says which."""


class ThresholdWarning(UserWarning):
    """Pairs were chosen by a threshold that was calibrated for another model; `mexma calibrate` finds one for this model."""


class LineEndWarning(UserWarning):
    """A file has line ends that are not recognised, so its lines may not be the ones that its author meant."""


class ColumnsWarning(UserWarning):
    """A file named as a table was read as lines, so each text holds all columns of its row."""


class EmptyPipeWarning(UserWarning):
    """A pipe was empty, most often because the command that should have written to it failed."""


def typed(path: str | os.PathLike[str]) -> str:
    """Quote a path for a shell command inside a message: an unquoted `rm -r my folder` would delete two other folders."""
    return shlex.quote(os.fspath(path))


def require_extra(extra: str, *modules: str) -> None:
    """Raise MissingExtraError unless every module of an optional extra can be found; imports nothing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, and this needs "
            f"{'it' if len(missing) == 1 else 'them'}. Type:\n    pip install 'mexma-rt[{extra}]'"
        )
