"""What goes into the scheduler and what comes out of it.

Events (past tense) tell what happened; commands (imperative) tell the caller what to do next; a transition is one row
of history. All times are integer nanoseconds on one monotonic clock of the caller's choosing.

Events and commands are slotted dataclasses that nobody mutates; they are not frozen because that makes each four times
as dear to build, and one is built for every task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowlane.core.plan import Plan
    from flowlane.core.states import Reason, RunState

__all__ = [
    "NEVER",
    "Abandoned",
    "Cached",
    "CancelRequested",
    "CancelTasks",
    "Command",
    "Crashed",
    "DrainRequested",
    "Event",
    "Expanded",
    "Failed",
    "Finish",
    "Gather",
    "Gathered",
    "Graft",
    "Grafted",
    "Interrupt",
    "Interrupted",
    "Launch",
    "Pull",
    "Release",
    "ResultLost",
    "RunStarted",
    "SetTimer",
    "Skipped",
    "SlotAvailable",
    "Started",
    "Step",
    "Succeeded",
    "TimerFired",
    "Transition",
    "Wake",
]

NEVER: Final = -1

#: One row of history: (element, attempt, code, t_ns). `code` indexes ``states.RULES``; attempts count from 1, and 0 is
#: the attempt of a task that ended before it was ever ready.
Transition: TypeAlias = tuple[int, int, int, int]


# ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class RunStarted:
    """The run begins. The first event of every run, exactly once.

    Of a run that goes on where an earlier session stopped it tells, by element, what has ended: `restored` succeeded,
    `cached` had its value from the cache, `skipped` said that there was nothing to do, of `unknown` nobody knows. `chosen` tells
    by element which conditions on its value hold. A restored element may stand below one that is not:
    then that one runs again, because somebody needs its value.
    """

    restored: Sequence[int] = ()
    cached: Sequence[int] = ()
    unknown: Sequence[int] = ()
    skipped: Sequence[int] = ()
    chosen: Mapping[int, int] = field(default_factory=dict[int, int])


@dataclass(slots=True)
class Started:
    """A worker began this attempt at `started`."""

    element: int
    attempt: int
    started: int


@dataclass(slots=True)
class Succeeded:
    """The attempt returned. `started` stands in for a Started that was not told, and must then not be NEVER.

    `chosen` has bit k set when the k-th condition that guards make of the value holds.
    """

    element: int
    attempt: int
    started: int
    ended: int
    chosen: int = 0


@dataclass(slots=True)
class Skipped:
    """The attempt found that there is nothing to do."""

    element: int
    attempt: int
    started: int
    ended: int


@dataclass(slots=True)
class Expanded:
    """The source of a map has `count` more items; `more` says whether it may have others yet. Answers a Pull.

    `once`: each item is kept for one success only, so that an element that has succeeded cannot run again.

    A source that raises is told as Failed, once: what came before it runs.
    """

    element: int
    count: int
    more: bool = False
    once: bool = False


@dataclass(slots=True)
class Grafted:
    """An element is to become `plan`: a workflow's turn has come (answers a Graft), or an attempt returned more work.

    `started` and `ended` are those of the attempt that returned it, NEVER for a workflow. Nodes of `plan` become elements, in
    order, from the first free number on (see ``Scheduler.size``).
    """

    element: int
    attempt: int
    plan: Plan
    started: int = NEVER
    ended: int = NEVER


@dataclass(slots=True)
class Cached:
    """The attempt was not needed, at `ended`: the value it would have made is there. Only before it has started."""

    element: int
    attempt: int
    ended: int
    chosen: int = 0


@dataclass(slots=True)
class Failed:
    """The attempt raised, or was refused before it began (`started` is NEVER).

    `retryable` says whether the task's retry policy covers this error; `delay` is what the task itself asks to wait before it is
    tried again, ns, where it does.
    """

    element: int
    attempt: int
    started: int
    ended: int
    retryable: bool = False
    delay: int = NEVER


@dataclass(slots=True)
class Crashed:
    """The worker died under the attempt (`started` is NEVER when it had not begun).

    `retryable` is False for a task that is known to kill its workers, whatever its retry policy says.
    """

    element: int
    attempt: int
    started: int
    ended: int
    retryable: bool = True


@dataclass(slots=True)
class Interrupted:
    """The attempt stopped because an Interrupt asked it to."""

    element: int
    attempt: int
    started: int
    ended: int


@dataclass(slots=True)
class Abandoned:
    """The attempt was asked to stop and did not; nobody waits for it any more."""

    element: int
    attempt: int
    started: int
    ended: int


@dataclass(slots=True)
class ResultLost:
    """The attempt did not begin, because what it reads is gone: the values of `lost`, which had been made.

    What can be made again is, and the attempt does not count; where it cannot (``Scheduler.obstacle`` says why), the attempt has
    failed, and `retryable` is as in Failed. Without any `lost` they are there again already, and the task goes once more.
    Also answers a Pull, for a source that is gone.
    """

    element: int
    attempt: int
    ended: int
    lost: Sequence[int] = ()
    retryable: bool = False


@dataclass(slots=True)
class Gathered:
    """The value of an element that has become others is there, and `chosen` of it as in Succeeded. Answers a Gather that asks.

    `failed`: it could not be had, or could not be asked.
    """

    element: int
    chosen: int = 0
    failed: bool = False


@dataclass(slots=True)
class TimerFired:
    """The time set by the last SetTimer has come (early or late does not matter)."""


@dataclass(slots=True)
class SlotAvailable:
    """A slot was set aside for this run on a lane it waits for. Follows a Wake of another run's step."""


