"""From ints to words: turns a run's compact history into the events of schema v1 (``docs/events.md``).

A run's history is rows of four ints. `History` follows one run in order and remembers per task when it last changed
state (8 bytes a task) and, once something has failed, through which upstream a failure reached it. Each stretch of
history becomes a `HistoryChunk`: what a `Sink` is given. Its `elapsed` and its events are made when first asked for,
so a sink that needs neither pays for neither.

Rules: chunks of a run are made in order, by one thread (the journal's). A chunk stays valid afterwards and may be read
from anywhere. After a loss (`History.lost`) nothing is guessed: times and causes that may rest on what was lost are
left out.
"""

from __future__ import annotations

from array import array
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from flowlane.core.elements import NOBODY
from flowlane.core.states import RULES, Reason, TaskState
from flowlane.runtime.ports import NEVER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from flowlane.core.messages import Transition
    from flowlane.runtime.adapting import Resized
    from flowlane.runtime.ports import Chunk, Report, RunInfo, RunOutcome

__all__ = [
    "ATTEMPT_ENDS",
    "LEVELS",
    "SCHEMA_VERSION",
    "SHAPES",
    "Clock",
    "History",
    "HistoryChunk",
    "LossChunk",
    "NoteChunk",
    "ResizeChunk",
    "Shape",
    "events_of",
    "lane_resized",
    "log_lost",
    "measures",
    "outputs",
    "run_finished",
    "run_started",
    "task_noted",
]

SCHEMA_VERSION: Final = 1

_MESSAGE_MAX: Final = 4_000  # characters of an error's message in an event: a message may hold a whole data frame
_NOTES_MAX: Final = 8
_PATH_MAX: Final = 8  # names in `path`: a failure at the head of a 100,000-long chain is on 5,000,000,000 path names

_BAD: Final = frozenset(
    {
        TaskState.FAILED,
        TaskState.TIMED_OUT,
        TaskState.CRASHED,
        TaskState.UPSTREAM_FAILED,
        TaskState.CANCELLED,
        TaskState.UNKNOWN,
    }
)
_BLAMED: Final = frozenset(
    {Reason.RAISED, Reason.REJECTED, Reason.WORKER_DIED, Reason.ATTEMPT_TIMEOUT, Reason.TOTAL_TIMEOUT}
)
_ERRORS: Final = frozenset({TaskState.FAILED, TaskState.TIMED_OUT, TaskState.CRASHED, TaskState.UNKNOWN})


class Shape:
    """Which fields an event of one code has beyond the common ones."""

    __slots__ = ("blamed", "cpu", "first", "reported", "stopped", "upstream")

    def __init__(self, source: TaskState, target: TaskState, reason: Reason) -> None:
        began = source is TaskState.RUNNING or target is TaskState.RUNNING
        ended_early = source is TaskState.READY and reason in (Reason.REJECTED, Reason.WORKER_DIED)
        self.first = source is TaskState.PENDING  # the first row of its task: no time in an earlier state
        whole = source is TaskState.EXPANDED and reason is Reason.RAISED  # a map's source, a workflow's body
        self.reported = (
            began or ended_early or whole
        )  # there is a report, an executor's as a rule, which tells who ran it
        self.cpu = source is TaskState.RUNNING
        self.blamed = self.reported and target is not TaskState.RUNNING and reason in _BLAMED
        self.stopped = target in _BAD
        self.upstream = target is TaskState.UPSTREAM_FAILED


def _level(target: TaskState) -> str:
    if target in _ERRORS:
        return "error"
    return "warning" if target is TaskState.RETRYING else "info"


#: By code: what an event of that kind holds, and how loud it is.
SHAPES: Final = tuple(Shape(*rule) for rule in RULES)
LEVELS: Final = tuple(_level(rule.target) for rule in RULES)
_SOURCES: Final = tuple(str(rule.source) for rule in RULES)
_TARGETS: Final = tuple(str(rule.target) for rule in RULES)
_REASONS: Final = tuple(str(rule.reason) for rule in RULES)
#: By code: whether an attempt that was out ends with it, so that its report is a final one.
ATTEMPT_ENDS: Final = tuple(
    shape.reported and rule.target is not TaskState.RUNNING and rule.source is not TaskState.EXPANDED
    for shape, rule in zip(SHAPES, RULES, strict=True)
)
_STOPS: Final = tuple(shape.stopped for shape in SHAPES)


