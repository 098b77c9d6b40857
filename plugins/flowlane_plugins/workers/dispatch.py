"""Who gets which jobs next: the queue of a pool, and how frames are made of it.

Handing a job over costs 20 to 60 µs in wake-ups, whatever its size. So as many jobs go together as make about `_FRAME`
ns of work, by the durations measured of each function; a function that was not measured yet travels alone. A worker has
at most two frames: the second hides the hand-over. Jobs are shared out so that all workers have equally many, and end together.

The next attempt of a task that has killed a worker runs *alone*: in a worker that never ran anything, with nothing
beside it.

A job may be *wide*: it computes in several cores, so that as many workers less may be at work beside it. Slots see to that as far
as no more jobs are out than there are slots; but short jobs are here in advance. So while a wide job is out, workers are kept
idle for its cores; it travels by itself, and when it is next, those behind it wait."""

from __future__ import annotations

from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from flowlane.errors import Failure, TransportError
from flowlane.runtime.ports import FAILED, INTERRUPTED, NEVER, Report
from flowlane_plugins.workers.cargo import encode_call
from flowlane_plugins.workers.chunks import owner_of
from flowlane_plugins.workers.functions import Functions
from flowlane_plugins.workers.handle import Flight
from flowlane_plugins.workers.parcel import Parcel, inline_size
from flowlane_plugins.workers.records import EXIT, FUNCTION, JOBS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.runtime.ports import Job
    from flowlane_plugins.workers.functions import Function
    from flowlane_plugins.workers.handle import WorkerHandle
    from flowlane_plugins.workers.leases import Book

__all__ = ["FRAME", "FRAME_JOBS", "PREFETCH", "Dispatch"]

FRAME: Final = 2_000_000  # ns of work that travel together
FRAME_JOBS: Final = 128
PREFETCH: Final = 50_000_000  # ns: for longer jobs a second one at hand saves nothing
_FRAME_BYTES: Final = 1 << 17
_ENTRY: Final = 64  # bytes of a frame that a job takes besides its name and payload
_DEATHS_KEPT: Final = 10_000