@dataclass(slots=True)
class CancelRequested:
    """Stop the run: interrupt what runs, begin nothing."""


@dataclass(slots=True)
class CancelTasks:
    """Stop these elements, and what they have become; what depends on them ends as if they had failed."""

    elements: Sequence[int]


@dataclass(slots=True)
class DrainRequested:
    """Begin nothing new, let what runs end."""


Event: TypeAlias = (
    RunStarted
    | Started
    | Succeeded
    | Skipped
    | Expanded
    | Grafted
    | Gathered
    | Cached
    | Failed
    | Crashed
    | Interrupted
    | Abandoned
    | ResultLost
    | TimerFired
    | SlotAvailable
    | CancelRequested
    | CancelTasks
    | DrainRequested
)


# ── commands ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Launch:
    """Run these elements on this lane, in this order; each holds one slot until its final event."""

    lane: int
    elements: list[int]


@dataclass(slots=True)
class Interrupt:
    """Ask these elements' attempts to stop; an Interrupted, Abandoned or other final event answers for each.

    Every attempt is asked at most once, and only while it is out.
    """

    lane: int
    elements: list[int]
    reason: Reason


@dataclass(slots=True)
class Pull:
    """Take up to `count` items from a map's source, and answer with Expanded (or Failed); of a source whose size is known all
    may be told at once. Comes first when the map is ready, and again when there is room."""

    element: int
    count: int


@dataclass(slots=True)
class Graft:
    """Make the graph that this element is to become, and answer with Grafted (or Failed)."""

    element: int


@dataclass(slots=True)
class Gather:
    """Make the value of an element that has become others, of theirs, before anything else is launched.

    `asked`: conditions are made of it, so answer with Gathered.
    """

    element: int
    asked: bool = False


@dataclass(slots=True)
class SetTimer:
    """Send TimerFired at `at` (or later). Replaces any earlier SetTimer of this run."""

    at: int


@dataclass(slots=True)
class Release:
    """Nobody will read these elements' values any more.

    containers  have ended, and so has all that they had become: what that was made of (items, a graph's program) is of no use
    items       elements of maps over iterators that have ended: their items are of no use. Those are not told of that succeeded
                at first hand, by `Succeeded`
    """

    elements: list[int]
    containers: Sequence[int] = ()
    items: Sequence[int] = ()


@dataclass(slots=True)
class Wake:
    """Send SlotAvailable to the runs with these tokens: a slot of a shared lane is set aside for each."""

    tokens: list[int]


@dataclass(slots=True)
class Finish:
    """Every task has ended. The last command of every run, exactly once."""

    state: RunState


Command: TypeAlias = Launch | Interrupt | Pull | Graft | Gather | SetTimer | Release | Wake | Finish


@dataclass(slots=True)
class Step:
    """What one call of ``Scheduler.handle`` did: history first, then what the caller must do, in order.

    `late` counts events that told of a past attempt or an ended task; they changed nothing.
    """

    transitions: list[Transition]
    commands: list[Command]
    late: int = 0
