"""The pool: worker processes, the jobs that are out, and when to look at what.

One instance belongs to one thread, that of its loop, and nothing here blocks. It is told of three things: jobs (`submit`,
`interrupt`), news (a worker's socket is readable, or a spin or a tick finds its ring filled), and ends (`_exited`, from the nest,
after the process was reaped). Each is a *turn*: reports gather in `_out`, and `_go_on` ends it: workers get their next frames
(`dispatch`), so that they work while the engine thinks, and then the reports are delivered, whatever happened before. Who is
stopped and how is in `stopping`, who is charged for a death in `losses`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from os import sched_yield
from signal import SIGKILL
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from flowlane.errors import EngineClosed
from flowlane.runtime.ports import INTERRUPTED, NEVER, STARTED, Report
from flowlane_plugins.workers import inquest
from flowlane_plugins.workers.answers import Answers
from flowlane_plugins.workers.dispatch import FRAME, FRAME_JOBS, PREFETCH, Dispatch
from flowlane_plugins.workers.handle import WorkerHandle
from flowlane_plugins.workers.leases import Book
from flowlane_plugins.workers.losses import begun, worker_lost
from flowlane_plugins.workers.orphans import stopped
from flowlane_plugins.workers.page import NO_LIMIT, POLLING, WATCHED
from flowlane_plugins.workers.page import STARTED as STARTED_CELL
from flowlane_plugins.workers.records import DROP, FREE
from flowlane_plugins.workers.stopping import Stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowlane.runtime.ports import Job
    from flowlane_plugins.workers.nest import Nest
    from flowlane_plugins.workers.spawned import Spawned

__all__ = ["Pool"]

_LONG: Final = 10_000_000  # ns after which the jobs behind a running one are taken back
_TELL: Final = 3_000_000  # ns after which the start of a job is told
_SPIN: Final = 50_000  # ns
_SPIN_COST: Final = 1_000_000  # ns: waiting in vain for longer jobs would only heat the room
_BURST: Final = 1_000_000  # ns of spinning before the loop has its turn
_TICK: Final = 0.005  # s
_LAST_TICK: Final = 0.05
_WATCH: Final = (
    0.02  # s between looks at jobs whose memory is limited: 100 MB can be had in that time, and a look costs 20 µs
)
_FORK_AGAIN: Final = 0.05  # s
_REFUSALS_MAX: Final = 30  # forks in a row that the system refuses while there is no worker at all
_STILLBORN_MAX: Final = 3
_UNREADY_MAX: Final = 3
_LISTED: Final = 4_000  # chunks or arenas in one record
_UNMOVED: Final = 1_000_000_000  # ns after which a worker that does not begin is looked at
_LEAVE: Final = 0.3  # s that idle workers have to leave when the pool closes

_log: Final = logging.getLogger("flowlane.engine")


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
        self._output_limit = output_limit
        self._loop = asyncio.get_running_loop()
        self._workers: dict[int, WorkerHandle] = {}
        self._wids = 0
        self._book = Book(wake=self._chunks_ended)
        self._dispatch = Dispatch(self._workers, self._book, self._new_worker, slots, max_tasks)
        self._flights = self._dispatch.flights
        self._answers = Answers(self._dispatch, self._book, home, max_rss)
        self._out: list[Report] = []  # of this turn
        self._stopping = Stopping(
            self._loop, self._dispatch, self._collect, self._signal, self._go_on, self._out, grace
        )
        self._stillborn = 0  # workers in a row that died before their first job
        self._unready = 0  # nests in a row that were lost before they served
        self._refusals = 0  # forks in a row that the system refused while there was no worker
        self._watched: WorkerHandle | None = None  # whose answer is waited for without going to sleep
        self._spun_for = (-1, 0)  # and for which of its frames
        self._spin_end = 0
        self._ticking: asyncio.TimerHandle | None = None
        self._pace = _TICK
        self._weighing = False  # a job runs whose memory is limited
        self._forking_again: asyncio.TimerHandle | None = None
        self._closing = False
        self._quiet = asyncio.Event()  # while closing: nothing is out, or nobody is left
        self._nest: Nest | Spawned | None = None  # lost, and not begun anew
        self._start_nest()

    # ── what the engine asks ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def appetite(self) -> int:
        """Jobs it would like out at a time: enough for two frames a worker. No more than slots while any takes several cores."""
        mean = self._answers.mean
        if not mean or mean > PREFETCH or self._dispatch.wide:
            return self.slots
        return self.slots * 2 * min(FRAME_JOBS, max(1, FRAME // mean))

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs. What cannot travel is delivered as failed."""
        if self._closing:
            raise EngineClosed("this executor is not open")
        self._dispatch.add(jobs, self._out)
        self._go_on()

    def interrupt(self, refs: Iterable[int], grace: float) -> None:
        """Stop jobs: at once what has not begun; the others have `grace` seconds."""
        now = monotonic_ns()
        wanted = [
            flight for flight in map(self._flights.get, refs) if flight is not None
        ]  # others are answered already
        for worker in {flight.worker for flight in wanted if flight.worker is not None}:
            self._collect(worker)
        for flight in wanted:
            if flight.job.ref not in self._flights:
                continue
            if flight.worker is None:
                self._dispatch.forget(flight)  # where it queues, it is passed over
                self._out.append(Report(flight.job.ref, INTERRUPTED, NEVER, now))
            else:
                self._stopping.cancel(flight.worker, flight, grace)
        self._go_on()

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
        if self._nest is not None:
            await self._nest.close(1.0)
        now = monotonic_ns()
        left = [Report(ref, INTERRUPTED, NEVER, now) for ref in self._flights]  # what the nest has killed just now
        for flight in list(self._flights.values()):
            self._dispatch.forget(flight)
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

    def _start_nest(self) -> None:
        """Start the process that starts workers. Raises OSError."""
        nest = self._make_nest(
            self._loop,
            born=self._born,
            exited=self._exited,
            failed=self._refused,
            lost=self._nest_lost,
            preload=self._preload,
        )
        nest.start()
        self._nest = nest

    def _new_worker(self) -> WorkerHandle | None:
        """A worker that can be given jobs at once; None when there are enough, or the system has no room for it now."""
        if len(self._workers) >= self.slots or self._closing or self._forking_again is not None:
            return None
        self._wids += 1
        try:
            if self._nest is None:
                self._start_nest()
            assert self._nest is not None
            worker = WorkerHandle(self._wids, self._output_limit)
        except OSError as error:
            self._no_room(error)
            return None
        try:
            self._nest.fork(worker.wid, worker.fds)
        except BaseException:
            worker.close()
            raise
        worker.handed_over()
        self._workers[worker.wid] = worker
        self._loop.add_reader(worker.sock, self._readable, worker)
        return worker

    def _signal(self, wid: int, signum: int) -> None:
        if self._nest is not None:
            self._nest.signal(wid, signum)

    def _born(self, wid: int, pid: int, pidfd: int) -> None:  # noqa: ARG002 - the nest signals by it
        worker = self._workers.get(wid)
        if worker is not None:
            worker.born(pid)
            self._refusals = 0

    def _refused(self, wid: int, error: OSError) -> None:
        """A worker could not be started."""
        worker = self._workers.get(wid)
        if worker is not None:
            left = list(worker.flights)
            self._forget(worker)
            self._out += self._dispatch.put_back(left)
        self._no_room(error)
        self._go_on()

    def _no_room(self, error: OSError) -> None:
        """The system has no process (or descriptor) for us: the workers there are carry on, and we ask again."""
        self._refusals += not self._workers
        if self._refusals > _REFUSALS_MAX:
            self._refusals = 0
            self._give_up(inquest.no_worker(f"no process can be started: {error}"))
        self._fork_again_in(_FORK_AGAIN)

    def _fork_again_in(self, pause: float) -> None:
        if self._forking_again is None and not self._closing:
            self._forking_again = self._loop.call_later(pause, self._fork_again)

    def _fork_again(self) -> None:
        self._forking_again = None
        self._go_on()

    def _forget(self, worker: WorkerHandle) -> None:
        del self._workers[worker.wid]
        self._loop.remove_reader(worker.sock)
        self._book.worker_gone(worker.wid)
        worker.close()
        self._quiet.set()

    # ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _exited(self, wid: int, status: int, max_rss: int) -> None:
        """A worker was reaped."""
        worker = self._workers.get(wid)
        if worker is None:
            return
        worker.receive()
        self._collect(worker)
        worked = worker.page.cells[STARTED_CELL] >= 0 or (not worker.flights and status == 0)
        self._stillborn = 0 if worked else self._stillborn + 1
        worker_lost(worker, self._dispatch, self._out, status, max_rss)
        if self._stillborn >= _STILLBORN_MAX:
            self._stillborn = 0
            self._give_up(inquest.stillborn(worker.pid, status, worker.output.rest()))
        self._forget(worker)
        self._go_on()

    def _nest_lost(self) -> None:
        """The nursery is dead, and all workers with it. No task did that: what had begun begins again."""
        nest, self._nest = self._nest, None
        for worker in self._workers.values():
            worker.receive()
            self._collect(worker)
        again = begun(list(self._workers.values()))
        for worker in list(self._workers.values()):
            worker_lost(worker, self._dispatch, self._out, None, 0)
            self._forget(worker)
        if not self._closing and nest is not None:
            if nest.ready:
                self._unready = 0
                what = (
                    f"begun again: {', '.join(again[:8])}{', …' if len(again) > 8 else ''}"
                    if again
                    else "no task was running"
                )
                _log.warning("the process that starts workers was killed, and they with it; %s", what)
            else:
                self._preload = ()  # that may be what it died of
                self._unready += 1
                if self._unready >= _UNREADY_MAX:
                    self._unready = 0
                    said = f": {nest.last_words}" if nest.last_words else ""
                    reason = f"the process that starts workers dies while it starts{said}"
                    self._give_up(inquest.no_worker(reason, inquest.no_start()))
                self._fork_again_in(_FORK_AGAIN * 4**self._unready)
        self._go_on()

    def _give_up(self, problem: Callable[[Job], Report]) -> None:
        """No worker can be had: everything that waits for one has crashed."""
        self._out += [problem(job) for job in self._dispatch.give_up()]

    # ── news ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _readable(self, worker: WorkerHandle) -> None:
        if not worker.receive():
            self._loop.remove_reader(worker.sock)  # dead, as a rule: that will be told when it is reaped
            worker.deaf = True
        news = False
        for each in list(
            self._workers.values()
        ):  # a turn costs as much as several jobs: let it do for all that have answered
            if each.page.results.news:
                self._collect(each)
                news = True
        if worker.deaf:
            self._give_notice(worker)
        elif not worker.let_go() and not news:
            return
        self._go_on()

    def _collect(self, worker: WorkerHandle) -> None:
        """Read what `worker` has answered."""
        if not self._answers.collect(worker, self._out) and not worker.broken:
            _log.warning(
                "a task has written into the memory by which its worker answers (%s); it is replaced", worker.name
            )
            worker.broken = worker.ending = True
            self._signal(worker.wid, SIGKILL)
        if worker.deaf:
            self._give_notice(worker)

    def _give_notice(self, worker: WorkerHandle) -> None:
        """A worker that cannot hear us any more, or that we cannot hear: no more jobs, and the end when it has answered."""
        worker.ending = True
        if not worker.flights:
            self._signal(worker.wid, SIGKILL)
        elif len(worker.flights) > 1 and worker.limit == NO_LIMIT:
            self._stopping.take_back(worker, worker.flights[1].number)

    def _go_on(self) -> None:
        """End a turn."""
        out = self._out
        try:
            if self._dispatch.waiting:
                given = self._dispatch.give(out)
                # Also when nothing could be given: a worker whose ring was full does not tell when there is room again.
                if self._ticking is None or (given and self._pace > _TICK):
                    self._tick_in(_TICK)
                if given and POLLING and self._watched is None and (single := self._single()) is not None:
                    self._watch(single)
                    self._loop.call_soon(self._spin)
            if self._book.news:
                self._free()
        finally:
            if out:
                reports = out[:]
                out.clear()
                self._deliver(reports)
                self._quiet.set()

    def _free(self) -> None:
        """Tell workers which of their chunks, and which arenas of others, nobody reads any more."""
        for kind, lists in ((FREE, self._book.to_free()), (DROP, self._book.to_drop())):
            for wid, what in lists.items():
                worker = self._workers.get(wid)
                if worker is not None:
                    for first in range(0, len(what), _LISTED):
                        worker.later.append((kind, what[first : first + _LISTED]))
                    worker.send_later()
                    worker.wake()

    def _chunks_ended(self) -> None:
        """Values were let go of. Any thread; while jobs are out, their turns see to it."""
        if not self._flights:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and everything with it
                self._loop.call_soon_threadsafe(self._go_on)

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

    def _watch(self, worker: WorkerHandle | None) -> None:
        """Begin to look for `worker`'s answers, or for nobody's. It is told: it then looks for its next frame in the same way."""
        before, self._watched = self._watched, worker
        if before is worker:
            return
        if before is not None and not before.closed:
            before.page.cells[WATCHED] = 0
        if worker is not None:
            worker.page.cells[WATCHED] = 1

    def _spin(self) -> None:
        """Wait for the one frame that is out without going to sleep: half of what a link of a chain costs is waking up.

        At first here, for `_SPIN` ns, which the loop does not notice; then, for jobs known to last longer, by a look at
        every turn of the loop, in which everything else has its turn too.
        """
        burst = monotonic_ns() + _BURST
        while (worker := self._single()) is not None:
            self._watch(worker)
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
                        self._watch(None)  # its wake-up will be seen by the loop
                    return
                sched_yield()
            self._collect(worker)
            self._go_on()
            if monotonic_ns() > burst:
                self._loop.call_soon(self._spin)
                return
        self._watch(None)

    # ── the tick ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _tick_in(self, pace: float) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        self._pace = pace
        self._ticking = self._loop.call_later(pace, self._tick)

    def _tick(self) -> None:
        """Look at the pages: what has begun, what runs long, what has a timeout, what was not told of."""
        self._ticking = None
        self._weighing = False
        settled = True
        for worker in list(self._workers.values()):
            self._collect(worker)
            worker.send_arenas()
            worker.send_later()
            worker.let_go()
            if worker.flights:
                settled = self._look_at(worker) and settled
        self._go_on()
        if self._ticking is None and self._flights:
            slowest = _WATCH if self._weighing else _LAST_TICK
            self._tick_in(min(self._pace * 2, slowest) if settled else _TICK)

    def _look_at(self, worker: WorkerHandle) -> bool:
        """One worker with jobs. Whether there is nothing more to find out about the one that runs."""
        running = worker.running()
        now = monotonic_ns()
        if running is None:
            if worker.pid and now - worker.given_at > _UNMOVED and stopped(worker.pid):
                self._signal(worker.wid, SIGKILL)  # somebody has stopped it; others will do its jobs
            return False
        flight, since = running
        if flight.job.timeout is not None:
            self._stopping.keep_time(worker, flight)
        if flight.job.memory:
            self._weighing = True
            self._stopping.keep_memory(worker, flight)
        begun_at = worker.begun()
        if not flight.told and begun_at != NEVER and now - begun_at > _TELL:
            flight.told = True
            self._out.append(Report(flight.job.ref, STARTED, begun_at, worker=worker.name))
        alone = len(worker.flights) == 1 or worker.limit != NO_LIMIT
        if not alone and now - since > _LONG:
            self._stopping.take_back(worker, worker.flights[1].number)
            alone = True
        worker.output.relieve(idle=False)
        return flight.told and alone
