"""Reads what workers have answered, and makes the engine's reports of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowlane.errors import Failure
from flowlane.runtime.ports import FAILED, INTERRUPTED, NEVER, SUCCEEDED, Report
from flowlane_plugins.executors import transport
from flowlane_plugins.workers.cargo import take
from flowlane_plugins.workers.handle import EXCEEDED, OVERDUE
from flowlane_plugins.workers.page import PID
from flowlane_plugins.workers.parcel import nbytes_of
from flowlane_plugins.workers.records import RAISED, REFUSED, RETURNED, STOPPED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane_plugins.workers.dispatch import Dispatch
    from flowlane_plugins.workers.handle import Flight, WorkerHandle
    from flowlane_plugins.workers.leases import Book

__all__ = ["Answers"]


class Answers:
    """For the workers of one pool.

    home     whom values that stay framed belong to (RemoteValue.home)
    max_rss  bytes of peak memory after which a worker is dismissed
    """

    def __init__(self, dispatch: Dispatch, book: Book, home: object, max_rss: int | None) -> None:
        self.mean = 0  # ns a job takes, lately
        self._dispatch = dispatch
        self._book = book
        self._home = home
        self._max_rss = max_rss

    def collect(self, worker: WorkerHandle, reports: list[Report]) -> bool:
        """Add the reports of all that `worker` has answered; False when what it has written is no answer."""
        ring, flights, frames = worker.page.results, worker.flights, worker.frames
        if not worker.pid and ring.news:
            worker.born(worker.page.cells[PID])  # it has answered before its birth was told
        name, home, get = worker.name, self._home, ring.get
        output, out, mean = worker.output, self._dispatch.flights, self.mean
        while True:
            try:
                record = get()
                if record is None:
                    break
                number, status, started, ended, cpu, pickling, printed, payload, *more = record
                if flights[0].number != number:
                    return False
            except (ValueError, EOFError, TypeError, IndexError):  # a task has written into the page
                return False
            flight = flights.popleft()
            if number >= frames[0]:
                frames.popleft()
            job, call = flight.job, flight.call
            del out[job.ref]
            nbytes = call.nbytes if call is not None else NEVER
            text = output.take(printed) if printed != output.read else None
            if status == RETURNED and not more and not flight.asked:  # nearly always: all in one go
                value, size = take(payload, (), job.target.name, home), len(payload)
                reports.append(
                    Report(
                        job.ref, SUCCEEDED, started, ended, value, None, name, cpu, NEVER, nbytes, size, pickling, text
                    )
                )
                took = ended - started + pickling
                flight.function.cost.note(took)
                mean = took if took > 4 * mean else (7 * mean + took) // 8 + 1
                if flight.alone:
                    self._dispatch.absolve(flight)
                continue
            rss, refs = self._more(worker, more[0]) if more else (NEVER, ())
            if flight.kill is not None:
                flight.kill.cancel()
            report = Report(job.ref, SUCCEEDED, started, ended, None, None, name, cpu, rss, nbytes)
            report.pickling = pickling
            report.output = text
            if status == RETURNED:
                self._value(worker, flight, report, payload, refs)
                took = ended - started + max(pickling, 0)
                flight.function.cost.note(took)
                mean = took if took > 4 * mean else (7 * mean + took) // 8 + 1
            elif status == STOPPED:
                report.kind = INTERRUPTED
                worker.ending = True  # it leaves by itself
            else:
                self._failure(worker, flight, report, status, payload, refs)
            if flight.alone:
                self._dispatch.absolve(flight)
            reports.append(report)
        ring.commit()
        self.mean = mean
        if not flights:
            worker.let_go()
            output.relieve(idle=True)
        return True

    def _value(self, worker: WorkerHandle, flight: Flight, report: Report, payload: Any, refs: Sequence[Any]) -> None:
        """The value of a job that returned, where that needs a look."""
        chunks = self._book.take(refs, worker.wid)
        timeout = flight.job.timeout
        if flight.asked == OVERDUE and timeout is not None and report.ended - report.started > timeout * 1e9:
            report.kind = INTERRUPTED  # it did not listen, and its result came too late
            return
        report.value = take(payload, chunks, flight.job.target.name, self._home)
        report.bytes_out = nbytes_of(payload)

    def _failure(
        self, worker: WorkerHandle, flight: Flight, report: Report, status: int, payload: Any, refs: Sequence[Any]
    ) -> None:
        """The error of a job that raised, or was refused before it began."""
        report.kind = FAILED
        if refs:
            (chunk,) = self._book.take(refs, worker.wid)
            try:
                payload = self._book.read(chunk.ref)
            except (LookupError, OSError, MemoryError) as error:
                report.failure = Failure.of(error.with_traceback(None))
                return
        report.failure = transport.decode_failure(payload)
        if status == REFUSED:
            report.started = NEVER
        if flight.asked and flight.asked != EXCEEDED:
            report.kind = INTERRUPTED
            report.started = flight.since if report.started == NEVER else report.started
        elif status == RAISED:
            flight.function.cost.note(report.ended - report.started)

    def _more(self, worker: WorkerHandle, more: tuple[Any, ...]) -> tuple[int, Sequence[Any]]:
        """What a record tells besides: (peak RSS, refs of the result's chunks)."""
        rss, refs, held, released = more
        if refs:
            worker.receive()  # descriptors of its arenas were sent before
            for arena in worker.arenas:
                self._book.add(*arena)
            worker.arenas.clear()
        if held:
            self._book.held(worker.wid, held)
        if released:
            self._book.released(worker.wid, released)
        if self._max_rss is not None and rss > self._max_rss and not worker.ending:
            self._dispatch.dismiss(worker)
        return rss or NEVER, refs
