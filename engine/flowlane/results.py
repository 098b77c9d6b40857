"""What is left of a run when it has ended: its value, and by task what became of it.

A result is a view of the run's `Record`, columns of ints; no object per task exists until it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from flowlane.core.states import DONE, STATES, RunState, TaskState
from flowlane.errors import Failure, RunCancelled, RunFailed
from flowlane.runtime.adapting import summed_up
from flowlane.runtime.measured import at
from flowlane.runtime.ports import NEVER
from flowlane.times import Times, times_of, way_back
from flowlane.verdicts import Verdict, verdicts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowlane.record import Record

__all__ = ["RunResult", "TaskResult", "Times", "Verdict"]

R = TypeVar("R")

_FAILED = (TaskState.FAILED, TaskState.TIMED_OUT, TaskState.CRASHED, TaskState.UNKNOWN)


class TaskResult(NamedTuple):
    """What became of one task. Durations are seconds of its latest attempt, None where it did not come to that.

    waited    from ready to the start of the attempt
    duration  from the start of the attempt to its end

    What its executor measured of the latest attempt; None where it does not, or could not any more:

    cpu                  seconds of CPU time
    peak_rss             most memory that its worker process had held by its end, bytes
    bytes_in, bytes_out  size of its arguments and of its result on the way to and from its worker
    pickling             seconds spent on encoding and decoding both
    output               what it printed, where that is captured; of the first 16 MB of a run
    worker               who ran it ("pid 4711"), of tasks that did not succeed
    """

    name: str
    state: TaskState
    kind: str
    executor: str
    attempts: int
    waited: float | None
    duration: float | None
    failure: Failure | None
    cpu: float | None = None
    peak_rss: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    pickling: float | None = None
    output: str | None = None
    worker: str | None = None


class _Tasks(Mapping[str, TaskResult]):
    """Task name → TaskResult, made when asked for."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def number(self, name: str) -> int:
        """The number of the task's element. Raises KeyError."""
        return self._record.roster.find(name)

    def __getitem__(self, name: str) -> TaskResult:
        element = self.number(name)
        record, measured = self._record, self._record.measured
        ready, started, ended = (record.ready_ns[element], record.started_ns[element], record.ended_ns[element])
        state = record.state_of(element)
        return TaskResult(
            name=name,
            state=state,
            kind=record.kinds[element],
            executor=record.lane_of(element),
            attempts=record.attempts[element],
            waited=(started - ready) / 1e9 if started != NEVER else None,
            duration=(ended - started) / 1e9 if started != NEVER and ended != NEVER else None,
            failure=record.failures.get(element) if state in _FAILED else None,
            cpu=_seconds(at(measured.cpu, element)),
            peak_rss=at(measured.rss, element),
            bytes_in=at(measured.bytes_in, element),
            bytes_out=at(measured.bytes_out, element),
            pickling=_seconds(at(measured.pickling, element)),
            output=measured.outputs.get(element),
            worker=measured.workers.get(element) or None,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._record.names)

    def __len__(self) -> int:
        return len(self._record.names)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            self.number(name)
        except KeyError:
            return False
        return True

    def __repr__(self) -> str:
        return f"<{len(self)} tasks>"


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e9