class Clock:
    """Monotonic ns of one run as UTC dates: ``2026-11-22T17:00:00.123456Z``, microseconds cut, never rounded up."""

    __slots__ = ("_prefix", "_second", "offset")

    def __init__(self, run: RunInfo) -> None:
        self.offset = run.wall_ns - run.mono_ns
        self._second: int | None = None
        self._prefix = ""

    def text(self, t: int) -> str:
        """The date of monotonic time `t`. Formats the part down to seconds once a second."""
        second, ns = divmod(t + self.offset, 1_000_000_000)
        return f"{self.prefix(second)}{ns // 1000:06d}Z"

    def prefix(self, second: int) -> str:
        """``2026-11-22T17:00:00.`` for a Unix time in whole seconds; the epoch's when it is beyond the calendar."""
        if second != self._second:
            try:
                date = datetime.fromtimestamp(second, UTC)
            except (ValueError, OverflowError, OSError):  # a host's clock may stand anywhere
                date = datetime.fromtimestamp(0, UTC)
            self._prefix = f"{date.isoformat()[:19]}."
            self._second = second
        return self._prefix


class History:
    """Follows one run, row by row. One thread; chunks in order."""

    __slots__ = ("_causes", "_open", "_since", "clock", "run")

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.clock = Clock(run)
        self._since = array("q", [NEVER]) * len(run.names)
        self._causes: _Causes | None = None
        self._open: HistoryChunk | None = None

    def chunk(self, transitions: Sequence[Transition], reports: Mapping[tuple[int, int], Report]) -> HistoryChunk:
        """The next stretch of history. O(rows of the stretch before it), when nobody asked for that one's times."""
        self.settle()
        self._open = chunk = HistoryChunk(self, transitions, reports)
        return chunk

    def settle(self) -> None:
        """Take the last chunk into account and let go of it."""
        if self._open is not None:
            chunk, self._open = self._open, None
            _ = chunk.elapsed

    def lost(self, count: int, t: int) -> LossChunk:
        """`count` rows, the last at `t`, will never come. Forgets whatever they may have changed."""
        self.settle()
        self._since = array("q", [NEVER]) * len(self.run.names)
        return LossChunk(self.run, self.clock, count, t)

    def noted(self, element: int, attempt: int, report: Report) -> NoteChunk | ResizeChunk:
        """What an executor told about an attempt that is out; or, of no element, that slots of the run have changed."""
        self.settle()
        if element == NOBODY:
            return ResizeChunk(self.run, self.clock, report.value)
        return NoteChunk(self.run, self.clock, element, attempt, report)

    def follow(self, transitions: Sequence[Transition]) -> list[int]:
        """Apply rows; for each, ns in the state it leaves (NEVER when not known)."""
        since = self._since
        if len(since) < len(self.run.names):  # there is more to do than there was
            since.extend(array("q", [NEVER]) * (len(self.run.names) - len(since)))
        stops = _STOPS
        out: list[int] = []
        add = out.append
        for element, _, code, t in transitions:
            last = since[element]
            since[element] = t
            # A worker's clock reading may come before the loop's by a hair: never below zero.
            add(NEVER if last < 0 else t - last if t > last else 0)
            if stops[code]:
                if self._causes is None:
                    self._causes = _Causes(self.run)
                self._causes.stopped(element, SHAPES[code].upstream, since)
        return out

    def cause(self, element: int) -> tuple[str, list[str]] | None:
        """For a task that ended upstream_failed: the name of the task that failed, and the way from it, both included."""
        return None if self._causes is None else self._causes.way(element)

    def event(self, row: Transition, elapsed: int, report: Report | None) -> dict[str, Any]:
        """One row as an event of the schema, fields in their documented order."""
        element, attempt, code, t = row
        run = self.run
        shape = SHAPES[code]
        if not shape.reported:
            report = None
        event: dict[str, Any] = {
            "event": "task.transition",
            "v": SCHEMA_VERSION,
            "level": LEVELS[code],
            "timestamp": self.clock.text(t),
            "run": run.id,
            "run_name": run.name,
            "workflow": run.workflow,
            "task": run.names[element],
            "kind": run.kinds[element],
            "executor": run.executors[element],
            "worker": (report.worker or None) if report is not None else None,
            "attempt": attempt,
            "from": _SOURCES[code],
            "to": _TARGETS[code],
            "reason": _REASONS[code],
            "mono_ns": t,
            "elapsed_s": elapsed / 1e9 if elapsed >= 0 and not shape.first else None,
        }
        if report is not None:
            if shape.cpu:
                event.update(measures(report))
            if shape.blamed and report.failure is not None:
                event["error"] = _error(report)
        elif shape.upstream:
            cause = self.cause(element)
            if cause is not None:
                event["root"], event["path"] = cause
        return event


