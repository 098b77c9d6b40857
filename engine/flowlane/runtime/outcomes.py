"""What a report of an executor means to a run: the event that the scheduler hears, and the failure that goes with it.

A success may be more than a value: an item that passes a filter or does not, a choice between branches. A failure may be a word
for us (`Skip`, `RetryAfter`), a value that was lost, a mistake in what was returned; and the task's own predicate is asked here
whether it is tried again. Plain successes, of which there are most, do not come this way: see ``Runner.receive``.

Belongs to the loop's thread. User code runs in here: the truth and equality of values, and predicates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from flowlane.core import messages as m
from flowlane.core.elements import GRAPH
from flowlane.core.messages import Succeeded
from flowlane.core.states import Reason
from flowlane.errors import Failure, shown_item
from flowlane.runtime.failures import overdue, taken_back, undecidable, unexplained, worker_died
from flowlane.runtime.losses import is_loss
from flowlane.runtime.ports import ABANDONED, CRASHED, FAILED, INTERRUPTED, NEVER, STARTED
from flowlane.runtime.values import local

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowlane.core.scheduler import Scheduler
    from flowlane.runtime.gate import Gate
    from flowlane.runtime.growth import Growth
    from flowlane.runtime.losses import Losses
    from flowlane.runtime.measured import Measured
    from flowlane.runtime.places import Places
    from flowlane.runtime.ports import Report
    from flowlane.runtime.roster import Roster

__all__ = ["Outcomes"]

_POISON: Final = "flowlane.errors.PoisonTask"
_SKIP: Final = "flowlane.errors.Skip"
_RETRY_AFTER: Final = "flowlane.errors.RetryAfter"
_NOT_RETRIED: Final = (SystemExit, KeyboardInterrupt)


class Run(Protocol):
    """The runner, as far as this is concerned."""

    scheduler: Scheduler
    growth: Growth
    roster: Roster
    losses: Losses
    measured: Measured
    failures: dict[int, Failure]

    def note_once(self, element: int, attempt: int, text: str) -> None: ...


class Outcomes:
    """Of one run. Values, failures and what was measured are the run's own; they are kept up to date.

    values   by element
    mistake  what to say of an element that has returned something that is neither a value nor work
    """

    def __init__(
        self,
        run: Run,
        values: list[Any],
        places: Places,
        gate: Gate | None,
        mistake: Callable[[int, Any], Failure],
    ) -> None:
        self.abandoned = 0  # attempts that were given up and may still be running
        self._run = run
        self._scheduler = run.scheduler
        self._growth = run.growth
        self._measured = run.measured
        self._failures = run.failures
        self._values = values
        self._places = places
        self._gate = gate
        self._size = run.scheduler.size  # elements below are nodes of the program
        self._mistake = mistake

    def succeeded(self, element: int, attempt: int, report: Report) -> m.Event:
        """The event of a success that may mean more than its value: an item that passes or not, a choice."""
        scheduler, growth, value = self._scheduler, self._growth, report.value
        if not scheduler.awaits(element, attempt):
            if self._gate is None:
                report.value = None
            return Succeeded(element, attempt, report.started, report.ended)
        chosen = 0
        try:
            block = scheduler.block(element)
            if block.chain is not None:
                index, cast = growth.cast(element, block)
                if cast.filters:
                    passes = bool(local(value, None))
                    value = cast.item(element, index, None)
                    if not passes:
                        cast.used(index)
                        self.take(element, attempt, report)
                        report.value = None
                        return m.Skipped(element, attempt, report.started, report.ended)
                cast.used(index)
            elif block.kind == GRAPH:
                chosen = self.chosen(element, value)
        except Exception as error:  # noqa: BLE001 - user code is behind the truth and the equality of values
            report.kind, report.value = FAILED, None
            report.failure = Failure.of(undecidable(self._run.roster.names[element], error))
            return self.event(report, element, attempt)
        self._values[element] = value
        asked = scheduler.asked(element)
        report.value = self._gate.encoded(element, attempt, value) if self._gate is not None else None
        if attempt > 1 or report.cpu >= 0:
            self.take(element, attempt, report)
        if asked is Reason.ATTEMPT_TIMEOUT or asked is Reason.TOTAL_TIMEOUT:
            report.failure = self._failures[element] = overdue(self._scheduler.policy(element), asked, None)
        return Succeeded(element, attempt, report.started, report.ended, chosen)

    def mistaken(self, element: int, attempt: int, report: Report) -> m.Event:
        """A task has returned neither a value nor work: it fails, and would do so again."""
        value, report.kind, report.value = report.value, FAILED, None
        report.failure = self._mistake(element, value)
        event = self.event(report, element, attempt)
        if isinstance(event, m.Failed):
            event.retryable = False
        return event

    def event(self, report: Report, element: int, attempt: int) -> m.Event:
        """The event of any report but a success, and the failure that goes with it."""
        kind, started, ended = report.kind, report.started, report.ended
        if kind is STARTED:
            return m.Started(element, attempt, started)
        awaited = self._scheduler.awaits(element, attempt)
        asked = self._scheduler.asked(element) if awaited else None
        if asked is Reason.ATTEMPT_TIMEOUT or asked is Reason.TOTAL_TIMEOUT:
            report.failure = overdue(self._scheduler.policy(element), asked, report.failure)
        elif kind is INTERRUPTED and asked is None:
            policy = self._scheduler.policy(element)
            enforced = self._places.enforces[self._scheduler.lane(element)] and policy.timeout
            if enforced and started != NEVER:  # the executor kept the deadline
                report.failure = overdue(policy, Reason.ATTEMPT_TIMEOUT, report.failure)
            elif (self._gate is None and not self._places.far) or started != NEVER or report.worker:
                report.failure = taken_back()
        elif kind is FAILED and report.failure is None:
            report.failure = unexplained()
        elif (kind is CRASHED and report.failure is None) or (kind is ABANDONED and asked is None):
            report.failure = worker_died()
        if awaited:
            self._measured.take(element, report)
            self._measured.workers[element] = report.worker
            self._measured.returned.pop(element, None)
            if report.failure is not None:
                self._failures[element] = report.failure
                if element >= self._size:
                    self._name_item(element, report.failure)
        if kind is FAILED:
            return self._failed(element, attempt, report) if awaited else m.Failed(element, attempt, started, ended)
        if kind is CRASHED:
            poison = report.failure is not None and report.failure.ancestry[:1] == (_POISON,)
            return m.Crashed(element, attempt, started, ended, not poison)
        if kind is INTERRUPTED:
            return m.Interrupted(element, attempt, started, ended)
        self.abandoned += awaited
        return m.Abandoned(element, attempt, started, ended)

    def _name_item(self, element: int, failure: Failure) -> None:
        """Have the failure of an element of a map say which item it was, or which one it was made from."""
        block = self._scheduler.block(element)
        if block.chain is None or failure.ancestry[:1] == (_SKIP,):
            return
        index, cast = self._growth.cast(element, block)
        first = self._growth.casts(block)[0]
        # What the maps before it have made of an item may be anywhere; what they began with says which it was.
        told, item = (
            ("its item", cast.at_hand(index)) if cast.source else ("its item was made from", first.at_hand(index))
        )
        text = shown_item(item) if item is not None else None
        if text is not None:
            failure.notes = (f"{told}: {text}", *failure.notes)

    def _failed(self, element: int, attempt: int, report: Report) -> m.Event:
        """A task raised: an error, or a word for us."""
        failure, started, ended = report.failure, report.started, report.ended
        word = failure.ancestry[0] if failure is not None and failure.ancestry else ""
        if word == _SKIP and started != NEVER:
            self._failures.pop(element, None)
            report.failure = None
            return m.Skipped(element, attempt, started, ended)
        if word == _RETRY_AFTER:
            delay = getattr(failure.exception, "seconds", None) if failure is not None else None
            wish = max(0, round(delay * 1e9)) if isinstance(delay, (int, float)) else NEVER
            return m.Failed(element, attempt, started, ended, True, wish)
        if failure is not None and is_loss(failure) and started == NEVER and self._scheduler.awaits(element, attempt):
            event, report.failure, _ = self._run.losses.of(element, failure, ended)
            self._failures[element] = report.failure
            if self._gate is not None:
                self._gate.not_begun(report)
            return event
        return m.Failed(element, attempt, started, ended, self.retryable(element, failure))

    def retryable(self, element: int, failure: Failure | None) -> bool:
        """Whether its retry policy would try again after this failure."""
        on = self._growth.retry_on(element)
        if failure is None or not on or not failure.matches(on) or failure.matches(_NOT_RETRIED):
            return False
        when = self._growth.retry_when(element)
        if when is None:
            return True
        if failure.exception is None:  # it could not travel: there is nothing to ask about
            return True
        try:
            return bool(when(failure.exception))
        except Exception as error:  # noqa: BLE001 - user code
            self._run.note_once(
                element, 1, f"is not retried: its retry predicate raised {type(error).__name__}: {error}"
            )
            return False

    def chosen(self, element: int, value: Any) -> int:
        """Which conditions on a value hold, as bits."""
        tests = self._growth.choices(element)
        if not tests:
            return 0
        value = local(value, None)
        passed: list[bool] = []
        for test in tests:
            passed.append(bool(test.passes(value, passed)))
        return sum([1 << bit for bit, holds in enumerate(passed) if holds])

    def take(self, element: int, attempt: int, report: Report) -> None:
        """Take over what was measured of an attempt that succeeded; what there was to say of those before it goes."""
        if attempt > 1:
            self._failures.pop(element, None)
            self._measured.workers.pop(element, None)
            self._measured.returned.pop(element, None)
        if report.cpu >= 0 or attempt > 1:
            self._measured.take(element, report)
