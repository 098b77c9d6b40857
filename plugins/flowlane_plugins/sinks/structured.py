"""Structured logs: every event as a JSON line in a file, or as a record of the stdlib logger "flowlane".

Both are structlog pipelines, and take a user's processors. For the default chain of JSON lines the bytes are known in
advance, so they are written by the fast path (`lines`, about 1 µs an event) and structlog is not even imported; one
processor moves the sink to the real chain (10 to 20 µs an event).
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Final

from flowlane.runtime.encode import encode, inert
from flowlane.runtime.events import LEVELS, Clock, events_of, log_lost, run_finished, run_started
from flowlane.runtime.journal import library_logger
from flowlane_plugins.sinks.chain import Chain
from flowlane_plugins.sinks.lines import LineRenderer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flowlane.runtime.ports import Chunk, RunInfo, RunOutcome
    from flowlane_plugins.sinks.chain import Processor, Rendered

__all__ = ["JsonLinesSink", "LoggingSink"]


class _Lines:
    """What stands at the end of the chain of JSON lines: looks enough like a logger for any processor, and collects."""

    name = "flowlane"
    level = logging.NOTSET
    disabled = False

    def __init__(self) -> None:
        self.lines: list[str] = []

    # structlog's filter_by_level calls one of these two, by version:
    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        return level >= self.level

    def getEffectiveLevel(self) -> int:  # noqa: N802 - logging's name
        return self.level

    def info(self, line: str) -> None:
        self.lines.append(line)

    debug = warning = error = critical = info


class JsonLinesSink:
    """Appends every event to the file `path`, one JSON object a line, schema v1.

    The file is created with mode 0600, its folder must exist; a path that cannot be opened raises OSError from `open`.
    Runs may share one sink: their lines interleave by chunk. One write a chunk. When the disk is full, events are dropped and
    counted (`lost`), nothing half-written stays behind, and once there is room a ``log.lost`` event tells of the gap.
    """

    def __init__(self, path: str | os.PathLike[str], processors: Sequence[Processor] = ()) -> None:
        self.path = os.fspath(path)
        self.lost = 0  # events that did not reach the file
        self.fast = not processors
        self._processors = tuple(processors)
        self._chain: Chain | None = None
        self._lines = _Lines()
        self._faults: list[str] = []
        self._fd = -1
        self._runs: dict[str, LineRenderer] = {}
        self._gap = 0  # of `lost`, those that no log.lost has told of
        self._lost_at_open = 0
        self._torn = False  # the file ends in a part of a line that could not be taken back

    def open(self, run: RunInfo) -> None:
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
            self._fd = os.open(self.path, flags, 0o600)
            self._lost_at_open = self.lost
        if not self.fast and self._chain is None:
            self._chain = Chain(self._lines, self._processors, _as_line)
        self._runs[run.id] = LineRenderer(run)
        self._write(self._render([run_started(run)]), run, run.mono_ns)

    def write(self, chunk: Chunk) -> None:
        run = chunk.run
        text = self._runs[run.id].render(chunk) if self.fast else self._render(chunk.events())
        self._write(text, run, chunk.transitions[-1][3] if chunk.transitions else run.mono_ns)

    def close(self, run: RunInfo, outcome: RunOutcome) -> None:
        if self._runs.pop(run.id, None) is None:
            return
        self._write(self._render([run_finished(run, outcome)]), run, outcome.ended)
        if not self._runs:
            fd, self._fd = self._fd, -1
            lost = self.lost - self._lost_at_open
            if lost:
                self._faults.append(f"{lost:,} events are missing in {inert(self.path)}")
            os.close(fd)

    def take_faults(self) -> list[str]:
        """What went wrong since the last call, for people. Called by the journal."""
        faults, self._faults = self._faults, []
        if self._chain is not None and self._chain.faults:
            faults += self._chain.faults
            self._chain.faults.clear()
        return faults

    def _render(self, events: Iterable[Mapping[str, Any]]) -> str:
        chain = self._chain
        if chain is None:
            return "".join([f"{encode(event)}\n" for event in events])
        for event in events:
            chain.tell(event)
        lines, self._lines.lines = self._lines.lines, []
        return "".join(lines)

    def _write(self, text: str, run: RunInfo, t: int) -> None:
        data = text.encode("ascii")
        notice = b""
        if self._gap or self._torn:
            notice = b"\n" if self._torn else b""
            if self._gap:
                notice += f"{encode(log_lost(run, Clock(run), self._gap, t))}\n".encode("ascii")
        if not data:
            return
        whole = notice + data
        written = 0
        try:
            while written < len(whole):
                written += os.write(self._fd, memoryview(whole)[written:] if written else whole)
        except OSError as error:
            self._failed(error, whole[:written], notice, data)
        else:
            self._gap = 0
            self._torn = False

    def _failed(self, error: OSError, landed: bytes, notice: bytes, data: bytes) -> None:
        """Part of a chunk landed, or nothing did: keep whole lines, take back the rest, count what is missing."""
        if landed.startswith(notice):
            if notice:
                self._gap = 0
                self._torn = False
            missing = data.count(b"\n") - landed[len(notice) :].count(b"\n")
        else:
            missing = data.count(b"\n")
        rest = len(landed) - (landed.rfind(b"\n") + 1)
        if rest and not self._take_back(rest):
            self._torn = True
        if not self.lost:
            self._faults.append(
                f"{inert(self.path)}: {_reason(error)}; events are dropped until it can be written again"
            )
        self.lost += missing
        self._gap += missing

    def _take_back(self, count: int) -> bool:
        """Cut the last `count` bytes off again, unless somebody has written behind them."""
        try:
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            if os.fstat(self._fd).st_size != end:
                return False
            os.ftruncate(self._fd, end - count)
        except OSError:  # a pipe, a device: nothing to take back
            return False
        return True


def _as_line(event: Mapping[str, Any]) -> Rendered:
    return (f"{encode(event)}\n",), {}


def _reason(error: OSError) -> str:
    return str(error) if error.errno is None else os.strerror(error.errno)


# ── stdlib logging ────────────────────────────────────────────────────────────────────────────────────────────────

_NUMBERS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_LOUD: Final = {
    number: frozenset(code for code, level in enumerate(LEVELS) if _NUMBERS[level] >= number)
    for number in (logging.WARNING, logging.ERROR)
}

#: Names that a record has already: logging refuses them in `extra`. Those of 3.12 are among them on any version.
_TAKEN: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


class LoggingSink:
    """Hands every event to the stdlib logger "flowlane": a readable message, all fields as ``extra``.

    Nothing is configured but a NullHandler on that logger, so a host that set up no logging sees nothing. Handlers,
    levels and filters are the host's. A host that formats with structlog's ``ProcessorFormatter`` and ``ExtraAdder``
    gets the event with its fields, under its schema name (``event="task.transition"``). Fields that a user's processor
    adds under a name that records use themselves ("name", "process") arrive with an underscore behind.

    Records are emitted on the journal's thread.
    """

    def __init__(self, processors: Sequence[Processor] = ()) -> None:
        self._logger = library_logger()
        self._processors = tuple(processors)
        self._chain: Chain | None = None

    @property
    def wants(self) -> bool:
        """Whether any handler of the host would hear even an error: asked once when a run starts."""
        return self._logger.isEnabledFor(logging.ERROR) and _heard(self._logger)

    def open(self, run: RunInfo) -> None:
        self._tell([run_started(run)])

    def write(self, chunk: Chunk) -> None:
        logger = self._logger
        if logger.isEnabledFor(logging.INFO) or not chunk.transitions:
            self._tell(chunk.events())
            return
        codes = _LOUD[logging.WARNING if logger.isEnabledFor(logging.WARNING) else logging.ERROR]
        if any(row[2] in codes for row in chunk.transitions):
            self._tell(events_of(chunk, codes))

    def close(self, run: RunInfo, outcome: RunOutcome) -> None:
        self._tell([run_finished(run, outcome)])

    def take_faults(self) -> list[str]:
        """What went wrong since the last call, for people. Called by the journal."""
        if self._chain is None or not self._chain.faults:
            return []
        faults, self._chain.faults = self._chain.faults, []
        return faults

    def _tell(self, events: Iterable[Mapping[str, Any]]) -> None:
        enabled = self._logger.isEnabledFor
        for event in events:
            if enabled(_NUMBERS[event["level"]]):
                if self._chain is None:
                    self._chain = Chain(self._logger, self._processors, _as_record)
                self._chain.tell(event)


def _heard(logger: logging.Logger | None) -> bool:
    """Whether a record of `logger` reaches a handler that is not a NullHandler."""
    while logger is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return True
        if not logger.propagate:
            return False
        logger = logger.parent
    return False


def _as_record(event: Mapping[str, Any]) -> Rendered:
    extra = {(f"{key}_" if key in _TAKEN else str(key)): value for key, value in event.items()}
    return (_sentence(event),), {"extra": extra}


def _sentence(event: Mapping[str, Any]) -> str:
    """An event for people, on one line: ``etl brisk-otter parse#2 ready → running``."""
    get = event.get
    words: list[Any] = [get("workflow"), get("run_name")]
    match get("event"):
        case "task.transition":
            words += [get("task"), get("from"), "→", get("to")]
            attempt, error = get("attempt"), get("error")
            if isinstance(attempt, int) and attempt > 1:
                words.append(f"(attempt {attempt})")
            if isinstance(error, dict):
                words.append(f"{error.get('type')}: {error.get('message')}")  # pyright: ignore[reportUnknownMemberType]
            elif get("root") is not None:
                words.append(f"(because of {get('root')})")
        case "task.noted":
            words += [get("task"), get("note")]
        case "lane.resized":
            words += [get("lane") or get("limit"), get("before"), "→", f"{get('slots')} slots:", get("note")]
        case "run.started":
            words.append(f"started: {get('tasks')} tasks")
        case "run.finished":
            words.append(str(get("state")))
            if get("error") is not None:
                words.append(f"({get('error')})")
        case "log.lost":
            words.append(f"{get('lost')} events were lost")
        case other:
            words.append(other)
    return inert(" ".join([_word(word) for word in words if word is not None]))


def _word(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - what a processor put in the place of a name
        return "?"