class Dispatch:
    """The jobs that are out (`flights`, by ref), those of them that wait, and the giving.

    workers     the pool's
    new_worker  makes one more that can be given jobs at once, or None when there cannot be one now
    slots       cores that all jobs together may take
    max_tasks   jobs after which a worker is dismissed
    """

    def __init__(
        self,
        workers: dict[int, WorkerHandle],
        book: Book,
        new_worker: Callable[[], WorkerHandle | None],
        slots: int,
        max_tasks: int | None,
    ) -> None:
        self.flights: dict[int, Flight] = {}
        self._workers = workers
        self._book = book
        self._new_worker = new_worker
        self._slots = slots
        self._max_tasks = max_tasks
        self._wide: set[int] = set()  # refs of wide jobs; some may be answered
        self._functions = Functions(book)
        self._queue: deque[Flight] = deque()
        self._alone: deque[Flight] = deque()
        self._given = 0  # frames
        self._deaths: dict[tuple[str, str], int] = {}  # (run, task) that was charged → how often

    def add(self, jobs: Sequence[Job], reports: list[Report]) -> None:
        """Queue jobs; a report is added for each whose function cannot travel."""
        flights, find, queue, deaths = self.flights, self._functions.find, self._queue, self._deaths
        for job in jobs:
            function = find(job.target, job.run)
            if function is None:
                try:
                    in_use = [flight.function.fid for flight in flights.values()]
                    function = self._functions.add(job.target, job.run, in_use)
                except Exception as error:  # noqa: BLE001 - it fails its own jobs only
                    reports.append(_refusal(job.ref, error))
                    continue
            flight = flights[job.ref] = Flight(job, function)
            if job.cores > 1:
                self._wide.add(job.ref)
            if deaths and (job.run, job.task) in deaths:
                flight.alone = True
                self._alone.append(flight)
            else:
                queue.append(flight)

    @property
    def wide(self) -> bool:
        """Whether wide jobs are out."""
        if self._wide:
            self._wide.intersection_update(self.flights)
        return bool(self._wide)

    @property
    def waiting(self) -> bool:
        """Whether jobs are queued."""
        return bool(self._queue or self._alone)

    def give(self, reports: list[Report]) -> bool:
        """Give workers what is queued; whether anything was. A report is added for each job that turns out not to travel."""
        given = self._given
        if self._alone:
            self._give_alone(reports)
        queue, flights = self._queue, self.flights
        while queue:
            if queue[0].job.ref not in flights:  # interrupted meanwhile
                queue.popleft()
                continue
            worker = self._next_worker(queue[0])
            if worker is None or not self._send(worker, queue, reports):
                break
        return self._given > given

    def put_back(self, back: Sequence[Flight]) -> list[Report]:
        """Queue flights again, first of all, in their order; the reports of those that were to be stopped."""
        now = monotonic_ns()
        answers: list[Report] = []
        for flight in reversed(back):
            flight.worker = None
            flight.number = -1
            if flight.asked:
                self.forget(flight)
                answers.append(Report(flight.job.ref, INTERRUPTED, flight.since, now))
            else:
                (self._alone if flight.alone else self._queue).appendleft(flight)
        return answers

    def forget(self, flight: Flight) -> None:
        """It is answered."""
        del self.flights[flight.job.ref]
        if flight.kill is not None:
            flight.kill.cancel()

    def give_up(self) -> list[Job]:
        """Forget all flights that no worker has; their jobs."""
        waiting = [flight for flight in self.flights.values() if flight.worker is None]
        for flight in waiting:
            del self.flights[flight.job.ref]
        self._queue.clear()
        self._alone.clear()
        return [flight.job for flight in waiting]

    # ── blame ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def charge(self, flight: Flight) -> bool:
        """Its worker died of it: whether its task is poison, having killed the last one alone as well."""
        key = (flight.job.run, flight.job.task)
        deaths = self._deaths[key] = self._deaths.pop(key, 0) + 1
        if len(self._deaths) > _DEATHS_KEPT:  # of tasks that were never tried again
            del self._deaths[next(iter(self._deaths))]
        if flight.alone and deaths > 1:
            del self._deaths[key]
            return True
        return False

    def absolve(self, flight: Flight) -> None:
        """It ran alone, and its worker lives."""
        self._deaths.pop((flight.job.run, flight.job.task), None)

    # ── workers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _next_worker(self, flight: Flight) -> WorkerHandle | None:
        """Who is idle, best who holds the largest argument; else a new worker; else who has least, in one frame of short jobs."""
        idle: WorkerHandle | None = None
        second: WorkerHandle | None = None
        wanted = 0
        if self._wide and self.wide and not self._has_room(flight):
            return None
        for worker in self._workers.values():
            if worker.ending or worker.hold or worker.unsent:
                continue
            frames = len(worker.frames)
            if not frames:
                if idle is None:
                    wanted = _holder(flight.job)
                    idle = worker
                if not wanted or worker.wid == wanted:
                    return worker
            elif frames == 1 and (second is None or len(worker.flights) < len(second.flights)):
                cost = worker.flights[-1].function.cost.ns
                if 0 < cost < PREFETCH and not worker.flights[0].told:
                    second = worker
        return idle or self._new_worker() or second

    def _has_room(self, flight: Flight) -> bool:
        """Whether there are cores for it beside what is at work. Wide jobs have nothing in their frame but themselves."""
        busy = sum([worker.flights[0].job.cores for worker in self._workers.values() if worker.flights])
        return busy + min(flight.job.cores, self._slots) <= self._slots

    def _give_alone(self, reports: list[Report]) -> None:
        alone, workers = self._alone, self._workers
        while alone:
            if alone[0].job.ref not in self.flights:
                alone.popleft()
                continue
            if self._wide and self.wide and not self._has_room(alone[0]):
                return
            fresh = next((worker for worker in workers.values() if not (worker.given or worker.ending)), None)
            fresh = fresh or self._new_worker()
            if fresh is None:
                self._make_room(len(alone))
                return
            if self._send(fresh, alone, reports):
                self.dismiss(fresh)  # when it is done with this one
            elif alone and alone[0].job.ref in self.flights:
                return

    def _make_room(self, wanted: int) -> None:
        """Have as many workers leave as fresh ones are wanted, those first that have the least to do."""
        workers = self._workers.values()
        # One that ends behind a job which runs alone may take as long as that does.
        leaving = sum(worker.ending and not (worker.flights and worker.flights[0].alone) for worker in workers)
        for worker in sorted((worker for worker in workers if not worker.ending), key=lambda each: len(each.flights)):
            if leaving >= wanted:
                break
            self.dismiss(worker)
            leaving += 1

    def dismiss(self, worker: WorkerHandle) -> None:
        """Let it end when it has done what it was given."""
        worker.ending = True
        worker.later.append((EXIT,))
        worker.send_later()
        worker.wake()

    # ── frames ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, worker: WorkerHandle, queue: deque[Flight], reports: list[Report]) -> bool:
        """Give `worker` the next jobs of `queue`; False when nothing could be given."""
        if not worker.send_later():
            return False
        self._functions.let_forget(self._workers.values())
        flights, known = self.flights, worker.functions
        most, budget, room = self._share(worker, queue), FRAME, _FRAME_BYTES
        sent: list[Flight] = []
        jobs: list[Any] = []
        while queue and len(sent) < most:
            flight = queue.popleft()
            job, function = flight.job, flight.function
            if job.ref not in flights:
                continue
            call = flight.call
            if call is None:
                try:
                    call = flight.call = encode_call(job.target, job.args, job.kwargs, self._book)
                except Exception as error:  # noqa: BLE001 - an argument that cannot travel fails its own job only
                    self.forget(flight)
                    reports.append(_refusal(job.ref, error))
                    continue
            payload = call.payload
            cost = function.cost.ns or FRAME
            size = _ENTRY + len(job.task) + (len(payload) if isinstance(payload, bytes) else inline_size(payload))
            if sent and (cost > budget or size > room or job.cores > 1 or sent[0].job.cores > 1):
                queue.appendleft(flight)
                break
            try:
                ready = function.fid in known or self._introduce(worker, function)
                if ready and call.chunks:
                    ready = worker.send_arenas(self._book.sends(worker.wid, call.chunks))
            except LookupError:
                self.forget(flight)
                reports.append(_refusal(job.ref, _lost_argument(job)))
                continue
            if not ready:
                queue.appendleft(flight)  # no room now: the next result or tick tries again
                break
            budget -= cost
            room -= size
            entry = (function.fid, job.task, job.attempt, payload)
            if job.cores > 1 or job.memory:
                jobs.append((*entry, call.files, (job.cores, job.memory)))
            else:
                jobs.append((*entry, call.files) if call.files else entry)
            sent.append(flight)
        number = worker.given
        while True:
            try:
                put = bool(sent) and worker.page.jobs.put((JOBS, number, jobs))
                break
            except ValueError as error:  # longer than it was thought to be
                half = len(sent) // 2
                if not half:
                    self.forget(sent[0])
                    reports.append(_refusal(sent[0].job.ref, error))
                    return True
                queue.extendleft(reversed(sent[half:]))
                del sent[half:], jobs[half:]
        if not put:
            queue.extendleft(reversed(sent))
            return False
        self._given += 1
        for flight in sent:
            flight.worker = worker
            flight.number = number
            number += 1
        worker.flights.extend(sent)
        worker.given = number
        worker.given_at = monotonic_ns()
        worker.frames.append(number - 1)
        worker.wake()
        if self._max_tasks is not None and number >= self._max_tasks:
            self.dismiss(worker)
        return True

    def _share(self, worker: WorkerHandle, queue: deque[Flight]) -> int:
        """How many jobs of `queue` may go to `worker`: as many as leave all with equally many, those counted that they have.

        Who asks first would otherwise get all that is ready by then, and whoever is about to end its frame, nothing.
        """
        if queue is self._alone:
            return 1
        takers, jobs = 0, len(queue)
        for other in self._workers.values():
            flights = other.flights
            if not (other.ending or other.hold or (flights and flights[0].told)):  # told: it is busy for longer
                takers += 1
                jobs += len(flights)
        most = min(FRAME_JOBS, max(1, -(-jobs // (takers or 1)) - len(worker.flights)))
        return most if self._max_tasks is None else min(most, self._max_tasks - worker.given)

    def _introduce(self, worker: WorkerHandle, function: Function) -> bool:
        header: Any = function.header
        if not isinstance(header, bytes):
            if not worker.send_arenas(self._book.sends(worker.wid, (header,))):
                return False
            header = header.ref
        if not worker.page.jobs.put((FUNCTION, function.fid, header)):
            return False
        worker.functions.add(function.fid)
        return True


def _holder(job: Job) -> int:
    """The worker that made the largest of the values that `job` is called with; 0 when none is large."""
    largest, wid = 0, 0
    for value in (*job.args, *job.kwargs.values()) if job.kwargs else job.args:
        if type(value) is Parcel and value.chunks and value.nbytes > largest:
            largest, wid = value.nbytes, owner_of(value.chunks[0].ref[0])
    return wid


def _lost_argument(job: Job) -> TransportError:
    return TransportError(
        f"an argument of {job.task} is lost: the memory that held it could not be received from the worker that made it",
        hint="this process had too many open files at that moment: raise the limit (ulimit -n), or keep fewer open",
    )


def _refusal(ref: int, error: Exception) -> Report:
    return Report(ref, FAILED, NEVER, monotonic_ns(), failure=Failure.of(error.with_traceback(None)))
