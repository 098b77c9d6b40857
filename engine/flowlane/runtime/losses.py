"""What a run does when a value is gone that had stayed on a cluster: it takes it from elsewhere, asks for it to be made again, or
says why that cannot be.

An executor refuses a job, or fetching for one raises, with a LostResult: then the job never began. Which of the values that it
reads are gone, they say themselves (``RemoteValue.vanished``). One that was brought here before, or that the store has, takes
the place of what is gone (`recover`), and the task just goes once more; so it does when a value has come back between the
loss and the news of it, made again for somebody else. The rest is the scheduler's (``core.remaking``).

Belongs to the loop's thread.
"""

from __future__ import annotations

from contextlib import suppress
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from flowlane.core import messages as m
from flowlane.core.remaking import Obstacle
from flowlane.errors import Failure, LostResult
from flowlane.runtime.ports import NEVER, RemoteValue
from flowlane.runtime.values import Whole

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowlane.core.scheduler import Scheduler
    from flowlane.runtime.growth import Growth
    from flowlane.runtime.roster import Roster

__all__ = ["Loss", "Losses", "is_loss"]

_LOST: Final = f"{LostResult.__module__}.{LostResult.__qualname__}"

_WHY: Final = {
    Obstacle.ONCE: "is at_most_once, so it does not run again",
    Obstacle.OFTEN: "has run again {times} times for it, which is as often as it may",
    Obstacle.PARTS: "is made of the values of others, and is not made again as a whole",
    Obstacle.ENDED: "is part of what has ended, and what it was made from is gone by now",
    Obstacle.SET_UP: "sets up or tidies up what others work in, and does that once",
    Obstacle.TIDIED: "worked in what is tidied up by now, or may be",
    Obstacle.ITEMS: "had its item from an iterator, which gives each of them once",
    Obstacle.FAILED: "ran again for it, and did not succeed",
}


class Run(Protocol):
    """The runner, as far as its losses know it."""

    scheduler: Scheduler
    growth: Growth
    roster: Roster

    def retryable(self, element: int, failure: Failure | None) -> bool: ...

    def copy_of(self, value: RemoteValue) -> RemoteValue | None: ...


class Loss(NamedTuple):
    """The event of a loss, and the failure that goes with it; `final`: it stays lost, and the failure says why."""

    event: m.ResultLost
    failure: Failure
    final: bool


class Losses:
    """See the module's text. `values` is the run's list, by element."""

    def __init__(self, run: Run, values: list[Any]) -> None:
        self._run = run
        self._values = values

    def of(self, element: int, failure: Failure, ended: int = NEVER) -> Loss:
        """What to tell of an attempt that is out, or of a map that has asked for its items, and that failed for a loss."""
        run = self._run
        run.growth.refill()  # who asks next must not get what is gone
        reads = dict.fromkeys(run.scheduler.reads(element))
        self.recover(reads)
        gone = [up for up in reads if _is_gone(self._values[up])]
        found = run.scheduler.obstacle(gone)
        if found is not None:
            failure = self._explained(failure, *found)
        at = monotonic_ns() if ended == NEVER else ended
        event = m.ResultLost(element, run.scheduler.attempt(element), at, gone, run.retryable(element, failure))
        return Loss(event, failure, found is not None)

    def recover(self, elements: Iterable[int]) -> bool:
        """Put others in the place of values that are gone, as far as there are any. Whether there were."""
        found = False
        for element in elements:
            value = self._found(self._values[element])
            if value is not self._values[element]:
                self._values[element] = value
                found = True
        return found

    def _found(self, value: Any) -> Any:
        """What to have for a value: itself, unless it is gone and there is another."""
        if isinstance(value, Whole):
            parts = [self._found(part) for part in value.parts]
            same = all(new is old for new, old in zip(parts, value.parts, strict=True))
            return value if same else value.of(parts)
        if not isinstance(value, RemoteValue) or not value.vanished():
            return value
        if not value.is_far():
            with suppress(Exception):  # else it is known that it cannot be had
                return value.fetch()
        copy = self._run.copy_of(value)
        return value if copy is None else copy

    def _explained(self, failure: Failure, element: int, obstacle: Obstacle) -> Failure:
        times = self._run.scheduler.policy(element).remakes
        note = f"it is not made again: {self._run.roster.names[element]} {_WHY[obstacle].format(times=times)}"
        return failure.noted(note)


def is_loss(failure: Failure) -> bool:
    """Whether this says that a value is gone."""
    return failure.ancestry[:1] == (_LOST,)


def _is_gone(value: Any) -> bool:
    if isinstance(value, RemoteValue):
        return value.vanished()
    return isinstance(value, Whole) and any(map(_is_gone, value.parts))
