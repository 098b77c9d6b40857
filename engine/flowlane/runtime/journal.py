"""Carries the history of runs from the event loop to the store and the sinks, in order, and never lets sinks disturb a run.

The loop thread calls `start`, `append` and `finish`. `append` puts one tuple on a deque and compares two ints; it takes
no lock, makes no words, and wakes nobody unless the writer asked to be woken. One daemon thread, started by the first
run that any sink wants to hear, groups what has come into chunks of one run each (at most 1,000 rows, or what came
within 10 ms) and calls the sinks, one after another.

Rules:

- Per run the order of history is kept, for each sink: ``open``, chunks, ``close``.
- A run that is kept (it has a `Keeper`) is committed first, and told second: whatever a sink hears of is in the store. When the
  store will not have it, the keeper is told once, sinks hear nothing more until it does, and at the end it is tried once
  more. What is then still not stored is never told, and `finish` says so. Nothing of such a run is ever dropped: its
  keeper says when too much is waiting, and the run begins nothing new until it is written.
- A sink that raises is told of once (`faults`, and a warning on the stdlib logger "flowlane") and not called again for
  that run; other sinks and the run do not notice. A sink that copes with trouble by itself (a full disk) reports it
  through an optional method ``take_faults() -> list[str]``, which is called after each call of the sink.
- A sink with a false attribute ``wants`` when a run starts is left out of that run. A run that nobody hears costs one
  dict look-up a step.
- Memory is bounded: with more than `limit` rows waiting, further steps are dropped whole and counted (`lost`), and the
  sinks hear an event ``log.lost`` at the place of the gap.

How the two threads meet without a lock: each counter has one writer (`_appended` the loop, `_consumed` the writer).
The loop *appends, counts, then* tests `_wake_at`; the writer *clears the bell, sets* `_wake_at`, *then* tests the count.
Whichever comes second sees the other, so no wake-up is lost.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.core.states import RunState
from flowlane.errors import EngineClosed, Failure, StoreError
from flowlane.runtime.events import History
from flowlane.runtime.ports import RunOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.core.messages import Transition
    from flowlane.runtime.keeper import Keeper
    from flowlane.runtime.ports import Chunk, Report, RunInfo, Sink

__all__ = ["Fault", "Journal", "library_logger"]

#: Rows in a chunk. Fewer cost more wake-ups and write calls, and cut the larger steps of busy runs in two. More gain
#: nothing and hold the GIL, and with it the loop, for longer at a stretch than the 1 ms that these take as JSON lines.
CHUNK_ROWS: Final = 1_000
#: Seconds a row may wait for company. Shorter wakes the writer more often; people do not see 10 ms.
LINGER: Final = 0.010
#: Rows that may wait for slow sinks: about 100 MB with their reports.
LIMIT: Final = 500_000

#: Characters of tasks' output that may wait for slow sinks; what comes beyond is not told to them.
OUTPUT_LIMIT: Final = 64 << 20

#: Seconds between two looks for what other processes ask of runs that are kept: soon enough for a person.
ASKED_EVERY: Final = 0.5

_FAULTS_KEPT: Final = 1_000  # an Engine may live for months with a broken sink
_NOW: Final = 0  # for _wake_at: any append rings
_NOT: Final = 1 << 62  # no append rings


def library_logger() -> logging.Logger:
    """The stdlib logger "flowlane", with a NullHandler: without one, logging prints warnings to the host's stderr."""
    logger = logging.getLogger("flowlane")
    if not any(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        logger.addHandler(logging.NullHandler())
    return logger


def _reports_of(rows: list[Transition], reports: dict[tuple[int, int], Report]) -> dict[tuple[int, int], Report]:
    keys = {row[:2] for row in rows}
    return {key: reports[key] for key in keys if key in reports}


class Fault(NamedTuple):
    """A sink's trouble, told once: the run's id, the sink's class and what happened, in one sentence."""

    run: str
    sink: str
    message: str


class _Stream:
    """One run on its way to its sinks. `gap` and `gap_end` belong to the loop thread, the rest to the writer."""

    __slots__ = (
        "fault",
        "gap",
        "gap_end",
        "history",
        "keeper",
        "last",
        "lost",
        "reports",
        "rows",
        "run",
        "sinks",
        "unprinted",
        "untold",
    )

    def __init__(self, run: RunInfo, sinks: list[Sink], keeper: Keeper | None) -> None:
        self.run = run
        self.sinks = sinks
        self.keeper = keeper
        self.fault: StoreError | None = None
        self.untold: list[tuple[list[Transition], dict[tuple[int, int], Report]]] = []  # not stored yet, so not told
        self.history = History(run)
        self.rows: list[Transition] = []
        self.reports: dict[tuple[int, int], Report] = {}
        self.gap = 0  # rows dropped since the last one that was taken
        self.gap_end = 0  # when the last of them happened
        self.lost = 0
        self.unprinted = 0  # attempts whose output was left out; the loop thread's
        self.last = run.mono_ns  # when the last delivered row happened


class _Open:
    __slots__ = ()


class _Gap(NamedTuple):
    rows: int
    t: int


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
    done: Future[StoreError | None]


class Journal:
    """Delivers history to `sinks`. All methods but `lost`, `faults` and `notes` belong to one thread: the loop's."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        chunk_rows: int = CHUNK_ROWS,
        linger: float = LINGER,
        limit: int = LIMIT,
    ) -> None:
        """`linger` in seconds, `chunk_rows` and `limit` in transitions. Starts nothing."""
        self.faults: list[Fault] = []
        self.lost = 0
        self._sinks = tuple(sinks)
        self._chunk_rows = chunk_rows
        self._linger = linger
        self._limit = limit
        self._streams: dict[str, _Stream] = {}
        self._queue: deque[tuple[_Stream, list[Transition] | None, Any]] = deque()
        self._bell = threading.Event()
        self._appended = 0
        self._consumed = 0
        self._output_in = 0  # characters, counted like the rows
        self._output_out = 0
        self._wake_at = _NOT
        self._urgent = False
        self._closing = False
        self._keepers: list[Keeper] = []  # of runs under way; the writer's
        self._asked_next = 0.0
        self._writer: threading.Thread | None = None

    # ── the loop's side ───────────────────────────────────────────────────────────────────────────────────────────

    def start(self, run: RunInfo, keeper: Keeper | None = None) -> bool:
        """Begin a run. True when at least one sink wants to hear it or it is kept; else `append` may be left out for it.

        Raises StoreError for a run that is to be kept when there is no thread to do it.
        """
        if self._closing:
            raise EngineClosed("the journal is closed")
        sinks = [sink for sink in self._sinks if self._wants(run, sink)]
        if not sinks and keeper is None:
            return False
        if not self._writing(run):
            if keeper is not None:
                raise StoreError("the run cannot be recorded: no thread is to be had", hint="ulimit -u may be low")
            return False
        stream = self._streams[run.id] = _Stream(run, sinks, keeper)
        self._queue.append((stream, None, _Open()))
        self._ring()
        return True

    def append(self, run_id: str, transitions: list[Transition], reports: dict[tuple[int, int], Report]) -> None:
        """Hand over the transitions of one step and the reports that belong to them. About 0.2 µs, never blocks.

        Neither container may change afterwards (the journal does not change them), and the reports hold no values any
        more: they may wait here for a while.
        """
        stream = self._streams.get(run_id)
        if stream is None or not transitions:
            return
        appended = self._appended
        if appended - self._consumed > self._limit and stream.keeper is None:
            if self._output_in != self._output_out:
                self._output_in -= sum([len(report.output) for report in reports.values() if report.output])
            stream.gap += len(transitions)
            stream.gap_end = transitions[-1][3]
            return
        if stream.gap:
            self._mark_gap(stream)
        self._queue.append((stream, transitions, reports))
        self._appended = appended = appended + len(transitions)
        if appended >= self._wake_at:
            self._ring()

    def admit(self, run_id: str, characters: int) -> bool:
        """Whether a report with so much output may be handed over; if not, that is counted and told at the end."""
        if self._output_in - self._output_out + characters <= OUTPUT_LIMIT:
            self._output_in += characters
            return True
        stream = self._streams.get(run_id)
        if stream is not None:
            stream.unprinted += 1
        return False

    def note(self, run_id: str, element: int, attempt: int, report: Report) -> None:
        """Hand over a NOTED report, in its place between the steps."""
        stream = self._streams.get(run_id)
        if stream is None or self._appended - self._consumed > self._limit:
            return
        if stream.gap:
            self._mark_gap(stream)
        self._queue.append((stream, None, _Noted(element, attempt, report)))
        self._ring()

    def intend(self, run_id: str, elements: list[tuple[int, int]], t: int, then: Callable[[], object]) -> None:
        """Have it stored that these (element, attempt) may have begun, then call `then`, on the journal's thread.

        It is not called when the store will not have it: the keeper's `on_fault` is, or was.
        """
        stream = self._streams.get(run_id)
        if stream is not None:
            self._queue.append((stream, None, _Intent(elements, t, then)))
            self._urgent = True
            self._ring()

    def finish(self, run_id: str, outcome: RunOutcome) -> Future[StoreError | None]:
        """End a run. The future is resolved when its sinks have got everything and were closed for it.

        With None; with a StoreError where the end of a kept run could not be stored.
        """
        return self._end(run_id, outcome)

    def _end(self, run_id: str, outcome: RunOutcome | None) -> Future[StoreError | None]:
        done: Future[StoreError | None] = Future()
        done.set_running_or_notify_cancel()  # whoever stops waiting for it must not break its delivery
        stream = self._streams.pop(run_id, None)
        if stream is None:
            done.set_result(None)
            return done
        if stream.gap:
            self._mark_gap(stream)
        self._queue.append((stream, None, _Close(outcome, done)))
        self._urgent = True
        self._ring()
        return done

    def close(self, timeout: float | None = None) -> None:
        """Deliver what is left, end the writer thread and wait for it, at most `timeout` seconds. Idempotent.

        Runs that were not finished are closed as interrupted.
        """
        self._closing = True
        for run_id in list(self._streams):
            self._end(run_id, None)
        self._urgent = True
        self._ring()
        if self._writer is not None and self._writer is not threading.current_thread():
            self._writer.join(timeout)

    @property
    def writing(self) -> bool:
        """Whether the writer thread is there. Any thread."""
        return self._writer is not None and self._writer.is_alive()

    def notes(self, run_id: str) -> list[str]:
        """What there is to say to people about the log of one run; whole once its `finish` is resolved."""
        return [f"{fault.sink}: {fault.message}" for fault in list(self.faults) if fault.run == run_id]

    def _mark_gap(self, stream: _Stream) -> None:
        self._queue.append((stream, None, _Gap(stream.gap, stream.gap_end)))
        self.lost += stream.gap
        stream.gap = 0

    def _ring(self) -> None:
        self._wake_at = _NOT
        self._bell.set()

    def _wants(self, run: RunInfo, sink: Sink) -> bool:
        try:
            return bool(getattr(sink, "wants", True))
        except Exception as error:  # noqa: BLE001 - it is a plug-in's property
            self._raised(run, sink, "wants", error)
            return False

    def _writing(self, run: RunInfo) -> bool:
        if self._writer is None:
            writer = threading.Thread(target=self._work, name="flowlane-journal", daemon=True)
            try:
                writer.start()
            except RuntimeError as error:  # no thread to be had: the run goes on without a log
                self._tell(Fault(run.id, "journal", f"no thread for the log: {error}"))
                return False
            self._writer = writer
        return True

    # ── the writer's side ─────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        bell, queue = self._bell, self._queue
        while True:
            bell.clear()
            self._wake_at = _NOW
            if not queue and not self._closing:
                while not bell.wait(ASKED_EVERY if self._keepers else None):
                    self._look()
                bell.clear()
            # Something has come. Unless somebody waits for the end, let more come: one chunk of 1,000 rows costs
            # a fraction of 1,000 chunks of one, and holds up the loop once.
            self._wake_at = wake_at = self._consumed + self._chunk_rows
            if self._appended < wake_at and not self._urgent and not self._closing:
                bell.wait(self._linger)
            self._wake_at = _NOT
            self._urgent = False  # before the queue is read: finish() appends first, then sets it
            self._drain()
            if self._closing and not queue:
                return
            if self._keepers and monotonic() >= self._asked_next:
                self._look()

    def _drain(self) -> None:
        """Deliver what is in the queue now, in chunks, each of one run."""
        queue = self._queue
        filled: dict[_Stream, None] = {}
        for _ in range(len(queue)):
            stream, rows, payload = queue.popleft()
            if rows is None:
                self._flush(stream)
                self._control(stream, payload)
                continue
            if len(stream.rows) + len(rows) > self._chunk_rows:
                self._flush(stream)
            stream.rows += rows
            stream.reports.update(payload)
            filled[stream] = None
        for stream in filled:
            self._flush(stream)

    def _flush(self, stream: _Stream) -> None:
        rows, reports = stream.rows, stream.reports
        if not rows:
            return
        stream.rows, stream.reports = [], {}
        size = self._chunk_rows
        if len(rows) <= size:
            self._deliver(stream, rows, reports)
        else:
            for low in range(0, len(rows), size):
                part = rows[low : low + size]
                self._deliver(stream, part, _reports_of(part, reports) if reports else {})
        stream.last = rows[-1][3]
        self._consumed += len(rows)
        if self._output_in != self._output_out:
            self._output_out += sum([len(report.output) for report in reports.values() if report.output])

    def _look(self) -> None:
        """Ask the stores of kept runs what other processes want of them."""
        self._asked_next = monotonic() + ASKED_EVERY
        for keeper in tuple(self._keepers):
            try:
                keeper.requests()
            except StoreError:  # its next write will say so
                continue

    def _keep(self, stream: _Stream, rows: list[Transition], reports: dict[tuple[int, int], Report]) -> bool:
        """Commit a stretch of a kept run; whether it, and everything before it, may be told now."""
        keeper = stream.keeper
        assert keeper is not None
        try:
            keeper.write(rows, reports)
        except StoreError as error:
            self._store_fault(stream, error)
            stream.untold.append((rows, reports))
            return False
        if stream.untold:
            self._catch_up(stream)
        self._committed(stream, rows, reports)
        return True

    def _committed(self, stream: _Stream, rows: list[Transition], reports: dict[tuple[int, int], Report]) -> None:
        keeper = stream.keeper
        assert keeper is not None
        for report in reports.values():
            report.value = None  # nobody must keep it alive any longer
        if keeper.listener is not None:
            keeper.listener(rows, reports)
        if keeper.waiting and not keeper.behind(0.5):
            keeper.waiting = False
            keeper.on_caught_up()

    def _catch_up(self, stream: _Stream) -> None:
        """Tell what could be stored after all."""
        untold, stream.untold = stream.untold, []
        for rows, reports in untold:
            self._committed(stream, rows, reports)
            self._tell_sinks(stream, rows, reports)

    def _store_fault(self, stream: _Stream, error: StoreError) -> None:
        assert stream.keeper is not None
        if stream.fault is None:
            stream.fault = error
            stream.keeper.on_fault(error)

    def _deliver(self, stream: _Stream, rows: list[Transition], reports: dict[tuple[int, int], Report]) -> None:
        if stream.keeper is None or self._keep(stream, rows, reports):
            self._tell_sinks(stream, rows, reports)

    def _tell_sinks(self, stream: _Stream, rows: list[Transition], reports: dict[tuple[int, int], Report]) -> None:
        if not stream.sinks:
            return
        try:
            chunk = stream.history.chunk(rows, reports)
            stream.history.settle()
        except Exception as error:  # noqa: BLE001 - rows that are no history: end this log, not those of other runs
            self._raised(stream.run, self, "reading the history", error)
            stream.sinks = []
            return
        self._each(stream, "write", lambda sink: sink.write(chunk))

    def _control(self, stream: _Stream, what: _Open | _Gap | _Noted | _Intent | _Close) -> None:
        run = stream.run
        match what:
            case _Open():
                if stream.keeper is not None:
                    stream.keeper.open(run)
                    self._keepers.append(stream.keeper)
                self._each(stream, "open", lambda sink: sink.open(run))
            case _Gap(count, t):
                stream.lost += count
                chunk: Chunk = stream.history.lost(count, t)
                self._each(stream, "write", lambda sink: sink.write(chunk))
            case _Noted(element, attempt, report):
                keeper = stream.keeper
                if keeper is not None and keeper.listener is not None:
                    keeper.listener([], {(element, attempt): report})
                noted: Chunk = stream.history.noted(element, attempt, report)
                self._each(stream, "write", lambda sink: sink.write(noted))
            case _Intent(elements, t, then):
                assert stream.keeper is not None
                try:
                    stream.keeper.intend(elements, t)
                except StoreError as error:
                    self._store_fault(stream, error)
                else:
                    then()
            case _Close(outcome, done):
                ending = outcome or RunOutcome(
                    state="interrupted",
                    ended=stream.last,
                    counts={},
                    error="the engine was closed before the run ended",
                )
                if stream.keeper is not None:
                    ending = self._close_kept(stream, stream.keeper, ending)
                self._each(stream, "close", lambda sink: sink.close(run, ending))
                if stream.lost:
                    self._tell(
                        Fault(run.id, "journal", f"{stream.lost:,} events were dropped: the sinks were too slow")
                    )
                if stream.unprinted:
                    count = stream.unprinted
                    self._tell(
                        Fault(
                            run.id, "journal", f"the output of {count:,} attempts was left out: the sinks were too slow"
                        )
                    )
                done.set_result(stream.fault if stream.keeper is not None and not stream.keeper.closed else None)

    def _close_kept(self, stream: _Stream, keeper: Keeper, outcome: RunOutcome) -> RunOutcome:
        """Store the end of a kept run; the end as it is to be told."""
        self._keepers.remove(keeper)
        try:
            keeper.close(outcome)
        except StoreError as error:
            if stream.fault is None:
                stream.fault = error
            left = sum([len(rows) for rows, _ in stream.untold])
            message = f"{stream.fault.message}; {left:,} events were not stored, and are not told"
            return replace(outcome, state=str(RunState.INTERRUPTED), error=message)
        self._catch_up(stream)
        return outcome

    def _each(self, stream: _Stream, verb: str, call: Callable[[Sink], None]) -> None:
        for sink in tuple(stream.sinks):
            try:
                call(sink)
                take = getattr(sink, "take_faults", None)
                for message in take() if take is not None else ():
                    self._tell(Fault(stream.run.id, type(sink).__name__, str(message)))
            except BaseException as error:  # noqa: BLE001 - SystemExit included: the thread serves other sinks and runs
                stream.sinks.remove(sink)
                self._raised(stream.run, sink, verb, error)

    def _raised(self, run: RunInfo, sink: object, verb: str, error: BaseException) -> None:
        failure = Failure.of(error)
        message = f"{verb} raised {failure.type}: {failure.message}; not called again for this run"
        self._tell(Fault(run.id, type(sink).__name__, message))

    def _tell(self, fault: Fault) -> None:
        self.faults.append(fault)
        if len(self.faults) > _FAULTS_KEPT:
            del self.faults[0]
        try:
            library_logger().warning("run %s: %s: %s", fault.run, fault.sink, fault.message)
        except BaseException:  # noqa: BLE001 - a host's filter or handler: there is nobody left to tell
            return
