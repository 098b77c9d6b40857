"""Stores the history of runs before anybody is told of it: what stands between loop and journal in an engine with a store.

It takes the journal's place on the loop's side, and is the only one that calls the journal. One daemon thread, that of a
`Mailbox`, started by the first run, gets what has come in chunks of one run, has the run's `Keeper` commit it, and only then
hands it on. So whatever a sink hears of is in the store, and a sink that hangs holds up no commit.

- When the store will not have a stretch of history, the keeper is told once (`on_fault`); nothing more of that run is handed
  on until it is stored after all. At the end it is tried once more. What is then still not stored is never told, and the
  run's `Ending` says so.
- Nothing is dropped here: a keeper says when too much is waiting, and its run begins nothing new until that is written.
- Whatever else than a StoreError a store raises is a defect of it, and treated as a fault: no run may wait for ever.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from flowlane.core.states import RunState
from flowlane.errors import EngineClosed, StoreError
from flowlane.runtime.keeper import Ending
from flowlane.runtime.mailbox import CHUNK_ROWS, LINGER, Mailbox, Stream
from flowlane.runtime.ports import RunOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowlane.core.messages import Transition
    from flowlane.runtime.journal import Journal
    from flowlane.runtime.keeper import Keeper
    from flowlane.runtime.mailbox import Reports
    from flowlane.runtime.ports import Report, RunInfo

__all__ = ["Recorder"]

#: Seconds between two looks for what other processes ask of runs: soon enough for a person.
ASKED_EVERY: Final = 0.5


class _Stream(Stream):
    """One run on its way. All but `keeper` belongs to the thread."""

    __slots__ = ("fault", "keeper", "run", "untold")

    def __init__(self, run: RunInfo, keeper: Keeper) -> None:
        super().__init__()
        self.run = run
        self.keeper = keeper
        self.fault: StoreError | None = None
        self.untold: list[tuple[list[Transition], Reports]] = []  # not stored yet, so not told


class _Open:
    __slots__ = ()


class _Noted(NamedTuple):
    element: int
    attempt: int
    report: Report


class _Intent(NamedTuple):
    elements: list[tuple[int, int]]
    t: int
    then: Callable[[], object]


class _Close(NamedTuple):
    outcome: RunOutcome | None  # None: the engine was closed under the run
    done: Future[Ending]


_Word = _Open | _Noted | _Intent | _Close


class Recorder:
    """All methods but `notes`, `writing` and `storing` belong to the loop's thread. `linger` in seconds, `chunk_rows` in rows."""

    def __init__(self, journal: Journal, *, chunk_rows: int = CHUNK_ROWS, linger: float = LINGER) -> None:
        self._journal = journal
        self._streams: dict[str, _Stream] = {}
        self._box: Mailbox[_Stream, _Word] = Mailbox(
            "flowlane-recorder",
            self._take,
            self._control,
            attend=self._attend,
            ended=journal.close,
            chunk_rows=chunk_rows,
            linger=linger,
        )
        self._open: list[_Stream] = []  # runs under way; the thread's
        self._look_at = 0.0

    # ── the loop's side ───────────────────────────────────────────────────────────────────────────────────────────

    def start(self, run: RunInfo, keeper: Keeper) -> None:
        """Begin a run. Raises StoreError when there is no thread to be had for it."""
        if self._box.closing:
            raise EngineClosed("the journal is closed")
        try:
            self._box.start()
        except RuntimeError as error:
            raise StoreError(f"the run cannot be recorded: {error}", hint="ulimit -u may be low") from error
        self._streams[run.id] = stream = _Stream(run, keeper)
        self._box.put(stream, _Open())

    def append(self, run_id: str, transitions: list[Transition], reports: Reports) -> None:
        """Hand over the transitions of one step and the reports that belong to them. Never blocks."""
        stream = self._streams.get(run_id)
        if stream is not None and transitions:
            stream.keeper.admit(len(transitions))
            self._box.append(stream, transitions, reports)

    def admit(self, run_id: str, characters: int) -> bool:
        """Whether a report with so much output may be handed over: always, it counts among what waits to be stored."""
        stream = self._streams.get(run_id)
        if stream is not None:
            stream.keeper.admit(0, characters)
        return True

    def note(self, run_id: str, element: int, attempt: int, report: Report) -> None:
        """Hand over a NOTED report, in its place between the steps."""
        stream = self._streams.get(run_id)
        if stream is not None:
            self._box.put(stream, _Noted(element, attempt, report))

    def intend(self, run_id: str, elements: list[tuple[int, int]], t: int, then: Callable[[], object]) -> None:
        """Have it stored that these (element, attempt) may have begun, then call `then`, on the recorder's thread.

        It is not called when the store will not have it: the keeper's `on_fault` is, or was.
        """
        stream = self._streams.get(run_id)
        if stream is not None:
            self._box.put(stream, _Intent(elements, t, then), urgent=True)

    def finish(self, run_id: str, outcome: RunOutcome) -> Future[Ending]:
        """End a run. The future is resolved when its end is stored, or cannot be, and its sinks have got everything."""
        return self._end(run_id, outcome)

    def _end(self, run_id: str, outcome: RunOutcome | None) -> Future[Ending]:
        done: Future[Ending] = Future()
        done.set_running_or_notify_cancel()  # whoever stops waiting for it must not break its delivery
        stream = self._streams.pop(run_id)
        self._box.put(stream, _Close(outcome, done), urgent=True)
        return done

    def close(self, timeout: float | None = None) -> None:
        """Store and deliver what is left, end both threads and wait for them, at most `timeout` seconds each. Idempotent."""
        for run_id in list(self._streams):
            self._end(run_id, None)
        self._box.close(timeout)
        if not self._box.started:
            self._journal.close(timeout)

    @property
    def delivered(self) -> int:
        """Rows that were handed on so far: it grows while there is progress. Any thread."""
        return self._box.consumed

    @property
    def writing(self) -> bool:
        """Whether one of the threads is there. Any thread."""
        return self.storing or self._journal.writing

    @property
    def storing(self) -> bool:
        """Whether something may still be stored. Any thread."""
        return self._box.alive

    def notes(self, run_id: str) -> list[str]:
        """What there is to say to people about the log of one run; whole once its `finish` is resolved."""
        return self._journal.notes(run_id)

    # ── the thread's side ─────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, stream: _Stream, rows: list[Transition], reports: Reports) -> None:
        if not self._did(stream, lambda: stream.keeper.write(rows, reports)):
            stream.untold.append((rows, reports))
            return
        if stream.untold:
            self._catch_up(stream)
        self._tell(stream, rows, reports)

    def _did(self, stream: _Stream, action: Callable[[], object]) -> bool:
        """Ask something of the store; whether it did."""
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - a plug-in's defect must not leave a run waiting for this thread
            fault = error if isinstance(error, StoreError) else _defect(error)
            if stream.fault is None:
                stream.fault = fault
                stream.keeper.on_fault(fault)
            return False
        return True

    def _catch_up(self, stream: _Stream) -> None:
        """Tell what could be stored after all."""
        untold, stream.untold = stream.untold, []
        for rows, reports in untold:
            self._tell(stream, rows, reports)

    def _tell(self, stream: _Stream, rows: list[Transition], reports: Reports) -> None:
        """Hand on what is stored."""
        keeper = stream.keeper
        for key, report in reports.items():
            report.value = None  # nobody must keep it alive any longer
            if report.output and not self._journal.admit(stream.run.id, len(report.output)):
                reports[key] = replace(report, output=None)
        if keeper.listener is not None:
            keeper.listener(rows, reports)
        self._journal.append(stream.run.id, rows, reports)
        if keeper.waiting and not keeper.behind(0.5):
            keeper.waiting = False
            keeper.on_caught_up()

    def _control(self, stream: _Stream, what: _Word) -> None:
        run, keeper = stream.run, stream.keeper
        match what:
            case _Open():
                keeper.open(run)
                self._open.append(stream)
                self._journal.start(run)
            case _Noted(element, attempt, report):
                if keeper.listener is not None:
                    keeper.listener([], {(element, attempt): report})
                self._journal.note(run.id, element, attempt, report)
            case _Intent(elements, t, then):
                if self._did(stream, lambda: keeper.intend(elements, t)):
                    then()
            case _Close(outcome, done):
                self._close(stream, outcome, done)

    def _close(self, stream: _Stream, outcome: RunOutcome | None, done: Future[Ending]) -> None:
        run, keeper = stream.run, stream.keeper
        self._open.remove(stream)
        if outcome is None:
            outcome = RunOutcome("interrupted", run.mono_ns, {}, "the engine was closed before the run ended")
        elif stream.fault is not None:  # what it did not do for the fault is not told as if it had never had to
            outcome = replace(outcome, state=str(RunState.INTERRUPTED), error=stream.fault.message)
        final = outcome
        if self._did(stream, lambda: keeper.close(final)):
            self._catch_up(stream)
        else:
            left = sum([len(rows) for rows, _ in stream.untold])
            error = f"{stream.fault.message if stream.fault else ''}; {left:,} events were not stored, and are not told"
            final = replace(outcome, state=str(RunState.INTERRUPTED), error=error)
        keeper.ending = ending = Ending(final, stream.fault)
        delivered = self._journal.finish(run.id, final)
        delivered.add_done_callback(lambda _: done.set_result(ending))

    def _attend(self) -> float | None:
        """Ask the stores what other processes want of runs, when it is time to; in how many seconds it is again."""
        if not self._open:
            return None
        left = self._look_at - monotonic()
        if left > 0:
            return left
        self._look_at = monotonic() + ASKED_EVERY
        for stream in tuple(self._open):
            try:
                stream.keeper.requests()
            except Exception:  # noqa: BLE001, S112 - its next write will say so
                continue
        return ASKED_EVERY


def _defect(error: BaseException) -> StoreError:
    fault = StoreError(
        f"the store raised {type(error).__name__}: {error}",
        hint="that is a defect of the store; the run can be resumed",
    )
    fault.__cause__ = error
    return fault
