"""What is left of a run when it has ended: its value, and by task what became of it.

A result is a view of the run's arrays of ints; nothing is copied and no object per task exists until it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from flowlane.core.states import RunState, TaskState
from flowlane.errors import Failure, RunCancelled, RunFailed
from flowlane.runtime.ports import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowlane.runtime.runner import Runner

__all__ = ["RunResult", "TaskResult", "Times"]

R = TypeVar("R")

_FAILED = (TaskState.FAILED, TaskState.TIMED_OUT, TaskState.CRASHED)


class TaskResult(NamedTuple):
    """What became of one task. Durations are seconds of its latest attempt, None where it did not come to that.

    waited    from ready to the start of the attempt
    duration  from the start of the attempt to its end
    """

    name: str
    state: TaskState
    kind: str
    executor: str
    attempts: int
    waited: float | None
    duration: float | None
    failure: Failure | None


class Times(NamedTuple):
    """Where a run's time went, in seconds that add up to its duration.

    Followed back from the task that ended last, through the upstream that each was waiting for: the chain that decided when the
    run was over. In a wide run with few slots that chain mostly waits for a slot; `utilisation` says how busy those were.

    work      executor → the latest attempts of tasks on the chain
    slot      executor → ready, waiting for a slot: more slots would have helped
    retry     failed attempts and the backoff after them
    handover  from launch to start: queues of the executor, pickling, starting and waking workers
    engine    between the end of a task and the next being ready, start and end of the run included
    """

    work: dict[str, float]
    slot: dict[str, float]
    retry: float
    handover: float
    engine: float


class _Tasks(Mapping[str, TaskResult]):
    """Task name → TaskResult, made when asked for."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._numbers: dict[str, int] | None = None

    def _index(self) -> dict[str, int]:
        if self._numbers is None:
            self._numbers = {name: number for number, name in enumerate(self._runner.program.names)}
        return self._numbers

    def number(self, name: str) -> int:
        """The task's number in the plan. Raises KeyError."""
        return self._index()[name]

    def __getitem__(self, name: str) -> TaskResult:
        element = self._index()[name]
        runner, scheduler = self._runner, self._runner.scheduler
        ready, started, ended = (
            scheduler.ready_ns[element],
            scheduler.started_ns[element],
            scheduler.ended_ns[element],
        )
        state = scheduler.state(element)
        return TaskResult(
            name=name,
            state=state,
            kind=runner.program.kinds[element],
            executor=runner.info.executors[element],
            attempts=scheduler.attempt(element),
            waited=(started - ready) / 1e9 if started != NEVER else None,
            duration=(ended - started) / 1e9 if started != NEVER and ended != NEVER else None,
            failure=runner.failures.get(element) if state in _FAILED else None,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._runner.program.names)

    def __len__(self) -> int:
        return len(self._runner.program.names)

    def __contains__(self, name: object) -> bool:
        return name in self._index()

    def __repr__(self) -> str:
        return f"<{len(self)} tasks>"


