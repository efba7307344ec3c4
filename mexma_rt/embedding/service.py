"""Merges many small calls into shared batches: a bounded queue in front of an encoder, for threads and asyncio.

Calls that arrive while batches are computed (as many at once as the back end has lanes) wait, and the next batch takes them
together. There is no timer: a lone call is computed at once. Texts are checked before they are queued, and the
calls of a batch that fails are computed one by one, so that an error reaches the call that caused it and no other.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from mexma_rt.checks import check_texts
from mexma_rt.embedding.queue import Call, FairQueue, Part
from mexma_rt.embedding.report import warn_if_truncated
from mexma_rt.embedding.settings import EmbedSettings
from mexma_rt.errors import BackendError, InputError, ServiceBusyError, ServiceError

if TYPE_CHECKING:
    from mexma_rt.embedding.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class ServiceReport:
    """Counts since the service started."""

    calls: int  # answered calls, errors included
    sentences: int
    batches: int  # shared ones, each one run of the encoder
    waiting: int  # texts in the queue now

    @property
    def sentences_per_batch(self) -> float:
        """Mean size of a shared batch."""
        return self.sentences / self.batches if self.batches else 0.0


class Service:
    """A queue in front of an encoder, made by `Encoder.service`, shared by threads and tasks. Close it, or use it in `with`."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        batch_texts: int,
        queue_texts: int,
        queue_timeout: float | None,
    ) -> None:
        """See `Encoder.service`."""
        for name, value in {"batch_texts": batch_texts, "queue_texts": queue_texts}.items():
            if type(value) is not int or value < 1:
                raise InputError(f"{name}={value!r} must be a whole number of at least 1.")
        _check_seconds("queue_timeout", queue_timeout)
        self.encoder, self.batch_texts = encoder, batch_texts
        self.queue_texts, self.queue_timeout = queue_texts, queue_timeout
        self._lock = threading.Lock()  # guards everything below
        self._queue = FairQueue(queue_texts)
        self._calls = self._sentences = self._batches = 0
        self._running = 0  # workers; the back end can keep `lanes` of them busy
        self._closed = False
        self._process = os.getpid()
        # Its threads end with the interpreter even if nobody closes the service.
        self._executor = ThreadPoolExecutor(max_workers=encoder.backend.lanes, thread_name_prefix="mexma-service")

    def __reduce__(self) -> NoReturn:
        raise ServiceError(
            "A service cannot leave its process, because its queue and threads cannot be copied. Send the encoder "
            "(service.encoder), and make a service from it there."
        )

    def embed(
        self,
        texts: Iterable[str],
        *,
        normalize: bool = True,
        precision: str = "float32",
        truncate_dim: int | None = None,
        prompt: str | None = None,
        timeout: float | None = None,
    ) -> np.ndarray:
        """Like `Encoder.embed`, in batches shared with other calls; returns [n, D].

        timeout: seconds for the whole call; None waits forever. Raises ServiceBusyError after that, or if the queue had no room
        within `queue_timeout`; ServiceError if the service is closed; and the errors of `Encoder.embed`.
        """
        started = time.monotonic()
        settings = EmbedSettings(normalize=normalize, precision=precision, truncate_dim=truncate_dim, prompt=prompt)
        call = self._checked(texts, settings, timeout)
        with self._submitted(call):
            if not wait({call.room}, _shorter(self.queue_timeout, timeout)).done:
                raise self._no_room(call, timeout)
            if not wait({call.done}, None if timeout is None else timeout - (time.monotonic() - started)).done:
                raise self._late(call, timeout)
        return self._result(call, settings)

    async def aembed(
        self,
        texts: Iterable[str],
        *,
        normalize: bool = True,
        precision: str = "float32",
        truncate_dim: int | None = None,
        prompt: str | None = None,
        timeout: float | None = None,
    ) -> np.ndarray:
        """`embed` for asyncio: the event loop stays free. A cancelled task leaves the queue."""
        started = time.monotonic()
        settings = EmbedSettings(normalize=normalize, precision=precision, truncate_dim=truncate_dim, prompt=prompt)
        call = self._checked(texts, settings, timeout)
        with self._submitted(call):
            if not await _wait(call.room, _shorter(self.queue_timeout, timeout)):
                raise self._no_room(call, timeout)
            if not await _wait(call.done, None if timeout is None else timeout - (time.monotonic() - started)):
                raise self._late(call, timeout)
        return self._result(call, settings)

    def report(self) -> ServiceReport:
        """Counts so far."""
        with self._lock:
            return ServiceReport(
                calls=self._calls, sentences=self._sentences, batches=self._batches, waiting=self._queue.waiting
            )

    def close(self, *, finish: bool = True) -> None:
        """Accept no more calls and stop. Waiting calls are finished first or, with finish=False, fail with ServiceError."""
        with self._lock:
            self._closed = True
            if not finish:
                for call in self._queue.clear():
                    self._answer(call, ServiceError("The service was closed before this call had its turn."))
        self._executor.shutdown(wait=True)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(finish=kind is None)

    # --- the path of a call ---------------------------------------------------------------------------------------------

    def _checked(self, texts: Iterable[str], settings: EmbedSettings, timeout: float | None) -> Call:
        """Check a call before it is merged with others, which may have other settings."""
        _check_seconds("timeout", timeout)
        items = settings.prompted(check_texts(texts), self.encoder.bundle.prompts)
        self.encoder.embed_with([], settings)
        return Call(texts=items, raw=np.empty((len(items), self.encoder.dimensions), np.float32))

    @contextlib.contextmanager
    def _submitted(self, call: Call) -> Iterator[None]:
        """Put the call in line for the queue during the block; a timeout, Ctrl-C or cancellation removes it."""
        if self._process != os.getpid():
            raise ServiceError(
                "This service was made before the process was forked, and its thread is in the other one. Make the encoder and "
                "the service in each process, after the fork."
            )
        with self._lock:
            if self._closed:
                raise ServiceError("The service is closed. Make another one: encoder.service().")
            if call.texts:
                self._queue.line.append(call)
            else:
                call.room.set_result(None)
                self._answer(call)
            self._admit()
        try:
            yield
        except BaseException:
            with self._lock:
                self._withdraw(call)
            raise

    def _admit(self) -> None:
        """Let calls into the queue while there is room, and start workers while lanes are free."""
        for _ in range(self._queue.admit()):
            if self._running < self.encoder.backend.lanes and not self._closed:  # otherwise a running worker takes it
                self._executor.submit(self._work)
                self._running += 1

    def _withdraw(self, call: Call) -> None:
        call.done.cancel()
        self._queue.withdraw(call)
        self._admit()

    def _answer(self, call: Call, error: Exception | None = None) -> None:
        """Wake the caller, who raises the error: a future that holds an error complains if nobody retrieves it."""
        call.error = error
        for future in (call.room, call.done):
            if not future.done():
                future.set_result(None)
        self._calls += 1

    # --- the worker -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Compute batches until the queue is empty; runs in a thread of the service."""
        while True:
            with self._lock:
                share = -(-self._queue.waiting // self._running)  # of the waiting texts, for each worker
                parts = self._queue.next_batch(min(self.batch_texts, share))
                self._admit()
                if not parts:  # the line is empty too: whatever leaves the queue lets the next calls in
                    self._running -= 1
                    return
            self._compute(parts)

    def _compute(self, parts: list[Part]) -> None:
        """Compute the parts' vectors, raw if the engine has raw ones; after an error, part by part, so that only the call at
        fault gets it.
        """
        texts = [text for call, start, stop in parts for text in call.texts[start:stop]]
        try:
            result = self.encoder.embed_report(texts, normalize=self.encoder.backend.normalized, progress=False)
        except Exception as error:
            if len(parts) > 1:
                for part in parts:
                    self._compute([part])
                return
            call, start, _ = parts[0]
            with self._lock:
                if not call.done.done():
                    place = f"In the part of the call that begins with the text of index {start}: " if start else ""
                    self._answer(call, BackendError(f"{place}{error}") if place else error)
                    self._withdraw(call)
            return
        cut = dict(zip(result.report.truncated, result.report.truncated_lengths, strict=True))
        first = 0
        with self._lock:
            self._batches += 1
            self._sentences += len(texts)
            for call, start, stop in parts:
                call.raw[start:stop] = result.vectors[first : first + stop - start]
                call.cut += [(start + i, cut[first + i]) for i in range(stop - start) if first + i in cut]
                call.report = result.report
                call.ready += stop - start
                first += stop - start
                if call.ready == len(call.texts) and not call.done.done():
                    self._answer(call)

    # --- the end of a call ----------------------------------------------------------------------------------------------

    def _result(self, call: Call, settings: EmbedSettings) -> np.ndarray:
        if call.error is not None:
            raise call.error
        if call.cut and call.report is not None:
            indices, lengths = zip(*call.cut, strict=True)
            report = replace(call.report, sentences=len(call.texts), truncated=indices, truncated_lengths=lengths)
            warn_if_truncated(report, stacklevel=3)
        return settings.stored(call.raw, self.encoder.bundle.ranges)

    def _no_room(self, call: Call, timeout: float | None) -> ServiceBusyError:
        seconds = _shorter(self.queue_timeout, timeout)
        return ServiceBusyError(
            f"The queue of the service is full: {self._queue.waiting:,} of {self.queue_texts:,} texts wait, and there was no "
            f"room for {len(call.texts):,} more within {seconds:g} s. Calls arrive faster than they are computed: try again "
            "later, send less, or let calls wait longer with encoder.service(queue_timeout=...)."
        )

    def _late(self, call: Call, timeout: float | None) -> ServiceBusyError:
        return ServiceBusyError(
            f"The {len(call.texts):,} texts of this call were not ready within timeout={timeout:g} s, and the rest were "
            f"dropped ({self._queue.waiting:,} texts wait). Try again later, or pass a longer timeout."
        )


def _check_seconds(name: str, value: float | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0):
        raise InputError(f"{name}={value!r} must be a number of seconds of at least 0, or None to wait forever.")


def _shorter(*seconds: float | None) -> float | None:
    return min((value for value in seconds if value is not None), default=None)


async def _wait(future: Future[None], timeout: float | None) -> bool:
    import asyncio

    done, _ = await asyncio.wait({asyncio.wrap_future(future)}, timeout=timeout)
    return bool(done)