class _Causes:
    """Who stopped whom: for each task that ended badly its root and the upstream it came through."""

    __slots__ = ("_root", "_run", "_via")

    def __init__(self, run: RunInfo) -> None:
        self._run = run
        self._via: dict[int, int] = {}
        self._root: dict[int, int] = {}

    def stopped(self, element: int, by_upstream: bool, since: array[int]) -> None:
        root = self._root
        if not by_upstream:
            self._via[element] = root[element] = element
            return
        bad = [up for up in self._run.upstreams[element] if up in root]
        if bad:  # else what stopped it was lost: say nothing rather than something wrong
            via = bad[0] if len(bad) == 1 else min(bad, key=lambda up: since[root[up]])
            self._via[element] = via
            root[element] = root[via]

    def way(self, element: int) -> tuple[str, list[str]] | None:
        root = self._root.get(element)
        if root is None:
            return None
        names = self._run.names
        path = [names[element]]
        while element != root and len(path) < _PATH_MAX:
            element = self._via[element]
            path.append(names[element])
        if element != root:
            path[_PATH_MAX - 2 :] = ["…", names[root]]
        path.reverse()
        return names[root], path


def _error(report: Report) -> dict[str, Any]:
    failure = report.failure
    assert failure is not None
    try:
        where = failure.where
    except Exception:  # noqa: BLE001 - it walks a live traceback, which may be of a strange make
        where = None
    message = failure.message
    if len(message) > _MESSAGE_MAX:
        message = f"{message[:_MESSAGE_MAX]}… (+{len(message) - _MESSAGE_MAX} characters)"
    error: dict[str, Any] = {"type": failure.type, "message": message, "where": where}
    if failure.notes:
        error["notes"] = [note[:_MESSAGE_MAX] for note in failure.notes[:_NOTES_MAX]]
    return error


class HistoryChunk:
    """A stretch of one run's history; a `Chunk`. Made by `History.chunk` only."""

    __slots__ = ("_elapsed", "_history", "reports", "run", "transitions")

    def __init__(
        self, history: History, transitions: Sequence[Transition], reports: Mapping[tuple[int, int], Report]
    ) -> None:
        self.run = history.run
        self.transitions = transitions
        self.reports = reports
        self._history = history
        self._elapsed: list[int] | None = None

    @property
    def elapsed(self) -> Sequence[int]:
        """For each row, ns spent in the state it leaves; NEVER for the first of a task and after a loss."""
        if self._elapsed is None:
            self._elapsed = self._history.follow(self.transitions)
        return self._elapsed

    def event(self, index: int) -> dict[str, Any]:
        """The event of one row."""
        row = self.transitions[index]
        return self._history.event(row, self.elapsed[index], self.reports.get(row[:2]))

    def events(self) -> Iterator[dict[str, Any]]:
        """The events of all rows, in order."""
        event, get = self._history.event, self.reports.get
        for row, elapsed in zip(self.transitions, self.elapsed, strict=True):
            yield event(row, elapsed, get(row[:2]))


class LossChunk:
    """Says that a stretch of history was dropped: a `Chunk` without rows and with one event, ``log.lost``."""

    __slots__ = ("_clock", "count", "run", "t")

    transitions: Sequence[Transition] = ()
    elapsed: Sequence[int] = ()

    def __init__(self, run: RunInfo, clock: Clock, count: int, t: int) -> None:
        self.run = run
        self.count = count
        self.t = t
        self._clock = clock

    @property
    def reports(self) -> Mapping[tuple[int, int], Report]:
        return {}

    def events(self) -> Iterator[dict[str, Any]]:
        yield log_lost(self.run, self._clock, self.count, self.t)


class NoteChunk:
    """What was told about an attempt without changing anything: a `Chunk` without rows and with one event, ``task.noted``."""

    __slots__ = ("_clock", "_key", "_report", "run")

    transitions: Sequence[Transition] = ()
    elapsed: Sequence[int] = ()

    def __init__(self, run: RunInfo, clock: Clock, element: int, attempt: int, report: Report) -> None:
        self.run = run
        self._clock = clock
        self._key = (element, attempt)
        self._report = report

    @property
    def reports(self) -> Mapping[tuple[int, int], Report]:
        return {self._key: self._report}

    def events(self) -> Iterator[dict[str, Any]]:
        yield task_noted(self.run, self._clock, *self._key, self._report)


class ResizeChunk:
    """Says that a lane or a limit has other slots: a `Chunk` without rows and with one event, ``lane.resized``."""

    __slots__ = ("_clock", "change", "run")

    transitions: Sequence[Transition] = ()
    elapsed: Sequence[int] = ()

    def __init__(self, run: RunInfo, clock: Clock, change: Resized) -> None:
        self.run = run
        self.change = change
        self._clock = clock

    @property
    def reports(self) -> Mapping[tuple[int, int], Report]:
        return {}

    def events(self) -> Iterator[dict[str, Any]]:
        yield lane_resized(self.run, self._clock, self.change)


