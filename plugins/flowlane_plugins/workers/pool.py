"""The pool: worker processes, the jobs that are out, and every decision about them.

One instance belongs to one thread, that of its loop, and nothing here blocks. It is told of three things: jobs
(`submit`, `interrupt`), news (a worker's socket is readable, or a spin or a tick finds its ring filled), and ends
(`_exited`, from the nest, after the process was reaped). Each ends in `_go_on`: workers get their next frames
(`dispatch`), then the reports are delivered.

*Blame.* A job's number stands in the page before anything of it is touched, and its result before the next number. So
when a worker is dead (reaped: a closed socket is no proof), what stands in its ring is done; the job begun and not
answered is charged; everything else goes back to the queue as if nothing had happened. The next attempt of a task that
was charged runs alone in a fresh worker, and if that dies as well, the task is poison: it is not tried again. When the
nursery is lost, all its workers are, and nobody is charged.

*Stopping.* Timeouts count from the moment that stands in the page, and are enforced here: SIGTERM, which the worker
turns into an exception in the task, and after the grace SIGKILL. A job is reported interrupted when it has answered or
its process was reaped.

*Taking back.* A job that runs long, or is to be stopped, must not keep others from running: those behind it in its
worker are taken back."""

from __future__ import annotations

import asyncio
import logging
from os import sched_yield
from signal import SIGKILL, SIGTERM
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from flowlane.errors import EngineClosed
from flowlane.runtime.ports import INTERRUPTED, NEVER, STARTED, Report
from flowlane_plugins.workers import inquest
from flowlane_plugins.workers.answers import Answers
from flowlane_plugins.workers.dispatch import FRAME, FRAME_JOBS, PREFETCH, Dispatch
from flowlane_plugins.workers.handle import CANCELLED, OVERDUE, Flight, WorkerHandle
from flowlane_plugins.workers.leases import Book
from flowlane_plugins.workers.orphans import stopped
from flowlane_plugins.workers.page import LIMIT, NO_LIMIT, POLLING, SKIP_FROM, SKIP_TO, STOP
from flowlane_plugins.workers.page import STARTED as STARTED_CELL
from flowlane_plugins.workers.records import DROP, FREE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowlane.runtime.ports import Job
    from flowlane_plugins.workers.nest import Nest
    from flowlane_plugins.workers.spawned import Spawned

__all__ = ["Pool"]

_LONG: Final = 10_000_000  # ns after which the jobs behind a running one are taken back
_SETTLED: Final = 0.001  # s in which a worker has surely seen a cell that was written
_TELL: Final = 3_000_000  # ns after which the start of a job is told
_SPIN: Final = 50_000  # ns
_SPIN_COST: Final = 1_000_000  # ns: waiting in vain for longer jobs would only heat the room
_BURST: Final = 1_000_000  # ns of spinning before the loop has its turn
_TICK: Final = 0.005  # s
_LAST_TICK: Final = 0.05
_FORK_AGAIN: Final = 0.05  # s
_REFUSALS_MAX: Final = 30  # forks in a row that the system refuses while there is no worker at all
_STILLBORN_MAX: Final = 3  # workers in a row that die before their first job
_UNMOVED: Final = 1_000_000_000  # ns after which a worker that does not begin is looked at
_LEAVE: Final = 0.3  # s that idle workers have to leave when the pool closes

_log: Final = logging.getLogger("flowlane")


