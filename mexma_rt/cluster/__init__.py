"""Runs work on a Ray cluster of many machines, or of processes on this one.

The driver (the calling process) reads the input, writes the output and keeps the state, so there is one writer, and a killed
driver resumes as it would without Ray. Workers only compute: if one is killed, another repeats its task.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from mexma_rt.errors import BackendError, InputError, MexmaError, require_extra
from mexma_rt.version import __version__

LOCAL = "local"
# Object store of a cluster started here, for texts and vectors in transit. By default Ray would take 30 % of memory.
OBJECT_STORE_BYTES = 256 << 20
CONNECT_SECONDS = 10.0
WORKER_THREADS = 4  # default processors per worker: fewer copies of the model than with one each
LOGGERS = "ray", "ray.data"


@contextlib.contextmanager
def session(address: str, *, cpus: int | None = None) -> Iterator[Any]:
    """Yield the module `ray`, connected to the cluster at `address`; afterwards the process is as it was.

    address: "local" starts a cluster of processes on this machine (with `cpus` of its processors, all if None) and stops it at
    the end; "auto" is the cluster that this machine belongs to; HOST:PORT is another one. A process that is already connected
    keeps and uses its connection. A cluster started here sends no usage statistics; for others, that is decided by how they
    were started (`ray start --disable-usage-stats`).

    Raises MissingExtraError without ray, InputError for an invalid address, BackendError if there is no answer within
    CONNECT_SECONDS.
    """
    check_address(address)
    with _host_unchanged():
        import ray
        import ray.data  # configures loggers when it is imported

        if ray.is_initialized():
            yield ray
            return
        folder = tempfile.mkdtemp(prefix="mexma-ray-") if address == LOCAL else None  # short: it holds sockets
        if address == LOCAL:  # Ray protects a new cluster with a token, which it would otherwise write to the home folder
            os.environ.setdefault("RAY_AUTH_TOKEN", _token())
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            _connect(ray, address, cpus, folder)
            yield ray
        finally:
            ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def worker_threads(ray: Any, asked: int | None = None) -> int:
    """Return the number of processors per worker. Raises BackendError if the cluster has fewer."""
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if asked is not None and asked > cpus:
        raise BackendError(f"The Ray cluster has {cpus} CPUs, but each worker needs {asked} threads. Type --threads {cpus}.")
    return asked or min(WORKER_THREADS, max(1, cpus))


def _connect(ray: Any, address: str, cpus: int | None, folder: str | None) -> None:
    quiet: dict[str, Any] = {"configure_logging": False, "log_to_driver": False, "include_dashboard": False}
    try:
        if address == LOCAL:
            # Ray turns its statistics off for a cluster that ray.init() starts.
            ray.init("local", num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES, _temp_dir=folder, **quiet)
        else:
            ray.init(address, configure_logging=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackendError(
            f"No connection to the Ray cluster {address!r}: {reason}. Type --ray local to work on this machine alone, or start "
            "a cluster: ray start --head --disable-usage-stats"
        ) from None


def check_address(address: str) -> None:
    """Raise what `session` would raise for this address, or without ray; called before long work."""
    require_extra("ray", "ray")
    if address.startswith("ray://"):
        raise InputError(
            f"{address} is the address of a Ray client, but the files are read and written by a machine of the cluster. Run "
            "the command on one of them with --ray auto, or submit it: ray job submit -- mexma ..."
        )
    if address not in (LOCAL, "auto"):
        _check_answers(address)


def _check_answers(address: str) -> None:
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(
            f"{address!r} is not the address of a Ray cluster. Type local, auto or HOST:PORT, for example 10.0.0.5:6379."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise BackendError(
            f"No Ray cluster answers at {address} ({error.strerror or error}). Check the address that `ray start --head` "
            "printed, and that the port is open from this machine."
        ) from None


@contextlib.contextmanager
def explained(ray: Any) -> Iterator[None]:
    """Raise a worker's error as if it had occurred here, and Ray's own errors as BackendError with an explanation."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            for known in (cause, getattr(cause, "cause", None)):
                if isinstance(known, MexmaError) and not isinstance(known, ray.exceptions.RayError):
                    raise known from None
            cause = cause.__cause__
        line = _last_line(error)
        remedy = f" Install mexma-rt {__version__} on each of its machines." if "ModuleNotFoundError" in line else ""
        raise BackendError(f"The Ray cluster could not do the work: {line}.{remedy}") from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextlib.contextmanager
def _host_unchanged() -> Iterator[None]:
    """Restore the variables, handlers and hooks that Ray sets in its process."""
    environment, hook, faults = dict(os.environ), sys.excepthook, faulthandler.is_enabled()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    loggers = [(logger, logger.handlers[:], logger.level) for logger in (logging.root, *map(logging.getLogger, LOGGERS))]
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in environment.items() if os.environ.get(name) != value})
        sys.excepthook = hook
        if not faults:
            faulthandler.disable()
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            for number, handler in handlers.items():
                if signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
        for logger, kept, level in loggers:
            logger.handlers[:] = kept
            logger.setLevel(level)


@functools.cache
def _token() -> str:
    """One token for all clusters of this process, because Ray reads it once."""
    return secrets.token_hex(32)
