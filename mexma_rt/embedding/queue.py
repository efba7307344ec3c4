"""The queue of a service: calls enter while there is room, and take turns adding some texts to a batch.

Plain data without threads: the service holds its lock during every method call.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from mexma_rt.embedding.report import EmbedReport

BATCH_CHARACTERS = 100_000  # bound of a shared batch, beyond its first text
SHARE = 16  # texts per call and turn, so that a long call leaves room for short ones behind it


@dataclass(kw_only=True, eq=False)
class Call:
    """One call of a service, in progress."""

    texts: list[str]
    raw: np.ndarray  # float32 [n, D], filled batch by batch
    room: Future[None] = field(default_factory=Future)  # done when the queue has accepted the call
    done: Future[None] = field(default_factory=Future)
    taken: int = 0  # texts that went into a batch
    ready: int = 0  # texts whose vectors are ready
    cut: list[tuple[int, int]] = field(default_factory=list)  # (index, tokens) of texts that were too long
    report: EmbedReport | None = None  # of its last batch
    error: Exception | None = None


Part = tuple[Call, int, int]  # texts start:stop of a call


class FairQueue:
    """At most `most_texts` texts from calls that take turns, and the line of calls waiting for room."""

    def __init__(self, most_texts: int) -> None:
        self.most_texts = most_texts
        self.calls: deque[Call] = deque()  # with texts that are not in a batch yet
        self.line: deque[Call] = deque()  # in order of arrival
        self.waiting = 0  # texts of `calls` that are not in a batch yet

    def admit(self) -> int:
        """Let calls in while there is room; return how many. A call with more texts than the queue holds enters when the
        queue is empty; no call overtakes it.
        """
        admitted = 0
        while self.line and (not self.waiting or self.waiting + len(self.line[0].texts) <= self.most_texts):
            call = self.line.popleft()
            self.calls.append(call)
            self.waiting += len(call.texts)
            call.room.set_result(None)
            admitted += 1
        return admitted

    def withdraw(self, call: Call) -> None:
        """Take a call out, wherever it is."""
        if call in self.line:
            self.line.remove(call)
        elif call in self.calls:
            self.calls.remove(call)
            self.waiting -= len(call.texts) - call.taken

    def next_batch(self, most_texts: int) -> list[Part]:
        """Return the parts of the next batch: calls take turns adding up to SHARE texts, until the batch is full."""
        parts: list[Part] = []
        texts = characters = 0
        while self.calls and texts < most_texts and characters < BATCH_CHARACTERS:
            call = self.calls.popleft()
            start, stop = call.taken, min(call.taken + SHARE, len(call.texts))
            while call.taken < stop and texts < most_texts and characters < BATCH_CHARACTERS:
                characters += len(call.texts[call.taken])
                call.taken, texts = call.taken + 1, texts + 1
            parts.append((call, start, call.taken))
            if call.taken < len(call.texts):
                self.calls.append(call)
        self.waiting -= texts
        return parts

    def clear(self) -> list[Call]:
        """Empty the queue and the line; return the calls that were in them."""
        left = [*self.calls, *self.line]
        self.calls.clear()
        self.line.clear()
        self.waiting = 0
        return left