class Pool:
    """At most `slots` workers.

    deliver       takes reports, on the loop's thread
    home          whom values that stay framed belong to (RemoteValue.home)
    make_nest     makes the nest or what stands in for it; takes the loop, the callbacks, and `preload`
    preload       modules for the nest to import
    max_tasks     jobs after which a worker is replaced, None for never
    max_rss       bytes of peak memory after which it is
    grace         seconds from SIGTERM to SIGKILL for a job whose timeout has passed
    output_limit  bytes kept of what one job prints

    Raises OSError when no process can be started.
    """

    def __init__(
        self,
        slots: int,
        deliver: Callable[[Sequence[Report]], None],
        home: object,
        make_nest: Callable[..., Nest | Spawned],
        *,
        preload: Sequence[str],
        max_tasks: int | None,
        max_rss: int | None,
        grace: float,
        output_limit: int,
    ) -> None:
        self.slots = slots
        self._deliver = deliver
        self._make_nest = make_nest
        self._preload = preload
        self._grace = grace
        self._output_limit = output_limit
        self._loop = asyncio.get_running_loop()
        self._workers: dict[int, WorkerHandle] = {}
        self._wids = 0
        self._book = Book()
        self._dispatch = Dispatch(self._workers, self._book, self._new_worker, max_tasks)
        self._flights = self._dispatch.flights
        self._answers = Answers(self._dispatch, self._book, home, max_rss)
        self._stillborn = 0
        self._refusals = 0
        self._spinning = False
        self._spun_for = (-1, 0)  # the frame that is waited for so
        self._spin_end = 0
        self._ticking: asyncio.TimerHandle | None = None
        self._pace = _TICK
        self._forking_again: asyncio.TimerHandle | None = None
        self._closing = False
        self._quiet = asyncio.Event()  # while closing: nothing is out, or nobody is left
        self._nest = self._new_nest()

    # ── what the engine asks ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def appetite(self) -> int:
        """Jobs it would like out at a time: enough for two frames a worker."""
        mean = self._answers.mean
        if not mean or mean > PREFETCH:
            return self.slots
        return self.slots * 2 * min(FRAME_JOBS, max(1, FRAME // mean))

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs. What cannot travel is delivered as failed."""
        if self._closing:
            raise EngineClosed("this executor is not open")
        reports: list[Report] = []
        self._dispatch.add(jobs, reports)
        self._give(reports)
        if reports:
            self._deliver(reports)
        if self._ticking is None or self._pace > _TICK:
            self._tick_in(_TICK)

    def interrupt(self, refs: Iterable[int], grace: float) -> None:
        """Stop jobs: at once what has not begun; the others have `grace` seconds."""
        answers: list[Report] = []
        now = monotonic_ns()
        for ref in refs:
            flight = self._flights.get(ref)
            if flight is None:
                continue  # its report is on the way
            worker = flight.worker
            if worker is None:
                del self._flights[ref]  # where it queues, it is passed over
                answers.append(Report(ref, INTERRUPTED, NEVER, now))
            elif not flight.asked or grace < flight.grace:
                flight.asked, flight.grace = flight.asked or CANCELLED, grace
                if worker.page.cells[STARTED_CELL] >= flight.number:
                    self._stop(worker, flight)
                else:
                    self._take_back(worker, flight.number)
        if answers:
            self._deliver(answers)

    async def close(self, grace: float) -> None:
        """Take back what has not begun, wait `grace` seconds for the rest, end it, and leave no process behind."""
        self._closing = True
        begun = {worker.flights[0].job.ref for worker in self._workers.values() if worker.flights}
        self.interrupt([ref for ref in self._flights if ref not in begun], grace)
        await self._until(lambda: not self._flights, grace)
        if self._flights:
            self.interrupt(list(self._flights), 0.0)
            await self._until(lambda: not self._flights, 1.0)
        for worker in self._workers.values():
            self._dispatch.dismiss(worker)
        await self._until(lambda: not self._workers, _LEAVE)
        await self._nest.close(1.0)
        now = monotonic_ns()
        left = [Report(ref, INTERRUPTED, NEVER, now) for ref in self._flights]  # what the nest has killed just now
        self._flights.clear()
        for timer in (self._ticking, self._forking_again):
            if timer is not None:
                timer.cancel()
        for worker in list(self._workers.values()):
            self._forget(worker)
        self._book.close()
        if left:
            self._deliver(left)

    async def _until(self, true: Callable[[], bool], patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                while not true():
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            pass

    # ── workers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _new_nest(self) -> Nest | Spawned:
        nest = self._make_nest(
            self._loop,
            born=self._born,
            exited=self._exited,
            failed=self._refused,
            lost=self._nest_lost,
            preload=self._preload,
        )
        nest.start()
        return nest

    def _new_worker(self) -> WorkerHandle | None:
        """A worker that can be given jobs at once; None when there are enough, or the system has no room for it now."""
        if len(self._workers) >= self.slots or self._closing or self._forking_again is not None:
            return None
        self._wids += 1
        try:
            worker = WorkerHandle(self._wids, self._output_limit)
        except OSError as error:
            self._refused(0, error)
            return None
        self._workers[worker.wid] = worker
        self._loop.add_reader(worker.sock, self._readable, worker)
        self._nest.fork(worker.wid, worker.fds)
        worker.handed_over()
        return worker

    def _born(self, wid: int, pid: int, pidfd: int) -> None:  # noqa: ARG002 - the nest signals by it
        worker = self._workers.get(wid)
        if worker is not None:
            worker.born(pid)
            self._refusals = 0

    def _refused(self, wid: int, error: OSError) -> None:
        """The system has no process (or descriptor) for us: the workers there are carry on, and we ask again."""
        worker = self._workers.get(wid)
        reports: list[Report] = []
        if worker is not None:
            reports = self._dispatch.put_back(worker.flights)
            self._forget(worker)
        self._refusals += not self._workers
        if self._refusals > _REFUSALS_MAX:
            self._refusals = 0
            reports += self._give_up(inquest.no_worker(f"no process can be started: {error}"))
        if reports:
            self._loop.call_soon(self._deliver, reports)
        if self._forking_again is None and not self._closing:
            self._forking_again = self._loop.call_later(_FORK_AGAIN, self._fork_again)

    def _fork_again(self) -> None:
        self._forking_again = None
        self._go_on([])

    def _forget(self, worker: WorkerHandle) -> None:
        del self._workers[worker.wid]
        self._loop.remove_reader(worker.sock)
        self._book.worker_gone(worker.wid)
        worker.close()
        self._quiet.set()

    # ── news ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _readable(self, worker: WorkerHandle) -> None:
        if not worker.receive():
            self._loop.remove_reader(worker.sock)  # dead, as a rule: that will be told when it is reaped
        self._news(worker)
        if worker.let_go():
            self._go_on([])

    def _news(self, worker: WorkerHandle) -> None:
        if worker.page.results.news:
            reports: list[Report] = []
            self._collect(worker, reports)
            self._go_on(reports)

    def _collect(self, worker: WorkerHandle, reports: list[Report]) -> None:
        if not self._answers.collect(worker, reports) and not worker.broken:
            _log.warning(
                "a task has written into the memory by which its worker answers (%s); it is replaced", worker.name
            )
            worker.broken = worker.ending = True
            self._nest.signal(worker.wid, SIGKILL)

    def _go_on(self, reports: list[Report]) -> None:
        """After anything: workers first, so that they work while the engine thinks; then the reports."""
        self._give(reports)
        if self._book.news:
            self._free()
        if reports:
            self._deliver(reports)
            self._quiet.set()

    def _give(self, reports: list[Report]) -> None:
        if self._dispatch.waiting:
            self._dispatch.give(reports)
            if POLLING and not self._spinning and self._single() is not None:
                self._spinning = True
                self._loop.call_soon(self._spin)

    def _free(self) -> None:
        """Tell workers which of their chunks, and which arenas of others, nobody reads any more."""
        for kind, lists in ((FREE, self._book.to_free()), (DROP, self._book.to_drop())):
            for wid, what in lists.items():
                worker = self._workers.get(wid)
                if worker is not None:
                    worker.later.append((kind, what))
                    worker.send_later()

    # ── spinning ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _single(self) -> WorkerHandle | None:
        """The worker with the only frame that is out, if that is a short one; None when there are more, or none."""
        single: WorkerHandle | None = None
        for worker in self._workers.values():
            if worker.frames:
                if single is not None or len(worker.frames) > 1 or not worker.pid:
                    return None
                single = worker
        if single is None or self._dispatch.waiting or single.flights[0].function.cost.ns > _SPIN_COST:
            return None
        return single

    def _spin(self) -> None:
        """Wait for the one frame that is out without going to sleep: half of what a link of a chain costs is waking up.

        At first here, for `_SPIN` ns, which the loop does not notice; then, for jobs known to last longer, by a look at
        every turn of the loop, in which everything else has its turn too.
        """
        burst = monotonic_ns() + _BURST
        while (worker := self._single()) is not None:
            ring, now = worker.page.results, monotonic_ns()
            number = worker.flights[0].number, worker.wid
            if self._spun_for != number:
                self._spun_for = number
                self._spin_end = now + _SPIN + 2 * worker.flights[0].function.cost.ns
            until = min(now + _SPIN, self._spin_end)
            while not ring.news:
                if monotonic_ns() > until:
                    if until < self._spin_end:
                        self._loop.call_soon(self._spin)
                    else:
                        self._spinning = False  # its wake-up will be seen by the loop
                    return
                sched_yield()
            self._news(worker)
            if monotonic_ns() > burst:
                self._loop.call_soon(self._spin)
                return
        self._spinning = False

    # ── the tick ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _tick_in(self, pace: float) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        self._pace = pace
        self._ticking = self._loop.call_later(pace, self._tick)

    def _tick(self) -> None:
        """Look at the pages: what has begun, what runs long, what has a deadline, what was not told of."""
        self._ticking = None
        reports: list[Report] = []
        settled = True
        for worker in list(self._workers.values()):
            self._collect(worker, reports)
            worker.send_arenas()
            worker.send_later()
            worker.let_go()
            if worker.flights:
                settled = self._look_at(worker, reports) and settled
        self._go_on(reports)
        if self._ticking is None and (self._flights or self._book.news):
            self._tick_in(min(self._pace * 2, _LAST_TICK) if settled else _TICK)

    def _look_at(self, worker: WorkerHandle, reports: list[Report]) -> bool:
        """One worker with jobs. Whether there is nothing more to find out about the one that runs."""
        running = worker.running()
        now = monotonic_ns()
        if running is None:
            if worker.pid and now - worker.given_at > _UNMOVED and stopped(worker.pid):
                self._nest.signal(worker.wid, SIGKILL)  # somebody has stopped it; others will do its jobs
            return False
        flight, since = running
        if flight.job.timeout is not None and (worker.deadline is None or worker.deadline[0] != flight.number):
            self._keep_time(worker, flight)
        begun = worker.begun()
        if not flight.told and begun != NEVER and now - begun > _TELL:
            flight.told = True
            reports.append(Report(flight.job.ref, STARTED, begun, worker=worker.name))
        alone = len(worker.flights) == 1 or worker.limit != NO_LIMIT
        if not alone and now - since > _LONG:
            self._take_back(worker, worker.flights[1].number)
            alone = True
        worker.output.relieve(idle=False)
        return flight.told and alone

    # ── taking back ───────────────────────────────────────────────────────────────────────────────────────────────

    def _take_back(self, worker: WorkerHandle, number: int) -> None:
        """Get back the jobs from `number` on that the worker has not begun.

        It may be about to begin one: it stores the number first and then looks at the limit; we store the limit, wait until
        it must have seen it, and then look at the number.
        """
        worker.hold = True
        worker.limit = worker.page.cells[LIMIT] = min(worker.limit, number)
        if worker.withdrawal is not None:
            worker.withdrawal.cancel()
        worker.withdrawal = self._loop.call_later(_SETTLED, self._taken_back, worker)

    def _taken_back(self, worker: WorkerHandle) -> None:
        worker.withdrawal = None
        reports: list[Report] = []
        self._collect(worker, reports)
        cells = worker.page.cells
        begun, limit = cells[STARTED_CELL], worker.limit
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
        for flight in worker.flights:
            if flight.asked and flight.number <= begun:
                self._stop(worker, flight)  # it had begun after all
        reports += self._dispatch.put_back(back)
        self._go_on(reports)

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep_time(self, worker: WorkerHandle, flight: Flight) -> None:
        """Look again when the running job's timeout passes. It counts from its body; for loading it has as much again."""
        running = worker.running()
        timeout = flight.job.timeout
        if running is None or running[0] is not flight or timeout is None or flight.asked:
            return
        if worker.deadline is not None:
            worker.deadline[1].cancel()
        left = timeout - (monotonic_ns() - running[1]) / 1e9
        if left > 0:
            worker.deadline = (flight.number, self._loop.call_later(left, self._keep_time, worker, flight))
        else:
            worker.deadline = None
            flight.asked, flight.grace = OVERDUE, self._grace
            self._stop(worker, flight)

    def _stop(self, worker: WorkerHandle, flight: Flight) -> None:
        """Stop a job that has begun: SIGTERM now, SIGKILL after its grace. What waits behind it is taken back."""
        if len(worker.flights) > 1 and worker.flights[0] is flight:
            self._take_back(worker, flight.number + 1)
        worker.page.cells[STOP] = flight.number
        if flight.grace > 0:
            self._nest.signal(worker.wid, SIGTERM)
            self._loop.call_later(flight.grace, self._kill, worker, flight)
        else:
            self._kill(worker, flight)

    def _kill(self, worker: WorkerHandle, flight: Flight) -> None:
        if worker.wid in self._workers:
            self._news(worker)  # it may have answered just now
            if worker.flights and worker.flights[0] is flight:
                self._nest.signal(worker.wid, SIGKILL)

    # ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _exited(self, wid: int, status: int, max_rss: int) -> None:
        """A worker was reaped."""
        worker = self._workers.get(wid)
        if worker is None:
            return
        reports: list[Report] = []
        worker.receive()
        self._collect(worker, reports)
        running = worker.running()
        left = list(worker.flights)
        if running is not None:
            reports.append(self._blame(worker, left.pop(0), status, max_rss))
        worked = worker.page.cells[STARTED_CELL] >= 0 or (not left and status == 0)
        self._stillborn = 0 if worked else self._stillborn + 1
        last_words = worker.output.rest() if self._stillborn >= _STILLBORN_MAX else None
        self._forget(worker)
        reports += self._dispatch.put_back(left)
        if self._stillborn >= _STILLBORN_MAX:
            self._stillborn = 0
            reports += self._give_up(inquest.stillborn(worker.pid, status, last_words))
        self._go_on(reports)

    def _blame(self, worker: WorkerHandle, flight: Flight, status: int, max_rss: int) -> Report:
        """The report of the job that had begun when its worker died."""
        job, begun = flight.job, worker.begun()
        del self._flights[job.ref]
        if flight.asked:
            report = Report(job.ref, INTERRUPTED, begun, monotonic_ns(), worker=worker.name, rss=max_rss)
        else:
            poison = self._dispatch.charge(flight)
            report = inquest.crashed(
                job, worker.pid, status, phase=worker.phase, begun=begun, max_rss=max_rss, poison=poison
            )
            report.worker = worker.name
        if begun == NEVER and flight.told:
            report.started = report.ended
        report.output = inquest.last_words(worker.output.rest())
        return report

    def _nest_lost(self) -> None:
        """The nursery is dead, and with it all workers. No task did that: what had begun begins again, and nobody is charged."""
        reports: list[Report] = []
        again: list[Flight] = []
        begun: list[str] = []
        for worker in list(self._workers.values()):
            worker.receive()
            self._collect(worker, reports)
            running = worker.running()
            if running is not None:
                begun.append(running[0].job.task)
            again += worker.flights
            self._forget(worker)
        reports += self._dispatch.put_back(again)
        if not self._closing:
            _log.warning(
                "the process that starts workers was killed, and they with it; %s",
                f"begun again: {', '.join(begun[:8])}{', …' if len(begun) > 8 else ''}"
                if begun
                else "no task was running",
            )
            self._stillborn += 1
            if self._stillborn > _STILLBORN_MAX:
                self._stillborn = 0
                said = f": {self._nest.last_words}" if self._nest.last_words else ""
                reports += self._give_up(
                    inquest.no_worker(f"the process that starts workers dies again and again{said}")
                )
            if not self._nest.ready:
                self._preload = ()  # that may be what it died of
            try:
                self._nest = self._new_nest()
            except OSError as error:
                reports += self._give_up(inquest.no_worker(f"no process can be started: {error}"))
        self._go_on(reports)

    def _give_up(self, problem: Callable[[Job], Report]) -> list[Report]:
        """No worker can be had: everything that waits for one has crashed."""
        return [problem(job) for job in self._dispatch.give_up()]
