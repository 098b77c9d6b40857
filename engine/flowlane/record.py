"""What is kept of a run that has ended: its plan, columns of ints and what failed. No value, no argument, no executor.

Made once from the run's runner, which can then go, and with it the arguments of all tasks. Read by results, times and
verdicts; nobody changes it. Columns are indexed by element; times are monotonic ns of the latest attempt, NEVER where
it did not come to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flowlane.core.states import STATES, RunState, TaskState
from flowlane.core.tally import tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flowlane.runtime.adapting import Resized
    from flowlane.runtime.runner import Runner

__all__ = ["Record"]

_FAILED: Final = frozenset({TaskState.FAILED, TaskState.TIMED_OUT, TaskState.CRASHED, TaskState.UNKNOWN})


class Record:
    """The record of one run.

    tasks      by element: the name of the task as declared; `names` are those in the workflow ("parse#2")
    roster     who the elements are, also those that came into being while it went on
    lane       by element: the index of its executor in `lanes`, -1 of what ran nowhere: a map, a workflow
    lanes      executor names
    slots      executor → slots it had; where they adapt, the mean over the run
    resizes    changes of slots that adapt, in order
    stretched  executors that were given more jobs than they have slots
    pickling   executors whose workers are other processes
    notes      what executors told about attempts while they were out, the first of `noted`
    counted    state → tasks, as they are told to people; see ``core.tally``
    became     elements that have become others
    error      a fault of ours, of an executor's or of the result's that ended the run
    """

    __slots__ = (
        "abandoned",
        "attempts",
        "became",
        "causes",
        "counted",
        "ended",
        "ended_ns",
        "error",
        "executors",
        "failures",
        "first_ready_ns",
        "id",
        "kinds",
        "lane",
        "lanes",
        "late",
        "launched_ns",
        "measured",
        "name",
        "names",
        "noted",
        "notes",
        "pickling",
        "plan",
        "ready_ns",
        "resizes",
        "roster",
        "slots",
        "started",
        "started_ns",
        "state",
        "states",
        "stretched",
        "tasks",
        "workflow",
    )

    def __init__(self, runner: Runner) -> None:
        """The record of a run that has ended. On the engine's loop."""
        program, scheduler = runner.program, runner.scheduler
        self.id = runner.info.id
        self.name = runner.info.name
        self.workflow = program.workflow
        self.state = runner.state
        self.error = runner.error
        self.started = runner.info.mono_ns
        self.ended = runner.ended_ns
        self.plan = program.plan
        self.names = runner.roster.names
        self.tasks = runner.roster.tasks
        self.kinds = runner.roster.kinds
        self.executors = runner.roster.executors
        self.lane = scheduler.lane
        self.roster = runner.roster
        self.lanes = tuple(runner.slots)
        self.slots = {name: self._mean_slots(name, slots, runner.resizes) for name, slots in runner.slots.items()}
        self.resizes = tuple(runner.resizes)
        self.stretched = runner.stretched
        self.pickling = runner.pickling
        self.states = scheduler.states()
        self.became = frozenset(scheduler.containers())
        self.counted = tally(self.states, self.became, runner.failures)
        self.attempts = scheduler.attempts()
        self.ready_ns = scheduler.ready_ns
        self.launched_ns = scheduler.launched_ns
        self.started_ns = scheduler.started_ns
        self.ended_ns = scheduler.ended_ns
        self.first_ready_ns = scheduler.first_ready_ns
        self.causes = scheduler.causes()
        self.late = scheduler.late
        self.failures = runner.failures
        self.measured = runner.measured
        self.notes = runner.notes
        self.noted = runner.noted
        self.abandoned = runner.abandoned

    def _mean_slots(self, lane: str, slots: int, resizes: Iterable[Resized]) -> int:
        """The slots that a lane had, which began with so many."""
        changes = [each.decision for each in resizes if each.kind == "lane" and each.name == lane]
        if not changes or self.ended <= self.started:
            return slots
        whole, since, now = 0, self.started, changes[0].before
        for change in changes:
            whole += now * (change.at - since)
            since, now = change.at, change.slots
        return max(1, round((whole + now * (self.ended - since)) / (self.ended - self.started)))

    @property
    def overdue(self) -> float | None:
        """Seconds of the run's deadline, where that is all that it failed by: then no task has failed."""
        if self.state is not RunState.FAILED or self.error is not None or not _FAILED.isdisjoint(self.counted):
            return None
        return self.plan.deadline / 1e9

    def state_of(self, element: int) -> TaskState:
        return STATES[self.states[element]]

    def lane_of(self, element: int) -> str:
        """The executor an element was routed to."""
        return self.executors[element]

    def spans(self) -> Iterator[tuple[int, int]]:
        """By element (start, end) of its latest attempt; of what returned work, which ends later, that of the attempt itself."""
        returned = self.measured.returned
        if not returned:
            return zip(self.started_ns, self.ended_ns, strict=True)
        ends = (returned.get(element, ended) for element, ended in enumerate(self.ended_ns))
        return zip(self.started_ns, ends, strict=True)
