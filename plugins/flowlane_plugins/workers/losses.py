"""What follows when workers die: who is charged, and what begins again.

A job's number stands in the page before anything of it is touched, and its result before the next number. So when a worker is
dead (reaped: a closed socket is no proof), what stands in its ring is done; the job begun and not answered is charged; everything
else goes back to the queue as if nothing had happened. The next attempt of a task that was charged runs alone in a fresh worker,
and if that dies as well, the task is poison: it is not tried again. When the nursery is lost, all its workers are, and nobody is
charged. But a job that has been in a dying worker again and again is, whatever the page says; and one that must not begin twice.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from flowlane.runtime.ports import INTERRUPTED, NEVER, Report
from flowlane_plugins.workers import inquest
from flowlane_plugins.workers.handle import EXCEEDED, OVERDUE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane_plugins.workers.dispatch import Dispatch
    from flowlane_plugins.workers.handle import Flight, WorkerHandle

__all__ = ["begun", "worker_lost"]

_DEATHS_MAX: Final = 3  # of workers that a job may be first in without having begun


def worker_lost(worker: WorkerHandle, dispatch: Dispatch, out: list[Report], status: int | None, max_rss: int) -> None:
    """`worker` is dead and everything it has answered was read: report and put back what it still had.

    `status` as a process's exit code; None when its nursery was lost, so that it is no fault of the job's.
    """
    left: list[Flight] = list(worker.flights)
    worker.flights.clear()
    if left and (worker.running_of(left[0]) or worker.broken):
        first = left[0]
        first.deaths += 1
        if status is not None or first.asked or first.job.once or first.deaths > _DEATHS_MAX:
            out.append(_blame(worker, left.pop(0), dispatch, -9 if status is None else status, max_rss))
    elif left and worker.pid:
        left[0].deaths += 1
        if left[0].deaths > _DEATHS_MAX:
            out.append(_blame(worker, left.pop(0), dispatch, -9 if status is None else status, max_rss))
    out += dispatch.put_back(left)


def begun(workers: Sequence[WorkerHandle]) -> list[str]:
    """The names of the tasks that have begun in these."""
    running = [worker.running() for worker in workers]
    return [each[0].job.task for each in running if each is not None]


def _blame(worker: WorkerHandle, flight: Flight, dispatch: Dispatch, status: int, max_rss: int) -> Report:
    """The report of the job that had begun when its worker died."""
    job, since = flight.job, NEVER if worker.broken else worker.begun()
    dispatch.forget(flight)
    if flight.asked == EXCEEDED:  # we did it: no sign that the task kills workers
        report = inquest.exceeded(job, worker.pid, flight.peak, begun=since, max_rss=max_rss)
        report.worker = worker.name
    elif flight.asked:
        started = flight.since if flight.asked == OVERDUE and since == NEVER else since
        report = Report(job.ref, INTERRUPTED, started, monotonic_ns(), worker=worker.name, rss=max_rss)
    else:
        poison = dispatch.charge(flight)
        report = inquest.crashed(
            job, worker.pid, status, phase=worker.phase, begun=since, max_rss=max_rss, poison=poison
        )
        report.worker = worker.name
    if report.started == NEVER and flight.told:
        report.started = report.ended
    report.output = inquest.last_words(worker.output.rest())
    return report
