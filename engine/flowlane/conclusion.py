"""How the end of a run is told: it is stored, then the sinks get what is left, and then those hear who wait for the run.

A slow sink is waited for as long as a task that was told to stop, the engine's grace; a store as long as it takes, since what is
not stored is not told. Belongs to the loop's thread.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from flowlane.core.states import RunState
from flowlane.record import Record
from flowlane.results import RunResult
from flowlane.runtime.measured import OUTPUT_KEPT

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    from collections.abc import Callable

    from flowlane.handle import LiveRun
    from flowlane.runtime.journal import Journal
    from flowlane.runtime.recorder import Recorder

__all__ = ["Conclusion"]

#: Seconds after which a store that has not answered is told of.
STORE_SLOW: Final = 5.0

# Seconds between two looks whether a slow store has written how a run ended.
_STORE_LOOK: Final = 0.5

_log: Final = logging.getLogger("flowlane.engine")


class Conclusion:
    """The end of `run`, whose last task has ended.

    notes    what the journal has to say of a run, by its id
    grace    seconds that sinks may take
    call     calls a function on the loop's thread
    on_told  called just before anybody hears of the end
    """

    def __init__(
        self,
        run: LiveRun,
        *,
        notes: Callable[[str], list[str]],
        grace: float,
        loop: asyncio.AbstractEventLoop,
        call: Callable[[Callable[[], object]], object],
        on_told: Callable[[], object],
    ) -> None:
        assert run.runner is not None
        self._run = run
        self._runner = run.runner
        self._outcome = run.runner.outcome()
        self._notes = notes
        self._grace = grace
        self._loop = loop
        self._call = call
        self._on_told = on_told
        self._began = time.monotonic()
        self._warned = False
        self._patience: asyncio.TimerHandle | None = None

    def after(self, journal: Journal | Recorder | None) -> None:
        """Tell the end once `journal`, which the run's history goes to, has handed on everything."""
        assert journal is not None
        delivered: concurrent.futures.Future[Any] = journal.finish(self._run.id, self._outcome)
        if delivered.done():
            self._tell(behind=False)
        else:
            self._look_in(self._grace if self._run.keeper is None else min(self._grace, STORE_SLOW))
            delivered.add_done_callback(lambda _: self._call(self._in_time))

    def _in_time(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._tell(behind=False)

    def _look_in(self, seconds: float) -> None:
        self._patience = self._loop.call_later(max(0.0, seconds), self._look)

    def _look(self) -> None:
        keeper, waited = self._run.keeper, time.monotonic() - self._began
        if keeper is not None and keeper.ending is None:
            if waited >= STORE_SLOW and not self._warned:
                self._warned = True
                _log.warning("run %s has ended; its store has not written that for %.0f s now", self._run.id, waited)
            self._look_in(_STORE_LOOK)
        elif waited < self._grace:
            self._look_in(self._grace - waited)
        else:
            self._tell(behind=True)

    def _tell(self, *, behind: bool) -> None:
        """Let those hear who wait; `behind` says that a sink has not got everything."""
        run, runner = self._run, self._runner
        if run.future.done():
            return
        record, run.outcome = Record(runner), self._outcome
        if run.keeper is not None:
            ending = run.keeper.ending
            assert ending is not None
            run.outcome = ending.outcome
            if ending.fault is not None and record.error is None:
                record.state, record.error = RunState.INTERRUPTED, ending.fault
        notes = [*_notes(record), *self._notes(run.id)]
        if behind:
            notes.append("a sink is slow: the log was not complete when the run ended")
        if record.late:
            notes.append(f"{record.late} late reports were ignored")
        self._on_told()
        try:
            value = runner.value() if record.state is RunState.SUCCEEDED else None
        except Exception as error:  # noqa: BLE001 - user code rebuilds the value (a NamedTuple's _make): who waits must hear
            run.future.set_exception(error)
        else:
            run.future.set_result(RunResult(record, value, notes))
        runner.forget()
        run.runner = None
        run.wake_readers()


def _notes(record: Record) -> list[str]:
    """What there is to say of a run besides its tasks' outcomes."""
    notes: list[str] = []
    if record.overdue is not None:
        notes.append(f"the run was not over by its deadline of {record.overdue:g} s: what had not ended was cancelled")
    if record.abandoned:
        count = record.abandoned
        notes.append(
            f"{count} attempt{'s' if count > 1 else ''} did not stop when told to and {'were' if count > 1 else 'was'} abandoned"
        )
    notes += [f"{record.names[note.element]} {note.text}" for note in record.notes]
    if record.noted > len(record.notes):
        notes.append(f"{record.noted - len(record.notes):,} more such notes are in the event log only")
    if record.measured.dropped:
        kept = OUTPUT_KEPT >> 20
        notes.append(
            f"the output of {record.measured.dropped:,} attempts is not in the result, which keeps the first {kept} MB"
            " of a run: sinks get it all"
        )
    return notes
