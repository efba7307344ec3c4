"""The log of a run: log.jsonl, TensorBoard events if requested, and the progress bar.

A line of log.jsonl is one of

    {"stage": "mexma", "update": 40, "pairs_per_second": ..., "tokens_per_second": ..., "seconds": ..., "loss": ..., ...}
    {"stage": "mexma", "update": 40, "evaluation": {"fra": {"xsim": ..., "accuracy": ...}, ..., "mean": {...}}}

Loss terms and measures keep all digits, so that a resumed run can be compared bit by bit with an uninterrupted one. A number
that is not finite (the gradient norm where fp16 overflowed) is null, since JSON knows neither NaN nor infinity.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, SupportsFloat, TypeAlias

from mexma_rt.errors import FileError, require_extra, typed
from mexma_rt.files.atomic import atomic_write

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

Plain: TypeAlias = "str | SupportsFloat | Mapping[str, Plain]"  # what a line of the log may hold
Line: TypeAlias = dict[str, Any]  # a line of the log as read from JSON

LOG = "log.jsonl"
EVENTS = "tensorboard"

_PROCESS_START = time.perf_counter()  # near enough: this file is imported before any work


class RunLog:
    """The log of one stage: a context manager that appends to the log of `folder` after update `first`.

    total: updates of the stage. every: updates between log lines (`due` says when). pairs_per_update: of all processes.
    Every method does nothing in a process that is not `main`. Raises MissingExtraError for tensorboard without the package,
    FileError if the log cannot be written. Call `truncate` first, even for a new run: lines are only appended here.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        total: int,
        first: int,
        pairs_per_update: int,
        every: int,
        tensorboard: bool,
        main: bool = True,
    ) -> None:
        if tensorboard:  # checked in every process, so that all stop and none waits for the main one
            require_extra("train", "tensorboard")
        self.folder, self.name, self.total, self.main = Path(folder), name, total, main
        self.pairs_per_update, self.every, self.tensorboard = pairs_per_update, every, tensorboard
        self._last, self._since = first, 0.0  # update and clock at the previous line
        self._file: BinaryIO | None = None
        self._bar: tqdm | None = None
        self._events: SummaryWriter | None = None
        self._exit = ExitStack()

    def __enter__(self) -> RunLog:
        self._since = time.perf_counter()
        with ExitStack() as opened:  # closes what is already open if a later step fails
            if self.main:
                self._open(opened)
            self._exit = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def due(self, update: int) -> bool:
        """Whether a line is written after this update: every `every` updates, and after the last."""
        return update % self.every == 0 or update == self.total

    def advance(self, update: int, **postfix: object) -> None:
        """Move the progress bar to `update`; postfix is shown after it until the next one."""
        if self._bar is not None:
            if postfix:
                self._bar.set_postfix(postfix, refresh=False)
            self._bar.update(update - self._bar.n)

    def add(self, update: int, terms: Mapping[str, float], tokens: int) -> None:
        """Write a line with the means of the terms, and the speed by the tokens of all processes, since the previous line."""
        if not self.main:
            return
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)  # a clock may stand still
        line = {
            "pairs_per_second": _rounded((update - self._last) * self.pairs_per_update / elapsed),
            "tokens_per_second": _rounded(tokens / elapsed),
            "seconds": round(now - _PROCESS_START, 3),  # since this process started
        }
        self._write(update, line | dict(terms))
        self._add_events(update, "", line | dict(terms))
        self._last, self._since = update, now

    def add_evaluation(self, update: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Write the measures of every test set after an update, as `evaluate.evaluate` returns them."""
        if not self.main:
            return
        self._write(update, {"evaluation": results})
        for test_set, measures in results.items():
            self._add_events(update, f"evaluation/{test_set}/", measures)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time of this block (an evaluation, a saved state) from the next line's speed."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start

    def _open(self, opened: ExitStack) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that closing the file does not retry a line that could not be written whole.
            self._file = opened.enter_context((self.folder / LOG).open("ab", buffering=0))
        except OSError as error:
            raise self._cannot_write(error) from error
        if sys.stderr is not None and sys.stderr.isatty():  # a disabled bar would still start tqdm's monitor thread
            from tqdm import tqdm

            self._bar = opened.enter_context(tqdm(total=self.total, initial=self._last, desc=self.name, unit="updates"))
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Each stage has its own folder (a "run" of TensorBoard's), because purging knows steps but not stages: resuming
            # one stage at its update 50 would hide everything from update 50 on in the others.
            folder = self.folder / EVENTS / self.name
            self._events = opened.enter_context(SummaryWriter(str(folder), purge_step=self._last + 1))

    def _write(self, update: int, values: Mapping[str, Plain]) -> None:
        """Append a whole line; the operating system has it when this returns, so killing the process loses nothing."""
        assert self._file is not None, "a RunLog writes only inside its with block"
        line: dict[str, Plain] = {"stage": self.name, "update": update, **values}
        text = json.dumps(_plain(line), allow_nan=False)
        rest = memoryview(text.encode() + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._cannot_write(error) from error

    def _add_events(self, update: int, prefix: str, values: Mapping[str, float]) -> None:
        if self._events is not None:
            for term, value in values.items():
                self._events.add_scalar(f"{self.name}/{prefix}{term}", value, update)
            self._events.flush()  # by default every two minutes, so a kill could lose events from before the last saved state

    def _cannot_write(self, error: OSError) -> FileError:
        return FileError(
            f"{self.folder / LOG} cannot be written: {error.strerror or error}. Make room or fix the permissions; the run's "
            f"saved state is unchanged, so continue with: mexma-train resume {typed(self.folder)}"
        )


def read_log(folder: Path) -> list[Line]:
    """Return the lines of a run's log, without an incomplete last one (the run was killed, or is writing it now).

    Raises FileError if there is no log, or if a complete line is not one of a run's.
    """
    return [line for line, _ in _parse(Path(folder) / LOG)]


def truncate(folder: Path, stage_names_in_order: list[str], stage: str, update: int) -> None:
    """Drop what a killed run wrote after its last saved state, which is `update` of `stage`, and an incomplete last line.

    Remaining lines keep their bytes; the file is replaced atomically. Without a log, nothing happens. TensorBoard's events
    stay, because `RunLog` marks from where on they are void. Raises FileError as `read_log` does, and for a line of a stage
    that is not in stage_names_in_order.
    """
    path = Path(folder) / LOG
    if not path.exists():
        return
    order = {name: number for number, name in enumerate(stage_names_in_order)}
    kept = []
    for number, (line, raw) in enumerate(_parse(path), start=1):
        if line["stage"] not in order:
            raise _damaged(path, number, f"its stage is {line['stage']!r}, but this run has {', '.join(order)}")
        if (order[line["stage"]], line["update"]) <= (order[stage], update):
            kept.append(raw)
    data = b"".join(kept)
    if len(data) != path.stat().st_size:
        with atomic_write(path) as stream:
            stream.write(data)


def _parse(path: Path) -> list[tuple[Line, bytes]]:
    """Each complete line as (values, bytes with the line's end)."""
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise FileError(
            f"{path} does not exist: {path.parent} is not the folder of a run. Give the folder that `mexma-train run` wrote."
        ) from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}. Type: ls -l {typed(path)}") from error
    parsed = []
    for number, raw in enumerate(lines, start=1):
        try:
            line = json.loads(raw)
        except ValueError as error:
            raise _damaged(path, number, f"it is not JSON ({error})") from None
        if not isinstance(line, dict) or not isinstance(line.get("stage"), str) or not isinstance(line.get("update"), int):
            raise _damaged(path, number, "it has no stage and update")
        parsed.append((line, raw + b"\n"))
    return parsed


def _damaged(path: Path, number: int, why: str) -> FileError:
    return FileError(
        f"{path}, line {number} is not a line of a run's log: {why}. The run itself does not need it. "
        f"Remove it: sed -i {number}d {path}"
    )


def _plain(value: Plain) -> object:
    """A value as plain data for JSON; a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (str, int)):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