class RunResult(Generic[R]):
    """How a run ended. `state` says it in one word; `value` is there after success only.

    id, name       the run's number (12 hex digits) and its memorable name
    workflow       the workflow's name
    state          a RunState: succeeded, failed, cancelled or interrupted
    tasks          task name → TaskResult, in the order of declaration
    failures       task name → Failure, of tasks that failed, timed out or crashed for good, the first to fail first
    notes          what there is to say about the run besides: abandoned attempts, faults of sinks
    """

    def __init__(self, runner: Runner, notes: list[str]) -> None:
        self._runner = runner
        self.id = runner.info.id
        self.name = runner.info.name
        self.workflow = runner.info.workflow
        self.state: RunState = runner.state
        self._tasks = _Tasks(runner)
        self.tasks: Mapping[str, TaskResult] = self._tasks
        self.notes = notes
        self._value: Any = runner.value() if self.state is RunState.SUCCEEDED else None

    @property
    def value(self) -> R:
        """What the workflow returned. Raises RunFailed or RunCancelled (as `check` does) when there is none."""
        self.check()
        return cast("R", self._value)

    def check(self) -> RunResult[R]:
        """Return the result itself after success. Raises RunFailed, or RunCancelled when it was told to stop."""
        if self.state is RunState.SUCCEEDED:
            return self
        runner = self._runner
        if runner.error is not None:
            raise runner.error
        if self.state is not RunState.FAILED:
            raise RunCancelled(f"run {self.name} of '{self.workflow}' was {self.state} before it ended", result=self)
        failures = self.failures
        name, failure = next(iter(failures.items()))  # a failed run without a failed task has an error, see above
        others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        blocked = self.counts[TaskState.UPSTREAM_FAILED]
        stopped = f"; {blocked} downstream did not run" if blocked else ""
        message = f"run {self.name} of '{self.workflow}' failed: task '{name}' "
        message += f"{self.tasks[name].state}: {failure.type}: {failure.message}{others}{stopped}"
        error = RunFailed(message, result=self, failures=failures)
        raise error from failure.exception

    @property
    def failures(self) -> dict[str, Failure]:
        runner = self._runner
        final = [
            (runner.scheduler.ended_ns[element], element, failure)
            for element, failure in runner.failures.items()
            if runner.scheduler.state(element) in _FAILED
        ]
        return {
            runner.program.names[element]: failure for _, element, failure in sorted(final, key=lambda row: row[:2])
        }

    @property
    def counts(self) -> Counts:
        """State → number of tasks, for states that occur."""
        return Counts(self._runner.scheduler.counts())

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return (self._runner.ended_ns - self._runner.info.mono_ns) / 1e9

    @property
    def retries(self) -> int:
        """Attempts beyond the first, over all tasks."""
        attempts = self._runner.scheduler.attempt
        return sum(max(0, attempts(element) - 1) for element in range(self._runner.program.plan.size))

    @property
    def critical_path(self) -> list[tuple[str, float]]:
        """The chain of tasks with the longest summed time: with any number of slots the run would have taken this long.

        (name, seconds) from source to sink: the latest attempt, and for a retried task what came before it. Tasks that did
        not run count 0.
        """
        scheduler = self._runner.scheduler
        took = [max(0, e - s) if s != NEVER and e != NEVER else 0 for s, e in self._spans()]
        for element, first in scheduler.first_ready_ns.items():
            took[element] += max(0, scheduler.ready_ns[element] - first)
        path = self._runner.program.plan.longest_path(took)
        return [(self._runner.program.names[node], took[node] / 1e9) for node in path]

    def _spans(self) -> Iterator[tuple[int, int]]:
        scheduler = self._runner.scheduler
        return zip(scheduler.started_ns, scheduler.ended_ns, strict=True)

    @property
    def times(self) -> Times:
        """Where the time went; see Times."""
        runner = self._runner
        scheduler, plan, lanes = runner.scheduler, runner.program.plan, runner.program.lanes
        work = dict.fromkeys(lanes, 0)
        slot = dict.fromkeys(lanes, 0)
        retry = handover = engine = 0
        reached = runner.ended_ns  # everything after this moment is accounted for
        last = max(range(plan.size), key=scheduler.ended_ns.__getitem__, default=None)
        while last is not None and scheduler.ended_ns[last] != NEVER:
            lane = lanes[plan.lane[last]]
            ended = min(reached, scheduler.ended_ns[last])
            engine += reached - ended
            reached = ended
            # Each moment, clamped: a worker's reading of the clock may come before the loop's by a hair.
            for moment, book in ((scheduler.started_ns[last], "work"), (scheduler.launched_ns[last], "handover")):
                if moment != NEVER:
                    span = max(0, reached - moment)
                    reached -= span
                    if book == "work":
                        work[lane] += span
                    else:
                        handover += span
            if scheduler.ready_ns[last] != NEVER:
                span = max(0, reached - scheduler.ready_ns[last])
                slot[lane] += span
                reached -= span
                span = max(0, reached - scheduler.first_ready_ns.get(last, reached))
                retry += span
                reached -= span
            last = max(plan.upstreams[last], key=scheduler.ended_ns.__getitem__, default=None)
        engine += max(0, reached - runner.info.mono_ns)
        return Times(
            work={name: ns / 1e9 for name, ns in work.items()},
            slot={name: ns / 1e9 for name, ns in slot.items()},
            retry=retry / 1e9,
            handover=handover / 1e9,
            engine=engine / 1e9,
        )

    @property
    def utilisation(self) -> dict[str, float]:
        """Executor → share of its slots' time that tasks of this run were in, 0 to 1; latest attempts only.

        Near 1: more slots (or cores) would make the run shorter. Above 1 by a little: slots of abandoned attempts.
        """
        runner = self._runner
        lanes, lane_of = runner.program.lanes, runner.program.plan.lane
        busy = [0] * len(lanes)
        for element, (started, ended) in enumerate(self._spans()):
            if started != NEVER and ended != NEVER:
                busy[lane_of[element]] += max(0, ended - started)
        span = max(1, runner.ended_ns - runner.info.mono_ns)
        return {name: ns / span / runner.slots[name] for name, ns in zip(lanes, busy, strict=True)}

    @property
    def slots(self) -> dict[str, int]:
        """Executor → slots it had."""
        return dict(self._runner.slots)

    def upstream(self, task: str) -> list[str]:
        """For an `upstream_failed` task the names from the one that failed to it, both included; else ``[task]``."""
        runner = self._runner
        return [runner.program.names[node] for node in runner.scheduler.cause(self._tasks.number(task))]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items())
        return f"<RunResult {self.name} of {self.workflow!r}: {self.state} in {self.duration:.3g} s, {counts or 'no tasks'}>"


class Counts(dict[TaskState, int]):
    """State → number of tasks; 0 for a state that does not occur."""

    def __missing__(self, state: TaskState) -> int:
        return 0
