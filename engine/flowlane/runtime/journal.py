"""Carries the history of runs from the event loop to the sinks, in order, and never lets either disturb the other.

The loop thread calls `start`, `append` and `finish`. `append` puts one tuple on a deque and compares two ints; it takes
no lock, makes no words, and wakes nobody unless the writer asked to be woken (see `Mailbox`). One daemon thread, started by
the first run that any sink wants to hear, gets it back in chunks of one run each, of at most 1,000 rows, and calls the sinks,
one after another.

Rules:

- Per run the order of history is kept, for each sink: ``open``, chunks, ``close``.
- A sink that raises is told of once (`faults`, and a warning on the stdlib logger "flowlane") and not called again for
  that run; other sinks and the run do not notice. A sink that copes with trouble by itself (a full disk) reports it
  through an optional method ``take_faults() -> list[str]``, which is called after each call of the sink.
- A sink with a false attribute ``wants`` when a run starts is left out of that run. A run that nobody hears costs one
  dict look-up a step.
- Memory is bounded: with more than `limit` rows waiting, further steps are dropped whole and counted (`lost`), and the
  sinks hear an event ``log.lost`` at the place of the gap.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, NamedTuple

from flowlane.errors import EngineClosed, Failure
from flowlane.runtime.events import History
from flowlane.runtime.mailbox import CHUNK_ROWS, LINGER, Mailbox, Stream
from flowlane.runtime.ports import RunOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.core.messages import Transition
    from flowlane.runtime.mailbox import Reports
    from flowlane.runtime.ports import Chunk, Report, RunInfo, Sink

__all__ = ["Fault", "Journal", "library_logger"]

#: Rows that may wait for slow sinks: about 100 MB with their reports.
LIMIT: Final = 500_000

#: Characters of tasks' output that may wait for slow sinks; what comes beyond is not told to them.
OUTPUT_LIMIT: Final = 64 << 20

_FAULTS_KEPT: Final = 1_000  # an Engine may live for months with a broken sink


def library_logger() -> logging.Logger:
    """The stdlib logger "flowlane", with a NullHandler: without one, logging prints warnings to the host's stderr."""
    logger = logging.getLogger("flowlane")
    if not any(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        logger.addHandler(logging.NullHandler())
    return logger


def _reports_of(rows: list[Transition], reports: Reports) -> Reports:
    keys = {row[:2] for row in rows}
    return {key: reports[key] for key in keys if key in reports}


class Fault(NamedTuple):
    """A sink's trouble, told once: the run's id, the sink's class and what happened, in one sentence."""

    run: str
    sink: str
    message: str


class _Stream(Stream):
    """One run on its way to its sinks. `gap` and `gap_end` belong to the loop thread, the rest to the writer."""

    __slots__ = ("gap", "gap_end", "history", "last", "lost", "run", "sinks", "unprinted")

    def __init__(self, run: RunInfo, sinks: list[Sink]) -> None:
        super().__init__()
        self.run = run
        self.sinks = sinks
        self.history = History(run)
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


class _Close(NamedTuple):
    outcome: RunOutcome | None  # None: the engine was closed under the run
    done: Future[None]


_Word = _Open | _Gap | _Noted | _Close


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
        self._limit = limit
        self._streams: dict[str, _Stream] = {}
        self._box: Mailbox[_Stream, _Word] = Mailbox(
            "flowlane-journal", self._take, self._control, chunk_rows=chunk_rows, linger=linger
        )
        self._output_in = 0  # characters, counted like the rows
        self._output_out = 0

    # ── the loop's side ───────────────────────────────────────────────────────────────────────────────────────────

    def start(self, run: RunInfo) -> bool:
        """Begin a run. True when at least one sink wants to hear it; else `append` may be left out for it."""
        if self._box.closing:
            raise EngineClosed("the journal is closed")
        if not self._sinks:
            return False
        sinks = [sink for sink in self._sinks if self._wants(run, sink)]
        if not sinks or not self._writing(run):
            return False
        stream = self._streams[run.id] = _Stream(run, sinks)
        self._box.put(stream, _Open())
        return True

    def append(self, run_id: str, transitions: list[Transition], reports: Reports) -> None:
        """Hand over the transitions of one step and the reports that belong to them. About 0.2 µs, never blocks.

        Neither container may change afterwards (the journal does not change them), and the reports hold no values any
        more: they may wait here for a while.
        """
        stream = self._streams.get(run_id)
        if stream is None or not transitions:
            return
        box = self._box
        if box.appended - box.consumed > self._limit:
            if self._output_in != self._output_out:
                self._output_in -= sum([len(report.output) for report in reports.values() if report.output])
            stream.gap += len(transitions)
            stream.gap_end = transitions[-1][3]
            return
        if stream.gap:
            self._mark_gap(stream)
        box.append(stream, transitions, reports)

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
        if stream is None or self._box.appended - self._box.consumed > self._limit:
            return
        if stream.gap:
            self._mark_gap(stream)
        self._box.put(stream, _Noted(element, attempt, report))

    def finish(self, run_id: str, outcome: RunOutcome) -> Future[None]:
        """End a run. The future is resolved, with None, when its sinks have got everything and were closed for it."""
        return self._end(run_id, outcome)

    def _end(self, run_id: str, outcome: RunOutcome | None) -> Future[None]:
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # whoever stops waiting for it must not break its delivery
        stream = self._streams.pop(run_id, None)
        if stream is None:
            done.set_result(None)
            return done
        if stream.gap:
            self._mark_gap(stream)
        self._box.put(stream, _Close(outcome, done), urgent=True)
        return done

    def close(self, timeout: float | None = None) -> None:
        """Deliver what is left, end the writer thread and wait for it, at most `timeout` seconds. Idempotent.

        Runs that were not finished are closed as interrupted.
        """
        for run_id in list(self._streams):
            self._end(run_id, None)
        self._box.close(timeout)

    @property
    def delivered(self) -> int:
        """Rows that were handed on so far: it grows while there is progress. Any thread."""
        return self._box.consumed

    @property
    def writing(self) -> bool:
        """Whether the writer thread is there. Any thread."""
        return self._box.alive

    def notes(self, run_id: str) -> list[str]:
        """What there is to say to people about the log of one run; whole once its `finish` is resolved."""
        return [f"{fault.sink}: {fault.message}" for fault in list(self.faults) if fault.run == run_id]

    def _mark_gap(self, stream: _Stream) -> None:
        self._box.put(stream, _Gap(stream.gap, stream.gap_end))
        self.lost += stream.gap
        stream.gap = 0

    def _wants(self, run: RunInfo, sink: Sink) -> bool:
        try:
            return bool(getattr(sink, "wants", True))
        except Exception as error:  # noqa: BLE001 - it is a plug-in's property
            self._raised(run, sink, "wants", error)
            return False

    def _writing(self, run: RunInfo) -> bool:
        try:
            self._box.start()
        except RuntimeError as error:  # no thread to be had: the run goes on without a log
            self._tell(Fault(run.id, "journal", f"no thread for the log: {error}"))
            return False
        return True

    # ── the writer's side ─────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, stream: _Stream, rows: list[Transition], reports: Reports) -> None:
        size = self._chunk_rows
        if len(rows) <= size:
            self._deliver(stream, rows, reports)
        else:
            for low in range(0, len(rows), size):
                part = rows[low : low + size]
                self._deliver(stream, part, _reports_of(part, reports) if reports else {})
        stream.last = rows[-1][3]
        if self._output_in != self._output_out:
            self._output_out += sum([len(report.output) for report in reports.values() if report.output])

    def _deliver(self, stream: _Stream, rows: list[Transition], reports: Reports) -> None:
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

    def _control(self, stream: _Stream, what: _Word) -> None:
        run = stream.run
        match what:
            case _Open():
                self._each(stream, "open", lambda sink: sink.open(run))
            case _Gap(count, t):
                stream.lost += count
                chunk: Chunk = stream.history.lost(count, t)
                self._each(stream, "write", lambda sink: sink.write(chunk))
            case _Noted(element, attempt, report):
                noted: Chunk = stream.history.noted(element, attempt, report)
                self._each(stream, "write", lambda sink: sink.write(noted))
            case _Close(outcome, done):
                ending = outcome or RunOutcome(
                    state="interrupted",
                    ended=stream.last,
                    counts={},
                    error="the engine was closed before the run ended",
                )
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
                done.set_result(None)

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