def measures(report: Report) -> dict[str, float | int]:
    """What an executor measured of an attempt, as fields of its last event. Looked at where it measured CPU time, or failed."""
    fields: dict[str, float | int] = {}
    if report.cpu >= 0:
        fields["cpu_s"] = report.cpu / 1e9
    elif report.failure is None:
        return fields
    if report.rss >= 0:
        fields["peak_rss"] = report.rss
    if report.bytes_in >= 0:
        fields["bytes_in"] = report.bytes_in
    if report.bytes_out >= 0:
        fields["bytes_out"] = report.bytes_out
    if report.pickling >= 0:
        fields["pickling_s"] = report.pickling / 1e9
    return fields


def outputs(chunk: Chunk) -> Iterator[tuple[int, Report]]:
    """(index of the row that ends the attempt, report) for each attempt of `chunk` that printed something."""
    if not any(report.output for report in chunk.reports.values()):
        return
    for index, (element, attempt, code, _) in enumerate(chunk.transitions):
        if ATTEMPT_ENDS[code]:
            report = chunk.reports.get((element, attempt))
            if report is not None and report.output:
                yield index, report


def events_of(chunk: Chunk, codes: Collection[int]) -> Iterator[dict[str, Any]]:
    """The events of those rows whose code is among `codes`, without making the others where the chunk allows it.

    A chunk without rows gives all it has to say.
    """
    if isinstance(chunk, HistoryChunk):
        for index, row in enumerate(chunk.transitions):
            if row[2] in codes:
                yield chunk.event(index)
    elif not chunk.transitions:
        yield from chunk.events()
    else:
        for row, event in zip(chunk.transitions, chunk.events(), strict=True):
            if row[2] in codes:
                yield event


def _common(name: str, level: str, run: RunInfo, clock: Clock, t: int) -> dict[str, Any]:
    return {
        "event": name,
        "v": SCHEMA_VERSION,
        "level": level,
        "timestamp": clock.text(t),
        "run": run.id,
        "run_name": run.name,
        "workflow": run.workflow,
        "mono_ns": t,
    }


def run_started(run: RunInfo) -> dict[str, Any]:
    """The event ``run.started``. Parameters by name only: their values may be secret, or large."""
    event = _common("run.started", "info", run, Clock(run), run.mono_ns)
    event["tasks"] = len(run.names)
    event["kinds"] = dict(sorted(Counter(run.kinds).items()))
    event["executors"] = dict(sorted(Counter(run.executors).items()))
    event["params"] = list(run.params)
    return event


def run_finished(run: RunInfo, outcome: RunOutcome) -> dict[str, Any]:
    """The event ``run.finished``."""
    level = {"succeeded": "info", "failed": "error"}.get(outcome.state, "warning")
    event = _common("run.finished", level, run, Clock(run), outcome.ended)
    event["state"] = str(outcome.state)
    event["counts"] = dict(outcome.counts)
    event["duration_s"] = max(0, outcome.ended - run.mono_ns) / 1e9
    event["error"] = outcome.error
    return event


def task_noted(run: RunInfo, clock: Clock, element: int, attempt: int, report: Report) -> dict[str, Any]:
    """The event ``task.noted``."""
    event = _common("task.noted", "warning", run, clock, report.ended)
    event["task"] = run.names[element]
    event["kind"] = run.kinds[element]
    event["executor"] = run.executors[element]
    event["worker"] = report.worker or None
    event["attempt"] = attempt
    event["note"] = report.note
    return event


def lane_resized(run: RunInfo, clock: Clock, change: Resized) -> dict[str, Any]:
    """The event ``lane.resized``."""
    decision = change.decision
    event = _common("lane.resized", "info", run, clock, decision.at)
    event["lane"] = change.name if change.kind == "lane" else None
    event["limit"] = change.name if change.kind == "limit" else None
    event["before"] = decision.before
    event["slots"] = decision.slots
    event["note"] = decision.reason
    event["latency_s"] = decision.latency_ns / 1e9 if decision.latency_ns else None
    event["usual_s"] = decision.usual_ns / 1e9 if decision.usual_ns else None
    event["errors"] = decision.errors
    event["lag_s"] = decision.lag_ns / 1e9
    event["samples"] = decision.samples
    event["in_use"] = decision.in_use
    return event


def log_lost(run: RunInfo, clock: Clock, count: int, t: int) -> dict[str, Any]:
    """The event ``log.lost``: `count` events are missing here, the last of them of time `t`."""
    event = _common("log.lost", "warning", run, clock, t)
    event["lost"] = count
    return event
