"""Stopping jobs that have begun, and taking back those behind them.

A job is asked to stop once: SIGTERM, which its worker turns into an exception in the task, and SIGKILL when its grace is over;
asked again, it can only get less grace. Timeouts are kept here: they count from the moment that stands in the page, for the body,
and for what has to be loaded before it as much again.

*Memory.* A worker whose job has taken more than it may is killed: there is no grace, it may be about to starve everybody. What
counts is by how much the worker has grown since before the job, so nobody pays for what others left behind.

*Taking back.* Jobs that wait in a worker behind one that runs long, or is to be stopped, must not wait there. The worker may be
about to begin one: it stores the number first and then looks at the limit; we store the limit, wait until it must have seen it,
and then look at the number. What it has not begun, it is told to skip.

Called on the loop's thread. Nothing is collected or delivered from inside a decision: what follows is left for the next turn.
"""

from __future__ import annotations

from signal import SIGKILL, SIGTERM
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from flowlane_plugins.workers.handle import CANCELLED, EXCEEDED, OVERDUE
from flowlane_plugins.workers.page import LIMIT, NO_LIMIT, SKIP_FROM, SKIP_TO, STARTED, STOP

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from flowlane.runtime.ports import Report
    from flowlane_plugins.workers.dispatch import Dispatch
    from flowlane_plugins.workers.handle import Flight, WorkerHandle

__all__ = ["Stopping"]

_SETTLED: Final = 0.001  # s in which a worker has surely seen a cell that was written


class Stopping:
    """For the workers of one pool.

    collect   reads what a worker has answered
    signal    sends a signal to a worker, by its wid
    turn      ends a turn: what has changed is followed up and told
    out       where reports of this turn go
    grace     seconds from SIGTERM to SIGKILL for a job whose timeout has passed
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        dispatch: Dispatch,
        collect: Callable[[WorkerHandle], None],
        signal: Callable[[int, int], object],
        turn: Callable[[], None],
        out: list[Report],
        grace: float,
    ) -> None:
        self._loop = loop
        self._dispatch = dispatch
        self._collect = collect
        self._signal = signal
        self._turn = turn
        self._out = out
        self._grace = grace

    def cancel(self, worker: WorkerHandle, flight: Flight, grace: float) -> None:
        """The engine wants `flight`, which `worker` has, to stop within `grace` seconds."""
        if flight.asked and grace >= flight.grace:
            return
        flight.asked, flight.grace = flight.asked or CANCELLED, grace
        if worker.page.cells[STARTED] >= flight.number:
            self._stop(worker, flight)
        else:
            self.take_back(worker, flight.number)

    # ── timeouts ──────────────────────────────────────────────────────────────────────────────────────────────────

    def keep_time(self, worker: WorkerHandle, flight: Flight) -> None:
        """`flight` runs and has a timeout: look again when that passes, unless somebody does already."""
        if worker.deadline is None or worker.deadline[0] != flight.number:
            self._look(worker, flight)

    def _look(self, worker: WorkerHandle, flight: Flight) -> None:
        running = worker.running()
        timeout = flight.job.timeout
        if running is None or running[0] is not flight or timeout is None or flight.asked:
            return
        if worker.deadline is not None:
            worker.deadline[1].cancel()
        left = timeout - (monotonic_ns() - running[1]) / 1e9
        if left > 0:
            worker.deadline = (flight.number, self._loop.call_later(left, self._due, worker, flight))
        else:
            worker.deadline = None
            flight.asked, flight.grace, flight.since = OVERDUE, self._grace, running[1]
            self._stop(worker, flight)

    def _due(self, worker: WorkerHandle, flight: Flight) -> None:
        self._collect(worker)  # it may have answered in time, and nobody has read it yet
        self._look(worker, flight)
        self._turn()

    # ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────

    def keep_memory(self, worker: WorkerHandle, flight: Flight) -> None:
        """`flight` runs and its memory is limited: kill it when it has taken more. About 20 µs."""
        if flight.asked:
            return
        flight.peak = max(flight.peak, worker.grown())
        if flight.peak > flight.job.memory and worker.running_of(flight):
            flight.asked, flight.grace = EXCEEDED, 0.0
            self._stop(worker, flight)

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _stop(self, worker: WorkerHandle, flight: Flight) -> None:
        if flight.kill is not None:  # asked before: only the grace can change
            flight.kill.cancel()
        elif worker.flights[0] is flight:
            if len(worker.flights) > 1:
                self.take_back(worker, flight.number + 1)
            worker.page.cells[STOP] = flight.number
            if flight.grace > 0:
                self._signal(worker.wid, SIGTERM)
        flight.kill = self._loop.call_later(flight.grace, self._kill, worker, flight)

    def _kill(self, worker: WorkerHandle, flight: Flight) -> None:
        if not worker.closed:
            self._collect(worker)  # it may have answered just now
            if worker.flights and worker.flights[0] is flight:
                self._signal(worker.wid, SIGKILL)
            self._turn()

    # ── taking back ───────────────────────────────────────────────────────────────────────────────────────────────

    def take_back(self, worker: WorkerHandle, number: int) -> None:
        """Get back the jobs from `number` on that `worker` has not begun. It gets no others meanwhile."""
        worker.hold = True
        worker.limit = worker.page.cells[LIMIT] = min(worker.limit, number)
        if worker.withdrawal is not None:
            worker.withdrawal.cancel()
        worker.withdrawal = self._loop.call_later(_SETTLED, self._taken_back, worker)

    def _taken_back(self, worker: WorkerHandle) -> None:
        worker.withdrawal = None
        self._collect(worker)
        cells = worker.page.cells
        begun, limit = cells[STARTED], worker.limit
        back = [flight for flight in worker.flights if flight.number > begun and flight.number >= limit]
        if back:
            cells[SKIP_FROM] = back[0].number
            cells[SKIP_TO] = worker.given
            for _ in back:
                worker.flights.pop()
            worker.frames.clear()
            if worker.flights:
                worker.frames.append(worker.flights[-1].number)
        worker.limit = cells[LIMIT] = NO_LIMIT
        worker.let_go()
        worker.wake()
        if worker.flights and worker.flights[0].asked and worker.flights[0].number <= begun:
            first = worker.flights[0]
            if first.kill is None:
                self._stop(worker, first)  # it had begun after all
        self._out += self._dispatch.put_back(back)
        self._turn()