class RunResult(Generic[R]):
    """How a run ended. `state` says it in one word; `value` is there after success only.

    id, name       the run's number (12 hex digits) and its memorable name
    workflow       the workflow's name
    state          a RunState: succeeded, failed, cancelled or interrupted
    tasks          task name → TaskResult, in the order of declaration
    failures       task name → Failure, of tasks that failed, timed out or crashed for good, the first to fail first
    notes          what there is to say about the run besides: what executors noticed about tasks, abandoned attempts, faults
                   of sinks
    """

    def __init__(self, record: Record, value: Any, notes: list[str]) -> None:
        """Made by an Engine. `value` is the run's, None unless it succeeded."""
        self._record = record
        self.id = record.id
        self.name = record.name
        self.workflow = record.workflow
        self.state: RunState = record.state
        self._tasks = _Tasks(record)
        self.tasks: Mapping[str, TaskResult] = self._tasks
        self.notes = notes
        self._value: Any = value

    @property
    def value(self) -> R:
        """What the workflow returned. Raises RunFailed or RunCancelled (as `check` does) when there is none."""
        self.check()
        return cast("R", self._value)

    def check(self) -> RunResult[R]:
        """Return the result itself after success. Raises RunFailed, or RunCancelled when it was told to stop."""
        if self.state is RunState.SUCCEEDED:
            return self
        if self._record.error is not None:
            raise self._record.error
        if self.state is not RunState.FAILED:
            raise RunCancelled(f"run {self.name} of '{self.workflow}' was {self.state} before it ended", result=self)
        failures = self.failures
        if (overdue := self._record.overdue) is not None:
            message = f"run {self.name} of '{self.workflow}' failed: it was not over by its deadline of {overdue:g} s"
            raise RunFailed(message, result=self, failures=failures, hint="see result.tasks for how far it came")
        name, failure = next(iter(failures.items()))  # a failed run without a failed task has an error, see above
        others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        blocked = self.counts[TaskState.UPSTREAM_FAILED]
        stopped = f"; {blocked} downstream did not run" if blocked else ""
        message = f"run {self.name} of '{self.workflow}' failed: task '{name}' "
        message += f"{self.tasks[name].state}: {failure.line}{others}{stopped}"
        error = RunFailed(message, result=self, failures=failures)
        raise error from failure.exception

    @property
    def error(self) -> BaseException | None:
        """What ended the run beside its tasks: an executor that would not open, a store that is full. None as a rule."""
        return self._record.error

    @property
    def failures(self) -> dict[str, Failure]:
        record = self._record
        final = [
            (record.ended_ns[element], element, failure)
            for element, failure in record.failures.items()
            if record.state_of(element) in _FAILED
        ]
        return {record.names[element]: failure for _, element, failure in sorted(final, key=lambda row: row[:2])}

    @property
    def counts(self) -> Counts:
        """State → number of tasks, for states that occur. A task that has become others counts as these."""
        return Counts(self._record.counted)

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return (self._record.ended - self._record.started) / 1e9

    @property
    def retries(self) -> int:
        """Attempts beyond the first, over all tasks."""
        return sum([attempts - 1 for attempts in self._record.attempts if attempts > 1])

    @property
    def restored(self) -> int:
        """Tasks that an earlier session of the run had finished, so that this one did not run them."""
        record = self._record
        kept = sum(
            [
                not attempt and STATES[state] in DONE
                for attempt, state in zip(record.attempts, record.states, strict=True)
            ]
        )
        return kept - sum([not record.attempts[each] and record.state_of(each) in DONE for each in record.became])

    @property
    def critical_path(self) -> list[tuple[str, float]]:
        """The chain of tasks with the longest summed time: with any number of slots the run would have taken this long.

        (name, seconds) from source to sink: the latest attempt, and for a retried task what came before it. Tasks that did
        not run count 0. Of a run in which tasks became others it is the way that led to its end: from what ended last
        back to what that had waited for, element by element.
        """
        record = self._record
        if len(record.states) > record.plan.size:
            return _path_back(record)
        took = [max(0, e - s) if s != NEVER and e != NEVER else 0 for s, e in record.spans()]
        for element, first in record.first_ready_ns.items():
            took[element] += max(0, record.ready_ns[element] - first)
        return [(record.names[node], took[node] / 1e9) for node in record.plan.longest_path(took)]

    @property
    def times(self) -> Times:
        """Where the time went; see Times."""
        return times_of(self._record)

    @property
    def verdicts(self) -> list[Verdict]:
        """What the run's figures say about how its tasks are declared, the costliest first; often nothing. See Verdict."""
        return verdicts_of(self._record)

    @property
    def utilisation(self) -> dict[str, float]:
        """Executor → share of its slots' time that tasks of this run were in, 0 to 1; latest attempts only.

        Near 1: more slots (or cores) would make the run shorter. Above 1 by a little: slots of abandoned attempts.
        """
        record = self._record
        lanes, lane_of = record.lanes, record.lane
        busy = [0] * len(lanes)
        for element, (started, ended) in enumerate(record.spans()):
            if started != NEVER and ended != NEVER and (lane := lane_of(element)) >= 0:
                busy[lane] += max(0, ended - started)
        span = max(1, record.ended - record.started)
        return {name: ns / span / record.slots[name] for name, ns in zip(lanes, busy, strict=True)}

    @property
    def slots(self) -> dict[str, int]:
        """Executor → slots it had; where they adapt, the mean over the run."""
        return dict(self._record.slots)

    @property
    def resizes(self) -> list[str]:
        """How slots that adapt have changed while the run went on: a sentence for each executor and limit, and why the latest."""
        return summed_up([each.change for each in self._record.resizes])

    def upstream(self, task: str) -> list[str]:
        """For an `upstream_failed` task the names from the one that failed to it, both included; else ``[task]``."""
        record = self._record
        path = [self._tasks.number(task)]
        while path[-1] in record.causes:
            path.append(record.causes[path[-1]])
        return [record.names[node] for node in reversed(path)]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items())
        return f"<RunResult {self.name} of {self.workflow!r}: {self.state} in {self.duration:.3g} s, {counts or 'no tasks'}>"


def _path_back(record: Record) -> list[tuple[str, float]]:
    path: list[tuple[str, float]] = []
    for element, ended in way_back(record):
        started = record.started_ns[element]
        if started == NEVER:
            continue
        began = min(started, record.first_ready_ns.get(element, started)) if record.attempts[element] > 1 else started
        path.append((record.names[element], max(0, ended - began) / 1e9))
    return path[::-1]


class Counts(dict[TaskState, int]):
    """State → number of tasks; 0 for a state that does not occur."""

    def __missing__(self, state: TaskState) -> int:
        return 0
